"""One side in a process of its own: builds and trains one variant after another, as it is asked, line by line.

    python -m nest_ssl.matrix.worker scripts/train_nest.py

A line in is a JSON list of overrides; a line out is an object of digests, or `{"error": ...}` where it stopped.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
import warnings

import torch

from nest_ssl.base.errors import UserError, run_command
from nest_ssl.base.home import ROOT
from nest_ssl.config.compose import compose
from nest_ssl.config.strict import read_config
from nest_ssl.matrix.step import observe
from nest_ssl.model.encoder.fused import choice
from nest_ssl.releases import NEWEST, generation_of
from nest_ssl.run.subject import Inputs, Subject


def main() -> int:
    """Answer until stdin ends; returns the exit code."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    subject = next(value for value in runpy.run_path(sys.argv[1]).values() if isinstance(value, Subject))
    subject.load()
    if subject.name == "nest":
        choice.SMALLEST = 0  # the unwatched step takes the fused way, as it does in models of a size to train
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(subject, json.loads(line))), file=answers, flush=True)
    return 0


def answer(subject: Subject, overrides: list[str]) -> dict[str, object]:
    """Digests and seconds; where building or training stopped, the error in one line.

    Raises:
        UserError: the NeMo of this environment is not of the generation that is asked for.
    """
    began = time.perf_counter()
    asked = next((word.removeprefix("nemo=") for word in overrides if word.startswith("nemo=")), NEWEST)
    if subject.package == "nemo_toolkit" and generation_of(asked) != generation_of(subject.version()):
        what = f"NeMo {subject.version()} is installed there"
        raise UserError(what, f"--nemo {asked}", "Give the Python that has it: --nemo-python.")
    try:
        if subject.name == "nest":
            read_config(overrides)  # with the data sections, which are not built here
        cfg = compose(overrides)
        cfg.nemo, cfg.model.train_ds, cfg.model.validation_ds = generation_of(cfg.nemo), None, None
        digests = observe(lambda: subject.build_model(cfg, None, Inputs()), cfg.seed)  # type: ignore[arg-type]
    except UserError as error:
        return {"error": f"{error.what}: {error.where}".replace(f"{ROOT}/", "")}
    except Exception as error:  # noqa: BLE001  (what NeMo raises is what is asked for)
        reason: BaseException = error.__cause__ or error  # Hydra's names what was built, its cause says why
        return {"error": f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"}
    return {"digests": digests, "seconds": round(time.perf_counter() - began, 3)}


if __name__ == "__main__":
    run_command(main)
