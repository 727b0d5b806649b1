"""The part of the bench that asks for evidence: replay, float64, noise floor and operators, gathered on the device.

Faults and rewrites of the self-test's catalogue are planted in the port; where they must be found is known.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from nest_ssl.base.home import ROOT
from nest_ssl.bench.recorded import EVERYWHERE, LARGE, QUICK, TINY, Rows
from nest_ssl.bench.trainings import PLANTED, Bench, Training, python_path, run_logged, slug, train_pairs

ALL, SHORT = "replay,float64,floor,operators", "replay,floor,operators"
EPS, HALVES = "layer norm's eps 1e-6 for 1e-5, in one layer", "a linear layer in two halves"
NORM = ("forward encoder.layers.1.norm_conv", "backward encoder.layers.1.norm_conv")
STEPS = ("batches=2", "save_steps=0,1")


@dataclass(frozen=True)
class Explained:
    """Two trainings, the evidence about them, and what it must come to.

    Args:
        verdict: that the comparison must end with.
        born: ``phase module`` of each place that must be named, and of no other.
    """

    reference: Training
    candidate: Training
    evidence: str
    verdict: str
    born: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.candidate.name


def pairs(bench: Bench) -> list[Explained]:
    """Trainings that are the same, that have a fault, that are written another way, and on another device."""
    tiny = (TINY, *QUICK, *STEPS)
    large = (LARGE.format(size=bench.size), *QUICK, "batches=1", "save_steps=0")
    # By names of their own: in a dry run both are of one size, and a recording's folder is its training's name.
    small, big = Training("explain small", "nemo", tiny), Training("explain large", "nemo", large)
    everywhere = (*tiny, EVERYWHERE)
    on_cpu = Training("explain on the CPU", "nest", everywhere, accelerator="cpu")
    return [
        Explained(small, Training("explain as it is", "nest", tiny), ALL, "identical"),
        Explained(small, Training("explain eps", "nest", tiny, planted=EPS), ALL, "diverged", NORM),
        Explained(small, Training("explain halves", "nest", tiny, planted=HALVES), ALL, "equivalent"),
        Explained(small, Training("explain attention", "nest", tiny, planted="fused attention"), ALL, "equivalent"),
        Explained(on_cpu, Training("explain devices", "nest", everywhere), ALL, "equivalent"),
        Explained(big, Training("explain large eps", "nest", large, planted=EPS), SHORT, "diverged", NORM),
    ]


def explain(bench: Bench) -> Rows:
    """What `nest-ssl explain` says of each pair, from evidence gathered on the device."""
    return train_pairs(bench, pairs(bench), _explain)


def _explain(bench: Bench, pair: Explained, errors: list[str]) -> dict[str, Any]:
    sides = {"reference": pair.reference, "candidate": pair.candidate}
    row: dict[str, Any] = {"name": pair.name.removeprefix("explain "), "evidence": pair.evidence}
    row |= {"size": pair.reference.overrides[0], "planted": pair.candidate.planted}
    out = bench.folder / "reports" / slug(pair.name)
    if not errors:
        # Evidence lies beside the reference, so each explanation has a folder of its own with a link to it.
        command = [bench.sides["nest"].python, str(ROOT / "scripts" / "explain.py"), "--evidence", pair.evidence]
        out.mkdir(parents=True, exist_ok=True)
        for side, one in sides.items():
            (out / side).symlink_to(one.folder(bench))
            words = ["env", f"PYTHONPATH={python_path()}", bench.sides[one.side].python]
            words += [*PLANTED, one.planted] if one.planted else []
            command += [f"--{side}", str(out / side), f"--{side}-python", shlex.join(words)]
        with bench.slots.taken(bench.place, begins=False):
            errors = [run_logged([*command, "--out", str(out / "report")], out / "explain.out", bench, (0, 1, 2, 4))]
    if any(errors):
        return {**row, "error": "; ".join(filter(None, errors))}
    said = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    born = sorted({" ".join(filter(None, (one["phase"], one["module"]))) for one in said["born"]})
    row |= {"verdict": said["verdict"], "expected": pair.verdict, "born": born, "planted_in": sorted(pair.born)}
    row["gathered"] = {one["kind"]: one["seconds"] if one["had"] else one["why"] for one in said["evidence"]}
    row["largest_floors"] = max((one.get("floors") or 0.0 for one in said["born"]), default=0.0)
    row["tensors"], row["tensors_same"] = said["facts"]["tensors"], said["facts"]["tensors_same"]
    return row
