"""Pinned requirements of environments and images: write them, or check those of the images.

    make locks          python scripts/locks.py write --uv UV    after a change of dependencies
    make check-locks    python scripts/locks.py check            exit code 1 when a hash or a pin is not right

docker/locks/*.lock are what `make setup` and the images install, every file by its hash: build.lock has pip and what
sources are built with, torch-*.lock is the layer that all share, a trainer's own lock holds what comes on top of it,
and *-dev.lock its tests and linters, which the images do without. *.txt are the versions that all of them agree on.
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

from pins import CPU_WHEELS, LOCKS, ROOT, Pin, cpu_wheels, default_nemo, read_lock

SUMS = "SHA256SUMS"
OLDEST_PYTHON = "3.10"
EXTRAS = ("--extra=train",)  # of our own package: what both trainers need of it
# Of a release whose lock is made on the spot: NeMo before 2.6 holds NumPy down, and with it ml-dtypes.
WITHOUT = "# It takes any ml-dtypes, and cannot be imported with one before 0.5.\nonnx!=1.19.*\n"
NOT_SHARED = ("fsspec",)  # torch asks for it, but releases of NeMo do not agree on its version
JSON_INDEX = "application/vnd.pypi.simple.v1+json"


def locks() -> list[Path]:
    return sorted(LOCKS.glob("*.lock"))


# --- Writing --------------------------------------------------------------------------------------------------------


def write(uv: str, nemo_version: str, upgrade: bool) -> None:
    """Resolve one release's requirements again, and the port's with those of the default release."""
    if not (LOCKS / f"nemo-{nemo_version}.in").is_file():
        if not re.fullmatch(r"\d+\.\d+\.\d+\w*", nemo_version):
            sys.exit(f"error: no release of NeMo: NEMO_VERSION={nemo_version}. Give all of it, as 2.6.2")
        asked = (LOCKS / f"nemo-{nearest_release(nemo_version)}.in").read_text(encoding="utf-8")
        asked = re.sub(r"(?<=nemo_toolkit\[asr\]==)\S+", nemo_version, asked)
        (LOCKS / f"nemo-{nemo_version}.in").write_text(asked + WITHOUT, encoding="utf-8")
    _write_environments(uv, nemo_version, upgrade)
    _write_images(uv, nemo_version)
    lines = [f"{_sha256(path)}  {path.name}\n" for path in locks()]
    (LOCKS / SUMS).write_text("".join(lines), encoding="utf-8")


def nearest_release(nemo_version: str) -> str:
    """The release with a list of what is asked for whose line is nearest: what 2.3.3 needs is what 2.4.1 needs.

    Of two as near, the older one: 2.5.3 needs what 2.4.1 needs, also where 2.6.2 has got a list.
    """
    known = sorted((path.stem.removeprefix("nemo-") for path in LOCKS.glob("nemo-*.in")), key=_numbers)
    return min(
        known, key=lambda one: [abs(a - b) for a, b in zip(_numbers(one)[:2], _numbers(nemo_version), strict=False)]
    )


def _numbers(release: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", release)]


def _write_environments(uv: str, nemo_version: str, upgrade: bool) -> None:
    nemo, default = (LOCKS / f"nemo-{version}.txt" for version in (nemo_version, default_nemo()))
    asked, project = str(nemo.with_suffix(".in")), [str(ROOT / "pyproject.toml"), *EXTRAS]
    if nemo == default:
        _resolve(uv, nemo, nemo, upgrade, asked, *project, "--extra=test")
        _resolve(uv, LOCKS / "nest.txt", LOCKS / "nest.txt", upgrade, *project, "--extra=dev", "-c", str(nemo))
    else:  # as near to the default release as it gets: what then differs in numbers is NeMo's own doing
        _resolve(uv, nemo, default if upgrade or not nemo.is_file() else nemo, False, asked, *project, "--extra=test")


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


def _write_images(uv: str, nemo_version: str) -> None:
    """Each lock leaves out what the layers below it hold."""
    project, default = ROOT / "pyproject.toml", default_nemo()
    trainers = {f"nemo-{nemo_version}": "test"}
    if nemo_version == default:
        trainers["nest"] = "dev"
        for name in ("build", "tools"):
            _compile(uv, name, [LOCKS / f"{name}.in"], default, "cuda", ())
    for build in ("cpu", "cuda"):
        torch = LOCKS / "torch.in"
        if nemo_version == default:
            _compile(uv, f"torch-{build}", [torch], default, build, NOT_SHARED)
        shared = _names(f"torch-{build}")
        for name in trainers:
            inputs = [torch, project, *LOCKS.glob(f"{name}.in")]
            _compile(uv, f"{name}-{build}", inputs, nemo_version, build, shared, *EXTRAS)
    for name, extra in trainers.items():
        below = (*_names("torch-cuda"), *_names(f"{name}-cpu"), *_names(f"{name}-cuda"))
        inputs = [LOCKS / "torch.in", project, *LOCKS.glob(f"{name}.in")]
        _compile(uv, f"{name}-dev", inputs, nemo_version, "cuda", below, *EXTRAS, f"--extra={extra}")


def _names(lock: str) -> tuple[str, ...]:
    return tuple(sorted({pin.name for pin in read_lock(LOCKS / f"{lock}.lock")}))


def _compile(
    uv: str, name: str, inputs: list[Path], nemo_version: str, build: str, leave_out: tuple[str, ...], *more: str
) -> None:
    command = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", OLDEST_PYTHON,
               "--no-python-downloads", "--fork-strategy", "requires-python", "--generate-hashes", "--no-annotate",
               "--custom-compile-command", "make locks", "--no-emit-find-links",
               "-c", str(LOCKS / ("nest.txt" if name.startswith("nest") else f"nemo-{nemo_version}.txt")),
               *(f"--no-emit-package={package}" for package in leave_out), *more]  # fmt: skip
    if build == "cpu":  # resolved as the public build of the same version, but with what the CPU build needs
        command += ["--config-file", str(LOCKS / "torch-cpu.toml")]
    done = subprocess.run([*command, *map(str, inputs)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"error: no lock for {name}: {' '.join(done.stderr.split())[:600]}")
    text = done.stdout
    if build == "cpu":
        hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(cpu_wheels().values()))
        torch = re.compile(r"^torch==(\S+) \\\n(?: +--hash=\S+(?: \\)?\n)+", re.MULTILINE)
        text = torch.sub(lambda found: f"torch=={found[1]}+cpu \\\n{hashes}\n", text)
    (LOCKS / f"{name}.lock").write_text(text, encoding="utf-8")


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
    named = os.environ.get("PIP_INDEX_URL") or asked.stdout.decode().strip()
    return named or subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()


# --- The command ----------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "check"])
    parser.add_argument("--uv", default="uv", help="the uv program, for write")
    parser.add_argument("--upgrade", action="store_true", help="to the newest versions, for write")
    parser.add_argument("--nemo-version", default=os.environ.get("NEMO_VERSION") or default_nemo())
    parser.add_argument("--wheels", default=os.environ.get("WHEELS") or os.environ.get("PIP_FIND_LINKS") or "")
    parser.add_argument("--offline", action="store_true", help="check without asking the package index")
    options = parser.parse_args()
    if options.what == "write":
        write(options.uv, options.nemo_version, options.upgrade)
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
