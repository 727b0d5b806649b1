"""`nest-ssl compare` and `scripts/compare_outputs.py`: exit codes, one-line errors, and nothing earlier lost."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nest_ssl import compare
from nest_ssl.base.errors import EXIT_CRASHED, UserError, run_command
from nest_ssl.cli.compare import main
from nest_ssl.recording import layout as files
from tests.compare.builder import Model, Plan, edit_config, edit_tensors, record, remove
from tests.compare.conftest import copy, reference

__all__ = ["copy", "reference"]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "compare_outputs.py"


Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(python: str) -> Command:
    """The command in a process of its own; `python`: as a user starts it, from nothing."""

    def run(*arguments: object, python: str = python, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options.pop("environment", {})}
        line = [python, str(SCRIPT), *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.run(line, text=True, env=environment, timeout=120, **streams)

    return run


def sides(reference: Path, candidate: Path, out: Path) -> list[str]:
    return ["--reference", str(reference), "--candidate", str(candidate), "--out", str(out)]


def report_of(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return tree


# --- in a process of its own ------------------------------------------------------------------------------------------


def test_identical_exits_0_and_says_so(reference: Path, tmp_path: Path, command: Command) -> None:
    done = command(*sides(reference, reference, tmp_path / "report"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "train identically" in done.stdout
    assert "report.md" in done.stdout
    assert "\x1b" not in done.stdout
    assert report_of(tmp_path / "report")["exit_code"] == 0


def test_without_arguments_it_compares_what_make_wrote(reference: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "outputs").mkdir()
    for name in ("nemo", "nest"):
        (tmp_path / "outputs" / name).symlink_to(reference)
    done = command(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert report_of(tmp_path / "outputs/report")["verdict"] == "identical"


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
def test_a_reader_that_leaves_changes_no_exit_code(reference: Path, tmp_path: Path, command: Command) -> None:
    """`compare_outputs.sh ... | head -1`: Python's and rich's own answer would be 1, which means diverged."""
    reader, writer = os.pipe()
    os.close(reader)
    done = command(*sides(reference, reference, tmp_path / "report"), python=sys.executable, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_closed_output_changes_no_exit_code(reference: Path, tmp_path: Path) -> None:
    line = [sys.executable, str(SCRIPT), *sides(reference, reference, tmp_path / "report")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", '"$@" >&-', "bash", *line], env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_without_unicode(reference: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "日本"
    done = command(*sides(reference, reference, out), environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u65e5\\u672c" in done.stdout
    assert (out / "report.md").is_file()


def test_a_damaged_recording_exits_3_in_one_line(reference: Path, copy: Path, tmp_path: Path, command: Command) -> None:
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
    assert (out / "report.md").read_text() == "earlier"


def test_help_waits_for_no_library() -> None:
    """Importing torch takes seconds, and a mistake in the arguments is known before."""
    code = (
        "import sys; from nest_ssl.cli.compare import main\n"
        "for arguments in (['--help'], ['--wrong']):\n"
        "    try: main(arguments)\n"
        "    except BaseException: pass\n"
        "print(sorted({'torch', 'numpy', 'rich', 'yaml', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert done.stderr.strip() == "[]"
    assert all(option in done.stdout for option in ("--reference", "--declared", "--steps", "70 our own mistake"))


# --- the verb ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--reference"], ["--wrong"], ["--steps", "x"], ["--steps", "0-"], ["--steps", "none"],
                  ["--atol", "-1"], ["--rtol", "nan"], ["--atol", "inf"], ["--ref", "a"]],
)  # fmt: skip
def test_bad_usage(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        main(arguments)


def test_a_tolerance_that_is_no_number() -> None:
    with pytest.raises(UserError, match="argument --atol: abc is not a number from 0"):
        main(["--atol", "abc"])


def test_the_other_exit_codes(reference: Path, copy: Path, tmp_path: Path) -> None:
    def run(*more: str) -> int:
        return main([*sides(reference, copy, tmp_path / "report"), *more])

    edit_tensors(copy, "step_1/loss.pt", lambda loss: loss["loss"].add_(1))
    assert run() == 1
    assert report_of(tmp_path / "report")["tolerance"] == {"kind": "bits"}  # none that was not asked for
    assert run("--steps", "all") == 1
    assert run("--steps", "0") == 0
    assert run("--atol", "2") == 0
    assert report_of(tmp_path / "report")["verdict"] == "equivalent"
    assert report_of(tmp_path / "report")["tolerance"] == {"kind": "fixed", "atol": 2.0, "rtol": 0.0}
    remove(copy, f"step_0/{files.CALLS}")
    assert run("--steps", "0-0") == 2
    edit_config(copy, lambda config: config.update(seed=7))
    assert run() == 4
    report = report_of(tmp_path / "report")
    assert (report["verdict"], report["first_difference"]["tensor"]) == ("inconclusive", "config.seed")


def with_module(name: str) -> type[nn.Module]:
    class WithModule(Model):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.Identity())

    return WithModule


def test_the_committed_declarations_are_read_and_a_users_own(tmp_path: Path) -> None:
    nemo = record(tmp_path / "nemo", Plan(model=with_module("spec_augmentation"), steps=(0,)))
    nest = record(tmp_path / "nest", Plan(name="nest", model=Model, steps=(0,)))
    assert main(sides(nemo, nest, tmp_path / "report")) == 0
    assert "spec_augmentation" in (tmp_path / "report/report.md").read_text()

    mine = record(tmp_path / "mine", Plan(name="nest", model=with_module("probe"), steps=(0,)))
    assert main(sides(nemo, mine, tmp_path / "report")) == 1
    own = tmp_path / "mine.yaml"
    own.write_text("- {pattern: probe, only_in: nest, not_in: nemo, reason: it only listens}\n")
    assert main([*sides(nemo, mine, tmp_path / "report"), "--declared", str(own)]) == 0
    assert "it only listens" in (tmp_path / "report/report.md").read_text()
    own.write_text("- {pattern: probe}\n")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        main([*sides(nemo, mine, tmp_path / "report"), "--declared", str(own)])


@pytest.mark.parametrize("out", ["a-file", "a-file/below"])
def test_an_unwritable_folder(reference: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(UserError):
        main(sides(reference, reference, tmp_path / out))


def test_no_recording(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recording"):
        main(sides(reference, tmp_path / "none", tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_a_terminal_sees_how_far_it_is(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert main(sides(reference, reference, tmp_path / "report")) == 0
    assert "checking files" in terminal.getvalue() and "comparing" in terminal.getvalue()


def test_verification_can_be_skipped(reference: Path, copy: Path, tmp_path: Path) -> None:
    data = bytearray((copy / files.CONFIG).read_bytes())
    data[-1:] = b" "  # the same size, another hash, the same meaning
    (copy / files.CONFIG).write_bytes(data)
    arguments = sides(reference, copy, tmp_path / "report")
    with pytest.raises(UserError, match="SHA-256"):
        main(arguments)
    assert main([*arguments, "--no-verify"]) == 0


def test_damage_that_was_not_verified_is_found_when_it_is_read(reference: Path, copy: Path, tmp_path: Path) -> None:
    path = copy / "step_0" / files.RNG
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UserError, match=r"rng\.json"):
        main([*sides(reference, copy, tmp_path / "report"), "--no-verify"])


@pytest.mark.usefixtures("crashes")
@pytest.mark.parametrize("verify", [[], ["--no-verify"]])
@pytest.mark.parametrize("mistake", [TypeError, KeyError, AttributeError, ValueError])
def test_our_own_mistake_blames_no_recording(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    verify: list[str], mistake: type[Exception],
) -> None:  # fmt: skip
    def broken(*arguments: object) -> None:
        raise mistake("a name that is not there")

    monkeypatch.setattr(compare, "compare_recordings", broken)
    monkeypatch.delenv("NEST_SSL_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main([*sides(reference, reference, tmp_path / "report"), *verify]))
    assert stop.value.code == EXIT_CRASHED == 70
    said = capsys.readouterr().err
    assert "damaged" not in said
    assert mistake.__name__ in said


@pytest.mark.parametrize("inside", ["", "report"])
def test_no_report_is_written_into_a_recording(reference: Path, copy: Path, inside: str) -> None:
    before = sorted(copy.rglob("*"))
    with pytest.raises(UserError, match="a report would be written into a recording: --out"):
        main(sides(reference, copy, copy / inside))
    assert sorted(copy.rglob("*")) == before


# --- for CI systems ---------------------------------------------------------------------------------------------------


def test_more_formats_are_written_when_asked_for(
    reference: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, out = tmp_path / "page", tmp_path / "report"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    assert main(sides(reference, reference, out)) == 0
    assert not page.exists() and not (out / "report.junit.xml").exists()  # neither by itself
    assert main([*sides(reference, reference, out), "--format", "junit", "--format", "github"]) == 0
    assert "train identically" in page.read_text() and 'failures="0"' in (out / "report.junit.xml").read_text()
    (copy / "step_0" / files.CALLS).unlink()
    with pytest.raises(UserError, match="damaged recording"):
        main([*sides(reference, copy, out), "--format", "junit"])
    assert 'type="refused"' in (out / "report.junit.xml").read_text()


def test_ranks_that_are_refused_stand_in_junit(reference: Path, tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / files.RANKS).write_text("{}")
    with pytest.raises(UserError, match="damaged recording"):
        main([*sides(tmp_path / "ranks", reference, tmp_path / "report"), "--format", "junit"])
    assert 'type="refused"' in (tmp_path / "report" / "report.junit.xml").read_text()


def test_a_jobs_page_without_a_job(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    with pytest.raises(UserError, match="no page to write to: --format github"):
        main([*sides(reference, reference, tmp_path / "report"), "--format", "github"])
