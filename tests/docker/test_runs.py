"""Running the images: alike to local runs, to the bit; and what happens when a run is not let finish."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.docker.conftest import ROOT, sh

TINY = ["size=tiny"]
OTHER = 12345  # somebody else's user id


def recording(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "recording.json").read_text())


def owners(folder: Path) -> set[tuple[int, int]]:
    paths = [path for path in folder.rglob("*") if path != folder]
    assert paths
    return {(path.stat().st_uid, path.stat().st_gid) for path in paths}


def me() -> tuple[int, int]:
    return os.getuid(), os.getgid()


def verdict(reference: Path, candidate: Path, report: Path) -> dict[str, Any]:
    python = os.environ.get("NEST_PYTHON") or ROOT / ".venv" / "nest" / "bin" / "python"
    sh(python, "scripts/compare_outputs.py", "--reference", reference, "--candidate", candidate, "--out", report)
    return json.loads((report / "report.json").read_text())


# --- The same bits --------------------------------------------------------------------------------------------------


def test_align_in_containers_is_identical(images: dict[str, str], torch_build: str, release: str, out: Path) -> None:
    settings = ["SIZE=tiny", f"TORCH={torch_build}", f"OUT={out}", "STEPS=0,1", "BATCHES=2"]
    done = sh("make", "align", "RUNTIME=docker", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runtime: docker (asked for" in done.stderr
    assert "identical" in done.stdout
    nemo, nest = (recording(out / name)["container"] for name in ("nemo", "nest"))
    ids = [sh("docker", "image", "inspect", "--format", "{{.Id}}", images[name]).stdout.strip() for name in images]
    assert [nemo["image"], nest["image"]] == ids
    assert (nemo["base"], nemo["base_id"]) == (nest["base"], nest["base_id"])
    assert set(nemo["locks"]) == {
        "build.lock", f"torch-{torch_build}.lock", f"nemo-{release}-{torch_build}.lock",
    }  # fmt: skip
    assert nemo["locks"][f"torch-{torch_build}.lock"] == nest["locks"][f"torch-{torch_build}.lock"]
    assert owners(out) == {me()}


@pytest.mark.parametrize("subject", ["nemo", "nest"])
def test_a_container_and_a_local_run_give_the_same_bits(
    images: dict[str, str], torch_build: str, tmp_path: Path, subject: str
) -> None:
    """With everything random switched on. The Python may be another patch release, torch may not."""
    settings = ["SIZE=tiny", "RUN=full", "STEPS=0,1", "BATCHES=2", f"TORCH={torch_build}", "DEVICE=cpu"]
    for runtime in ("docker", "local"):
        done = sh("make", subject, f"RUNTIME={runtime}", f"OUT={tmp_path / runtime}", *settings)
        assert done.returncode == 0, done.stderr
    docker, local = (tmp_path / runtime / subject for runtime in ("docker", "local"))
    if recording(local)["packages"]["torch"] != recording(docker)["packages"]["torch"]:
        assert verdict(local, docker, tmp_path / "report")["exit_code"] == 4
        pytest.skip("the local environment has another build of torch than the image: another contract")
    assert verdict(local, docker, tmp_path / "report")["verdict"] == "identical"
    assert recording(local)["container"] is None
    assert recording(docker)["container"]["name"] == subject


def test_compose_runs_the_three_in_order(images: dict[str, str], torch_build: str, out: Path) -> None:
    compose = ["docker", "compose", "-f", "docker/compose.yaml", "--project-name", "nest-ssl-test"]
    settings = {"SIZE": "tiny", "TORCH": torch_build, "OUT": str(out)}
    try:
        done = sh(*compose, "run", "--rm", "compare", **settings)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        sh(*compose, "down", **settings)
    left = sh("docker", "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project=nest-ssl-test")
    assert left.stdout == ""
    assert json.loads((out / "report" / "report.json").read_text())["verdict"] == "identical"
    assert owners(out) == {me()}


def test_compose_makes_no_folder_of_its_own(images: dict[str, str], torch_build: str, tmp_path: Path) -> None:
    compose = ["docker", "compose", "-f", "docker/compose.yaml", "--project-name", "nest-ssl-test"]
    settings = {"SIZE": "tiny", "TORCH": torch_build, "OUT": str(tmp_path / "missing")}
    done = sh(*compose, "run", "--rm", "--no-deps", "nest", **settings)
    sh(*compose, "down", **settings)
    assert done.returncode != 0
    assert "missing" in done.stderr
    assert not (tmp_path / "missing").exists()


# --- By hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["nemo", "nest"])
def test_the_plain_command_works(images: dict[str, str], out: Path, subject: str) -> None:
    done = sh("docker", "run", "--rm", "--network", "none", "-v", f"{out}:/outputs", images[subject], *TINY)
    assert done.returncode == 0, done.stderr
    assert f"{subject}: recorded step 0, 1 in outputs/{subject}" in done.stdout
    assert owners(out) == {me()}


@pytest.mark.parametrize("subject", ["nemo", "nest"])
def test_the_tight_command_of_the_readme_works(images: dict[str, str], out: Path, subject: str) -> None:
    user = f"{os.getuid()}:{os.getgid()}"
    tight = ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--pids-limit", "4096",
             "--security-opt", "no-new-privileges", "--user", user]  # fmt: skip
    done = sh("docker", "run", "--rm", *tight, "-v", f"{out}:/outputs", images[subject], *TINY)
    assert done.returncode == 0, done.stderr
    assert owners(out) == {me()}


def test_without_a_mount_nothing_is_trained(images: dict[str, str]) -> None:
    done = sh("docker", "run", "--rm", "--network", "none", images["nest"], *TINY)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("error: nothing is mounted at /outputs")


def test_somebody_elses_folder_gets_somebody_elses_files(images: dict[str, str], out: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give a folder away")
    os.chown(out, OTHER, OTHER + 1)
    for user in ([], ["--user", f"{OTHER}:{OTHER + 1}"]):
        command = ["docker", "run", "--rm", "--network", "none", *user, "-v", f"{out}:/outputs", images["nest"], *TINY]
        done = sh(*command, "overwrite=true")
        assert done.returncode == 0, done.stderr
        assert owners(out) == {(OTHER, OTHER + 1)}


def test_a_second_run_does_not_replace_the_first(images: dict[str, str], out: Path) -> None:
    command = ["docker", "run", "--rm", "--network", "none", "-v", f"{out}:/outputs", images["nest"], *TINY]
    assert sh(*command).returncode == 0
    done = sh(*command)
    assert done.returncode == 3
    assert "error: an earlier recording is there: outputs/nest." in done.stderr


# --- What a container cannot do -------------------------------------------------------------------------------------


def say(code: str, out: Path, torch_build: str) -> str:
    """What a line of Python says where the trainer would run."""
    done = sh("docker/run.sh", "nest", "-c", code, OUT=str(out), TORCH=torch_build)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


WRITE = """
for path in ('data/dummy_ssl/x', 'nest_ssl/x', '/etc/x', '/tmp/x', {out!r} + '/x'):
    try:
        open(path, 'w').close(); print('yes', end=' ')
    except OSError:
        print('no', end=' ')
"""


def test_nothing_but_outputs_and_tmp_can_be_written(images: dict[str, str], out: Path, torch_build: str) -> None:
    sh("make", "data", "RUNTIME=local")
    assert say(WRITE.format(out=str(out)), out, torch_build) == "no no no yes yes"


def test_no_network_no_privileges(images: dict[str, str], out: Path, torch_build: str) -> None:
    code = "import os; print(os.listdir('/sys/class/net'), *sorted(open('/proc/self/status')))"
    said = " ".join(say(code, out, torch_build).split())
    assert said.startswith("['lo']")
    assert "CapEff: 0000000000000000" in said
    assert "NoNewPrivs: 1" in said


def test_an_unwritable_mount_is_told_in_one_line(images: dict[str, str], out: Path, torch_build: str) -> None:
    out.chmod(0o555)
    done = sh("docker/run.sh", "nest", "scripts/train_nest.py", *TINY, f"output_dir={out}/nest",
              OUT=str(out), TORCH=torch_build)  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("error: permission denied: ")
    done = sh("docker", "run", "--rm", "--network", "none", "-v", f"{out}:/outputs:ro", images["nest"], *TINY)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert done.stderr.startswith("error: read-only file system: ")


# --- When a run is not let finish -----------------------------------------------------------------------------------


def wait_for_a_half_written_recording(out: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob(".nest.partial-*/step_1")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


LONG = [*TINY, "batches=100000", "save_steps=0-2", "overwrite=true"]


def test_killed_in_the_middle_nothing_counts(images: dict[str, str], out: Path, container: str) -> None:
    command = ["docker", "run", "--network", "none", "-v", f"{out}:/outputs"]
    assert sh(*command, "--detach", "--name", container, images["nest"], *LONG).returncode == 0
    wait_for_a_half_written_recording(out)
    assert sh("docker", "kill", container).returncode == 0
    assert not (out / "nest").exists()
    assert list(out.rglob("recording.json")) == []
    assert sh(*command, "--rm", images["nest"], *TINY).returncode == 0
    assert recording(out / "nest")["steps"].keys() == {"0", "1"}


def test_stopped_it_cleans_up(images: dict[str, str], out: Path, container: str) -> None:
    command = ["docker", "run", "--network", "none", "-v", f"{out}:/outputs", "--detach", "--name", container]
    assert sh(*command, images["nest"], *LONG).returncode == 0
    wait_for_a_half_written_recording(out)
    assert sh("docker", "stop", "--time", "60", container).returncode == 0
    assert [path.name for path in out.iterdir()] == ["nest.log"]
    assert sh("docker", "inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip() in ("1", "130")


def test_out_of_memory_is_told_in_one_line(images: dict[str, str], out: Path, torch_build: str) -> None:
    done = sh("docker/run.sh", "nest", "scripts/train_nest.py", *TINY, f"output_dir={out}/nest",
              OUT=str(out), TORCH=torch_build, MEMORY="120m")  # fmt: skip
    assert done.returncode == 137
    assert done.stderr.splitlines()[-1].startswith("error: out of memory: nest needs more than MEMORY=120m.")
    assert not (out / "nest").exists()
    assert sh("docker", "ps", "--all", "--quiet", "--filter", "name=nest-ssl-nest-").stdout == ""
