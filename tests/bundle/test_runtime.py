"""Docker or local: who decides, what is said, and how a container is started. `docker` is a stand-in here."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., "subprocess.CompletedProcess[str]"]


HANGS = "hangs"


class FakeDocker:
    """A `docker` that notes how it was called and answers what it was told to; `HANGS` ends by `docker stop` alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._notes, self._answers = folder, folder / "docker calls", folder / "answers.json"
        self._answers.write_text("{}")
        program = folder / "docker"
        program.write_text(
            f"#!{sys.executable} -S\n"  # without site-packages: it starts in two thirds of the time
            "import json, sys, time\n"
            f"open({str(self._notes)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
            "words = ' '.join(sys.argv[1:])\n"
            f"for key, (text, code) in json.load(open({str(self._answers)!r})).items():\n"
            f"    while key in words and text == {HANGS!r} and '[\"stop\"' not in open({str(self._notes)!r}).read():\n"
            "        time.sleep(0.05)\n"
            "    if key in words:\n"
            "        print(text)\n"
            "        sys.exit(code)\n"
        )
        program.chmod(0o755)

    def answer(self, **answers: tuple[str, int]) -> None:
        words = {"plan": "--plan", "collect": "--collect", "first": "log=first", "second": "log=second",
                 "version": "{{.Server.Version}}", "runtimes": ".Runtimes", "memory": ".MemTotal", "id": "{{.Id}}",
                 "source": "nest-ssl.source", "base": "image inspect b:1", "pull": "pull --quiet", "run": "run --name",
                 "oom": ".State.OOMKilled", "running": ".State.Running", "size": "{{.Size}}",
                 "missing": "nest-ssl/nemo:2.7.3-cpu"}  # fmt: skip
        answers = dict(sorted(answers.items(), key=lambda answer: answer[0] != "missing"))  # the first that fits counts
        self._answers.write_text(json.dumps({words[name]: answer for name, answer in answers.items()}))

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._notes.read_text().splitlines()] if self._notes.exists() else []

    @property
    def run(self) -> list[str]:
        """The one call that starts a container."""
        (call,) = [call for call in self.calls if call[:2] == ["run", "--name"]]
        return call


ENGINE = {"version": ("28.5", 0), "runtimes": ("runc io.containerd.runc.v2", 0), "memory": ("1000000000", 0),
          "id": ("sha256:12ab", 0), "source": ("34cd", 0), "oom": ("false", 0), "running": ("false", 0)}  # fmt: skip


@pytest.fixture
def docker(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    folder = tmp_path / "programs"
    folder.mkdir()
    fake = FakeDocker(folder)
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    environment["PATH"] = f"{folder}{os.pathsep}{environment['PATH']}"
    environment["PIP_FIND_LINKS"] = str(tmp_path)
    return fake


@pytest.fixture
def call(root: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command, told = [f"docker/{script}", *arguments], {**environment, **settings}
        return subprocess.run(command, cwd=root, env=told, capture_output=True, text=True, timeout=60)

    return run


# --- Who decides ----------------------------------------------------------------------------------------------------


def test_without_an_engine_it_is_local_and_says_so(docker: FakeDocker, call: Any) -> None:
    docker.answer(version=("Cannot connect to the Docker daemon", 1))
    done = call("runtime.sh")
    assert (done.stdout, done.stderr) == ("local\n", "runtime: local (no Docker engine answers)\n")


def test_docker_asked_for_without_an_engine_is_an_error(docker: FakeDocker, call: Any) -> None:
    docker.answer(version=("", 1))
    done = call("runtime.sh", "docker")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: no Docker engine answers: RUNTIME=docker. Start one, or use RUNTIME=local\n"


@pytest.mark.parametrize(
    ("answers", "settings", "word", "why"),
    [
        ({}, {}, "docker", "no GPU: the engine has no NVIDIA runtime"),
        ({"runtimes": ("runc nvidia", 0)}, {}, "docker", "torch with CUDA."),
        ({"source": ("", 0), "pull": ("", 0)}, {"TORCH_INDEX": "x"}, "docker", "the images are built first"),
        ({"source": ("", 0)}, {}, "local", "images for the CPU need TORCH_INDEX or WHEELS"),
        ({"source": ("34cd", 0), "missing": ("", 1), "pull": ("", 0)}, {"TORCH_INDEX": "x", "NEMO_VERSION": "2.7.3"},
         "docker", "the images are built first"),
        ({"source": ("", 0), "base": ("", 1), "pull": ("", 1), "runtimes": ("nvidia", 0)}, {"BASE_IMAGE": "b:1"},
         "local", "cannot get the base image b:1"),
    ],
)  # fmt: skip
def test_docker_where_it_can_work(
    docker: FakeDocker, call: Any, answers: dict, settings: dict[str, str], word: str, why: str
) -> None:
    docker.answer(**{**ENGINE, **answers})
    done = call("runtime.sh", **settings)
    assert done.stdout == f"{word}\n"
    assert done.stderr.splitlines()[-1].startswith(f"runtime: {word} (")
    assert why in done.stderr


def test_a_base_image_is_fetched_by_a_run_and_says_so_but_by_no_dry_run(
    docker: FakeDocker, environment: dict[str, str], root: Path, call: Any
) -> None:
    docker.answer(**{**ENGINE, "source": ("", 0), "base": ("", 1), "pull": ("", 0)})
    settings = {"BASE_IMAGE": "b:1", "TORCH_INDEX": "x"}
    words = [f"{name}={value}" for name, value in settings.items()]
    command = ["make", "--dry-run", "align", *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "the base image b:1 would have to be fetched" in done.stderr
    assert [call for call in docker.calls if call[0] == "pull"] == []
    assert "runtime: getting the base image b:1; RUNTIME=local does without\n" in call("runtime.sh", **settings).stderr
    assert [call for call in docker.calls if call[0] == "pull"] == [["pull", "--quiet", "b:1"]]


def test_make_asks_no_engine_unless_it_runs_something(
    docker: FakeDocker, environment: dict[str, str], root: Path
) -> None:
    docker.answer(**ENGINE)
    for goals in (["help"], ["--dry-run", "test"], ["--dry-run", "align", "RUNTIME=local"], ["--dry-run", "clean"]):
        subprocess.run(["make", *goals], cwd=root, env=environment, check=True, capture_output=True, timeout=60)
    assert docker.calls == []


@pytest.mark.parametrize("words", [["RUNTIME=docker"], []])
def test_make_starts_everything_in_containers(
    docker: FakeDocker, environment: dict[str, str], root: Path, words: list[str]
) -> None:
    docker.answer(**ENGINE)
    command = ["make", "--dry-run", "align", "SIZE=tiny", *words]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.startswith("runtime: docker (")
    assert re.findall(r"docker/[\w.]+ [\w-]+(?: \S+\.py|(?: nest)?$)", done.stdout, re.MULTILINE) == [
        "docker/images.sh --if-stale",
        "docker/images.sh --if-stale nest",
        "docker/run.sh nest scripts/make_data.py",
        "docker/run.sh nemo scripts/train_nemo.py",
        "docker/run.sh nest scripts/train_nest.py",
        "docker/run.sh nest scripts/compare_outputs.py",
    ]


def test_make_says_what_was_asked_for(docker: FakeDocker, environment: dict[str, str], root: Path) -> None:
    docker.answer(**ENGINE)
    command = ["make", "--dry-run", "nest", "TORCH=cuda"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "torch with CUDA, no GPU: the engine has no NVIDIA runtime" in done.stderr


# --- How a container is started -------------------------------------------------------------------------------------


def options(run: list[str], name: str) -> list[str]:
    return [value for option, value in pairwise(run) if option == name]


def test_a_container_can_do_little(docker: FakeDocker, call: Any, tmp_path: Path, root: Path) -> None:
    docker.answer(**ENGINE)
    own, out = tmp_path / "corpus", tmp_path / "o u t"
    own.mkdir()
    arguments = ["size=tiny", "x=[1, 2]", "name=two words"]
    done = call("run.sh", "nest", "scripts/train_nest.py", *arguments, OUT=str(out), DATA=str(own))
    assert (done.returncode, done.stderr) == (0, "")
    run = docker.run
    assert run[-5:] == ["nest-ssl/nest:cpu", "scripts/train_nest.py", *arguments]
    asked = {"--user": f"{os.getuid()}:{os.getgid()}", "--network": "none", "--cap-drop": "ALL",
             "--security-opt": "no-new-privileges", "--memory": "900000000", "--shm-size": "4g",
             "--pids-limit": "4096"}  # fmt: skip
    assert {name: options(run, name) for name in asked} == {name: [value] for name, value in asked.items()}
    assert "--read-only" in run
    assert "--gpus" not in run
    assert "NEST_SSL_IMAGE_ID=sha256:12ab" in options(run, "--env")
    assert options(run, "--mount") == [
        f'type=bind,"source={root}/data","target=/app/data",readonly',
        f'type=bind,"source={own}","target={own}",readonly',
        f'type=bind,"source={out}","target={out}"',
    ]
    assert ["rm", "--force", run[2]] in docker.calls


def test_the_gpus_are_used_where_the_engine_has_them(docker: FakeDocker, call: Any, tmp_path: Path) -> None:
    docker.answer(**{**ENGINE, "runtimes": ("nvidia runc", 0)})
    call("run.sh", "nemo", "scripts/train_nemo.py", OUT=str(tmp_path), MEMORY="32g", SHM="8g", GPUS="device=1")
    run = docker.run
    assert options(run, "--gpus") == ["device=1"]
    assert (options(run, "--memory"), options(run, "--shm-size")) == (["32g"], ["8g"])
    assert "nest-ssl/nemo:3.0.0-cuda" in run


@pytest.mark.parametrize("device", ["gpu", "cuda"])
@pytest.mark.parametrize(
    ("runtimes", "torch", "why"),
    [("runc", "cuda", "the engine has no NVIDIA runtime"), ("nvidia runc", "cpu", "TORCH=cpu. Take TORCH=cuda")],
)
def test_a_gpu_that_cannot_be_had_is_said_before_a_container_starts(
    docker: FakeDocker, call: Any, tmp_path: Path, device: str, runtimes: str, torch: str, why: str
) -> None:
    docker.answer(**{**ENGINE, "runtimes": (runtimes, 0)})
    words = [f"trainer.accelerator={device}", "overwrite=true"]
    done = call("run.sh", "nest", "scripts/train_nest.py", *words, OUT=str(tmp_path), TORCH=torch)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith(f"error: no GPU can be had: {why}") and "run" not in [one[0] for one in docker.calls]


def test_the_data_are_writable_only_while_they_are_made(
    docker: FakeDocker, call: Any, tmp_path: Path, root: Path
) -> None:
    docker.answer(**ENGINE)
    call("run.sh", "nest", "scripts/make_data.py", OUT=str(tmp_path))
    assert options(docker.run, "--mount")[0] == f'type=bind,"source={root}/data","target=/app/data"'


def test_folders_have_any_name(docker: FakeDocker, call: Any, tmp_path: Path) -> None:
    docker.answer(**ENGINE)
    names = ["my data", 'a"b', "a,b", "日本"]
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir()
    done = call("run.sh", "nest", "scripts/train_nest.py", OUT=str(tmp_path / 'o"ut'), DATA=":".join(map(str, folders)))
    assert (done.returncode, done.stderr) == (0, "")
    fields = [next(csv.reader([mount])) for mount in options(docker.run, "--mount")]  # as docker reads it
    assert [row[1] for row in fields[1:]] == [f"source={path}" for path in (*folders, tmp_path / 'o"ut')]


def test_folders_may_have_spaces_between_them(docker: FakeDocker, call: Any, tmp_path: Path) -> None:
    docker.answer(**ENGINE)
    for name in "ab":
        (tmp_path / name).mkdir()
    call("run.sh", "nest", "scripts/train_nest.py", OUT=str(tmp_path / "o"), DATA=f"{tmp_path}/a {tmp_path}/b")
    assert [f'"source={tmp_path}/{name}"' in " ".join(docker.run) for name in "ab"] == [True, True]


@pytest.mark.parametrize(("oom", "lines"), [("true", 1), ("false", 0)])
def test_out_of_memory_is_said_in_one_line(docker: FakeDocker, call: Any, tmp_path: Path, oom: str, lines: int) -> None:
    docker.answer(**{**ENGINE, "run": ("", 137), "oom": (oom, 0)})
    done = call("run.sh", "nest", "scripts/train_nest.py", OUT=str(tmp_path), MEMORY="1g")
    assert done.returncode == 137
    assert done.stderr.count("\n") == lines
    assert ("error: out of memory: nest needs more than MEMORY=1g" in done.stderr) == bool(lines)


@pytest.mark.parametrize(
    ("answers", "settings", "says"),
    [
        ({"version": ("", 1)}, {}, "error: no Docker engine answers"),
        ({"id": ("", 1)}, {}, "error: no such image: nest-ssl/nest:cpu. Run make images"),
        ({}, {"OUT": "/proc/nowhere"}, "error: cannot make the folder: /proc/nowhere"),
        ({}, {"DATA": "/nowhere"}, "error: no such folder: /nowhere"),
        ({}, {"OUT": "."}, "error: OUT=. holds this repository."),
        ({}, {"OUT": ".."}, "error: OUT=.. holds this repository."),
        ({}, {"OUT": "nest_ssl"}, "error: OUT=nest_ssl is a folder of this repository's own."),
        ({}, {"OUT": "tests/data"}, "error: OUT=tests/data is a folder of this repository's own."),
        ({}, {"TORCH": "rocm"}, "error: no such build of torch: TORCH=rocm"),
    ],
)
def test_mistakes_are_one_line(
    docker: FakeDocker, call: Any, tmp_path: Path, answers: dict, settings: dict[str, str], says: str
) -> None:
    docker.answer(**{**ENGINE, **answers})
    done = call("run.sh", "nest", "scripts/train_nest.py", **{"OUT": str(tmp_path), **settings})
    assert done.returncode == 3
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1


def test_a_release_without_a_lock_is_one_line(docker: FakeDocker, call: Any) -> None:
    docker.answer(**ENGINE)
    done = call("images.sh", NEMO_VERSION="9.9.9")
    assert done.returncode == 3
    assert done.stderr == (
        "error: no lock for this NeMo: docker/locks/nemo-9.9.9-cpu.lock. "
        "Use one of: nemo-2.4.1-cpu.lock nemo-2.7.3-cpu.lock nemo-3.0.0-cpu.lock\n"
    )


# --- One image a release --------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A copy of what images are made of, where logs may be written."""
    manifests = "data/dummy_ssl.sha256 data/dummy_ssl_kinds.sha256"
    for name in f".dockerignore LICENSE pyproject.toml conf {manifests} docker nest_ssl scripts".split():
        target = tmp_path / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / name, target) if (root / name).is_dir() else shutil.copy(root / name, target)
    return tmp_path / "checkout"


def builds(docker: FakeDocker) -> dict[str, list[str]]:
    """Build arguments by the name of the image."""
    calls = [call for call in docker.calls if call[0] == "build"]
    return {call[call.index("--tag") + 1]: options(call, "--build-arg") for call in calls}


@pytest.mark.parametrize(("release", "tools"), [("3.0.0", ""), ("2.7.3", ""), ("2.4.1", "g++ python3-dev")])
def test_a_release_is_built_with_what_its_lock_needs(
    docker: FakeDocker, environment: dict[str, str], checkout: Path, release: str, tools: str
) -> None:
    docker.answer(**{**ENGINE, "size": ("1000000", 0)})
    told = {**environment, "NEMO_VERSION": release, "BASE_IMAGE": "b:1"}
    done = subprocess.run([checkout / "docker/images.sh"], env=told, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    built = builds(docker)
    assert list(built) == ["nest-ssl/nest:cpu", f"nest-ssl/nemo:{release}-cpu"]
    nest, nemo = built.values()
    shared = [word for word in nest if not word.startswith("VERSION=")]
    assert nemo == [*shared, f"NEMO_VERSION={release}", f"BUILD_TOOLS={tools}"]
    assert {"TORCH=cpu", "TORCH_VERSION=2.13.0+cpu", "CUDA_VERSION=", "BASE_IMAGE=b:1"} <= set(nest)


def test_a_container_runs_the_release_asked_for(docker: FakeDocker, call: Any, tmp_path: Path) -> None:
    docker.answer(**ENGINE)
    call("run.sh", "nemo", "scripts/train_nemo.py", OUT=str(tmp_path), NEMO_VERSION="2.7.3")
    assert "nest-ssl/nemo:2.7.3-cpu" in docker.run


# --- explain --------------------------------------------------------------------------------------------------------

PLANNED = """explain-a nemo-2.4.1 scripts/train_nemo.py log=first 'x=two words'
explain-b nemo-3.0.0 scripts/train_nemo.py log=second
explain-c nest -m nest_ssl.cli.main replay"""


def containers(docker: FakeDocker) -> list[list[str]]:
    """Of each that was started, the image and what it ran."""
    started = [call for call in docker.calls if call[:2] == ["run", "--name"]]
    return [call[next(i for i, word in enumerate(call) if word.startswith("nest-ssl/")) :] for call in started]


def test_each_command_of_explain_runs_in_the_image_of_its_trainer(
    docker: FakeDocker, call: Any, tmp_path: Path
) -> None:
    """Whichever releases were recorded, on either side; one that fails is said, and the others go on."""
    docker.answer(**ENGINE, plan=(PLANNED, 0), first=("no such thing", 3), collect=("", 1))
    done = call("explain.sh", "--reference", "o/nemo", OUT=str(tmp_path))
    assert containers(docker) == [
        ["nest-ssl/nest:cpu", "scripts/explain.py", "--plan", "--reference", "o/nemo"],
        ["nest-ssl/nemo:2.4.1-cpu", "scripts/train_nemo.py", "log=first", "x=two words"],
        ["nest-ssl/nemo:3.0.0-cpu", "scripts/train_nemo.py", "log=second"],
        ["nest-ssl/nest:cpu", "-m", "nest_ssl.cli.main", "replay"],
        ["nest-ssl/nest:cpu", "scripts/explain.py", "--collect", "--reference", "o/nemo"],
    ]
    assert "explain: explain-a: exit code 3: no such thing\n" in done.stdout
    assert done.returncode == 1  # the comparison's


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_explain_and_starts_no_other_container(
    docker: FakeDocker, environment: dict[str, str], root: Path, tmp_path: Path, number: int, code: int
) -> None:
    docker.answer(**ENGINE, plan=(PLANNED, 0), first=(HANGS, 143))
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  also where a job's shell ignores it
    started = subprocess.Popen(
        ["docker/explain.sh"], cwd=root, env={**environment, "OUT": str(tmp_path)}, preexec_fn=heard
    )
    for _ in range(300):
        if len(containers(docker)) == 2:
            break
        time.sleep(0.1)
    started.send_signal(number)
    assert started.wait(30) == code
    assert len(containers(docker)) == 2 and any(call[0] == "stop" for call in docker.calls)
