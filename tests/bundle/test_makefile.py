"""The experiment as a graph: which programs make starts, in which order, with which words."""

from __future__ import annotations

import re
import shlex
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
    (listed,) = re.findall(r"^targets := ((?:.*\\\n)*.*)$", makefile, re.MULTILINE)
    targets = set(listed.replace("\\", "").split())
    assert {"setup", "data", "nemo", "nest", "compare", "align", "test", "lint", "locks", "clean"} <= targets
    assert {"test-nemo", "test-generations", "images", "check-locks"} <= targets
    assert targets == set(re.findall(r"^  make ([\w-]+) ", text, re.MULTILINE))
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
    done = make("align", jobs, "PARALLEL=0")
    assert done.returncode == 0, done.stderr
    assert fake_python.scripts == EXPERIMENT


def test_align_trains_both_at_once_between_data_and_comparison(make: Make, fake_python: Any) -> None:
    done = make("align", "PARALLEL=1")
    assert done.returncode == 0, done.stderr
    data, *trained, compare = fake_python.scripts
    assert [data, *sorted(trained), compare] == EXPERIMENT
    assert re.search(r"^nemo: my last line: \['scripts/train_nemo\.py'", done.stdout, re.MULTILINE)


def test_align_says_whether_there_is_room(make: Make, fake_python: Any) -> None:
    assert "align: trains one behind the other: a GPU is not shared" in make("align", "DEVICE=gpu").stdout
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
        "PARALLEL=0",
    )
    nemo, nest = (call["argv"][1:] for call in fake_python.calls if "train" in call["argv"][0])
    assert nemo[:-1] == nest[:-1] == [
        "nemo=2.7.3", "size=tiny", "run=full", "kind=plain", "recipe=nest", "seed=7", "save_steps=0,1,2", "batches=3",
        "trainer.accelerator=cpu", "overwrite=true",
    ]  # fmt: skip
    assert (nemo[-1], nest[-1]) == ("output_dir=o u t/nemo", "output_dir=o u t/nest")
    compare = fake_python.calls[-1]["argv"][1:]
    assert compare == ["--reference", "o u t/nemo", "--candidate", "o u t/nest", "--out", "o u t/report"]


@pytest.mark.parametrize(
    ("given", "steps", "batches"),
    [((), "0,1", "2"), (("BATCHES=1",), "0", "1"), (("BATCHES=9",), "0,1", "9"), (("STEPS=1",), "1", "2")],
)
def test_two_steps_are_recorded_unless_one_is_all_there_is(
    make: Make, fake_python: Any, given: tuple[str], steps: str, batches: str
) -> None:
    make("nest", *given)
    words = fake_python.calls[-1]["argv"]
    assert {f"save_steps={steps}", f"batches={batches}"} < set(words)


def test_overrides_reach_whom_they_are_for(make: Make, fake_python: Any) -> None:
    both, nemo, nest = "+a.b=1 'c=[1, 2]'", "++only=nemo", "only=nest"
    make("align", f"ARGS={both}", f"NEMO_ARGS={nemo}", f"NEST_ARGS={nest}", "COMPARE_ARGS=--atol 1e-6")
    words = {Path(call["argv"][0]).name: call["argv"] for call in fake_python.calls}
    assert words["train_nemo.py"][-3:] == ["+a.b=1", "c=[1, 2]", "++only=nemo"]
    assert words["train_nest.py"][-3:] == ["+a.b=1", "c=[1, 2]", "only=nest"]
    assert words["compare_outputs.py"][-2:] == ["--atol", "1e-6"]


@pytest.mark.parametrize(("setting", "threads"), [((), "1"), (("THREADS=2",), "2")])
def test_one_thread_unless_asked_for(make: Make, fake_python: Any, setting: tuple[str], threads: str) -> None:
    make("align", *setting)
    assert {call["threads"] for call in fake_python.calls} == {threads}


@pytest.mark.parametrize("script", EXPERIMENT)
def test_make_fails_with_the_first_program_that_does(make: Make, fake_python: Any, script: str) -> None:
    fake_python.fail(script, 1)
    done = make("align", "PARALLEL=0")
    assert done.returncode != 0
    assert fake_python.scripts == EXPERIMENT[: EXPERIMENT.index(script) + 1]


@pytest.mark.parametrize("script", ["train_nemo.py", "train_nest.py"])
def test_nothing_is_compared_where_one_of_two_at_once_fails(make: Make, fake_python: Any, script: str) -> None:
    fake_python.fail(script, 3)
    done = make("align", "PARALLEL=1")
    assert done.returncode == 2 and "Error 3" in done.stderr
    assert script in fake_python.scripts and "compare_outputs.py" not in fake_python.scripts


def test_compare_alone_trains_nothing(make: Make, fake_python: Any) -> None:
    assert make("compare").returncode == 0
    assert fake_python.scripts == ["compare_outputs.py"]


def test_explain_gathers_evidence_and_trains_nothing_itself(make: Make, fake_python: Any) -> None:
    """It starts the trainers' own Pythons, whose names may have spaces."""
    done = make("explain", "OUT=o u t", "EVIDENCE=floor,replay", "COMPARE_ARGS=--atol 1e-6")
    assert done.returncode == 0, done.stderr
    assert fake_python.scripts == ["make_data.py", "explain.py"]
    words = fake_python.calls[-1]["argv"][1:]
    pythons, rest = words[:2], words[2:]
    assert [word.partition("=")[0] for word in pythons] == ["--reference-python", "--candidate-python"]
    assert all(len(shlex.split(word.partition("=")[2])) == 1 for word in pythons)
    sides = ["--reference", "o u t/nemo", "--candidate", "o u t/nest", "--out", "o u t/report"]
    assert rest == [*sides, "--evidence=floor,replay", "--atol", "1e-6"]


@pytest.mark.parametrize(("given", "size"), [((), "tiny"), (("SIZE=small", "RUN=quick", "ARGS=a.b='c d'"), "small")])
def test_track_trains_both_nemos_and_the_port_as_each(
    make: Make, given: tuple[str, ...], size: str, tmp_path: Path
) -> None:
    """A dry run, which prints what each inner make would run, too."""
    source = tmp_path / "a b"
    (source / "nemo").mkdir(parents=True)
    done = make("-n", "track", "FROM_VERSION=2.7.3", f"NEMO_SOURCE={source}", "OUT=o u t", *given)
    assert done.returncode == 0, done.stderr
    trained = [line for line in done.stdout.splitlines() if "scripts/train_n" in line]
    sides = [(f"train_{name}.py", f"nemo={release}", f"o u t/track/{side}/{name}")
             for side, release in (("before", "2.7.3"), ("after", "3.0.0")) for name in ("nemo", "nest")]  # fmt: skip
    assert len(trained) == 4
    for line, (script, nemo, folder) in zip(trained, sides, strict=True):
        assert script in line and f"'{nemo}' 'size={size}' 'run={'quick' if given else 'full'}'" in line
        assert f"'output_dir={folder}'" in line and "operators=true" in line and ("a.b=" in line) is bool(given)
    inner = [line for line in done.stdout.splitlines() if " nemo nest " in line]
    assert (
        ["'NEMO_SOURCE='" in line for line in inner]
        == [f"'NEMO_SOURCE={source}'" not in line for line in inner]
        == [True, False]
    )
    last = done.stdout.splitlines()[-2:]
    assert "track 'o u t/track/before' 'o u t/track/after'" in last[0] and "--out 'o u t/track/report'" in last[1]


def test_bundle_is_of_this_output_and_takes_options(make: Make, fake_python: Any) -> None:
    done = make("bundle", "OUT=o u t", "ARGS=--tensors")
    assert done.returncode == 0, done.stderr
    words = fake_python.calls[-1]["argv"]
    sides = ["--reference", "o u t/nemo", "--candidate", "o u t/nest", "--report", "o u t/report"]
    assert words[words.index("bundle") :] == ["bundle", "o u t/comparison.tar", *sides, "--tensors"]


def test_align_ends_with_explain_where_that_is_asked_for(
    make: Make, fake_python: Any, environment: dict[str, str]
) -> None:
    environment["EXPLAIN"] = "1"
    assert make("align", "PARALLEL=0").returncode == 0
    assert fake_python.scripts == [*EXPERIMENT[:-1], "explain.py"]


# --- What is given is checked, and never run ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["align", "SIZ=tiny"], "no such variable: SIZ. Did you mean SIZE?"),
        (["align", "size=tiny"], "no such variable: size. Did you mean SIZE?"),
        (["align", "TORCHINDEX=x"], "no such variable: TORCHINDEX. Did you mean TORCH_INDEX?"),
        (["algin"], "no such target: algin (see make help). Did you mean align?"),
        (["tests"], "no such target: tests (see make help). Did you mean test?"),
        (["xyzzy"], "no such target: xyzzy (see make help)"),
        (["clean", "OUT="], "OUT is empty"),
        (["align", "THREADS=0"], "THREADS=0 is no number of threads"),
        (["align", "THREADS=two"], "THREADS=two is no number of threads"),
        (["align", "RUNTIME=cloud"], "RUNTIME=cloud is no runtime"),
        (["align", "PARALLEL=2"], "PARALLEL=2: give 0, 1, or leave it out"),
        (["align", "RANKS=2", "EXPLAIN=1"], "RANKS=2: evidence and operators are gathered of one process"),
        (["track", "FROM_VERSION=2.7.3", "RANKS=2"], "RANKS=2: evidence and operators are gathered of one process"),
        (["track"], "one NeMo alone: 3.0.0. Name the other one: FROM_VERSION=, FROM_SOURCE= or NEMO_SOURCE="),
        (["track", "FROM_VERSION= "], "FROM_VERSION is empty. Use one of: 2.4.1"),
        (
            ["track", "FROM_VERSION=2.7.3", "STEPS=none"],
            "STEPS=none records nothing to track. Give steps, as STEPS=0,1",
        ),
        (
            ["track", "NEMO_SOURCE=/nowhere"],
            "no checkout of NeMo: NEMO_SOURCE=/nowhere. Give the folder that has nemo/",
        ),
        (["track", "FROM_VERSION=1.0"], "no lock for this NeMo: 1.0"),
        (["align", "RUNTIME=docker", "NEMO_SOURCE=a"], "NEMO_SOURCE=a is not seen in an image. Use RUNTIME=local"),
        (["align", "NEMO_VERSION=9.9"], "no lock for this NeMo: 9.9. Use one of: 2.4.1 2.7.3 3.0.0"),
        (["align", "SIZE=huge"], "no such SIZE: huge. Use one of: large medium small tiny xlarge xxlarge"),
        (["align", "RUN=fast"], "no such RUN: fast. Use one of: full quick train"),
        (["nemo", "KIND=tar"], "no such KIND: tar. Use one of: buckets concat mux plain shar tarred"),
        (["nest", "RECIPE=w2v"], "no such RECIPE: w2v. Use one of: best-rq nest nest-128 wav2vec-bert"),
        (["test-generations", "GENERATIONS=2.7.3;ls"], "no lock for this NeMo: 2.7.3;ls."),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(make: Make, fake_python: Any, words: list[str], says: str) -> None:
    done = make(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert fake_python.calls == []


def test_from_another_folder_it_says_how(root: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = ["make", "-f", str(root / "Makefile"), "align"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"this is another folder than the bundle's. Use make -C {root}" in done.stderr


def test_a_copy_without_its_settings_says_so(root: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (copy := tmp_path / "a copy").mkdir()
    (copy / "Makefile").write_text((root / "Makefile").read_text())
    done = subprocess.run(["make", "-C", copy, "align"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "docker/.env is missing. A copy of docker/* leaves it out. Bring it back: git checkout" in done.stderr


@pytest.mark.parametrize("word", ["--config-path=/my/conf", "-cp /my/conf"])
def test_a_configuration_of_your_own_may_have_other_sizes(make: Make, fake_python: Any, word: str) -> None:
    assert make("nest", "SIZE=mine", f"ARGS={word}").returncode == 0
    assert "size=mine" in fake_python.calls[-1]["argv"]


@pytest.mark.parametrize("variable", "ARGS COMPARE_ARGS OUT SEED SIZE STEPS DATA TORCH BASE_IMAGE TEST_LOGS".split())
@pytest.mark.parametrize("how", ["$(shell touch {0})$(touch {0})`touch {0}`;touch {0}", "'; touch {0}; '"])
def test_nothing_in_a_variable_is_run(make: Make, tmp_path: Path, variable: str, how: str) -> None:
    mark = tmp_path / "mark"
    value = how.format(mark)
    make("align", f"{variable}={value}")
    make("--dry-run", "test", f"{variable}={value}")
    assert not mark.exists()


def test_nothing_in_the_environment_is_run(make: Make, environment: dict[str, str], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    environment |= dict.fromkeys(("TORCH_INDEX", "OUT", "PYTHON", "TORCH"), f"$(shell touch {mark})")
    make("--dry-run", "align")
    assert not mark.exists()


def test_words_arrive_as_they_were_written(make: Make, fake_python: Any) -> None:
    words = """+a=$x b=${oc.env:HOME} 'c=[1, 2]' "d=e's" f=$$g h=x;y *"""
    assert make("nest", f"ARGS={words}", "OUT=o'u\"t").returncode == 0
    argv = fake_python.calls[-1]["argv"]
    assert argv[-7:] == ["+a=$x", "b=${oc.env:HOME}", "c=[1, 2]", "d=e's", "f=$g", "h=x;y", "*"]
    assert "output_dir=o'u\"t/nest" in argv


def test_an_open_quote_is_said(make: Make, fake_python: Any) -> None:
    done = make("nest", "ARGS=a='b")
    assert "error: a quote is not closed: a='b" in done.stderr
    assert fake_python.scripts == ["make_data.py"]


def test_the_experiment_is_not_taken_from_the_environment(
    make: Make, environment: dict[str, str], fake_python: Any
) -> None:
    environment |= {"DEVICE": "cuda", "OUT": "/elsewhere", "SEED": "9", "ARGS": "x=1", "PYTHONPATH": "/another/torch"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    done = make("nest", "SEED=7")
    call = fake_python.calls[-1]
    assert {"trainer.accelerator=auto", "output_dir=outputs/nest", "seed=7"} <= set(call["argv"])
    assert "x=1" not in call["argv"]
    assert not {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"} & {*call}
    for name in ("DEVICE=cuda", "OUT=/elsewhere", "ARGS=x=1"):
        assert f"{name} in the environment is not used" in done.stderr
    assert "SEED" not in done.stderr


def test_what_the_machine_sets_is_taken_and_named(make: Make, environment: dict[str, str]) -> None:
    environment["TORCH_INDEX"] = "https://example.org/cpu"
    assert "TORCH_INDEX=https://example.org/cpu comes from the environment" in make("--dry-run", "nest").stderr


def test_a_run_knows_the_words_that_make_was_given(make: Make, fake_python: Any) -> None:
    make("align", "SIZE=tiny", "ARGS=a=1 'b=c d'", "STEPS=0,1", "OUT=o/u/t")
    commands = {call["command"] for call in fake_python.calls if "command" in call}
    (command,) = commands
    words = shlex.split(command)
    assert words[:2] == ["make", "align"]
    assert set(words[2:]) == {"SIZE=tiny", "ARGS=a=1 'b=c d'", "STEPS=0,1", "OUT=o/u/t", "RUNTIME=local"}
    assert "SIZE=tiny" in command  # no quotes where none are needed
    assert command.startswith("make align ") and "  " not in command.partition("ARGS=")[0]


@pytest.mark.parametrize(
    ("fails", "code"), [(None, 0), ("no:cacheprovider", 2), ("--ignore", 2), ("ruff", 2), ("check_types.py", 2)]
)
def test_test_fails_when_lint_or_either_run_does(
    make: Make, fake_python: Any, tmp_path: Path, fails: str | None, code: int
) -> None:
    if fails:
        fake_python.fail(fails, 1)
    done = make("--assume-old=data", "test", f"TEST_LOGS={tmp_path / 'l o g s'}")
    assert done.returncode == code
    runs = {tuple(call["argv"]) for call in fake_python.calls if "pytest" in call["argv"]}
    shared = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    assert runs == {
        ("-m", "pytest", *shared, "tests", "--ignore", "tests/against_nemo", "--ignore", "tests/docker"),
        ("-m", "pytest", "-p", "no:cacheprovider", "tests/against_nemo"),
    }
    assert ("nothing to mend" in done.stdout) == (fails not in ("ruff", "check_types.py"))
    port, nemo = done.stdout.splitlines()[-2:]
    assert re.fullmatch(r"The port     my last line: .*'--ignore'.*", port)
    assert re.fullmatch(r"Against NeMo my last line: .*'no:cacheprovider'.*", nemo)


@pytest.mark.parametrize(("words", "release"), [([], "3.0.0"), (["NEMO_VERSION=2.4.1"], "2.4.1")])
def test_each_release_has_its_own_python(
    environment: dict[str, str], root: Path, words: list[str], release: str
) -> None:
    """The port's is one for all."""
    command = ["make", "--dry-run", "--assume-old=ready", "--assume-old=ready-nest", "RUNTIME=local", "align", *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=60)
    programs = re.findall(r"'(\S+/python)' (scripts/\w+\.py)", done.stdout)
    assert programs == [
        (".venv/nest/bin/python", "scripts/make_data.py"),
        (".venv/nest/bin/python", "scripts/side_by_side.py"),
        (f".venv/nemo-{release}/bin/python", "scripts/train_nemo.py"),
        (".venv/nest/bin/python", "scripts/train_nest.py"),
        (".venv/nest/bin/python", "scripts/compare_outputs.py"),
    ]


@pytest.mark.parametrize(
    ("goal", "environments"),
    [("train", {"nest"}), ("nest", {"nest"}), ("compare", {"nest"}), ("data", {"nest"}), ("nemo", {"nest", "nemo"})],
)
def test_only_the_environments_that_a_goal_needs_are_made(
    environment: dict[str, str], root: Path, goal: str, environments: set[str]
) -> None:
    command = ["make", "--dry-run", "RUNTIME=local", goal]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=60)
    asked = re.findall(r"scripts/setup\.py --quiet (.+)$", done.stdout, re.MULTILINE)
    assert {name for words in asked for name in words.split()} == environments


def test_the_other_releases_are_those_with_a_lock(make: Make) -> None:
    assert "GENERATIONS=2.4.1 2.7.3 " in make("help").stdout


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
    done = make("test-generations", f"TEST_LOGS={logs}", f"PYTHON={python}", "GENERATIONS=2.7.3 2.4.1")
    assert done.returncode == code
    tests = ["scripts/make_data.py", "-m"] if fails != "setup.py" else []
    calls = [call for call in fake_python.calls if "--quiet" not in call["argv"]]
    assert [call["argv"][0] for call in calls] == ["scripts/setup.py", *tests] * 2
    assert [call["NEMO_VERSION"] for call in calls if "setup.py" in call["argv"][0]] == ["2.7.3", "2.4.1"]
    said = r"my last line: .*'tests/against_nemo'\]" if fails != "setup.py" else "did not run, see above"
    for release, line in zip(["2.7.3", "2.4.1"], done.stdout.splitlines()[-2:], strict=True):
        assert re.fullmatch(rf"Against NeMo {re.escape(release)} {said}", line)


def test_ci_runs_the_test_commands_and_nothing_else(root: Path) -> None:
    script = (root / ".ci" / "run").read_text()
    assert re.findall(r"^ *(?:exec )?(make .*)$|pytest|python3? \S*\.py", script, re.MULTILINE) == [
        "make test", "make test-docker",
    ]  # fmt: skip
    assert (root / ".ci" / "run").stat().st_mode & 0o111
