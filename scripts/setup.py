"""Make the environments: .venv/nemo-RELEASE (NVIDIA NeMo) and .venv/nest (the port, which has no NeMo in it).

`make setup` runs this, as `setup.py nest nemo`; on Windows run it yourself. Needs a Python 3.10 to 3.13 and an index.
It installs what docker/locks/*.lock pin, as the images do: pip checks the SHA-256 of every file, resolves nothing, and
builds sources with the locked tools. Only a build of torch that is in no lock (TORCH_INDEX) is not checked, nor what it
brings, and setup says so. An environment counts when it holds a stamp that fits; the stamp is written last.

Environment variables, all optional (what was chosen once is kept until chosen again):
    PYTHON        set by make to say that this Python was asked for, and that environments on another are to be replaced
    TORCH_INDEX   package index for torch alone, for example one with CPU wheels
    NEMO_VERSION  NeMo release, one that has a lock; environments of other releases stay as they are
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

if not (3, 10) <= sys.version_info[:2] <= (3, 13):  # this far, the file must parse on much older ones
    found = f"Python {sys.version.split()[0]} ({sys.executable})"
    print(f"error: wrong Python: {found}. Install 3.10 to 3.13, then: make setup PYTHON=python3.11", file=sys.stderr)
    sys.exit(3)

from pins import LOCKS, ROOT, cpu_wheels, default_nemo, read_lock

VENVS = ROOT / ".venv"
STAMP = "setup.json"
RECIPE = 2  # raise it when the way of installing changes, and environments made the old way are made again


class SetupError(Exception):
    """Something the user can mend, in one line."""


class Choice(NamedTuple):
    """What the environments are built on."""

    python: str
    torch_index: str


class Environment(NamedTuple):
    trainer: str  # nest or nemo
    lock: str  # its name among the locks, and under .venv
    gigabytes: float  # room it takes with a CPU torch

    @property
    def folder(self) -> Path:
        return VENVS / self.lock

    @property
    def python(self) -> Path:
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def log(self) -> Path:
        return VENVS / f"{self.lock}.log"

    def locks(self, build: str) -> list[Path]:
        """Layer upon layer, as in the images; tests and linters come last."""
        names = ("build", f"torch-{build}", f"{self.lock}-{build}", f"{self.lock}-dev")
        return [LOCKS / f"{name}.lock" for name in names]

    def stamp(self) -> dict[str, str]:
        try:
            stamp = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def wanted(self, choice: Choice) -> dict[str, str]:
        locks = sorted({path for build in ("cpu", "cuda") for path in self.locks(build)})
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.")[0]  # scripts and metadata
        content = b"".join(path.read_bytes() for path in locks) + project.encode()
        digest = hashlib.sha256(content).hexdigest()
        # Neither a venv nor an editable install survives being moved.
        return {"recipe": str(RECIPE), "locks": digest, "root": str(ROOT), **choice._asdict()}

    def is_current(self, choice: Choice) -> bool:
        """Whether it was completed with what is wanted now, and its Python still starts."""
        stamp = self.stamp()
        if any(stamp.get(key) != value for key, value in self.wanted(choice).items()):
            return False
        try:
            return subprocess.run([str(self.python), "-I", "-c", ""], capture_output=True).returncode == 0
        except PermissionError as error:
            advice = "Ask its owner, or clone to a folder of your own"
            raise SetupError(f"not executable for you: {self.python}. {advice}") from error
        except OSError:
            return False


def environments(trainers: list[str], nemo_version: str) -> list[Environment]:
    """The port's, which serves every release, and that of one release of NeMo."""
    if not (LOCKS / f"nemo-{nemo_version}.in").is_file():
        known = ", ".join(sorted(path.stem[len("nemo-") :] for path in LOCKS.glob("nemo-*.in")))
        raise SetupError(f"no lock for this NeMo: NEMO_VERSION={nemo_version}. Use one of: {known}")
    if nemo_version == "2.4.1" and "nemo" in trainers and sys.version_info[:2] > (3, 12):
        raise SetupError("NeMo 2.4.1 needs Python 3.10 to 3.12, for its NumPy is 1.26: make setup PYTHON=python3.12")
    both = [Environment("nest", "nest", 2.3), Environment("nemo", f"nemo-{nemo_version}", 3.0)]
    return [each for each in both if each.trainer in trainers]


def choose(envs: list[Environment]) -> Choice:
    """What was asked for now, else what an existing environment was made with, else this Python and its usual index.

    The port's has the first word: asking for another release must not make it again.
    """
    earlier = next(filter(None, (env.stamp() for env in envs)), {})
    python = str(getattr(sys, "_base_executable", "") or sys.executable)  # never the Python of a venv made here
    if not os.environ.get("PYTHON") and Path(earlier.get("python", "")).is_file():
        python = earlier["python"]
    return Choice(python, os.environ.get("TORCH_INDEX") or earlier.get("torch_index", ""))


# --- Making one -----------------------------------------------------------------------------------------------------


class Maker:
    """Makes environments side by side; the first failure stops them all."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.started = time.monotonic()
        self.stopped = False
        self.processes: set[subprocess.Popen[str]] = set()
        self.has_torch: dict[str, threading.Event] = {}  # by environment, in the order in which they install it

    def make(self, envs: list[Environment]) -> dict[str, str]:
        """Returns the version of torch in each environment, by its name."""
        by_size = sorted(envs, key=lambda env: -env.gigabytes)  # what takes longest waits for none
        self.has_torch = {env.lock: threading.Event() for env in by_size}
        with ThreadPoolExecutor(max_workers=len(envs)) as pool:
            try:
                making = {pool.submit(self._make, env): env.lock for env in by_size}
                for made, lock in making.items():
                    made.add_done_callback(lambda _, lock=lock: self.has_torch[lock].set())
                return {making[done]: done.result() for done in as_completed(making)}
            except BaseException:
                self.stopped = True
                for process in list(self.processes):
                    process.terminate()
                raise

    def _make(self, env: Environment) -> str:
        env.log.write_text("", encoding="utf-8")
        pip = [str(env.python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
        # Without --no-compile pip spends half of all the time on byte code that is never used.
        install = [*pip, "install", "--no-compile", "--progress-bar", "off"]
        locked = [*install, "--require-hashes", "--no-deps", "--no-build-isolation", "--use-pep517"]
        index = ["--index-url", self.choice.torch_index] if self.choice.torch_index else []
        self._step(env, "empty environment", [self.choice.python, "-I", "-m", "venv", "--clear", str(env.folder)])
        self._step(env, "pip and build tools", [*locked, "--retries", "1", "-r", str(LOCKS / "build.lock")])
        # By far the largest download: the second environment finds it in pip's cache.
        for earlier in itertools.takewhile(lambda lock: lock != env.lock, self.has_torch):
            self.has_torch[earlier].wait()
        version, build = self._torch_on_offer(env, [*install, "--dry-run", "--no-deps", *index])
        _, torch, trainer, dev = env.locks(build or "cuda")
        if build:
            alone = env.folder / "torch.lock"  # its own index serves nothing but torch
            alone.write_text(requirement("torch", torch), encoding="utf-8")
            self._step(env, f"torch {version}", [*locked, *index, "-r", str(alone)])
            self._step(env, "what torch needs", [*locked, "-r", str(torch)])
        else:
            self._say(env, f"torch {version} is in no lock: its hash is not checked, nor those of what it brings")
            self._step(env, f"torch {version}", [*install, "--no-deps", *index, f"torch=={version}"])
            versions = ["-c", str(LOCKS / f"{env.lock}.txt")]
            self._step(env, "what torch needs", [*install, *versions, f"torch=={version}", "setuptools", "fsspec"])
        if env.lock in self.has_torch:
            self.has_torch[env.lock].set()
        self._step(env, "all packages", [*locked, "-r", str(trainer), "-r", str(dev)])
        editable = ["--no-index", "--no-deps", "--no-build-isolation", "--editable", "."]
        self._step(env, "this package", [*install, *editable])
        check = [str(env.python), "-E", "-s", str(ROOT / "scripts" / "check_environment.py"), env.trainer]
        words = [*([] if build else ["--any-torch"]), *map(str, env.locks(build or "cuda"))]
        facts = self._step(env, "the check", [*check, *words])
        self._say(env, facts.splitlines()[-1])
        return version

    def _torch_on_offer(self, env: Environment, dry: list[str]) -> tuple[str, str]:
        """Version of torch that pip would take, and which of our locks has that file: cpu, cuda, or none."""
        (pin,) = (pin for pin in read_lock(LOCKS / "torch-cuda.lock") if pin.name == "torch")
        report = env.folder / "torch.json"
        self._step(env, "a torch on offer", [*dry, "--report", str(report), f"torch=={pin.version}"])
        (offer,) = json.loads(report.read_text(encoding="utf-8"))["install"]
        version, file = offer["metadata"]["version"], unquote(offer["download_info"]["url"].rpartition("/")[2])
        if file in cpu_wheels():
            return version, "cpu"
        return version, "cuda" if version == pin.version else ""

    def _step(self, env: Environment, label: str, command: list[str]) -> str:
        """Run it; returns what it printed."""
        if self.stopped:
            raise SetupError("stopped, because the other environment failed")
        outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        with env.log.open("a+", encoding="utf-8", errors="replace") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, text=True,
                                       env={**outside, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"})  # fmt: skip
            self.processes.add(process)
            code = process.wait()
            self.processes.discard(process)
            log.seek(start)
            output = log.read()
        if code:
            raise SetupError(f"{explain(output, label)}. The whole output: {env.log}")
        if label not in ("the check", "a torch on offer"):
            self._say(env, label)
        return output

    def _say(self, env: Environment, done: str) -> None:
        print(f"  [{time.monotonic() - self.started:4.0f} s] {env.lock}: {done}", flush=True)


def requirement(package: str, lock: Path) -> str:
    """One package's lines of a lock."""
    return "".join(re.findall(rf"^{package}==(?:.*\\\n)*.*\n", lock.read_text(encoding="utf-8"), re.MULTILINE))


def explain(log: str, label: str) -> str:
    """What failed, in one line, from the output of venv, pip or the check."""
    if re.search(r"No space left on device|Errno 28|Disk quota exceeded", log):
        return "no space left on the disk: installing. Free about 5 GB; TMPDIR= moves pip's temporary files elsewhere"
    if re.search(r"ensurepip is not available|No module named (venv|ensurepip|pip)", log):
        return "this Python cannot make environments: the venv module is missing. On Debian: apt install python3-venv"
    source = re.search(r"Failed building wheel for (\S+)", log)
    if source and re.search(r"Unsupported compiler|command '\S+' failed: No such file|Python\.h: No such file", log):
        return f"{source[1]} must be compiled, and that is not possible here. On Debian: apt install g++ python3-dev"
    if re.search(r"connection broken by|Could not fetch URL|ConnectionError|ReadTimeoutError|ProxyError", log):
        index = re.search(r"Looking in indexes: (.+)", log)
        where = index[1] if index else "pip's default"
        return f"no answer from the package index: {where}. Check network, proxy and pip's index-url (or TORCH_INDEX)"
    if "sha256" in log and "DO NOT MATCH" in log:
        package = re.search(r"^ +(\S+) .*from .*:$", log, re.MULTILINE)
        return f"a download has another hash than the lock: {package[1] if package else label}. Run make setup again"
    errors = re.findall(r"^(?:ERROR|Error|error): (?!ResolutionImpossible)(.+)$", log, re.MULTILINE)
    last = (errors or log.strip().splitlines() or ["nothing was said"])[-1]
    return f"setup stopped at {label}: {last.strip(' .')}"


# --- The whole of it ------------------------------------------------------------------------------------------------


def main(words: list[str]) -> None:
    trainers = [word for word in words if word != "--quiet"] or ["nest", "nemo"]
    if set(trainers) - {"nest", "nemo"}:
        raise SetupError(f"usage: setup.py [--quiet] [nest] [nemo]; not {' '.join(words)}")
    envs = environments(trainers, os.environ.get("NEMO_VERSION") or default_nemo())
    choice = choose(envs)
    missing = [env for env in envs if not env.is_current(choice)]
    if not missing:
        if "--quiet" not in words:
            names = ", ".join(f".venv/{env.lock}" for env in envs)
            print(f"setup: up to date ({names}; torch {envs[0].stamp()['torch']})")
        return
    needed, free = sum(env.gigabytes for env in missing), shutil.disk_usage(ROOT).free / 1e9
    if free < needed:
        raise SetupError(f"not enough disk: {ROOT}: {free:.1f} GB free, {needed:.1f} GB needed. Free some space")
    VENVS.mkdir(exist_ok=True)
    names = " and ".join(f".venv/{env.lock}" for env in missing)
    print(f"setup: making {names} from docker/locks, on {choice.python}; a few minutes", flush=True)
    maker = Maker(choice)
    torch = maker.make(missing)
    others = {env.stamp()["torch"] for env in envs if env not in missing}
    if len(others | set(torch.values())) != 1:
        raise SetupError(f"the two environments have different torch: {torch}. Run rm -r .venv and make setup")
    for env in missing:  # the stamp, whole or not at all: from here on the environment counts
        partial, stamp = env.folder / f"{STAMP}.partial", {**env.wanted(choice), "torch": torch[env.lock]}
        partial.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        partial.replace(env.folder / STAMP)
    print(f"setup: done in {time.monotonic() - maker.started:.0f} s, torch {torch[missing[0].lock]}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill, too, stops pip before it ends
    try:
        main(sys.argv[1:])
    except SetupError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(3)
    except OSError as mistake:
        print(f"error: {mistake.strerror}: {mistake.filename}. Clone to a folder you may write to", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("interrupted: what is unfinished does not count; run make setup again", file=sys.stderr)
        sys.exit(130)
