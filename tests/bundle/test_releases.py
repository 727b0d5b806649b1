"""Several releases of NeMo beside each other: one environment each, made when it is asked for, and what they share."""

from __future__ import annotations

import sys
from pathlib import Path

import pins
import pytest
import setup
from setup import Choice, Environment

from tests.bundle.conftest import RELEASES

# --- Environments ---------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the environments that `setup.main()` makes, in place of making them."""
    names: list[str] = []

    class Maker:
        started = 0.0

        def __init__(self, choice: Choice) -> None:
            pass

        def make(self, envs: list[Environment]) -> dict[str, str]:
            for each in envs:
                names.append(each.lock)
                each.python.parent.mkdir(parents=True, exist_ok=True)
                each.python.unlink(missing_ok=True)
                each.python.symlink_to(sys.executable)
            return {each.lock: "2.13.0+cpu" for each in envs}

    monkeypatch.setattr(setup, "Maker", Maker)
    for name in ("ROOT", "VENVS", "LOCKS"):
        monkeypatch.setattr(setup, name, tmp_path)
    for name in ("nest", *(f"nemo-{release}" for release in RELEASES)):
        for lock in (f"{name}.in", *(f"{name}-{end}.lock" for end in ("cpu", "cuda", "dev"))):
            (tmp_path / lock).write_text("torch==2.13.0\n")
    (tmp_path / "pyproject.toml").touch()
    for name in ("build", "torch-cpu", "torch-cuda"):
        (tmp_path / f"{name}.lock").touch()
    return names


def ask(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for name in ("NEMO_VERSION", "PYTHON", "TORCH_INDEX"):
        monkeypatch.setenv(name, settings.get(name, ""))
    setup.main([])


def test_a_release_is_made_when_it_is_asked_for_and_then_kept(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = [("", ["nest", "nemo-3.0.0"]), ("2.7.3", ["nemo-2.7.3"]), ("2.4.1", ["nemo-2.4.1"])]
    for release, new in [*first, ("3.0.0", []), ("2.7.3", []), ("", [])]:
        made.clear()
        ask(monkeypatch, NEMO_VERSION=release)
        assert made == new


def test_another_releases_lock_changes_nothing_else(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ask(monkeypatch)
    ask(monkeypatch, NEMO_VERSION="2.7.3")
    made.clear()
    (setup.LOCKS / "nemo-2.7.3-dev.lock").write_text("torch==2.13.0\nnew==1\n")
    ask(monkeypatch)
    assert made == []
    ask(monkeypatch, NEMO_VERSION="2.7.3")
    assert made == ["nemo-2.7.3"]


def test_a_release_follows_the_ports_environment(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own earlier choice is older: going by that would make the port's anew, and then the others."""
    ask(monkeypatch, NEMO_VERSION="2.7.3")
    ask(monkeypatch, TORCH_INDEX="https://example.org/cpu")
    made.clear()
    ask(monkeypatch, NEMO_VERSION="2.7.3")
    assert made == ["nemo-2.7.3"]
    assert setup.environments(["nemo"], "2.7.3")[0].stamp()["torch_index"] == "https://example.org/cpu"
    made.clear()
    ask(monkeypatch)
    assert made == []


# --- Versions -------------------------------------------------------------------------------------------------------

# Where a release insists on another version than the port has. Of these only NumPy computes, and it has its own bits.
# The port has onnx for exports alone; older releases have the one that goes with their protobuf.
OTHERWISE = {
    "3.0.0": set(),
    "2.7.3": {"fsspec", "protobuf", "tensorboard", "googleapis-common-protos", "onnx"},
    "2.4.1": {"fsspec", "protobuf", "tensorboard", "googleapis-common-protos", "numpy", "onnx", "ml-dtypes"},
}
NUMERIC = {"torch", "lightning", "numpy", "scipy", "numba", "llvmlite", "librosa", "soxr", "soundfile", "audioread"}


def versions_of(lock: str) -> dict[str, set[str]]:
    return pins.locked_versions(pins.LOCKS / lock)


@pytest.mark.parametrize("release", RELEASES)
def test_shared_packages_have_the_same_versions(release: str) -> None:
    nemo, nest = versions_of(f"nemo-{release}.txt"), versions_of("nest.txt")
    shared = nemo.keys() & nest.keys()
    assert shared >= NUMERIC | {"pytest", "hydra-core", "wandb"}
    assert {name for name in shared if nemo[name] != nest[name]} == OTHERWISE[release]
    assert OTHERWISE[release] & NUMERIC <= {"numpy"}


@pytest.mark.parametrize("release", RELEASES)
def test_only_the_reference_has_nemo(release: str) -> None:
    assert versions_of(f"nemo-{release}.txt")["nemo-toolkit"] == {release}
    assert versions_of(f"nemo-{release}.txt")["torch"] == versions_of("nest.txt")["torch"] == {"2.13.0"}
    assert not [name for name in versions_of("nest.txt") if "nemo" in name]
