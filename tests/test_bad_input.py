"""What people get wrong: each ends in exit code 3, one line that says what, where and what to do, and nothing lost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from train_nest import NEST

from nest_ssl.base.errors import run_command
from nest_ssl.recording.reader import open_recording
from nest_ssl.run.experiment import run

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "dummy_ssl"
LIMITED = Path(__file__).with_name("limited.py")
# Neither depth nor width is the subject.
SMALL = ["size=tiny", "model.encoder.n_layers=1", "model.encoder.subsampling_conv_channels=4"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A copy of two training utterances that a test may spoil; its manifest."""
    lines = (DATA / "train_manifest.json").read_text().splitlines()[:2]
    for line in lines:
        source = json.loads(line)["audio_filepath"]
        (tmp_path / "data" / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / source, tmp_path / "data" / source)
    manifest = tmp_path / "data" / "manifest.json"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def attempt(capfd: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Run the trainer; its exit code and what it said on stderr."""
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: run(NEST, [*SMALL, *overrides]))
    return int(stop.value.code or 0), capfd.readouterr().err


def audio_of(manifest: Path) -> Path:
    return manifest.parent / json.loads(manifest.read_text().splitlines()[1])["audio_filepath"]


SPOIL: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing manifest": (lambda m: m.unlink(), "manifest.json"),
    "empty manifest": (lambda m: m.write_text(""), "manifest.json"),
    "not JSON": (lambda m: m.write_text(m.read_text() + "{oops\n"), "line 3"),
    "no audio key": (lambda m: m.write_text('{"duration": 2.0}\n'), "line 1"),
    "missing audio": (lambda m: audio_of(m).unlink(), ".wav"),
    "empty audio": (lambda m: audio_of(m).write_bytes(b""), ".wav"),
    "truncated audio": (lambda m: audio_of(m).write_bytes(audio_of(m).read_bytes()[:20_000]), ".wav"),
    "not audio": (lambda m: audio_of(m).write_text("a letter to my friend " * 100), ".wav"),
}


@pytest.mark.parametrize("kind", SPOIL)
def test_spoilt_data(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    spoil, place = SPOIL[kind]
    spoil(corpus)
    code, said = attempt(capfd, f"model.train_ds.manifest_filepath={corpus}", f"output_dir={tmp_path / 'out'}")
    assert code == 3 and place in said, said
    assert said.startswith("error: ") and said.count("\n") == 1, said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.encoder.nlayers=3", "model.encoder.n_layers"),
        ("size=huge", "tiny"),
        ("save_steps=two", "save_steps"),
        ("save_steps=5", "save_steps names 5"),
        ("trainer.accelerator=gpu", "DEVICE=cpu"),
        ("model.encoder.self_attention_model=no_pos", "rel_pos"),
        ("model.optim.name=lion", "adamw"),
        ("model.optim.sched=null", "~model.optim.sched"),
        ("model.optim.sched.name=CosineAnnealing", "~model.optim.sched.d_model"),
        ("trainer.precision=13", "trainer"),
        ("tiny", "key=value"),
        ("--config-name=nothing", "nothing.yaml"),
    ],
)
def test_wrong_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str], override: str, told: str) -> None:
    code, said = attempt(capfd, override, f"output_dir={tmp_path / 'out'}")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 3 and len(errors) == 1 and told in errors[0], said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_an_earlier_recording_is_kept_unless_told(earlier: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = attempt(capfd, f"output_dir={earlier}", "seed=7")
    assert code == 3 and "overwrite=true" in said and open_recording(earlier).index.seed == 42
    assert attempt(capfd, f"output_dir={earlier}", "seed=7", "overwrite=true")[0] == 0
    assert open_recording(earlier).index.seed == 7


def test_a_place_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, said = attempt(capfd, f"output_dir={tmp_path / 'file' / 'out'}")
    assert code == 3 and str(tmp_path / "file") in said and said.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place that even root may not write to")
def test_no_permission(capfd: pytest.CaptureFixture[str]) -> None:
    code, said = attempt(capfd, "output_dir=/proc/recordings/out")
    assert code == 3 and said.startswith("error: ") and said.count("\n") == 1


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole recording, alone in its folder but for its log."""
    target = tmp_path_factory.mktemp("recorded") / "out"
    assert run(NEST, [*SMALL, f"output_dir={target}"]) == 0
    return target


def test_by_default_padding_and_a_second_step_are_seen(recorded: Path) -> None:
    recording = open_recording(recorded)
    lengths = [recording.step(step).batch()["noisy_audio_len"].tolist() for step in recording.steps]
    assert [len(set(of_batch)) for of_batch in lengths] == [1, 2]


@pytest.fixture
def earlier(recorded: Path, tmp_path: Path) -> Path:
    """A copy for a run that is to replace it."""
    shutil.copytree(recorded.parent, tmp_path / "earlier")
    return tmp_path / "earlier" / "out"


def replacing(target: Path, *settings: str, python: str = sys.executable) -> list[str]:
    """The command as a user starts it."""
    train = [python, str(ROOT / "scripts/train_nest.py"), *SMALL, f"output_dir={target}", "overwrite=true"]
    return [*train, *settings]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda stop: stop.name)
def test_a_signal_is_no_verdict_and_loses_nothing(earlier: Path, stop: signal.Signals, python: str) -> None:
    """Ctrl-C in the Python that a user has, the others in a warm one."""
    before = (earlier / "recording.json").read_bytes()
    program = sys.executable if stop == signal.SIGINT else python
    with subprocess.Popen(
        replacing(earlier, "batches=100000", "save_steps=0", python=program),
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        deadline = time.monotonic() + 200
        while not list(earlier.parent.glob(".out.partial-*/step_0/rng.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(stop)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == (-stop if stop == signal.SIGKILL else 128 + stop)
    assert (earlier / "recording.json").read_bytes() == before
    assert open_recording(earlier)
    if stop != signal.SIGKILL:
        assert f"interrupted ({stop.name})" in said
        assert sorted(path.name for path in earlier.parent.iterdir()) == ["out", "out.log"]


def test_a_disk_that_fills_while_recording_loses_nothing(earlier: Path, python: str) -> None:
    """No file may grow beyond 1 MB, as on a full disk: the first large file fails half way through the recording."""
    before = (earlier / "recording.json").read_bytes()
    python, *words = replacing(earlier, "seed=7", python=python)
    limited = [python, str(LIMITED), "1000000", *words]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert (earlier / "recording.json").read_bytes() == before and open_recording(earlier)
    assert sorted(path.name for path in earlier.parent.iterdir()) == ["out", "out.log"]
