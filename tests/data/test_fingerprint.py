"""Hashes of the data."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data import files
from nest_ssl.data import fingerprint as module
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.fingerprint import DataRecord

Section = dict[str, Any]


def record_of(section: Section) -> DataRecord:
    return DataRecord({"train": Corpora().read(read(Dataset, section))})


def fingerprint(section: Section) -> dict[str, Any]:
    return record_of(section).describe()["train"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_names_and_hashes(section: Section, tmp_path: Path) -> None:
    got = fingerprint(section)
    assert got["manifests"] == [{"name": "manifest.json", "sha256": sha256(tmp_path / "manifest.json")}]
    assert got["audio"] == {name: sha256(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")}
    assert got["audio_hash"] == "full" and "noise" not in got


def test_noise_and_missing_files(section: Section, manifest: Callable[..., str]) -> None:
    noise = manifest({"audio_filepath": "a.wav"}, {"audio_filepath": "gone.wav"}, name="noise.json")
    got = fingerprint({**section, "noise_manifest": noise})["noise"]
    assert [m["name"] for m in got["manifests"]] == ["noise.json"]
    assert (list(got["audio"]), got["audio"]["gone.wav"]) == (["a.wav", "gone.wav"], None)


def test_same_data_elsewhere_has_the_same_fingerprint(section: Section, tmp_path: Path,
                                                      tmp_path_factory: pytest.TempPathFactory) -> None:  # fmt: skip
    copy = tmp_path_factory.mktemp("elsewhere") / "deep" / "copy"
    shutil.copytree(tmp_path, copy)
    assert fingerprint({**section, "manifest_filepath": str(copy / "manifest.json")}) == fingerprint(section)


def test_same_names_in_two_folders(section: Section, tmp_path: Path) -> None:
    shutil.copytree(tmp_path, tmp_path / "second")
    (tmp_path / "second/a.wav").write_bytes(b"other")
    both = [section["manifest_filepath"], str(tmp_path / "second/manifest.json")]
    got = fingerprint({**section, "manifest_filepath": both})["audio"]
    assert sorted(got) == ["a.wav", "a.wav#2", "b.wav", "b.wav#2", "c.wav", "c.wav#2"]
    assert got["a.wav#2"] == hashlib.sha256(b"other").hexdigest()


def test_files_outside_the_manifests_folder(section: Section, manifest: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    section["manifest_filepath"] = manifest({"audio_filepath": str(tmp_path / "a.wav")}, name="lists/m.json")
    assert list(fingerprint(section)["audio"]) == ["../a.wav"]


def test_large_corpora_are_sampled(section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HASHED_IN_FULL", 2)
    monkeypatch.setattr(files, "MIB", 1000)
    before = fingerprint(section)
    assert before["audio_hash"] == "sampled"
    data = bytearray((tmp_path / "a.wav").read_bytes())
    for position, seen in ((5, True), (len(data) // 2, False), (len(data) - 5, True)):
        changed = bytearray(data)
        changed[position] ^= 1
        (tmp_path / "a.wav").write_bytes(changed)
        assert (fingerprint(section) != before) is seen
    (tmp_path / "a.wav").write_bytes(data[:2000] + data[2001:])
    assert fingerprint(section) != before, "another size"


def test_of_huge_corpora_every_nth_file_is_hashed(
    section: Section, tmp_path: Path, manifest: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all lines say of times counts, and which files they name, wherever the folder of all lies."""
    monkeypatch.setattr(module, "LOOKED_AT", 2)
    lines = [{"audio_filepath": f"{name}.wav", "duration": 1.0} for name in "abc"]
    section["manifest_filepath"] = manifest(*lines)
    before = fingerprint(section)
    assert list(before["audio"]) == ["a.wav", "c.wav"]
    (tmp_path / "b.wav").write_bytes(b"")
    assert fingerprint(section) == before
    manifest(lines[0], {**lines[1], "duration": 1.25}, lines[2])
    assert fingerprint(section)["content"] != before["content"]
    manifest(lines[0], {**lines[1], "audio_filepath": "d.wav"}, lines[2])
    assert fingerprint(section)["content"] != before["content"], "other speech"
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in "abc":
        shutil.copy(tmp_path / f"{name}.wav", tmp_path / "deep")
    moved = [{**line, "audio_filepath": f"../{line['audio_filepath']}"} for line in lines]
    elsewhere = {**section, "manifest_filepath": manifest(*moved, name="deep/er/manifest.json")}
    assert fingerprint(elsewhere)["content"] == before["content"]
    manifest(*lines)
    (tmp_path / "c.wav").write_bytes(b"")
    assert fingerprint(section)["content"] != before["content"]


# --- when the hashes are taken ----------------------------------------------------------------------------------------


def test_what_was_there_before_training_is_recorded(section: Section, manifest: Callable[..., str],
                                                    tmp_path: Path) -> None:  # fmt: skip
    """Audio replaced by other audio of the same length, truncated or deleted, manifests broken, noise replaced: the
    hashes stay those of before, and what changed is named."""
    section["noise_manifest"] = manifest({"audio_filepath": "c.wav"}, {"audio_filepath": "a.wav"}, name="noise.json")
    record, before = record_of(section), fingerprint(section)
    assert before["changed"] == before["noise"]["changed"] == []
    assert record.describe()["train"] == before, "nothing has changed"
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a.wav").write_bytes(data)
    (tmp_path / "b.wav").unlink()
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "noise.json").write_text("{")
    after = record.describe()["train"]
    assert after.pop("changed") == ["manifest.json", "a.wav", "b.wav"]
    assert after["noise"].pop("changed") == ["noise.json", "a.wav"]
    del before["changed"], before["noise"]["changed"]
    assert after == before


def test_the_folder_is_gone_when_training_ends(section: Section, tmp_path: Path) -> None:
    record, before = record_of(section), fingerprint(section)
    shutil.rmtree(tmp_path)
    after = record.describe()["train"]
    assert after["audio"] == before["audio"] and len(after["changed"]) == 4


def test_same_length_and_time_of_modification(section: Section, tmp_path: Path) -> None:
    """As a copy that keeps times leaves it."""
    record, path = record_of(section), tmp_path / "a.wav"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns and path.stat().st_size == status.st_size
    assert record.describe()["train"]["changed"] == ["a.wav"]


def test_only_what_moved_is_hashed_again(section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, hashed = record_of(section), []
    monkeypatch.setattr(module, "file_sha256", lambda path, sampled: hashed.append(path))
    (tmp_path / "b.wav").touch()
    assert record.describe()["train"]["changed"] == ["b.wav"]
    assert hashed == [str(tmp_path / "b.wav")]


def test_a_file_that_was_only_touched_has_not_changed(section: Section, tmp_path: Path) -> None:
    record = record_of(section)
    (tmp_path / "b.wav").touch()
    assert record.describe()["train"]["changed"] == []


def test_content_is_the_audio_in_its_order(section: Section, manifest: Callable[..., str], tmp_path: Path) -> None:
    """The same under absolute paths and other names; another one for another order, offset or byte."""
    wanted = fingerprint(section)["content"]
    lines = [json.loads(line) for line in Path(section["manifest_filepath"]).read_text().splitlines()]
    absolute = [{**line, "audio_filepath": str(tmp_path / line["audio_filepath"]), "text": "hm"} for line in lines]

    def content(*changed: dict[str, Any]) -> str:
        return fingerprint({**section, "manifest_filepath": manifest(*changed, name="other.json")})["content"]

    assert content(*absolute) == wanted
    assert content(*absolute[::-1]) != wanted
    assert content(*absolute[:2]) != wanted
    assert content({**absolute[0], "offset": 0.1}, *absolute[1:]) != wanted
    (tmp_path / "c.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    assert content(*absolute) != wanted


def test_nothing_is_waited_for(section: Section, manifest: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    names = ["pipe.wav", "/dev/zero", "/proc/kmsg"]
    section["noise_manifest"] = manifest(*({"audio_filepath": name} for name in names), name="noise.json")
    assert fingerprint(section)["noise"]["audio"]["pipe.wav"] is None
