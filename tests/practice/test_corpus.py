"""`data/dummy_ssl`: the committed bytes, written whole or not at all, mended where damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import time
import wave
from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.practice import corpus

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "make_data.py"
CHECKSUMS = corpus.read_checksums(ROOT / "data" / "dummy_ssl.sha256")


@pytest.fixture(scope="module")
def built() -> tuple[dict[str, bytes], float]:
    """The files' bytes, and the seconds of processor time that they took."""
    started = time.process_time()
    return corpus.build_corpus(), time.process_time() - started


@pytest.fixture(autouse=True)
def _built_once(built: tuple[dict[str, bytes], float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "build_corpus", lambda: dict(built[0]))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The corpus in a new folder."""
    folder = tmp_path / "dummy_ssl"
    assert corpus.write_corpus(folder, CHECKSUMS) == sorted(CHECKSUMS)
    return folder


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def length(path: Path) -> int:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        return file.getnframes()


def test_what_is_in_it(made: Path) -> None:
    files = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
    assert files == sorted(CHECKSUMS)
    train, val, noise = (lines(made / f"{name}_manifest.json") for name in ("train", "val", "noise"))
    assert (len(train), len(val), len(noise)) == (10, 2, 4)
    assert [line["text"] for line in train + val] == [""] * 12
    lengths = [length(made / str(line["audio_filepath"])) for line in train + val]
    assert lengths[:2] == [48_000, 48_000] and 48_000 not in lengths[2:]
    assert len(set(lengths)) == 11
    assert all(32_000 <= n <= 96_000 for n in lengths)
    noises = [length(made / str(line["audio_filepath"])) for line in noise]
    assert max(noises) > 96_000 and min(noises) < 32_000 and len(set(noises)) == 4


def test_manifests_tell_the_exact_length(made: Path) -> None:
    for manifest in made.glob("*_manifest.json"):
        for line in lines(manifest):
            path = str(line["audio_filepath"])
            assert not re.search(r"\\|^/|:", path)
            assert int(float(str(line["duration"])) * 16_000) == length(made / path)


def test_no_noise_adds_up_to_zero(made: Path) -> None:
    for path in (made / "noise").iterdir():
        with wave.open(str(path)) as file:
            data = memoryview(file.readframes(1 << 20)).cast("h")
        assert sum(data) != 0


def test_it_is_quick(built: tuple[dict[str, bytes], float]) -> None:
    assert built[1] < 5


def test_a_second_time_does_nothing(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert corpus.write_corpus(made, CHECKSUMS) == []
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_damage_is_mended_and_other_files_stay(made: Path) -> None:
    folder = made
    (folder / "mine.txt").write_text("keep me")
    (folder / "train/utt_03.wav").write_bytes(b"broken")
    (folder / "noise/pink.wav").unlink()
    (folder / "val_manifest.json").write_text("{}")
    assert corpus.write_corpus(folder, CHECKSUMS) == ["noise/pink.wav", "train/utt_03.wav", "val_manifest.json"]
    assert corpus.wrong_files(folder, CHECKSUMS) == []
    assert (folder / "mine.txt").read_text() == "keep me"
    assert list(made.parent.iterdir()) == [made], "no temporary folder left"


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other bytes .*train/utt_00.wav"):
        corpus.write_corpus(tmp_path / "d", {**CHECKSUMS, "train/utt_00.wav": "0" * 64})
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "no space left on the disk"), (errno.EACCES, "permission")]
)
def test_what_the_disk_refuses_leaves_nothing(
    code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match=f"{message}.*: .*/d"):
        corpus.write_corpus(tmp_path / "d", CHECKSUMS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        corpus.write_corpus(tmp_path / "d", CHECKSUMS)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path}/d"):
        corpus.write_corpus(tmp_path / "d", CHECKSUMS)


def test_checksums_read_as_sha256sum_writes_them(tmp_path: Path) -> None:
    digests = {"a/b.wav": "a" * 64, "c": "c" * 64, "binary.wav": "f" * 64}
    lines = [f"{digest} {'*' if name.startswith('binary') else ' '}{name}" for name, digest in digests.items()]
    (tmp_path / "sums").write_text("\n".join([*lines[:2], "", lines[2], ""]))
    assert corpus.read_checksums(tmp_path / "sums") == digests
    with pytest.raises(UserError, match="no such file"):
        corpus.read_checksums(tmp_path / "none")


def test_script_without_any_package(made: Path, tmp_path: Path) -> None:
    """`python -S` sees no installed package: the corpus needs Python only."""
    command = [sys.executable, "-S", str(SCRIPT), "--out", str(made)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing to do" in done.stdout


def test_help_answers_at_once_and_writes_nothing(tmp_path: Path) -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-S", "-X", "importtime", str(SCRIPT), "--help"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0 and "--out" in done.stdout
    assert "numpy" not in done.stderr and "torch" not in done.stderr, "what takes seconds is not imported"
    assert time.perf_counter() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes(made: Path) -> None:
    left = made.parent / f".{made.name}.partial-999999999@{socket.gethostname()}"
    left.mkdir()
    (made / "noise/pink.wav").unlink()
    corpus.write_corpus(made, CHECKSUMS)
    assert not left.exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--out", "{file}/x"], "error: .*/file/x"),
    (["--nonsense"], "error: bad usage"),
])  # fmt: skip
def test_script_errors_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *(a.format(file=tmp_path / "file") for a in arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 3
    assert re.fullmatch(message + ".*\n", capsys.readouterr().err)
