"""The same content is kept once, a changed one again, whoever changed it and however."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from threading import current_thread
from typing import Any

import pytest
import torch

from nest_ssl.record import session as session_of_steps
from nest_ssl.record.observers.copies import Copies, same_bits
from nest_ssl.record.session import Session
from nest_ssl.recording.calls import Call
from nest_ssl.recording.writer import THREADS
from tests.record.test_levels import train


def test_an_unchanged_tensor_is_kept_once_and_an_edited_one_again() -> None:
    copies, tensor = Copies(), torch.ones(3)
    first = copies.copy(tensor)
    assert copies.copy(tensor) is first
    tensor.data[0] = 2.0  # leaves no trace in the version
    second = copies.copy(tensor)
    assert first.tolist() == [1, 1, 1] and second.tolist() == [2, 1, 1]


def test_an_address_that_is_used_again_is_another_tensor() -> None:
    copies = Copies()
    for value in range(50):
        assert copies.copy(torch.full((4,), float(value))).tolist() == [value] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64,
                                   torch.complex128, torch.int64, torch.int8, torch.bool])  # fmt: skip
def test_bits_of_every_type(dtype: torch.dtype) -> None:
    tensor, other = torch.tensor([0, 1, 1]).to(dtype), torch.tensor([0, 1, 0]).to(dtype)
    for made in (torch.Tensor.clone, lambda t: torch.stack([t, t]).t()[:, 1], lambda t: t.reshape(3, 1).expand(3, 2)):
        assert same_bits(made(tensor), made(tensor).clone()) and same_bits(made(tensor).contiguous(), made(tensor))
        assert not same_bits(made(tensor), made(other).contiguous())  # wherever it lies in memory
    assert same_bits(tensor[:0], other[:0])


def test_a_tensor_whose_negation_is_pending_is_kept_like_any_other() -> None:
    """What spectra hand on: torch negates it when it is read, and lets no view be taken of its bits until then."""
    seen = torch.fft.rfft(torch.arange(8.0)).conj()
    assert seen.imag.is_neg() and not seen.real.is_neg()
    for one in (seen.imag, seen):
        copies = Copies()
        first = copies.copy(one)
        assert copies.copy(one) is first and same_bits(one, first) and not same_bits(one, -first)


def test_nan_is_itself_and_minus_zero_is_not_zero() -> None:
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    apart = torch.tensor([[torch.nan, 1.0], [0.0, 1.0]])[:, 0]  # and what lies in a column
    assert same_bits(apart, apart.clone()) and not same_bits(apart, torch.tensor([torch.nan, -0.0]))


@pytest.mark.parametrize("other", [torch.zeros(2, 3), torch.zeros(6), torch.zeros(3, 2, dtype=torch.float64)])
def test_another_shape_or_type_is_another_content(other: torch.Tensor) -> None:
    assert not same_bits(torch.zeros(3, 2), other)


def test_strides_are_no_content() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert same_bits(matrix.t(), matrix.t().contiguous())


def test_the_last_call_that_returned_a_tensor_is_its_producer() -> None:
    copies, tensor, other = Copies(), torch.ones(3), torch.zeros(3)
    copies.returned(copies.keep((tensor, other)), 4)
    copies.returned(copies.keep({"y": tensor}), 7)
    inputs = copies.keep({"x": [tensor, torch.ones(3)], "z": other})
    assert copies.producers(inputs) == {"x.0": (7, "y"), "z": (4, "1")}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is taken for one on a device with room for ten floats in its copies."""
    monkeypatch.setattr("nest_ssl.record.observers.copies.remote", lambda tensor: True)
    monkeypatch.setattr("nest_ssl.record.observers.copies.room", lambda device: 40)


def call(index: int, given: torch.Tensor, output: torch.Tensor) -> Call:
    return Call(index, f"m{index}", 0, True, [given], ["x"], {}, start=2 * index, end=2 * index + 1, output=output)


@pytest.mark.usefixtures("device")
def test_what_a_device_is_asked_is_settled_behind_the_step() -> None:
    copies, tensor, other = Copies(), torch.ones(2), torch.zeros(2)
    first, again = copies.copy(tensor), copies.copy(tensor)
    tensor.data[0] = 2.0  # behind the hook, and it leaves no trace in the version
    edited, same = copies.copy(tensor), copies.copy(tensor)
    tensor.add_(5)
    assert again is not first and len(copies._doubts) == 3
    calls = [call(0, copies.copy(other), first), call(1, again, edited), call(2, same, copies.copy(other))]
    copies.settled(calls)
    copies.trace(calls)
    assert first.tolist() == [1, 1] and edited.tolist() == [2, 1]
    assert calls[1].args[0] is first and calls[2].args[0] is edited and calls[2].output is calls[0].args[0]
    assert [each.producers for each in calls] == [{}, {"x": (0, "")}, {"x": (1, "")}]
    assert again.data_ptr() == first.data_ptr(), "the memory of the second copy is free again"


@pytest.mark.usefixtures("device")
def test_where_a_device_has_no_room_copies_come_at_once() -> None:
    copies, tensor = Copies(), torch.ones(8)
    first = copies.copy(tensor)
    assert copies.copy(tensor) is first and not copies._doubts
    tensor.add_(1)
    assert copies.copy(tensor).tolist() == [2] * 8 and first.tolist() == [1] * 8


def test_a_recording_of_a_device_is_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied there, compared there, written behind training: byte for byte what is written at once.

    As with torch's optimizers the numbers of steps stay on the CPU, and grow in place before they are written.
    """
    plain, _ = train(tmp_path / "plain", steps=3)
    threads: set[str] = set()
    for name in ("changes", "applied"):  # read what lies on the device: training does not wait for it
        made = getattr(session_of_steps, name)
        noted = functools.partial(lambda made, *given: threads.add(current_thread().name) or made(*given), made)
        monkeypatch.setattr(session_of_steps, name, noted)
    monkeypatch.setattr("nest_ssl.record.observers.copies.remote", lambda tensor: tensor.dim() > 0)
    monkeypatch.setattr("nest_ssl.record.observers.copies.room", lambda device: 1 << 30)
    monkeypatch.setattr("nest_ssl.recording.writer.after_what_is_queued", lambda job: lambda: time.sleep(0.03) or job())
    begin = Session.begin

    def begin_behind(session: Session, *arguments: Any) -> None:
        begin(session, *arguments)
        session._behind = session._remote = True

    monkeypatch.setattr(Session, "begin", begin_behind)
    behind, _ = train(tmp_path / "behind", steps=3)
    assert len(threads) == 1 and threads.pop().startswith(THREADS)
    assert list(plain.index.files) == list(behind.index.files) and plain.index.tensors == behind.index.tensors
    steps = [name for name in plain.index.files if name.endswith((".pt", ".pkl"))]
    assert len(steps) > 30 and all(plain.index.files[n].sha256 == behind.index.files[n].sha256 for n in steps)


def test_without_room_for_copies_the_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written behind training, while it goes on changing the model, is what is written at once."""
    job_later = "nest_ssl.recording.writer.after_what_is_queued"
    monkeypatch.setattr(job_later, lambda job: lambda: time.sleep(0.03) or job())
    behind, _ = train(tmp_path / "behind", steps=3)
    monkeypatch.setattr("nest_ssl.record.session.room", lambda device: 0)
    at_once, _ = train(tmp_path / "at_once", steps=3)
    assert behind.index.tensors == at_once.index.tensors
    steps = [name for name in behind.index.files if name.endswith((".pt", ".pkl"))]
    assert len(steps) > 30 and all(behind.index.files[n].sha256 == at_once.index.files[n].sha256 for n in steps)
