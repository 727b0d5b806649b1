"""Hash locks of the images: whole, in step with the environments' locks, and a changed digit is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import locks, setup

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
    assert "hashes in 7 locks are right" in done.stdout


@pytest.mark.parametrize("build", BUILDS)
def test_images_and_environments_have_the_same_versions(build: str) -> None:
    for lock, environment in (("nemo-3.0.0", "nemo-3.0.0.txt"), ("nest", "nest.txt")):
        versions = setup.locked_versions(locks.LOCKS / environment)
        for name, pin in pins(f"{lock}-{build}").items():
            assert pin.version.split("+")[0] in versions[name], name


@pytest.mark.parametrize("build", BUILDS)
def test_both_images_share_torch_and_all_that_it_needs(build: str) -> None:
    torch, nemo, nest = (pins(f"{name}-{build}") for name in ("torch", "nemo-3.0.0", "nest"))
    assert torch["torch"].version == {"cpu": "2.13.0+cpu", "cuda": "2.13.0"}[build]
    assert all(nemo[name] == nest[name] == pin for name, pin in torch.items())
    assert bool([name for name in nest if name.startswith("nvidia-")]) == (build == "cuda")
    assert "nemo-toolkit" in nemo
    assert not [name for name in nest if "nemo" in name or name in ("pytest", "ruff")]


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
    assert locks.check("index", "") == [f"flit-core==4.2.0: no file of the index has SHA-256 {digest}"]


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
