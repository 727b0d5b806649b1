"""Hashes of the data."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.data import fingerprint as module
from nest_ssl.data.fingerprint import fingerprint

Section = dict[str, Any]


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
    monkeypatch.setattr(module, "MIB", 1000)
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
