"""Manifests: lines, paths, durations, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data import manifest as manifest_module
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import NoiseClip, full_path, is_url, manifest_paths

Manifest = Callable[..., str]
GOOD = {"audio_filepath": "/x/good.wav"}


def dataset_of(manifests: Sequence[str], noise: Sequence[str] | None = None) -> Dataset:
    return read(Dataset, {"manifest_filepath": manifests, "noise_manifest": noise, "batch_size": 1})


def read_speech(manifests: Sequence[str]) -> Sequence[Entry]:
    return Corpora().read(dataset_of(manifests)).entries


def read_noise(manifests: Sequence[str], manifest: Manifest) -> Sequence[NoiseClip]:
    return Corpora().read(dataset_of([manifest(GOOD, name="speech.json")], manifests)).clips


@pytest.mark.parametrize(("value", "paths"), [
    ("a.json", ["a.json"]), ("a.json,b.json", ["a.json", "b.json"]), (["a.json", "b.json"], ["a.json", "b.json"]),
    (["a,b.json"], ["a,b.json"]), ([Path("a.json")], ["a.json"]), ([], []),
])  # fmt: skip
def test_manifest_paths(value: object, paths: list[str]) -> None:
    assert manifest_paths(value) == paths


@pytest.mark.parametrize("value", [3, {"a": 1}, [["a.json"]], [3]])
def test_what_is_no_manifest(value: object) -> None:
    with pytest.raises(UserError, match="not a manifest"):
        manifest_paths(value)


def test_lines_in_order_with_their_places(manifest: Manifest) -> None:
    first = manifest({"audio_filepath": "/x/1.wav"}, "", "  ", {"audio_filename": "/x/2.wav"}, name="one.json")
    second = manifest({"audio_filepath": "/x/3.wav", "duration": 2, "offset": 0.5}, name="two.json")
    entries = read_speech([first, second])
    assert [(e.audio_file, e.duration, e.offset, e.place) for e in entries] == [
        ("/x/1.wav", None, None, (first, 1)),
        ("/x/2.wav", None, None, (first, 4)),
        ("/x/3.wav", 2, 0.5, (second, 1)),
    ]
    assert str(entries[1].place) == f"{first}, line 4"


def test_audio_filename_goes_before_audio_filepath(manifest: Manifest) -> None:
    path = manifest({"audio_filepath": "/x/path.wav", "audio_filename": "/x/name.wav"})
    assert read_speech([path])[0].audio_file == "/x/name.wav"


@pytest.mark.parametrize(("line", "message"), [
    ("not json", r"not JSON \(Expecting value, column 1\): .*manifest.json, line 2"),
    ('{"audio_filepath": "a.wav",}', "not JSON .*line 2"),
    ("[1]", "not a JSON object: .*line 2"),
    ('"audio_filepath"', "not a JSON object: .*line 2"),
    ({"text": "no audio"}, "no audio_filepath: .*line 2"),
    ({"audio_filename": None, "audio_filepath": "a.wav"}, "no audio_filepath: .*line 2"),
    ({"audio_filepath": 3}, "audio_filepath is not a path: .*line 2"),
    ({"audio_filepath": ["a.wav", 3]}, "audio_filepath is not a path: .*line 2"),
    ({"audio_filepath": "a.wav", "duration": "3"}, "duration is not a number: .*line 2"),
    ({"audio_filepath": "a.wav", "offset": [1]}, "offset is not a number: .*line 2"),
    ({"audio_filepath": "s3://bucket/a.wav"}, r"audio in an object store: s3://bucket/a.wav \(.*, line 2\)"),
    ({"audio_filepath": []}, "audio_filepath is not a path: .*line 2"),
    ({"audio_filepath": {"a": "b"}}, "audio_filepath is not a path: .*line 2"),
    ({"audio_filepath": [["a.wav"]]}, "audio_filepath is not a path: .*line 2"),
    ('{"audio_filepath": ' + 60 * "[" + '"a.wav"' + 60 * "]" + "}", "audio_filepath is not a path: .*line 2"),
    ('{"audio_filepath": ' + 900 * "[" + '"a.wav"' + 900 * "]" + "}", "audio_filepath is not a path: .*line 2"),
    ({"audio_filepath": "a\0.wav"}, "audio_filepath has a character that no path can have: .*line 2"),
    ({"audio_filepath": "\ud800.wav"}, "audio_filepath has a character that no path can have: .*line 2"),
    ({"audio_filepath": ["a.wav", "\ud800.wav"]}, "audio_filepath has a character that no path can have: .*line 2"),
    (100_000 * "[", "JSON that is too long or too deep to be read: .*line 2"),
    ('{"audio_filepath": "a.wav", "duration": ' + 5_000 * "9" + "}", "JSON that is too long or too deep .*line 2"),
])  # fmt: skip
def test_bad_lines(line: object, message: str, manifest: Manifest) -> None:
    with pytest.raises(UserError, match=message):
        read_speech([manifest({"audio_filepath": "good.wav"}, line)])


@pytest.mark.parametrize("key", ["duration", "offset"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e308", "1e10", "-0.5", "-1", "true", "false",
                                   "1" + 50 * "0", "1" + 400 * "0"])  # fmt: skip
def test_seconds_that_are_none(key: str, value: str, manifest: Manifest) -> None:
    line = f'{{"audio_filepath": "a.wav", "{key}": {value}}}'
    with pytest.raises(UserError, match=f"{key} is not a number of seconds: .*line 1. Give {key} in seconds, from 0"):
        read_speech([manifest(line)])
    assert len(read_noise([manifest({**GOOD, "x": 1}, line, name="noise.json")], manifest)) == 2, "NeMo looks later"


@pytest.mark.parametrize(("key", "value"), [("duration", 0), ("duration", 0.0), ("offset", 0), ("duration", 3_600)])
def test_seconds(key: str, value: float, manifest: Manifest) -> None:
    assert getattr(read_speech([manifest({**GOOD, key: value})])[0], key) == value


@pytest.mark.parametrize("path", [60 * "[" + "a.wav", 60 * "{" + "a.wav", "//[a.wav", "{a,b}{c,d}.wav", "a[0-9].wav"])
def test_brackets_are_letters_like_others(path: str, manifest: Manifest) -> None:
    assert read_speech([manifest({"audio_filepath": path})])[0].audio_file == path


def test_only_regular_files_are_manifests(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in ("/dev/zero", "/dev/null", str(tmp_path / "pipe"), str(tmp_path / "link"), str(tmp_path)):
        with pytest.raises(UserError, match="a manifest that is not a regular file: "):
            read_speech([path])
        with pytest.raises(UserError, match="a manifest that is not a regular file: "):
            manifest_module.read_noise(path)


@pytest.mark.parametrize("path", ["/proc/kmsg", "/proc/self/mem"])
def test_files_of_proc_are_not_waited_for(path: str) -> None:
    """They have no size, and reading them may not end."""
    if not os.path.exists(path):
        pytest.skip(f"no {path} here")
    with pytest.raises(UserError, match="an empty manifest|permission denied|not permitted"):
        read_speech([path])


@pytest.mark.parametrize("path", ["a\0.json", "\ud800.json"])
def test_no_path_of_a_manifest(path: str) -> None:
    with pytest.raises(UserError, match="not the path of a manifest"):
        read_speech([path])


def test_a_link_to_a_manifest_is_one(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(manifest(GOOD))
    assert len(read_speech([str(tmp_path / "link.json")])) == 1


def test_line_ends_of_every_system(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b'{"audio_filepath": "/1"}\r\n{"audio_filepath": "/2"}\r{"audio_filepath": "/3"}')
    entries = read_speech([str(tmp_path / "m.json")])
    assert [(e.audio_file, e.place.line) for e in entries] == [("/1", 1), ("/2", 2), ("/3", 3)]


def test_bad_manifests(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"audio_filepath": "a.wav"}\n')
    (tmp_path / "latin.json").write_bytes(b'{"audio_filepath": "caf\xe9.wav"}\n')
    cases = {
        "no such manifest": tmp_path / "none.json",
        "an empty manifest": manifest("", "   ", name="blank.json"),
        "not UTF-8": tmp_path / "latin.json",
        "object store": "s3://bucket/m.json",
        "not a regular file": tmp_path,
        "begins with a byte-order mark: .*Save the file as UTF-8 without it": tmp_path / "bom.json",
    }
    for message, path in cases.items():
        with pytest.raises(UserError, match=message):
            read_speech([str(path)])
    with pytest.raises(UserError, match="an empty manifest"):
        read_speech([])


def test_noise_keeps_what_is_written(manifest: Manifest) -> None:
    path = manifest({"audio_filepath": "/n/1.wav", "duration": "2.0"}, {"audio_filepath": "/n/2.wav", "offset": None})
    clips = read_noise([path], manifest)
    assert [(c.audio_file, c.duration, c.offset) for c in clips] == [("/n/1.wav", "2.0", 0.0), ("/n/2.wav", None, None)]
    assert read_noise([], manifest) == read_noise([manifest(name="empty.json")], manifest) == []


def test_home_folder(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NeMo looks for a speech manifest under `~`, and for a noise manifest it does not."""
    manifest({"audio_filepath": "~/a.wav"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_speech(["~/manifest.json"])[0].audio_file == str(tmp_path / "a.wav")
    with pytest.raises(UserError, match="no such manifest"):
        read_noise(["~/manifest.json"], manifest)


def test_paths_are_taken_from_the_manifests_folder_if_there(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    there = tmp_path / "wavs" / "a.wav"
    there.write_bytes(b"")
    manifest = str(tmp_path / "m.json")
    assert full_path("wavs/a.wav", manifest) == str(there)
    assert full_path("wavs/../wavs/a.wav", manifest) == str(there)
    (tmp_path / "m.json").write_text('{"audio_filepath": ["wavs/a.wav", "b.wav"]}')
    assert read_speech([manifest])[0].audio_file == [str(there), "b.wav"]
    assert full_path("wavs/none.wav", manifest) == "wavs/none.wav"
    assert full_path("/abs/a.wav", manifest) == "/abs/a.wav"
    assert full_path("./" * 130 + "wavs/a.wav", manifest) == "./" * 130 + "wavs/a.wav", "too long to be relative"


@pytest.mark.parametrize(("name", "relative"), [
    ("m.json", True), ("tarred_audio_manifest.json", False), ("sharded_manifests/manifest_3.json", False),
    ("sharded_manifests/manifest_x.json", True),
])  # fmt: skip
def test_names_of_tarred_sets(name: str, relative: bool, tmp_path: Path) -> None:
    folder = (tmp_path / name).parent
    folder.mkdir(exist_ok=True)
    (folder / "a.wav").write_bytes(b"")
    assert full_path("a.wav", str(tmp_path / name)) == (str(folder / "a.wav") if relative else "a.wav")


@pytest.mark.parametrize(("path", "url"), [("s3://b/k", True), ("ais://b", True), ("/a/b", False), ("C:\\a\\b", False),
                                           ("C:/a/b", False), ("a.wav", False), ("", False)])  # fmt: skip
def test_is_url(path: str, url: bool) -> None:
    assert is_url(path) is url
