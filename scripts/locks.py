"""Pinned requirements of environments and images: write them, or check those of the images.

    make locks          python scripts/locks.py write --uv UV    after a change of dependencies
    make check-locks    python scripts/locks.py check            exit code 1 when a hash or a pin is not right

docker/locks/*.txt are what `make setup` installs. *.lock, for the images, are of the same versions and have hashes:
torch-*.lock is the layer that all images share, and the locks of the trainers hold what comes on top of it.
`make locks` writes those of the default release, the port and torch; with NEMO_VERSION, another release's and no other.
CPU wheels of torch are on no default index; docker/locks/torch-cpu.sha256 lists those that may be installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "docker" / "locks"
SUMS = "SHA256SUMS"
CPU_WHEELS = "torch-cpu.sha256"
OLDEST_PYTHON, OLDEST_IN_A_BASE_IMAGE = "3.10", "3.11"
DEFAULT_NEMO = "3.0.0"  # the port, torch and the tools are at its versions
NOT_SHARED = ("fsspec",)  # torch asks for it, but releases of NeMo do not agree on its version
JSON_INDEX = "application/vnd.pypi.simple.v1+json"


class Pin(NamedTuple):
    name: str
    version: str
    hashes: frozenset[str]


def read_lock(path: Path) -> list[Pin]:
    """Every requirement of a lock.

    Raises:
        ValueError: a line that is neither a pin with hashes nor a comment.
    """
    text = re.sub(r"^ *#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [_read_pin(line, path.name) for line in text.splitlines() if line.strip()]


def _read_pin(line: str, file: str) -> Pin:
    match = re.fullmatch(r"([a-z0-9-]+)==([^\s;]+)( ; [^-]+?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
    if not match:
        raise ValueError(f"{file}: not a pin with SHA-256 hashes: {' '.join(line.split())[:80]}")
    return Pin(match[1], match[2], frozenset(re.findall(r"sha256:([0-9a-f]{64})", match[4])))


def locks() -> list[Path]:
    return sorted(LOCKS.glob("*.lock"))


# --- Writing --------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Where to resolve from."""

    uv: str
    wheels: str
    torch_index: str


def write(source: Source, nemo_version: str, upgrade: bool) -> None:
    """Resolve one release's requirements anew, and the port's with those of the default release."""
    if not (LOCKS / f"nemo-{nemo_version}.in").is_file():
        sys.exit(f"error: no such file: docker/locks/nemo-{nemo_version}.in. It says what this release is asked for")
    _write_environments(source.uv, nemo_version, upgrade)
    _write_images(source, nemo_version)
    lines = [f"{_sha256(path)}  {path.name}\n" for path in locks()]
    (LOCKS / SUMS).write_text("".join(lines), encoding="utf-8")


def _write_environments(uv: str, nemo_version: str, upgrade: bool) -> None:
    nemo, default = (LOCKS / f"nemo-{version}.txt" for version in (nemo_version, DEFAULT_NEMO))
    project, asked = str(ROOT / "pyproject.toml"), str(nemo.with_suffix(".in"))
    if nemo == default:
        _resolve(uv, nemo, nemo, upgrade, asked, project, "--extra=test")
        _resolve(uv, LOCKS / "nest.txt", LOCKS / "nest.txt", upgrade, project, "--extra=dev", "-c", str(nemo))
    else:  # as near to the default release as it gets: what then differs in numbers is NeMo's own doing
        _resolve(uv, nemo, default if upgrade or not nemo.is_file() else nemo, False, asked, project, "--extra=test")


def _resolve(uv: str, lock: Path, prefer: Path, upgrade: bool, *inputs: str) -> None:
    """For every Python and system at once. Versions in `prefer` are kept where they can be, unless all are upgraded."""
    partial = lock.with_suffix(".partial")
    shutil.copy(prefer, partial)
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST_PYTHON, "--no-annotate",
               "--no-python-downloads", "--fork-strategy", "requires-python", "--custom-compile-command", "make locks",
               *(["--upgrade"] if upgrade else []), *inputs, "-o", str(partial)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        partial.unlink()
        sys.exit(f"error: no lock for {lock.stem}: {' '.join(done.stderr.split())[:300]}")
    partial.replace(lock)


def _write_images(source: Source, nemo_version: str) -> None:
    project, trainers = ROOT / "pyproject.toml", [f"nemo-{nemo_version}"]
    if nemo_version == DEFAULT_NEMO:
        trainers.append("nest")
        _compile(source, "build", [LOCKS / "build.in"], DEFAULT_NEMO, "cuda", ())
    for build in ("cpu", "cuda"):
        torch = LOCKS / f"torch-{build}.in"
        if nemo_version == DEFAULT_NEMO:
            _compile(source, f"torch-{build}", [torch], DEFAULT_NEMO, build, NOT_SHARED)
        shared = tuple(pin.name for pin in read_lock(LOCKS / f"torch-{build}.lock"))
        for name in trainers:
            inputs = [torch, project, *LOCKS.glob(f"{name}.in")]
            _compile(source, f"{name}-{build}", inputs, nemo_version, build, shared)


def _compile(
    source: Source, name: str, inputs: list[Path], nemo_version: str, build: str, leave_out: tuple[str, ...]
) -> None:
    command = [source.uv, "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST_IN_A_BASE_IMAGE,
               "--no-python-downloads", "--generate-hashes", "--no-annotate", "--custom-compile-command", "make locks",
               "--no-emit-find-links", "-c", str(LOCKS / f"nemo-{nemo_version}.txt"),
               *(f"--no-emit-package={package}" for package in leave_out)]  # fmt: skip
    if build == "cpu":
        index = ["--extra-index-url", source.torch_index, "--index-strategy", "unsafe-best-match"]
        command += ["--find-links", source.wheels] if source.wheels else []
        command += index if source.torch_index else []
    done = subprocess.run([*command, *map(str, inputs)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: no lock for {name}: {' '.join(done.stderr.split())[:300]}")
    text = done.stdout
    if build == "cpu":  # a folder of wheels has those of one Python; the list has all
        hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(cpu_wheels().values()))
        text = re.sub(r"^(torch==\S+ \\\n)(?: +--hash=\S+(?: \\)?\n)+", rf"\1{_literal(hashes)}\n", text, flags=re.M)
    (LOCKS / f"{name}.lock").write_text(text, encoding="utf-8")


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")


def cpu_wheels() -> dict[str, str]:
    """File name of each CPU wheel of torch to its SHA-256."""
    lines = (LOCKS / CPU_WHEELS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


# --- Checking -------------------------------------------------------------------------------------------------------


def check(index: str | None, wheels: str) -> list[str]:
    """What is wrong with the locks, a line each; nothing when all is right."""
    wrong = [f"{path.name} is not what `make locks` wrote" for path in _not_as_written()]
    pins = []
    for path in locks():
        try:
            pins += read_lock(path)
        except ValueError as error:
            wrong.append(str(error))
    wrong += _wrong_wheels(Path(wheels)) if wheels else []
    return wrong + (_not_on_the_index(pins, index) if index else [])


def _not_as_written() -> list[Path]:
    written = dict(reversed(line.split()) for line in (LOCKS / SUMS).read_text(encoding="utf-8").splitlines())
    names = written.keys() | {path.name for path in locks()}
    paths = [LOCKS / name for name in sorted(names)]
    return [path for path in paths if not path.is_file() or written.get(path.name) != _sha256(path)]


def _wrong_wheels(folder: Path) -> list[str]:
    """Wheels at hand whose bytes are not those of the list."""
    there = [(folder / name, digest) for name, digest in cpu_wheels().items() if (folder / name).is_file()]
    return [f"{path} is not the wheel of {CPU_WHEELS}" for path, digest in there if _sha256(path) != digest]


def _not_on_the_index(pins: list[Pin], index: str) -> list[str]:
    """Hashes that the package index does not give for the pinned version."""
    local, public = set(cpu_wheels().values()), {}
    for pin in pins:
        public.setdefault((pin.name, pin.version), set()).update(pin.hashes)
    with ThreadPoolExecutor(max_workers=16) as pool:
        known = dict(zip(public, pool.map(lambda pin: _index_hashes(index, pin[0]), public), strict=True))
    wrong = []
    for (name, version), hashes in sorted(public.items()):
        strangers = hashes - (local if "+cpu" in version else known[name, version])
        wrong += [f"{name}=={version}: no file of the index has SHA-256 {digest}" for digest in sorted(strangers)]
    return wrong


def _index_hashes(index: str, name: str) -> set[str]:
    request = urllib.request.Request(f"{index.rstrip('/')}/{name}/", headers={"Accept": f"{JSON_INDEX}, text/html"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read().decode()
    if text.startswith("{"):
        return {file["hashes"].get("sha256", "") for file in json.loads(text)["files"]}
    return set(re.findall(r"#sha256=([0-9a-f]{64})", text))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pip_index() -> str:
    """The package index that pip would use."""
    code = "import pip._internal.cli.cmdoptions as o; print(o.index_url().default)"
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True)
    told = os.environ.get("PIP_INDEX_URL") or asked.stdout.decode().strip()
    return told or subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()


# --- The command ----------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "check"])
    parser.add_argument("--uv", default="uv", help="the uv program, for write")
    parser.add_argument("--upgrade", action="store_true", help="to the newest versions, for write")
    parser.add_argument("--nemo-version", default=os.environ.get("NEMO_VERSION") or DEFAULT_NEMO)
    parser.add_argument("--wheels", default=os.environ.get("WHEELS") or os.environ.get("PIP_FIND_LINKS") or "")
    parser.add_argument("--torch-index", default=os.environ.get("TORCH_INDEX") or "")
    parser.add_argument("--offline", action="store_true", help="check without asking the package index")
    options = parser.parse_args()
    if options.what == "write":
        write(Source(options.uv, options.wheels, options.torch_index), options.nemo_version, options.upgrade)
    index = None if options.offline else pip_index()
    try:
        wrong = check(index, options.wheels)
    except (urllib.error.URLError, TimeoutError) as error:
        print(f"locks: the package index does not answer ({error}); checked without it")
        index, wrong = None, check(None, options.wheels)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    hashes = sum(len(pin.hashes) for path in locks() for pin in read_lock(path)) if not wrong else 0
    if not wrong:
        print(f"locks: {hashes:,} hashes in {len(locks())} locks are right{', the index agrees' if index else ''}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
