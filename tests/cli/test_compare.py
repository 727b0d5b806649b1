"""`scripts/compare_outputs.py`: exit codes, one-line errors, and nothing earlier lost."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.recording import layout as files
from tests.compare.builder import Model, Plan, edit_config, edit_tensors, record, remove

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compare_outputs.py"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, in its own process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)


def sides(reference: Path, candidate: Path, out: Path) -> list[object]:
    return ["--reference", reference, "--candidate", candidate, "--out", out]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module, for what does not need a process of its own."""
    spec = importlib.util.spec_from_file_location("compare_outputs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_identical_exits_0_and_says_so(reference: Path, tmp_path: Path) -> None:
    done = command(*sides(reference, reference, tmp_path / "report"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "train identically" in done.stdout
    assert "report.md" in done.stdout
    assert "\x1b" not in done.stdout
    assert json.loads((tmp_path / "report" / "report.json").read_text())["exit_code"] == 0


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
def test_a_reader_that_leaves_changes_no_exit_code(reference: Path, tmp_path: Path) -> None:
    """`compare_outputs.sh ... | head -1`: Python's and rich's own answer would be 1, which means diverged."""
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, str(SCRIPT), *map(str, sides(reference, reference, tmp_path / "report"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_damaged_recording_exits_3_in_one_line(reference: Path, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    (out / "report.md").write_text("earlier")
    with (copy / "step_0" / files.CALLS).open("r+b") as stream:
        stream.seek(5000)
        stream.write(b"damage")
    done = command(*sides(reference, copy, out))
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "layer_outputs.pkl" in done.stderr
    assert "Record it again" in done.stderr
    assert (out / "report.md").read_text() == "earlier"


@pytest.mark.parametrize("arguments", [[], ["--reference"], ["--wrong"], ["--steps", "x"], ["--atol", "-1"]])
def test_bad_usage_exits_3_in_one_line(arguments: list[str]) -> None:
    given = [] if arguments in ([], ["--reference"]) else ["--reference", "a", "--candidate", "b"]
    done = command(*given, *arguments)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (3, 1)
    assert "Traceback" not in done.stderr


def test_the_other_exit_codes(reference: Path, copy: Path, tmp_path: Path, script: ModuleType) -> None:
    def run(*more: object) -> int:
        return script.main([str(argument) for argument in [*sides(reference, copy, tmp_path / "report"), *more]])

    edit_tensors(copy, "step_1/loss.pt", lambda loss: loss["loss"].add_(1))
    assert run() == 1
    assert run("--steps", "0") == 0
    assert run("--atol", "2") == 0
    assert json.loads((tmp_path / "report/report.json").read_text())["verdict"] == "equivalent"
    remove(copy, f"step_0/{files.CALLS}")
    assert run("--steps", "0-0") == 2
    edit_config(copy, lambda config: config.update(seed=7))
    assert run() == 4
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert (report["verdict"], report["first_difference"]["tensor"]) == ("inconclusive", "config.seed")


def test_the_default_declaration_is_read(tmp_path: Path, script: ModuleType) -> None:
    def with_spec_augmentation() -> nn.Module:
        model = Model()
        model.spec_augmentation = nn.Identity()
        return model

    nemo = record(tmp_path / "nemo", Plan(model=with_spec_augmentation, steps=(0,)))
    nest = record(tmp_path / "nest", Plan(name="nest", steps=(0,)))
    assert script.main([str(a) for a in sides(nemo, nest, tmp_path / "report")]) == 0
    assert "spec_augmentation" in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize("out", ["a-file", "a-file/below"])
def test_an_unwritable_folder(reference: Path, tmp_path: Path, out: str, script: ModuleType) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(UserError):
        script.main([str(argument) for argument in sides(reference, reference, tmp_path / out)])


def test_no_recording(reference: Path, tmp_path: Path, script: ModuleType) -> None:
    with pytest.raises(UserError, match="no such recording"):
        script.main([str(argument) for argument in sides(reference, tmp_path / "none", tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_verification_can_be_skipped(reference: Path, copy: Path, tmp_path: Path, script: ModuleType) -> None:
    data = bytearray((copy / files.CONFIG).read_bytes())
    data[-1:] = b" "  # the same size, another hash, the same meaning
    (copy / files.CONFIG).write_bytes(data)
    arguments = [str(argument) for argument in sides(reference, copy, tmp_path / "report")]
    with pytest.raises(UserError, match="SHA-256"):
        script.main(arguments)
    assert script.main([*arguments, "--no-verify"]) == 0


def test_unverified_damage_is_told_in_one_line(reference: Path, copy: Path, tmp_path: Path, script: ModuleType) -> None:
    path = copy / "step_0" / files.RNG
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UserError, match="Leave out --no-verify"):
        script.main([str(argument) for argument in [*sides(reference, copy, tmp_path / "report"), "--no-verify"]])


@pytest.mark.parametrize(("text", "steps"), [("0", [0]), ("0,2", [0, 2]), ("0-2", [0, 1, 2]), ("2,0-1,1", [0, 1, 2])])
def test_spellings_of_steps(script: ModuleType, text: str, steps: list[int]) -> None:
    assert script._steps(text) == steps
