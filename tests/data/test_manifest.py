"""Manifests: lines, paths, durations, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.base.errors import UserError
from nest_ssl.data.manifest import full_path, is_url, manifest_paths, read_noise, read_speech

Manifest = Callable[..., str]


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


@given(
    durations=st.lists(st.none() | st.floats(0, 9), min_size=1),
    low=st.none() | st.floats(0, 9),
    high=st.none() | st.floats(0, 9),
)
def test_duration_limits(tmp_path_factory: pytest.TempPathFactory, durations: list[float | None], low: float | None,
                         high: float | None) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("m") / "m.json"
    path.write_text("".join(json.dumps({"audio_filepath": "a.wav", "duration": d}) + "\n" for d in durations))
    wanted = [d for d in durations if d is None or ((low is None or d >= low) and (high is None or d <= high))]
    if wanted:
        assert [e.duration for e in read_speech([str(path)], low, high)] == wanted
    else:
        with pytest.raises(UserError, match=f"none of {len(durations)} entries"):
            read_speech([str(path)], low, high)


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
    ({"audio_filepath": "s3://bucket/a.wav"}, "audio in an object store: s3://bucket/a.wav"),
])  # fmt: skip
def test_bad_lines(line: object, message: str, manifest: Manifest) -> None:
    with pytest.raises(UserError, match=message):
        read_speech([manifest({"audio_filepath": "good.wav"}, line)])


def test_bad_manifests(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"audio_filepath": "caf\xe9.wav"}\n')
    cases = {
        "no such manifest": tmp_path / "none.json",
        "an empty manifest": manifest("", "   ", name="blank.json"),
        "not UTF-8": tmp_path / "latin.json",
        "object store": "s3://bucket/m.json",
        "irectory": tmp_path,
    }
    for message, path in cases.items():
        with pytest.raises(UserError, match=message):
            read_speech([str(path)])
    with pytest.raises(UserError, match="an empty manifest"):
        read_speech([])


def test_noise_keeps_what_is_written(manifest: Manifest) -> None:
    path = manifest({"audio_filepath": "/n/1.wav", "duration": "2.0"}, {"audio_filepath": "/n/2.wav", "offset": None})
    clips = read_noise([path])
    assert [(c.audio_file, c.duration, c.offset) for c in clips] == [("/n/1.wav", "2.0", 0.0), ("/n/2.wav", None, None)]
    assert read_noise([]) == read_noise([manifest(name="empty.json")]) == []


def test_home_folder(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NeMo looks for a speech manifest under `~`, and for a noise manifest it does not."""
    manifest({"audio_filepath": "~/a.wav"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_speech(["~/manifest.json"])[0].audio_file == str(tmp_path / "a.wav")
    with pytest.raises(UserError, match="no such manifest"):
        read_noise(["~/manifest.json"])


def test_paths_are_taken_from_the_manifests_folder_if_there(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    there = tmp_path / "wavs" / "a.wav"
    there.write_bytes(b"")
    manifest = str(tmp_path / "m.json")
    assert full_path("wavs/a.wav", manifest) == str(there)
    assert full_path("wavs/../wavs/a.wav", manifest) == str(there)
    assert full_path(["wavs/a.wav", "b.wav"], manifest) == [str(there), "b.wav"]
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
