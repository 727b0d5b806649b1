"""What the images are built from: linters, locks, and a build that a wrong hash stops."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.docker.conftest import ROOT, sh

DOCKERFILE = "docker/Dockerfile"
SCRIPTS = [path.relative_to(ROOT) for folder in ("docker", "scripts") for path in (ROOT / folder).glob("*.sh")]
TOOLS = ROOT / ".venv" / "linters" / "bin"  # `make test-docker` installs them


def test_hadolint_finds_nothing() -> None:
    done = sh(TOOLS / "hadolint", DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    done = sh(TOOLS / "shellcheck", "--external-sources", "--exclude=SC1007", *SCRIPTS, ".ci/run")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("target", ["nemo", "nest"])
def test_docker_build_check_finds_nothing(images: dict[str, str], release: str, target: str) -> None:
    base = sh("docker", "image", "inspect", "--format", '{{index .Config.Labels "org.opencontainers.image.base.name"}}',
              images["nest"]).stdout.strip()  # fmt: skip
    told = ["--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"NEMO_VERSION={release}", "--target", target]
    done = sh("docker", "build", "--check", *told, "--file", DOCKERFILE, ".")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no warnings found" in done.stdout


def test_the_locks_are_right() -> None:
    done = sh("make", "check-locks")
    assert done.returncode == 0, done.stderr
    assert "are right" in done.stdout


@pytest.mark.parametrize("file", [DOCKERFILE, "docker/compose.yaml"])
def test_nothing_is_fetched_but_the_base_by_its_digest(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"^# *syntax=|://|\.(io|com|org|net)/", text, re.MULTILINE)
    for image in re.findall(r"^ARG BASE_IMAGE=(.+)$", text, re.MULTILINE):
        assert re.fullmatch(r"[\w/]+:[\w.-]+@sha256:[0-9a-f]{64}", image)


def test_a_wrong_hash_stops_the_build(images: dict[str, str], tmp_path: Path, torch_build: str) -> None:
    """One digit of one hash, in a copy of the repository."""
    copy = tmp_path / "copy"
    hashes = "data/dummy_ssl.sha256 data/dummy_ssl_kinds.sha256"
    for name in f".dockerignore LICENSE pyproject.toml conf {hashes} docker nest_ssl scripts".split():
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target)
        else:
            shutil.copy(ROOT / name, target)
    lock = copy / "docker" / "locks" / "build.lock"
    lock.write_text(re.sub(r"sha256:(.)", lambda found: f"sha256:{int(found[1] == '0')}", lock.read_text()))
    before = sh("docker", "image", "inspect", "--format", "{{.Id}}", images["nest"]).stdout
    done = sh(copy / "docker" / "images.sh", TORCH=torch_build, PATH=os.environ["PATH"])
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert re.search(r"a download has another hash than the lock: (flit-core|pip|pybind11)", done.stderr)
    assert sh("docker", "image", "inspect", "--format", "{{.Id}}", images["nest"]).stdout == before
