"""What hooks keep is on the disk while the step runs: memory has a bound, and what is recorded has the same bits."""

from __future__ import annotations

import hashlib
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import nest_ssl
from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import leaves
from nest_ssl.base.safe_load import load_tensors
from nest_ssl.base.tensor_writer import TensorFile
from nest_ssl.compare import compare_recordings
from nest_ssl.compare.findings import Status
from nest_ssl.record.observers.copies import Copies
from nest_ssl.record.session import COPIED
from nest_ssl.recording import layout as files
from nest_ssl.recording import spill
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.recording.spill import Spill
from nest_ssl.recording.tensors import tensor_digest
from nest_ssl.recording.writer import RecordingWriter
from tests.record.loop import recorded_step

CALLS = f"step_0/{files.CALLS}"
WIDTH, ROWS, LAYERS = 16, 64, 40
OUTPUT = WIDTH * ROWS * 4  # bytes of one


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little may wait: two outputs make a piece, four fill the room, and no more memory is free."""
    monkeypatch.setattr(spill, "PIECE", 2 * OUTPUT)
    monkeypatch.setattr(spill, "ROOM", 4 * OUTPUT)
    monkeypatch.setattr("nest_ssl.record.session.room", lambda device: 0)


class Deep(nn.Module):
    """Every second layer edits in place what the one before returned: as many contents as calls, and as many gradients.

    Args:
        complex: whether what one more module returns is of a type that torch has to write.
    """

    def __init__(self, complex: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.ReLU(True) if n % 2 else nn.Linear(WIDTH, WIDTH) for n in range(LAYERS))
        self.last = nn.Identity()
        self.last.register_forward_hook(lambda _, __, output: torch.complex(output, output) if complex else None)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        self.last(x.detach())
        return x


def record(out: Path, steps: int = 1, model: nn.Module | None = None, **settings: Any) -> Recording:
    model = Deep() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with nest_ssl.recording(out, model, **settings) as r:
        for step in range(steps):
            x = torch.linspace(-1, 1 + step, ROWS * WIDTH).reshape(ROWS, WIDTH)
            r.batch(x)
            recorded_step(r, model, optimizer, x)
    return open_recording(out)


def contents(recording: Recording) -> list[tuple[str, Any]]:
    """Every value of its calls, a tensor as all that there is to it; and as torch reads it, mapped or not."""

    def shown(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.dtype, leaf.stride(), torch.view_as_real(leaf).tolist() if leaf.is_complex() else leaf.tolist()

    path = recording.path / CALLS
    read = (load_tensors(path), load_tensors(path, mapped=True), torch.load(path, weights_only=True),
            torch.load(path, weights_only=True, mmap=True))  # fmt: skip
    first, *others = ([(place, shown(leaf)) for place, leaf in leaves(value)] for value in read)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("complex", [False, True])
def test_the_recording_is_that_of_a_step_that_fits_in_memory(
    tmp_path: Path, complex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = record(tmp_path / "whole", 2, Deep(complex))
    monkeypatch.setattr(spill, "PIECE", 2 * OUTPUT)
    monkeypatch.setattr(spill, "ROOM", 4 * OUTPUT)
    put: list[int] = []
    end = Spill.end
    monkeypatch.setattr(Spill, "end", lambda self, value: put.append(len(self._added)) or end(self, value))
    spilled = record(tmp_path / "spilled", 2, Deep(complex))
    assert len(put) == 2 and min(put) > LAYERS, "most of it was on the disk before the step ended"
    assert spilled.index.tensors == whole.index.tensors and list(spilled.index.files) == list(whole.index.files)
    assert contents(spilled) == contents(whole) and len(contents(whole)) > 10 * LAYERS
    named = [name for name in whole.index.files if name.endswith(".pt")]
    assert len(named) > 10 and all(whole.index.files[n].sha256 == spilled.index.files[n].sha256 for n in named)
    with zipfile.ZipFile(spilled.path / CALLS) as archive:
        assert archive.testzip() is None
    assert hashlib.sha256((spilled.path / CALLS).read_bytes()).hexdigest() == spilled.index.files[CALLS].sha256
    assert compare_recordings(whole, spilled).verdict is Status.IDENTICAL


@pytest.mark.usefixtures("small")
def test_it_is_recorded_again_byte_for_byte(tmp_path: Path) -> None:
    one, other = (record(tmp_path / name) for name in ("one", "other"))
    assert one.index.files[CALLS].sha256 == other.index.files[CALLS].sha256


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("slow", "free"), [("", 0), ("writing", 0), ("hashing", 0), ("writing", 30 * OUTPUT)])
def test_what_is_held_has_a_bound(tmp_path: Path, slow: str, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of copies that are alive, as torch counts them, each time that one more is made; as many as there is room
    for beside copies of weights, gradients and moments, so that training waits for a slow disk only where memory is
    short."""
    monkeypatch.setattr("nest_ssl.record.session.room", lambda device: free)
    made: list[tuple[StorageWeakRef, int]] = []
    held: list[int] = []
    put, add = Spill.put, TensorFile.add

    def counted(self: Spill, tensor: Tensor) -> None:
        made.append((StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()))
        put(self, tensor)
        held.append(sum(size for storage, size in made if not storage.expired()))

    monkeypatch.setattr(Spill, "put", counted)
    if slow == "writing":
        monkeypatch.setattr(TensorFile, "add", lambda self, given: time.sleep(0.01) or add(self, given))
    if slow == "hashing":
        digest = "nest_ssl.recording.writer.tensor_digest"
        monkeypatch.setattr(digest, lambda tensor: time.sleep(0.002) or tensor_digest(tensor))
    record(tmp_path / "run")
    assert sum(size for _, size in made) > 80 * OUTPUT
    room = max(spill.ROOM, free - COPIED * sum(each.numel() * each.itemsize for each in Deep().parameters()))
    assert max(held) <= room + spill.PIECE + OUTPUT
    assert max(held) > room or slow != "writing"


@pytest.mark.usefixtures("small")
def test_an_edit_is_seen_of_what_is_on_the_disk_by_then(tmp_path: Path) -> None:
    tensor = torch.zeros(WIDTH)
    with RecordingWriter(tmp_path / "run") as writer:
        place = writer.spill(CALLS)
        copies = Copies(place.put)
        first = copies.copy(tensor)
        where = first.data_ptr()
        for value in range(20):
            copies.copy(torch.full((ROWS, WIDTH), float(value)))
        assert first.data_ptr() != where and copies.copy(tensor) is first
        tensor.data[3] = 1
        assert copies.copy(tensor) is not first and first.tolist() == [0] * WIDTH


@pytest.mark.usefixtures("small")
def test_a_step_that_does_not_end_leaves_no_file(tmp_path: Path) -> None:
    model, x = Deep(), torch.ones(ROWS, WIDTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with nest_ssl.recording(tmp_path / "run", model) as r:
        r.batch(x)
        model(x)
        assert (r.writer.folder / CALLS).stat().st_size > 10 * OUTPUT
        for number in (1, 2):
            r.batch(x, number)
            recorded_step(r, model, optimizer, x)
    found = open_recording(tmp_path / "run")
    assert found.index.steps.keys() == {1, 2} and len(found.step(1).calls()) == LAYERS + 2
    assert {str(p.relative_to(found.path)) for p in found.path.rglob("*") if p.is_file()} == {
        *found.index.files, files.INDEX
    }  # fmt: skip


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("nth", [1, 5])
def test_a_full_disk_ends_the_step_in_a_line(tmp_path: Path, nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "run")
    before = (tmp_path / "run" / files.INDEX).read_bytes()
    calls: list[int] = []
    add = TensorFile.add

    def full(self: TensorFile, given: Any) -> list[int]:
        calls.append(1)
        if len(calls) == nth:
            raise OSError(28, "No space left on device")
        return add(self, given)

    monkeypatch.setattr(TensorFile, "add", full)
    with pytest.raises(UserError, match=rf"no space left on the disk: .*run/{CALLS}"):
        record(tmp_path / "run", overwrite=True)
    assert len(calls) < 20, "training did not go on for nothing"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / files.INDEX).read_bytes() == before


@pytest.mark.usefixtures("small")
def test_what_a_model_does_with_the_error_does_not_save_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> list[int]:
        raise OSError(28, "No space left on device")

    with RecordingWriter(tmp_path / "run") as writer:
        place = writer.spill(CALLS)
        monkeypatch.setattr(TensorFile, "add", full)
        for _ in range(20):
            with suppress(UserError):
                place.put(torch.ones(ROWS, WIDTH))
        writer.save_tensors(CALLS, {}, owned=True)
        with pytest.raises(UserError, match="no space left"):
            writer.wait()


@pytest.mark.usefixtures("small")
def test_operators_of_the_recorder_are_none_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spilled = record(tmp_path / "spilled", operators=True)
    monkeypatch.setattr(spill, "PIECE", 1 << 30)
    assert record(tmp_path / "whole", operators=True).step(0).operators() == spilled.step(0).operators()
