"""A recording is complete or it is none; what is damaged says so in one line; what is there is never lost."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.recording import layout as files
from nest_ssl.recording import reader
from nest_ssl.recording.reader import load_builtins, open_recording, open_recordings
from nest_ssl.recording.tensors import stored_alike, tensor_digest
from nest_ssl.recording.writer import RecordingWriter

TRAINER = {"name": "test", "package": "p", "version": "1", "class": "p.Model"}


def write(target: Path, value: float = 1.0, overwrite: bool = False) -> Path:
    writer = RecordingWriter(target, overwrite)
    writer.save_text(files.CONFIG, "seed: 1\n")
    writer.save_builtins(files.STRUCTURE, {"modules": []})
    writer.save_tensors(files.INITIAL_WEIGHTS, {"w": torch.full((3,), value), "n": torch.tensor(7)})
    return writer.finish({"trainer": TRAINER})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    recording = open_recording(write(tmp_path / "run"))
    assert recording.config == {"seed": 1} and recording.structure.modules == []
    assert recording.initial_weights()["w"].tolist() == [1.0, 1.0, 1.0]
    entry = recording.index.tensors[files.INITIAL_WEIGHTS]["w"]
    assert entry.model_dump() == {"shape": [3], "dtype": "float32", "digest": tensor_digest(torch.ones(3))}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing left beside it"


def test_files_of_the_same_bytes_hold_the_same_tensors(tmp_path: Path) -> None:
    """Known of those that were checked as a whole, and of what was read itself."""
    paths = [write(tmp_path / "one"), write(tmp_path / "two"), write(tmp_path / "other", 2.0)]
    one, two, other = (recording.initial_weights() for recording in open_recordings(paths))
    assert all(stored_alike(one[name], two[name]) for name in one)
    assert not stored_alike(one["w"], other["w"]) and not stored_alike(one["n"], other["n"]), "other files"
    assert not stored_alike(one["w"], two["n"]), "another place"
    assert not stored_alike(one["w"][:3], two["w"][:3]) and not stored_alike(one["w"].clone(), two["w"].clone())
    unchecked = open_recordings(paths[:2], verify=False)
    assert not stored_alike(*(recording.initial_weights()["w"] for recording in unchecked))


def test_whoever_stops_it_waits_for_no_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []

    def stopped(path: Path) -> str:
        begun.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(reader, "sha256_of", stopped)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    recordings = [write(tmp_path / str(number)) for number in range(100)]
    with pytest.raises(KeyboardInterrupt):
        open_recordings(recordings)
    assert len(begun) < 150, "of three files a recording"


def test_an_earlier_recording_is_replaced_only_when_told(tmp_path: Path) -> None:
    write(tmp_path / "run", 1.0)
    with pytest.raises(UserError, match="overwrite=true"):
        write(tmp_path / "run", 2.0)
    assert open_recording(tmp_path / "run").initial_weights()["w"][0] == 1.0
    write(tmp_path / "run", 2.0, overwrite=True)
    assert open_recording(tmp_path / "run").initial_weights()["w"][0] == 2.0


def test_a_folder_that_is_no_recording_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="no recording"):
        RecordingWriter(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_an_unfinished_run_leaves_the_earlier_recording(tmp_path: Path) -> None:
    write(tmp_path / "run", 1.0)
    writer = RecordingWriter(tmp_path / "run", overwrite=True)
    writer.save_text(files.CONFIG, "seed: 2\n")
    assert open_recording(tmp_path / "run").config == {"seed": 1}, "killed here, nothing is lost"
    writer.abort()
    assert open_recording(tmp_path / "run").config == {"seed": 1}


def test_a_half_written_recording_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    (path / files.INDEX).unlink()
    with pytest.raises(UserError, match="not a complete recording"):
        open_recording(path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recording: .*nowhere. Check the path; make nemo and make nest write"):
        open_recording(tmp_path / "nowhere")


def test_a_path_that_is_no_folder_is_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    with pytest.raises(UserError, match=f"a folder: {path}/recording.json is none. Give its folder: {path}$"):
        open_recording(path / files.INDEX)
    with pytest.raises(UserError, match=r"a folder: .*config\.yaml is none. Give the folder of a recording"):
        open_recording(path / files.CONFIG)
    with pytest.raises(UserError, match="not a complete recording: .* has no recording.json. Check the path; where"):
        open_recording(tmp_path)


def test_each_damage_has_its_own_advice(tmp_path: Path) -> None:
    """A bad copy is copied again; nothing has to be trained for it."""
    path = write(tmp_path / "run")
    content = (path / files.CONFIG).read_bytes()
    (path / files.CONFIG).write_bytes(content[1:])
    with pytest.raises(UserError, match=r"damaged recording: .* bytes, not .*\. Copy it again, or record it again"):
        open_recording(path)
    (path / files.CONFIG).unlink()
    with pytest.raises(UserError, match=r"config\.yaml is missing\. Copy it again, or"):
        open_recording(path)
    os.mkfifo(path / files.CONFIG)
    with pytest.raises(UserError, match=r"config\.yaml is no regular file\. Copy it again, or"):
        open_recording(path)
    (path / files.CONFIG).unlink()
    (tmp_path / files.CONFIG).write_bytes(content)
    (path / files.CONFIG).symlink_to(tmp_path / files.CONFIG)
    with pytest.raises(UserError, match=r"is outside its folder\. Copy the files themselves, not links to them, or"):
        open_recording(path)
    index = (path / files.INDEX).read_text()
    (path / files.INDEX).write_text(index.replace("nest-ssl-recording/2", "nest-ssl-recording/9"))
    with pytest.raises(UserError, match="Use the release of nest-ssl that wrote it, or record it again"):
        open_recording(path)


@pytest.mark.parametrize("name", [files.CONFIG, files.STRUCTURE, files.INITIAL_WEIGHTS])
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "run")
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        open_recording(path)


def test_a_truncated_file_is_found_without_hashing(tmp_path: Path) -> None:
    path = write(tmp_path / "run")
    (path / files.INITIAL_WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match="bytes, not"):
        open_recording(path, verify=False)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only plain builtins"):
        load_builtins(pickle.dumps({"x": Evil()}))
    assert not (tmp_path / "ran").exists()


class Evil:
    def __reduce__(self) -> tuple:
        return (eval, ("open('ran', 'w')",))


def test_digests_tell_what_is_on_disk_not_what_memory_became(tmp_path: Path) -> None:
    weight = torch.ones(4)
    writer = RecordingWriter(tmp_path / "run")
    writer.save_text(files.CONFIG, "{}\n")
    writer.save_builtins(files.STRUCTURE, {})
    writer.save_tensors(files.INITIAL_WEIGHTS, {"w": weight})
    weight.mul_(2)  # training goes on while the digest is computed
    path = writer.finish({"trainer": TRAINER})
    entry = open_recording(path).index.tensors[files.INITIAL_WEIGHTS]["w"]
    assert entry.digest == tensor_digest(torch.ones(4))
