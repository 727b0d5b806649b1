"""Locks of images and environments: whole, in step with each other, and a changed digit is found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import locks, setup
from tests.bundle.conftest import RELEASES

BUILDS = ("cpu", "cuda")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The locks, to be spoilt."""
    folder = Path(shutil.copytree(locks.LOCKS, tmp_path / "locks"))
    monkeypatch.setattr(locks, "LOCKS", folder)
    return folder


def pins(name: str) -> dict[str, locks.Pin]:
    return {pin.name: pin for pin in locks.read_lock(locks.LOCKS / f"{name}.lock")}


def test_the_locks_are_as_written(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/locks.py", "check", "--offline"], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "hashes in 11 locks are right" in done.stdout


def test_every_release_has_all_its_locks(root: Path) -> None:
    for ending in (".in", ".txt", "-cpu.lock", "-cuda.lock"):
        names = {path.name.removesuffix(ending) for path in locks.LOCKS.glob(f"nemo-*{ending}")}
        assert names == {f"nemo-{release}" for release in RELEASES}, ending


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ["nest", *(f"nemo-{release}" for release in RELEASES)])
def test_an_image_is_torchs_layer_and_the_trainers_own(build: str, name: str) -> None:
    """In the versions of its environment, everything once, whatever the release."""
    layer, own = pins(f"torch-{build}"), pins(f"{name}-{build}")
    versions = setup.locked_versions(locks.LOCKS / f"{name}.txt")
    assert not layer.keys() & own.keys()
    assert [pin for pin in (layer | own).values() if pin.version.split("+")[0] not in versions[pin.name]] == []
    assert set(locks.NOT_SHARED) <= own.keys()
    project = {"lightning", "numpy", "librosa", "hydra-core", "deepdiff"}
    assert project <= own.keys()


@pytest.mark.parametrize("build", BUILDS)
def test_torch_is_the_layer_and_nemo_is_in_one_image_only(build: str) -> None:
    torch, nest = pins(f"torch-{build}"), pins(f"nest-{build}")
    assert torch["torch"].version == {"cpu": "2.13.0+cpu", "cuda": "2.13.0"}[build]
    assert bool([name for name in torch if name.startswith("nvidia-")]) == (build == "cuda")
    assert {pins(f"nemo-{release}-{build}")["nemo-toolkit"].version for release in RELEASES} == set(RELEASES)
    assert not [name for name in nest if "nemo" in name or name in ("pytest", "ruff", "wandb")]


def test_torch_with_cuda_brings_what_the_reference_was_measured_with() -> None:
    cuda = {name: pin.version for name, pin in pins("torch-cuda").items()}
    measured = {"cuda-toolkit": "13.0.3.0", "nvidia-cudnn-cu13": "9.20.0.48", "nvidia-nccl-cu13": "2.29.7"}
    assert measured | {"triton": "3.7.1"} == {name: cuda[name] for name in (*measured, "triton")}


def test_cpu_wheels_are_there_for_both_pythons() -> None:
    wheels = locks.cpu_wheels()
    assert {name.split("-")[2] for name in wheels} == {"cp311", "cp312"}
    assert pins("torch-cpu")["torch"].hashes == set(wheels.values())


def spoil(path: Path) -> str:
    """Change one digit of the last hash of a file; returns the hash as it then is."""
    text = path.read_text()
    at = text.rindex("sha256:") + len("sha256:")
    digest = ("0" if text[at] != "0" else "1") + text[at + 1 : at + 64]
    path.write_text(text[:at] + digest + text[at + 64 :])
    return digest


@pytest.mark.parametrize("lock", sorted(path.name for path in locks.locks()))
def test_one_changed_digit_is_found(copy: Path, lock: str) -> None:
    assert locks.check(None, "") == []
    spoil(copy / lock)
    assert locks.check(None, "") == [f"{lock} is not what `make locks` wrote"]


def test_the_index_is_asked_for_every_hash(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [pin for path in locks.locks() for pin in locks.read_lock(path)]
    public = {name: {digest for pin in everything if pin.name == name for digest in pin.hashes}
              for name in {pin.name for pin in everything}}  # fmt: skip
    monkeypatch.setattr(locks, "_index_hashes", lambda index, name: public[name])
    assert locks.check("index", "") == []
    digest = spoil(copy / "build.lock")
    lines = [f"{locks._sha256(path)}  {path.name}\n" for path in locks.locks()]
    (copy / locks.SUMS).write_text("".join(lines))  # whoever changes a hash may well mend the sums
    assert locks.check("index", "") == [f"pybind11==3.1.0: no file of the index has SHA-256 {digest}"]


@pytest.mark.parametrize(
    ("line", "says"),
    [("numpy==2.0.0\n", "numpy==2.0.0"), ("numpy>=2.0.0 \\\n    --hash=sha256:" + "0" * 64, "numpy>=2.0.0"),
     ("https://example.org/numpy.whl\n", "https://example.org"), ("a==1 \\\n    --hash=sha256:12ab\n", "a==1")],
)  # fmt: skip
def test_what_is_not_pinned_with_a_hash_is_found(copy: Path, line: str, says: str) -> None:
    (copy / "nest-cpu.lock").write_text(line)
    assert any(f"nest-cpu.lock: not a pin with SHA-256 hashes: {says}" in wrong for wrong in locks.check(None, ""))


def test_a_wheel_at_hand_with_other_bytes_is_found(copy: Path, tmp_path: Path) -> None:
    name = min(locks.cpu_wheels())
    (tmp_path / name).write_bytes(b"no wheel")
    assert locks.check(None, str(tmp_path)) == [f"{tmp_path / name} is not the wheel of torch-cpu.sha256"]


# --- One release at a time ------------------------------------------------------------------------------------------


@pytest.fixture
def uv(tmp_path: Path) -> Path:
    """A stand-in that resolves everything to one package, of the version that the first line of its output says."""
    program = tmp_path / "uv"
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "words = sys.argv[1:]\n"
        "if '-o' in words:\n"
        "    out = pathlib.Path(words[words.index('-o') + 1])\n"
        "    kept = '' if '--upgrade' in words else out.read_text()\n"
        "    out.write_text('# preferred: ' + str(len(kept)) + '\\n')\n"
        "else:\n"
        f"    print('torch==1 \\\\\\n    --hash=sha256:{'0' * 64}')\n"
    )
    program.chmod(0o755)
    return program


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def changed_by(write: list[str], folder: Path, uv: Path) -> set[str]:
    before = contents(folder)
    locks.write(locks.Source(str(uv), "", ""), write[0], "UPGRADE" in write)
    after = contents(folder)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.mark.parametrize("release", ["2.7.3", "2.4.1"])
def test_another_releases_locks_are_written_alone(copy: Path, uv: Path, release: str) -> None:
    mine = {f"nemo-{release}{ending}" for ending in (".txt", "-cpu.lock", "-cuda.lock")}
    assert changed_by([release], copy, uv) == mine | {locks.SUMS}
    assert locks.check(None, "") == []


def test_the_ports_locks_come_with_the_default_release(copy: Path, uv: Path) -> None:
    names = ("nemo-3.0.0", "nest")
    mine = {f"{name}{ending}" for name in names for ending in (".txt", "-cpu.lock", "-cuda.lock")}
    assert changed_by([locks.DEFAULT_NEMO], copy, uv) == mine | {
        locks.SUMS, "torch-cpu.lock", "torch-cuda.lock", "build.lock"
    }  # fmt: skip


@pytest.mark.parametrize("upgrade", [[], ["UPGRADE"]])
def test_a_new_release_starts_from_the_default_ones_versions(copy: Path, uv: Path, upgrade: list[str]) -> None:
    """So that numbers differ by what NeMo does, and not by what it is run with."""
    size = len((copy / "nemo-3.0.0.txt").read_text())
    old = len((copy / "nemo-2.7.3.txt").read_text())
    (copy / "nemo-2.5.3.in").touch()
    changed_by(["2.5.3", *upgrade], copy, uv)
    assert (copy / "nemo-2.5.3.txt").read_text() == f"# preferred: {size}\n"
    changed_by(["2.7.3", *upgrade], copy, uv)
    assert (copy / "nemo-2.7.3.txt").read_text() == f"# preferred: {size if upgrade else old}\n"
    changed_by(["3.0.0", *upgrade], copy, uv)
    assert (copy / "nemo-3.0.0.txt").read_text() == f"# preferred: {0 if upgrade else size}\n"


def test_a_resolution_that_fails_changes_nothing(copy: Path, uv: Path) -> None:
    uv.write_text(f"#!{sys.executable}\nimport sys; sys.exit('no version of a fits b')\n")
    before = contents(copy)
    with pytest.raises(SystemExit, match=r"error: no lock for nemo-2\.7\.3: no version of a fits b"):
        locks.write(locks.Source(str(uv), "", ""), "2.7.3", False)
    with pytest.raises(SystemExit, match=r"error: no such file: docker/locks/nemo-9\.9\.in"):
        locks.write(locks.Source(str(uv), "", ""), "9.9", False)
    assert contents(copy) == before


def test_the_default_release_is_the_same_everywhere(root: Path) -> None:
    """Nobody can look it up in one place: make, two shells, Compose and Docker each need it."""
    places = {
        "Makefile": r"^NEMO_VERSION \?= (.+)$", "scripts/nemo.sh": r"^release=\$\{NEMO_VERSION:-(.+)\}$",
        "scripts/nemo.bat": r'^set "release=([\d.]+)"$', "docker/common.sh": r"^NEMO_VERSION=\$\{NEMO_VERSION:-(.+)\}$",
        "docker/compose.yaml": r"\$\{NEMO_VERSION:-([\d.]+)\}", "docker/nemo.Dockerfile": r"^ARG NEMO_VERSION=(.+)$",
        "scripts/setup.py": r'^DEFAULT_NEMO = "(.+)"$', "scripts/locks.py": r'^DEFAULT_NEMO = "([\d.]+)"',
    }  # fmt: skip
    said = {place: set(re.findall(words, (root / place).read_text(), re.MULTILINE)) for place, words in places.items()}
    assert said == {place: {"3.0.0"} for place in places}
