"""The experiment as a graph: which programs make starts, in which order, with which words."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., "subprocess.CompletedProcess[str]"]
EXPERIMENT = ["make_data.py", "train_nemo.py", "train_nest.py", "compare_outputs.py"]


def test_help_is_the_default_and_names_every_target(make: Make, root: Path) -> None:
    text = make().stdout
    makefile = (root / "Makefile").read_text()
    targets = {name for line in re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE) for name in line.split()}
    assert {"setup", "data", "nemo", "nest", "compare", "align", "test", "lint", "locks", "clean"} <= targets
    assert {"test-nemo", "test-generations", "images", "check-locks"} <= targets
    assert targets - {"images-ready"} == set(re.findall(r"^  make ([\w-]+) ", text, re.MULTILINE))
    assert text == make("help").stdout


def test_help_names_every_variable_of_the_experiment(make: Make) -> None:
    text = make("help", "SIZE=tiny", "ARGS='a b'").stdout
    names = "SIZE RUN SEED STEPS BATCHES DEVICE OUT THREADS ARGS NEMO_ARGS NEST_ARGS NEMO_VERSION PYTHON"
    for variable in names.split():
        assert f"{variable}=" in text
    assert "SIZE=tiny" in text
    assert "release of NeMo: 2.4.1 2.7.3 3.0.0;" in text


@pytest.mark.parametrize("jobs", ["-j1", "-j4"])
def test_align_makes_data_then_trains_both_then_compares(make: Make, fake_python: Any, jobs: str) -> None:
    done = make("align", jobs)
    assert done.returncode == 0, done.stderr
    assert fake_python.scripts == EXPERIMENT


def test_the_trainers_get_the_same_words_but_for_the_folder(make: Make, fake_python: Any) -> None:
    make(
        "align",
        "NEMO_VERSION=2.7.3",
        "SIZE=tiny",
        "RUN=full",
        "SEED=7",
        "STEPS=0,1,2",
        "BATCHES=3",
        "DEVICE=cpu",
        "OUT=o u t",
    )
    nemo, nest = (call["argv"][1:] for call in fake_python.calls if "train" in call["argv"][0])
    assert nemo[:-1] == nest[:-1] == [
        "nemo=2.7.3", "size=tiny", "run=full", "seed=7", "save_steps=0,1,2", "batches=3", "trainer.accelerator=cpu",
        "overwrite=true",
    ]  # fmt: skip
    assert (nemo[-1], nest[-1]) == ("output_dir=o u t/nemo", "output_dir=o u t/nest")
    compare = fake_python.calls[-1]["argv"][1:]
    assert compare == ["--reference", "o u t/nemo", "--candidate", "o u t/nest", "--out", "o u t/report"]


def test_overrides_reach_whom_they_are_for(make: Make, fake_python: Any) -> None:
    both, nemo, nest = "+a.b=1 'c=[1, 2]'", "++only=nemo", "only=nest"
    make("align", f"ARGS={both}", f"NEMO_ARGS={nemo}", f"NEST_ARGS={nest}", "COMPARE_ARGS=--atol 1e-6")
    words = {Path(call["argv"][0]).name: call["argv"] for call in fake_python.calls}
    assert words["train_nemo.py"][-3:] == ["+a.b=1", "c=[1, 2]", "++only=nemo"]
    assert words["train_nest.py"][-3:] == ["+a.b=1", "c=[1, 2]", "only=nest"]
    assert words["compare_outputs.py"][-2:] == ["--atol", "1e-6"]


@pytest.mark.parametrize(("setting", "threads"), [((), "1"), (("THREADS=2",), "2")])
def test_one_thread_on_both_sides_unless_told(make: Make, fake_python: Any, setting: tuple[str], threads: str) -> None:
    make("align", *setting)
    assert {call["threads"] for call in fake_python.calls} == {threads}


@pytest.mark.parametrize("script", EXPERIMENT)
def test_make_fails_with_the_first_program_that_does(make: Make, fake_python: Any, script: str) -> None:
    fake_python.fail(script, 1)
    done = make("align")
    assert done.returncode != 0
    assert fake_python.scripts == EXPERIMENT[: EXPERIMENT.index(script) + 1]


def test_compare_alone_trains_nothing(make: Make, fake_python: Any) -> None:
    assert make("compare").returncode == 0
    assert fake_python.scripts == ["compare_outputs.py"]


def test_a_runtime_that_is_not_there_is_an_error(make: Make, fake_python: Any) -> None:
    done = make("align", "RUNTIME=cloud")
    assert done.returncode != 0
    assert "RUNTIME=cloud" in done.stderr
    assert fake_python.calls == []


def test_clean_leaves_other_files_alone(make: Make, tmp_path: Path) -> None:
    gone = ["nemo/recording.json", "nest/step_0/loss.pt", "report/report.md", ".nemo.partial-ab/x", "nemo.log"]
    kept = ["notes.txt", "twin/recording.json"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    commands = make("--dry-run", "clean", f"OUT={tmp_path}").stdout.splitlines()
    subprocess.run(["bash", "-ec", commands[0].replace("data/dummy_ssl", "")], check=True)
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []


@pytest.mark.parametrize(("fails", "code"), [(None, 0), ("no:cacheprovider", 2), ("--ignore", 2)])
def test_test_fails_when_either_run_does(
    make: Make, fake_python: Any, tmp_path: Path, fails: str | None, code: int
) -> None:
    if fails:
        fake_python.fail(fails, 1)
    done = make("--assume-old=data", "--assume-old=lint", "test", f"TEST_LOGS={tmp_path / 'l o g s'}")
    assert done.returncode == code
    runs = {tuple(call["argv"]) for call in fake_python.calls}
    assert runs == {
        ("-m", "pytest", "tests", "--ignore", "tests/against_nemo", "--ignore", "tests/docker"),
        ("-m", "pytest", "-p", "no:cacheprovider", "tests/against_nemo"),
    }
    port, nemo = done.stdout.splitlines()[-2:]
    assert re.fullmatch(r"The port     my last line: .*'--ignore'.*", port)
    assert re.fullmatch(r"Against NeMo my last line: .*'no:cacheprovider'.*", nemo)


@pytest.mark.parametrize(("words", "release"), [([], "3.0.0"), (["NEMO_VERSION=2.4.1"], "2.4.1")])
def test_each_release_has_its_own_python(
    environment: dict[str, str], root: Path, words: list[str], release: str
) -> None:
    """The port's is one for all."""
    command = ["make", "--dry-run", "--assume-old=setup", "RUNTIME=local", "align", *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=60)
    programs = [line.split()[:2] for line in done.stdout.replace("\\\n", "").splitlines()]
    assert programs == [
        [".venv/nest/bin/python", "scripts/make_data.py"],
        [f".venv/nemo-{release}/bin/python", "scripts/train_nemo.py"],
        [".venv/nest/bin/python", "scripts/train_nest.py"],
        [".venv/nest/bin/python", "scripts/compare_outputs.py"],
    ]


def test_the_other_releases_are_those_with_a_lock(make: Make, root: Path) -> None:
    locked = {path.stem.removeprefix("nemo-") for path in (root / "docker" / "locks").glob("nemo-*.txt")}
    (asked,) = re.findall(r"^GENERATIONS +\?= (.+)$", (root / "Makefile").read_text(), re.MULTILINE)
    assert {*asked.split(), "3.0.0"} == locked


@pytest.mark.parametrize(("fails", "code"), [(None, 0), ("tests/against_nemo", 2), ("setup.py", 2)])
def test_generations_are_tested_one_after_another(
    make: Make, fake_python: Any, tmp_path: Path, fails: str | None, code: int
) -> None:
    """Setup, data and tests for each; one that fails does not keep the next from its turn, and is not forgotten."""
    if fails:
        fake_python.fail(fails, 1)
    logs = tmp_path / "l o g s"
    logs.mkdir()
    (logs / "nemo-2.7.3.log").write_text("yesterday's last line")
    python = str(fake_python.path)
    done = make("test-generations", f"TEST_LOGS={logs}", f"PYTHON={python}")
    assert done.returncode == code
    tests = ["scripts/make_data.py", "-m"] if fails != "setup.py" else []
    assert [call["argv"][0] for call in fake_python.calls] == ["scripts/setup.py", *tests] * 2
    assert [call["NEMO_VERSION"] for call in fake_python.calls if call["argv"][0] == "scripts/setup.py"] == [
        "2.7.3", "2.4.1",
    ]  # fmt: skip
    said = r"my last line: .*'tests/against_nemo'\]" if fails != "setup.py" else "did not run, see above"
    for release, line in zip(["2.7.3", "2.4.1"], done.stdout.splitlines()[-2:], strict=True):
        assert re.fullmatch(rf"Against NeMo {re.escape(release)} {said}", line)


def test_ci_runs_the_test_commands_and_nothing_else(root: Path) -> None:
    script = (root / ".ci" / "run").read_text()
    assert re.findall(r"^ *(?:exec )?(make .*)$|pytest|python3? \S*\.py", script, re.MULTILINE) == [
        "make test", "make test-docker",
    ]  # fmt: skip
    assert (root / ".ci" / "run").stat().st_mode & 0o111
