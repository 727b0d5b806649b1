"""The check before training: the first thing wrong, in one line; a warning for noise that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from nest_ssl.base.errors import UserError
from nest_ssl.data import check
from nest_ssl.data.check import check_dataset, find_bad_audio

Section = dict[str, Any]


def test_good_data_passes_without_a_word(section: Section, caplog: pytest.LogCaptureFixture) -> None:
    check_dataset({**section, "noise_manifest": section["manifest_filepath"]})
    assert caplog.text == ""


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda p: p.unlink(), "no such audio file"),
    (lambda p: p.write_bytes(b""), "an empty audio file"),
    (lambda p: p.write_text("text"), "not an audio file that can be read"),
    (lambda p: p.write_bytes(p.read_bytes()[:20_000]), "a truncated audio file"),
])  # fmt: skip
def test_bad_files(spoil: Callable[[Path], Any], message: str, section: Section, tmp_path: Path) -> None:
    spoil(tmp_path / "b.wav")
    with pytest.raises(UserError, match=rf"{message}.*: .*b.wav \(.*manifest.json, line 2\)\. .*\.$") as raised:
        check_dataset(section)
    assert "\n" not in str(raised.value)


def test_only_what_will_be_used_is_checked(section: Section, tmp_path: Path) -> None:
    (tmp_path / "b.wav").unlink()
    check_dataset({**section, "max_duration": 1.9})


def test_stereo_needs_a_channel(section: Section, wav: Callable[..., str], manifest: Callable[..., str]) -> None:
    section["manifest_filepath"] = manifest({"audio_filepath": wav("s.wav", channels=2)})
    with pytest.raises(UserError, match="2 channels, and channel_selector=None does not leave one"):
        check_dataset(section)
    check_dataset({**section, "channel_selector": 1})
    with pytest.raises(UserError, match="2 channels, and channel_selector=2"):
        check_dataset({**section, "channel_selector": 2})


def test_an_offset_beyond_the_end(section: Section, manifest: Callable[..., str]) -> None:
    section["manifest_filepath"] = manifest({"audio_filepath": "a.wav", "offset": 9.5})
    with pytest.raises(UserError, match=r"offset 9.5 s lies beyond the end \(1.500 s\)"):
        check_dataset(section)


def test_bad_noise_is_a_warning(section: Section, manifest: Callable[..., str], wav: Callable[..., str],
                                caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    lines = [{"audio_filepath": name} for name in (wav("n.wav"), wav("s.wav", channels=2), "gone.wav")]
    check_dataset({**section, "noise_manifest": manifest(*lines, name="noise.json")})
    assert "2 of 3 noise clips cannot be used" in caplog.text and "noise.json, line 2" in caplog.text
    check_dataset({**section, "noise_manifest": manifest(name="nothing.json")})
    assert "training without noise" in caplog.text


def test_a_large_corpus_is_checked_in_part(section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CHECKED_AT_MOST", 2)
    (tmp_path / "b.wav").unlink()
    check_dataset(section)  # every second line: the first and the third
    (tmp_path / "c.wav").unlink()
    with pytest.raises(UserError, match="line 3"):
        check_dataset(section)


def test_a_file_that_only_decoding_tells_of(section: Section, tmp_path: Path) -> None:
    assert find_bad_audio([section, section]) is None
    samples, rate = soundfile.read(tmp_path / "b.wav")
    soundfile.write(tmp_path / "b.wav", samples, rate, format="FLAC")
    (tmp_path / "b.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:9_000])
    check_dataset(section)
    assert "b.wav" in str(error := find_bad_audio([section])) and "line 2" in str(error)
