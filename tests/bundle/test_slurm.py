"""A job of SLURM: the command lines of its steps, as text and through a stand-in for `srun`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

WORDS = ("size=tiny", "run=full", "batches=3")
TRAINERS = "trainer.accelerator=gpu trainer.devices=2 trainer.strategy=ddp_find_unused_parameters_true overwrite=true"


def job(root: Path, environment: dict[str, str], *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in environment.items() if not name.startswith("SLURM_")}
    command = ["bash", "docker/slurm.sh", *words]
    return subprocess.run(command, cwd=root, env={**own, **settings}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("kind", ["sif", "sqsh"])
def test_the_steps_of_a_job(root: Path, environment: dict[str, str], kind: str) -> None:
    images = {"NEMO_IMAGE": f"nemo.{kind}", "NEST_IMAGE": f"nest.{kind}"}
    done = job(root, environment, *WORDS, DRY_RUN="1", SLURM_GPUS_ON_NODE="2", SLURM_SUBMIT_DIR=str(root), **images)
    assert (done.returncode, done.stderr) == (0, "")
    mounts = f"{root}/data:/app/data:ro,{root}/outputs:/app/outputs"

    def step(side: str) -> str:
        if kind == "sif":
            inside = f"apptainer exec --containall --nv --pwd /app --bind {mounts} --env OMP_NUM_THREADS=1 {side}.sif"
        else:
            inside = f"--container-image={side}.sqsh --container-mounts={mounts} --container-workdir=/app"
            inside += " --no-container-mount-home"
        return f"srun --nodes=1 --ntasks=1 {inside} python scripts"

    assert done.stdout.splitlines() == [
        f"{step('nemo')}/train_nemo.py {TRAINERS} {' '.join(WORDS)} output_dir=outputs/nemo",
        f"{step('nest')}/train_nest.py {TRAINERS} {' '.join(WORDS)} output_dir=outputs/nest",
        f"{step('nest')}/compare_outputs.py",
    ]


def test_a_job_runs_its_steps_and_ends_with_the_last_ones_code(
    root: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    notes, srun = tmp_path / "calls", tmp_path / "srun"
    srun.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(notes)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "sys.exit('scripts/compare_outputs.py' in sys.argv)\n"
    )
    srun.chmod(0o755)
    (data := tmp_path / "own").mkdir()
    settings = {"PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}", "OUT": str(tmp_path / "out"), "DATA": str(data)}
    done = job(root, environment, "name=a b", NEMO_IMAGE="nemo.sif", NEST_IMAGE="nest.sif", RANKS="1", **settings)
    calls = [json.loads(line) for line in notes.read_text().splitlines()]
    assert done.returncode == 1 and len(calls) == 3, done.stderr
    assert "name=a b" in calls[0] and "trainer.devices=1" in calls[0]
    assert not any("strategy" in word for word in calls[0])
    assert f"{data}:{data}:ro" in shlex.join(calls[1]) and (tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "error: no image: set NEMO_IMAGE and NEST_IMAGE"),
        ({"RANKS": "two"}, "error: RANKS=two is no number of ranks. Use 1 or more"),
        ({"DATA": "/no/such"}, "error: no such folder: DATA=/no/such"),
        ({"SLURM_SUBMIT_DIR": "/"}, "error: not the repository: /. Call sbatch from its folder"),
    ],
)
def test_what_cannot_run(root: Path, environment: dict[str, str], settings: dict[str, str], line: str) -> None:
    done = job(root, environment, DRY_RUN="1", **settings)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"{line}\n")
