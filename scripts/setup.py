"""Make the environments: `.venv/nemo-3.0.0` (NVIDIA NeMo) and `.venv/nest` (the port, which has no NeMo in it).

`make setup` runs this. It needs a Python 3.10 to 3.12 and a package index; docker/locks/ pins every version.
Each NeMo release has an environment of its own, made when that release is asked for; the port's serves them all.
An environment counts when it holds a stamp that fits. The stamp is written last, so an interrupted one is made again.

Environment variables, all optional (what was chosen once is kept until chosen anew):
    PYTHON        set by make to say that this Python was asked for, and that environments on another are to be replaced
    TORCH_INDEX   package index for torch alone, for example one with CPU wheels
    NEMO_VERSION  NeMo release, one that has a lock (default 3.0.0); environments of other releases stay as they are
"""

import hashlib
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
from typing import IO, NamedTuple

if not (3, 10) <= sys.version_info[:2] <= (3, 12):  # this far, the file must parse on much older ones
    found = f"Python {sys.version.split()[0]} ({sys.executable})"
    print(f"error: wrong Python: {found}. Install 3.10 to 3.12, then: make setup PYTHON=python3.11", file=sys.stderr)
    sys.exit(3)

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venv"
LOCKS = ROOT / "docker" / "locks"
DEFAULT_NEMO = "3.0.0"
STAMP = "setup.json"
RECIPE = 1  # raise it when the way of installing changes, and environments made the old way are made anew
BIN = "Scripts" if os.name == "nt" else "bin"

NEMO_IMPORTS = ("torch", "lightning", "nemo.collections.asr", "nest_ssl")
NEST_IMPORTS = ("torch", "lightning", "librosa", "wandb", "nest_ssl")

# Printed by an environment's own Python: every package in it, once the modules that matter have been imported.
INVENTORY = """
import importlib, json, sys
from importlib.metadata import distributions
from importlib.util import find_spec
[importlib.import_module(name) for name in sys.argv[1:]]
packages = {found.metadata["Name"]: found.version for found in distributions()}
print(json.dumps({"packages": packages, "nemo": bool(find_spec("nemo"))}))
"""


class SetupError(Exception):
    """Something the user can mend, told in one line."""


class Environment(NamedTuple):
    name: str  # its folder under .venv
    lock: Path
    asks: tuple[str, ...]  # what pip is asked for; the lock says in which versions
    imports: tuple[str, ...]  # what has to work in the end
    gigabytes: float  # room it takes with a CPU torch

    @property
    def folder(self) -> Path:
        return VENVS / self.name

    @property
    def python(self) -> Path:
        return self.folder / BIN / ("python.exe" if os.name == "nt" else "python")


class Choice(NamedTuple):
    """What the environments are built on."""

    python: str
    torch_index: str


def environments(nemo_version: str) -> list[Environment]:
    """A release's environment and the port's. Only the first has NeMo, and only the second has the linters."""
    nemo_lock, nest_lock = LOCKS / f"nemo-{nemo_version}.txt", LOCKS / "nest.txt"
    if not nemo_lock.is_file():
        known = ", ".join(sorted(path.stem[len("nemo-") :] for path in LOCKS.glob("nemo-*.txt")))
        raise SetupError(f"no lock for this NeMo: NEMO_VERSION={nemo_version}. Use one of: {known}")
    nemo_asks = ("-r", str(nemo_lock.with_suffix(".in")), "-e", ".[test]")
    return [
        Environment(f"nemo-{nemo_version}", nemo_lock, nemo_asks, NEMO_IMPORTS, 3.0),
        Environment("nest", nest_lock, ("-e", ".[dev]"), NEST_IMPORTS, 2.3),
    ]


# --- Is there anything to do? ---------------------------------------------------------------------------------------


def stamp_of(env: Environment) -> dict[str, str]:
    try:
        stamp = json.loads((env.folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def wanted_stamp(env: Environment, choice: Choice) -> dict[str, str]:
    return {
        "recipe": str(RECIPE),
        "lock": hashlib.sha256(env.lock.read_bytes()).hexdigest(),
        "root": str(ROOT),  # neither a venv nor an editable install survives being moved
        "python": choice.python,
        "torch_index": choice.torch_index,
    }


def is_current(env: Environment, choice: Choice) -> bool:
    """Whether the environment was completed with what is wanted now, and its Python still starts."""
    stamp = stamp_of(env)
    if any(stamp.get(key) != value for key, value in wanted_stamp(env, choice).items()):
        return False
    try:
        return subprocess.run([str(env.python), "-I", "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def choose(envs: list[Environment]) -> Choice:
    """What was asked for now, else what an existing environment was made with, else this Python and its usual index.

    The port's environment, the last one, has the first word: asking for another release must not make it anew.
    """
    stamps = [stamp for stamp in map(stamp_of, reversed(envs)) if stamp]
    earlier = stamps[0] if stamps else {}
    python = str(getattr(sys, "_base_executable", "") or sys.executable)  # never the Python of a venv made here
    if not os.environ.get("PYTHON") and Path(earlier.get("python", "")).is_file():
        python = earlier["python"]
    return Choice(python, os.environ.get("TORCH_INDEX") or earlier.get("torch_index", ""))


# --- Making one -----------------------------------------------------------------------------------------------------


def locked_versions(lock: Path) -> dict[str, set[str]]:
    """Package name to the versions that the lock allows (more than one where they depend on Python or the system)."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        versions.setdefault(canonical(name), set()).add(version)
    return versions


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def steps(env: Environment, choice: Choice) -> list[tuple[str, list[str]]]:
    """Labels and commands. Torch comes first and bare, so that its index serves nothing but torch."""
    (torch_version,) = locked_versions(env.lock)["torch"]
    pip = [str(env.python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # Without --no-compile pip spends half of all the time on byte code that is never used.
    install = [*pip, "install", "--no-compile", "--progress-bar", "off", "-c", str(env.lock)]
    index = ["--index-url", choice.torch_index] if choice.torch_index else []
    return [
        ("empty environment", [choice.python, "-I", "-m", "venv", "--clear", str(env.folder)]),
        ("package index answers", [*install, "--retries", "1", "--no-deps", "pluggy"]),
        (f"torch {torch_version}", [*install, "--no-deps", *index, f"torch=={torch_version}"]),
        ("torch's own dependencies", [*install, f"torch=={torch_version}"]),
        ("all packages", [*install, *env.asks]),
        ("pip check", [*pip, "check"]),
    ]


class Builder:
    """Builds environments side by side; the first failure stops them all."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.started = time.monotonic()
        self.stopped = False
        self.processes: set[subprocess.Popen] = set()
        self.torch_turn = threading.Lock()  # by far the largest download: the second one finds it in pip's cache

    def build_all(self, envs: list[Environment]) -> dict[str, str]:
        """Returns the version of torch in each environment, by the environment's name."""
        with ThreadPoolExecutor(max_workers=len(envs)) as pool:
            try:
                building = {pool.submit(self._build, env): env.name for env in envs}
                return {building[done]: done.result() for done in as_completed(building)}
            except BaseException:
                self.stopped = True
                for process in list(self.processes):
                    process.terminate()
                raise

    def _build(self, env: Environment) -> str:
        with log_file(env).open("w", encoding="utf-8") as log:
            for label, command in steps(env, self.choice):
                with self.torch_turn if "torch" in label else threading.Lock():
                    self._step(env, label, command, log)
        torch_version = check(env, self.choice)
        self._say(env, "imports, and has the versions of the lock")
        return torch_version

    def _step(self, env: Environment, label: str, command: list[str], log: IO[str]) -> None:
        if self.stopped:
            raise SetupError("stopped, because the other environment failed")
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        self.processes.add(process)
        code = process.wait()
        self.processes.discard(process)
        if code:
            output = log_file(env).read_text(encoding="utf-8", errors="replace")
            raise SetupError(f"{explain(output, label)}. The whole output: {log_file(env)}")
        self._say(env, label)

    def _say(self, env: Environment, done: str) -> None:
        print(f"  [{time.monotonic() - self.started:4.0f} s] {env.name}: {done}", flush=True)


def log_file(env: Environment) -> Path:
    return VENVS / f"{env.name}.log"


def explain(log: str, label: str) -> str:
    """What failed, in one line, from the output of venv or pip."""
    log = log[log.rfind("\n$ ") :]  # the last command only
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
        return f"a download differs from what the index promises: {label}. Run make setup again"
    errors = re.findall(r"^(?:ERROR|Error|error): (?!ResolutionImpossible)(.+)$", log, re.MULTILINE)
    return f"could not install: {label}: {errors[-1].strip(' .') if errors else 'pip does not say why'}"


def check(env: Environment, choice: Choice) -> str:
    """Import what matters and compare every version with the lock; return torch's version."""
    command = [str(env.python), "-I", "-c", INVENTORY, *env.imports]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"installed, but does not work: .venv/{env.name}: {reason}")
    inventory = json.loads(done.stdout.strip().splitlines()[-1])
    packages = {canonical(name): version for name, version in inventory["packages"].items()}
    locked = locked_versions(env.lock)
    wrong = [
        f"{name} {version}"
        for name, version in packages.items()
        if name in locked and version.split("+")[0] not in locked[name]
    ]
    if not choice.torch_index:  # another torch may well bring other CUDA libraries
        wrong += [name for name in packages if name not in locked and name not in ("pip", "nest-ssl")]
    if wrong:
        raise SetupError(f"not what the lock says: {env.lock.name}: {', '.join(sorted(wrong))}. Run make locks")
    if inventory["nemo"] == (env.name == "nest"):
        raise SetupError(f"NeMo belongs in every environment but .venv/nest: .venv/{env.name}. Remove it, make setup")
    return packages["torch"]


def finish(env: Environment, choice: Choice, torch_version: str) -> None:
    """Write the stamp, whole or not at all: from here on the environment counts."""
    stamp = {**wanted_stamp(env, choice), "torch": torch_version}
    partial = env.folder / f"{STAMP}.partial"
    partial.write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
    partial.replace(env.folder / STAMP)


# --- The whole of it ------------------------------------------------------------------------------------------------


def check_disk(envs: list[Environment]) -> None:
    needed = sum(env.gigabytes for env in envs)
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < needed:
        raise SetupError(f"not enough disk: {ROOT}: {free:.1f} GB free, {needed:.1f} GB needed. Free some space")


def main() -> None:
    envs = environments(os.environ.get("NEMO_VERSION") or DEFAULT_NEMO)
    choice = choose(envs)
    missing = [env for env in envs if not is_current(env, choice)]
    if not missing:
        names = ", ".join(f".venv/{env.name}" for env in envs)
        print(f"setup: up to date ({names}; torch {stamp_of(envs[0])['torch']})")
        return
    check_disk(missing)
    VENVS.mkdir(exist_ok=True)
    names = " and ".join(f".venv/{env.name} from {env.lock.relative_to(ROOT).as_posix()}" for env in missing)
    print(f"setup: making {names}, on {choice.python}; a few minutes", flush=True)
    builder = Builder(choice)
    torch_versions = builder.build_all(missing)
    others = {stamp_of(env).get("torch", "") for env in envs if env not in missing}
    if len(others | set(torch_versions.values())) != 1:
        raise SetupError(f"the two environments have different torch: {torch_versions}. Run rm -r .venv and make setup")
    for env in missing:
        finish(env, choice, torch_versions[env.name])
    print(f"setup: done in {time.monotonic() - builder.started:.0f} s, torch {torch_versions[missing[0].name]} in both")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill, too, stops pip before it ends
    try:
        main()
    except SetupError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(3)
    except OSError as mistake:
        print(f"error: {mistake.strerror}: {mistake.filename}. Clone to a folder you may write to", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("interrupted: what is unfinished does not count; run make setup again", file=sys.stderr)
        sys.exit(130)
