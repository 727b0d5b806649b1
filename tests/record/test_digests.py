"""Level `digest`: tensors hashed at once, by threads and on a device, and recordings of such hashes."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn

import nest_ssl
from nest_ssl.base.errors import UserError
from nest_ssl.compare.digests import compare_digests
from nest_ssl.record.observers.digests import Digests, Hashing, Stage, Staged
from nest_ssl.recording.address import Kind
from nest_ssl.recording.digests import StepDigests, digests, fingerprint
from nest_ssl.recording.reader import open_recording
from tests.record.loop import recorded_step
from tests.record.test_levels import STEPS, train


def test_a_fingerprint_depends_on_place_and_sees_what_is_no_number() -> None:
    made = fingerprint(torch.tensor([3.0, -4.0, torch.nan]))
    assert (made.least, made.most, made.norm, made.nans) == (-4.0, 3.0, 5.0, 1)
    assert not made.same(fingerprint(torch.tensor([-4.0, 3.0, torch.nan])))
    large = torch.arange(200_000.0).reshape(2, 4, -1)  # of several pieces, and not contiguous
    turned = large.transpose(0, 1)
    assert fingerprint(turned).same(fingerprint(turned.contiguous()))
    assert fingerprint(large).norm == pytest.approx(float(large.double().norm())) and fingerprint(large).most == 199_999
    assert not fingerprint(large).same(fingerprint(large.reshape(8, -1)))
    assert fingerprint(torch.zeros(0)).nans == 0 and fingerprint(torch.tensor([True])).most == 1
    assert (
        fingerprint(torch.full((2,), torch.nan)).nans == 2
        and fingerprint(torch.ones(2, dtype=torch.bfloat16)).most == 1
    )


@pytest.mark.parametrize("room", [0, 1 << 17, 1 << 20])
@pytest.mark.parametrize("remote", [False, True])
def test_a_thread_hashes_what_was_there(room: int, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied, on a device too, and hashed while training goes on; or at once, where there is no room for the copy."""
    monkeypatch.setattr("nest_ssl.record.observers.digests.remote", lambda tensor: remote)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    big = torch.randn(2, 100, 100)
    given = [big.clone(), big.transpose(1, 2), big.bfloat16(), big > 0, torch.view_as_complex(big.view(-1, 2)).conj(),
             big[0], torch.zeros(0), big.flatten()[1:].clone(), big.to_sparse()]  # fmt: skip
    wanted = [fingerprint(tensor) for tensor in given]
    given[0] = given[0].clone()
    with ThreadPoolExecutor(2) as pool:
        gate = pool.submit(time.sleep, 0.02)
        hashing = Hashing(lambda job: pool.submit(lambda: gate.result() or job()), room)
        for _ in range(3):
            found = [hashing.of(tensor) for tensor in given]
            before = given[0].clone()
            given[0].zero_()
            for stage in hashing.stages.values():
                stage.flush()
            made = [each.result() if isinstance(each, Future) else each for each in found]
            norms = [each.norm for each in made]
            assert norms == pytest.approx([each.norm for each in wanted], rel=1e-12)
            assert [replace(each, norm=0.0) for each in made] == [replace(each, norm=0.0) for each in wanted]
            given[0].copy_(before)
    assert any(isinstance(each, Staged) for each in found) == remote
    assert any(type(each) is Future for each in found) == (room > 0)


def test_a_device_finds_what_a_cpu_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row on a stage that is filled many times in a step; and twice the same is one file."""
    on_cpu = [train(tmp_path / name, record="digest")[0] for name in ("one", "two")]
    monkeypatch.setattr("nest_ssl.record.observers.digests.remote", lambda _: True)
    staged: list[Staged] = []
    of = Hashing.of
    monkeypatch.setattr(Hashing, "of", lambda self, tensor: staged.append(made := of(self, tensor)) or made)
    monkeypatch.setattr(Hashing.__init__, "__defaults__", (1 << 28, 1 << 16))
    there = [train(tmp_path / f"there_{name}", record="digest")[0] for name in ("one", "two")]
    assert len([one for one in staged if type(one) is Staged]) > 500
    for pair in (on_cpu, there):
        for step in range(STEPS):
            one, two = ((side.path / f"step_{step}" / "digests.json").read_bytes() for side in pair)
            assert one == two and json.loads(one)["hash"] == "row_sums"
    for one, other in ((on_cpu[0], there[0]), (there[1], on_cpu[1])):
        assert compare_digests(one, other).first is None
    found = compare_digests(on_cpu[0], train(tmp_path / "other", fault=7, record="digest")[0])
    assert found.first and (found.first.step, found.first.address.module) == (7, "layers.1")


def test_a_stage_is_hashed_in_the_stream_in_which_it_was_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward may have another than the one that is current when the step ends."""
    entered: list[object] = []
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: entered.append(stream) or nullcontext())
    stream: Any = object()
    stage = Stage(torch.float32, torch.device("cpu"), stream, 1 << 13)
    found = [stage.of(torch.full((size,), float(size))) for size in (2, 3)]
    assert entered == [stream], "full, and so hashed before the second"
    stage.flush()
    stage.flush()
    assert entered == [stream] * 2 and [each.result().most for each in found] == [2.0, 3.0]


def test_hashes_of_before_are_compared_among_themselves_and_never_with_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = train(tmp_path / "new", steps=3, record="digest")[0]
    with monkeypatch.context() as patch:
        patch.setattr(StepDigests, "model_dump_json", lambda self: BaseModel.model_dump_json(self, exclude={"hash"}))
        old, same, other = (train(tmp_path / name, fault, steps=3, record="digest")[0]
                            for name, fault in (("old", None), ("same", None), ("fault", 1)))  # fmt: skip
    assert "hash" not in json.loads((old.path / "step_0" / "digests.json").read_text())
    assert compare_digests(old, same).first is None
    found = compare_digests(old, other).first
    assert found and (found.step, found.address.module) == (1, "layers.1")
    for sides in ((old, new), (new, old), (new, other)):
        with pytest.raises(UserError, match="hashes of two kinds in step 0, .*: sha256.*Record the side again"):
            compare_digests(*sides)


def test_a_hash_of_no_known_kind_is_one_line(tmp_path: Path) -> None:
    given = train(tmp_path / "new", steps=1, record="digest")[0]
    path = given.path / "step_0" / "digests.json"
    path.write_text(path.read_text().replace("row_sums", "md5"))
    with pytest.raises(UserError, match="digests.json: .*hash"):
        compare_digests(given, given)


def test_what_is_not_finite_is_read_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        with nest_ssl.recording(tmp_path / name, model, record="digest") as r:
            x = torch.tensor([[1.0, -torch.inf], [torch.inf, torch.nan]])
            r.batch(x)
            recorded_step(r, model, torch.optim.SGD(model.parameters(), lr=0.1), x)
    one, two = (open_recording(tmp_path / name) for name in ("one", "two"))
    assert compare_digests(one, two).first is None
    (batch,) = (found for place, found in digests(one, 0).entries() if place.kind == Kind.FIELD)
    assert (batch.least, batch.most, batch.norm, batch.nans) == (-torch.inf, torch.inf, torch.inf, 1)


def test_a_single_number_of_a_column_and_of_inference_mode_is_hashed() -> None:
    one = torch.arange(2).view(1, 2)[:, 0]
    assert one.stride() == (2,) and fingerprint(one) == fingerprint(torch.tensor([0]))
    with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
        kept, large = Digests(Hashing(pool.submit)), torch.ones(1 << 15)
        before = kept.copy(large)
        large.zero_()  # which torch does not count
        found = [each.result() if isinstance(each, Future) else each for each in (before, kept.copy(large))]
    assert [each.most for each in found] == [1.0, 0.0]


def test_what_inference_mode_shows_again_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it was edited, another tensor, or there is no room for a copy to compare it with."""
    hashed: list[int] = []
    monkeypatch.setattr(Hashing, "of", lambda self, tensor: hashed.append(tensor.numel()) or len(hashed))
    with torch.inference_mode():
        kept, large, other = Digests(Hashing(lambda job: Future())), torch.ones(1 << 15), torch.ones(1 << 15)
        seen = [kept.copy(each) for each in (large, large, other, other, large)]
        large[7] = -0.0
        seen += [kept.copy(large), kept.copy(large)]
        large[7] = 0.0
        seen.append(kept.copy(large))
        kept._spare = 0
        large[7] = 1.0
        seen += [kept.copy(large), kept.copy(large)]
        assert seen == [1, 1, 2, 2, 1, 3, 3, 4, 5, 6]
        kept, bent = Digests(Hashing(lambda job: Future())), torch.fft.rfft(torch.ones(1 << 15)).conj().imag
        assert bent.is_neg() and [kept.copy(bent), kept.copy(bent)] == [7, 7]
        monkeypatch.setattr("nest_ssl.record.observers.digests.same_bits", lambda *_: torch.ones(2, 2).view(3))
        assert kept.copy(bent) == 8, "what torch does not compare"
