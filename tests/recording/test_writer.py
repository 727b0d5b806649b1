"""A recording takes its place whole, once, from one process at a time; what is on disk is plain."""

from __future__ import annotations

import os
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.base import files as base_files
from nest_ssl.base import tensor_writer
from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import tensors
from nest_ssl.recording import layout as files
from nest_ssl.recording.reader import open_recording
from nest_ssl.recording.tensors import check_storable, tensor_digest
from nest_ssl.recording.writer import RecordingWriter, check_target

from .conftest import TRAINER


def fill(writer: RecordingWriter, value: Any = 1.0) -> RecordingWriter:
    writer.save_text(files.CONFIG, "seed: 1\n")
    writer.save_builtins(files.STRUCTURE, {"modules": []})
    writer.save_tensors(files.INITIAL_WEIGHTS, {"w": torch.full((3,), value) if isinstance(value, float) else value})
    return writer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("end", ["finish", "abort", "raise"])
def test_once_and_nothing_left_beside(tmp_path: Path, end: str) -> None:
    writer = RecordingWriter(tmp_path / "run")
    assert names(tmp_path) == [".run.lock", base_files.partial_path(tmp_path / "run").name]
    if end == "raise":
        with pytest.raises(ZeroDivisionError), fill(writer):
            raise ZeroDivisionError
    elif end == "finish":
        with fill(writer):
            assert writer.finish({"trainer": TRAINER}) == writer.finish({}) == tmp_path / "run"
    for _ in range(2):
        writer.abort()
    assert names(tmp_path) == (["run"] if end == "finish" else [])


def test_two_do_not_record_into_one_place(tmp_path: Path) -> None:
    with fill(RecordingWriter(tmp_path / "run")) as writer:
        with pytest.raises(UserError, match=rf"this process writes here already \(recording, pid {os.getpid()}@"):
            RecordingWriter(tmp_path / "run")
        writer.finish({"trainer": TRAINER})
    with RecordingWriter(tmp_path / "run", overwrite=True):
        pass
    assert open_recording(tmp_path / "run").index.trainer.name == "test"


def test_a_killed_one_is_cleared_by_the_next(
    tmp_path: Path, python: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = "import os, sys, torch; from nest_ssl.recording import spill\n"
    script += "from nest_ssl.recording.writer import RecordingWriter as W\n"
    script += "writer, spill.PIECE = W(sys.argv[1]), 1; writer.save_text('config.yaml', 'x')\n"
    script += "writer.spill('step_0/layer_outputs.pkl').put(torch.ones(9)); os._exit(9)"
    (program := tmp_path_factory.mktemp("killed") / "program.py").write_text(script)
    assert subprocess.run([python, program, tmp_path / "run"]).returncode == 9
    assert len(names(tmp_path)) == 2, "the half-written folder and the lock"
    with fill(RecordingWriter(tmp_path / "run")) as writer:
        assert len(names(tmp_path)) == 2
        writer.finish({"trainer": TRAINER})
    assert names(tmp_path) == ["run"]


def test_one_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """Killed between two renamings, on a system that cannot exchange two names in one step."""
    with fill(RecordingWriter(tmp_path / "run")) as writer:
        writer.finish({"trainer": TRAINER})
    aside = base_files.partial_path(tmp_path / "run").name.replace(".partial-", ".replaced-")
    (tmp_path / "run").rename(tmp_path / aside)
    with pytest.raises(UserError, match="overwrite=true"):
        RecordingWriter(tmp_path / "run")
    assert names(tmp_path) == ["run"] and open_recording(tmp_path / "run").config == {"seed": 1}


def test_there_is_a_whole_recording_at_every_moment(tmp_path: Path) -> None:
    missing, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            missing.append(not (tmp_path / "run" / files.INDEX).exists())

    with fill(RecordingWriter(tmp_path / "run")) as writer:
        writer.finish({"trainer": TRAINER})
    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        with fill(RecordingWriter(tmp_path / "run", overwrite=True)) as writer:
            writer.finish({"trainer": TRAINER})
    stop.set()
    watcher.join()
    assert len(missing) > 20 and not any(missing)


def test_facts_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"steps\.0\.epoch: .*integer"),
        fill(RecordingWriter(tmp_path / "run")) as writer,
    ):
        writer.finish({"trainer": TRAINER, "steps": {"0": {"epoch": "x"}}})
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda: torch.ones(1).expand(3), [1, 1, 1]),
        (lambda: torch.eye(2).to_sparse(), [[1, 0], [0, 1]]),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.quint8), [1, 1]),
        (lambda: torch.nn.Parameter(torch.ones(1)), [1]),
        (lambda: torch.tensor([1 + 2j]).conj(), [1 - 2j]),
        (lambda: torch.ones(2, requires_grad=True)[1:] * 2, [2]),
    ],
)
def test_tensors_of_any_kind_are_stored_plainly(tmp_path: Path, make: Any, values: Any) -> None:
    with fill(RecordingWriter(tmp_path / "run"), make()) as writer:
        writer.finish({"trainer": TRAINER})
    stored = open_recording(tmp_path / "run").initial_weights()["w"]
    check_storable(stored, 1)
    assert stored.tolist() == values


def test_one_tensor_in_two_places_is_stored_once(tmp_path: Path) -> None:
    shared, wide = torch.ones(1000), torch.ones(1).expand(1000)
    with fill(RecordingWriter(tmp_path / "run")) as writer:
        writer.save_tensors("step_0/batch.pt", [shared, shared, wide, wide])
        writer.finish({"trainer": TRAINER})
    a, b, c, d = torch.load(tmp_path / "run/step_0/batch.pt", weights_only=True)
    assert a is b and c is d and (tmp_path / "run/step_0/batch.pt").stat().st_size < 11_000


def test_what_waits_to_be_hashed_is_of_two_steps_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, hashed = threading.Event(), []
    monkeypatch.setattr(
        "nest_ssl.recording.writer.tensor_digest", lambda each: (gate.wait(30) and hashed.append(float(each))) or "0"
    )
    with RecordingWriter(tmp_path / "run") as writer:
        for step in (0, 1):
            writer.save_tensors(f"step_{step}/batch.pt", torch.tensor(float(step)), owned=True)
            writer.keep_up() if step == 0 else None
        assert not hashed, "of the last step nothing is waited for"
        threading.Timer(0.05, gate.set).start()
        writer.keep_up()
        assert 0.0 in hashed


def test_each_file_is_waited_for_once_however_many_steps_there_are(tmp_path: Path) -> None:
    """What keeping up takes is counted in looks at files, per step: it must not grow with the steps before."""

    class Counted(dict[str, Any]):
        looks = 0

        def __getitem__(self, name: str) -> Any:
            type(self).looks += 1
            return super().__getitem__(name)

        def values(self) -> Any:
            type(self).looks += len(self)
            return super().values()

    taken = []
    with RecordingWriter(tmp_path / "run") as writer:
        writer._written = Counted()
        for step in range(40):
            before = Counted.looks
            for number in range(3):
                writer.save_tensors(f"step_{step}/{number}.pt", torch.ones(1), owned=True)
            writer.keep_up()
            writer.wait(hashed=False)
            taken.append(Counted.looks - before)
    assert 0 < max(taken[2:]) <= 30  # three files a step: 120 would be looked at by the last


def test_tensors_are_written_and_read_whatever_the_default_device_is(tmp_path: Path) -> None:
    with fill(RecordingWriter(tmp_path / "run")) as writer, torch.device("meta"):
        writer.save_tensors("step_0/batch.pt", torch.ones(3, device="cpu"))
        writer.finish({"trainer": TRAINER})


def test_what_goes_wrong_in_the_background_is_said(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    with RecordingWriter(tmp_path / "run") as writer:
        writer.save_tensors("step_0/batch.pt", full, owned=True)
        with pytest.raises(UserError, match="step_0/batch.pt"):
            writer.wait()
        with pytest.raises(UserError, match="step_0/batch.pt"):  # and training does not go on for nothing
            writer.save_text("step_0/rng.json", "{}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])  # of the latter torch writes the file
@pytest.mark.parametrize("most", [None, 100])  # bytes from which on a zip has wider fields: four billion are too many
def test_tensors_are_stored_as_torch_stores_them(
    tmp_path: Path, dtype: torch.dtype, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if most:
        monkeypatch.setattr(tensor_writer, "MOST", most)
        monkeypatch.setattr(tensor_writer, "MOST_RECORDS", 5)
    base, large = torch.arange(6.0), torch.randn(1 << 19)
    value = {"x": [base, base, base[2:4]], "y": torch.ones(2, 3, dtype=dtype).t(), "z": {"n": 1, "": "日本"},
             "w": [large, large[7:], torch.zeros(0), torch.tensor(True), [1.5, -(2**40)], {}]}  # fmt: skip
    (tmp_path / "torch").mkdir()
    torch.save(value, tmp_path / "torch" / "batch.pt")
    with fill(RecordingWriter(tmp_path / "run")) as writer:
        writer.save_tensors("step_0/batch.pt", value, owned=True)
        writer.finish({"trainer": TRAINER})
    path = tmp_path / "run/step_0/batch.pt"
    records = []
    for file in (path, tmp_path / "torch" / "batch.pt"):
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            named = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
            records.append({name: content for name, content in named.items() if name[0] != "."})
    assert records[0] == records[1], "the pickle and every storage"
    for found in (torch.load(path, weights_only=True), torch.load(path, weights_only=True, mmap=True)):
        stored = dict(tensors(found))
        assert all(torch.equal(stored[place], tensor) for place, tensor in tensors(value)) and len(stored) == 8
    assert open_recording(tmp_path / "run").index.tensors["step_0/batch.pt"]["w.1"].digest == tensor_digest(large[7:])


@pytest.mark.parametrize("wording", ["PytorchStreamWriter failed writing file", "basic_ios::clear: iostream error"])
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wording: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(wording)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="could not write"), RecordingWriter(tmp_path / "run") as writer:
        writer.save_tensors("step_0/batch.pt", {"x": torch.ones(1, dtype=torch.complex64)})
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line_where_torch_does_not_write(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        tensor_writer.write_tensors(Path("/dev/full"), {"x": torch.ones(1 << 20)})


def test_the_root_of_all_folders_is_no_place_for_a_recording() -> None:
    with pytest.raises(UserError, match="holds files that are no recording|permission denied|read-only"):
        check_target(Path("/"), overwrite=True)
