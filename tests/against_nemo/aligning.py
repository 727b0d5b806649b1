"""Records real NeMo and the port from one command line and compares them: what the tests of this folder share.

It is imported as `aligning`, since NeMo before 3.0 installs a package called `tests` that hides the one here.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from compare_outputs import main as compare_outputs
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.releases import generation_of
from nest_ssl.report import write_reports
from nest_ssl.run.compared import Asked, compare_as_asked, ranks_of
from nest_ssl.run.experiment import Subject, run

RELEASE = importlib.metadata.version("nemo_toolkit")  # whichever is installed: the port must be exact with it
GENERATION = generation_of(RELEASE)
# Where the size is not the subject: a layer; few channels of the subsampling, whose outputs are by far the largest; and
# the first 1.2 to 3.3 s of each utterance of the practice corpus.
ONE_LAYER, NARROW = "model.encoder.n_layers=1", "model.encoder.subsampling_conv_channels=8"
STARTS = [f"model.{name}_ds.manifest_filepath=tests/against_nemo/starts/{file}.json"
          for name, file in (("train", "train"), ("validation", "val"))]  # fmt: skip
SMALL = ["size=tiny", ONE_LAYER, NARROW, *STARTS]
ONE_PROCESS = ["model.train_ds.num_workers=0", "model.validation_ds.num_workers=0"]
TWO_STEPS = [
    *("size=tiny", NARROW, *STARTS, "batches=2", "save_steps=0,1", "model.train_ds.batch_size=3"),
    *ONE_PROCESS,
]


def record(subject: Subject, target: Path, *overrides: str) -> None:
    assert run(subject, [f"nemo={GENERATION}", *overrides, f"output_dir={target}"]) == 0


def align(folder: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    """Record both and compare; the exit code and the report."""
    record(NEMO, folder / "nemo", *overrides)
    record(NEST, folder / "nest", *overrides)
    return compare(folder, "nemo", "nest")


def compare(folder: Path, reference: str | Path, candidate: str | Path) -> tuple[int, dict[str, Any]]:
    """Compare two recordings, in `folder` or at their own paths; the exit code and the report, in `folder` too.

    As the command does, without a page and its pictures: they show what is found here already.
    """
    out, sides = folder / "report", (folder / reference, folder / candidate)
    if ranks_of(*sides) is None:
        comparison = compare_as_asked(*sides, Asked())
        code, _ = comparison.exit_code, write_reports(comparison, out)
    else:
        code = compare_outputs([f"--reference={sides[0]}", f"--candidate={sides[1]}", f"--out={out}"])
    return code, json.loads((out / "report.json").read_text())


def assert_identical(code: int, report: dict[str, Any]) -> None:
    assert report["first_difference"] is None, (out := report["first_difference"], report["rungs"]) and out
    assert (code, report["verdict"], report["exit_code"]) == (0, "identical", 0)
    for rung in report["rungs"]:
        assert rung["status"] == "identical" and rung["compared"] > 0, rung
        assert (rung["differing"], rung["missing_reference"], rung["missing_candidate"]) == (0, 0, 0), rung


def assert_tokens_count(folder: Path) -> None:
    """In each recorded step; else the loss is NaN on both sides, all gradients are zeros, and little is proved."""
    assert "No token counts" not in (folder / "report" / "report.md").read_text()
