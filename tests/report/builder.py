"""Comparisons made by hand: plain data, no recording and no tensor, so that each line of a report has a known input."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nest_ssl.compare.comparison import Comparison, Facts, Losses, Side
from nest_ssl.compare.findings import (
    RUNGS,
    Birth,
    CallJudgement,
    Cause,
    Consequence,
    Difference,
    Draw,
    Fate,
    Finding,
    Judgement,
    Note,
    Relation,
    Rung,
    RungName,
    Stage,
    Status,
    Tally,
)
from nest_ssl.compare.metrics import Metrics
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import BEFORE_STEPS, Moment, Phase
from nest_ssl.recording.index import Index

UNITS: dict[RungName, dict[str, int]] = {
    "contract": {"settings": 52},
    "structure": {"modules": 24, "parameters": 26, "buffers": 6},
    "initial_weights": {"parameters": 26, "buffers": 6},
    "start": {"modes": 24},
    "batch": {"fields": 2},
    "draws": {"stages": 1, "random states": 12},
    "forward": {"calls": 22, "outputs": 4},
    "loss": {"losses": 1},
    "gradients": {"output gradients": 18, "parameter gradients": 25},
    "optimizer_input": {"optimizer groups": 1},
    "weights": {"buffers": 6, "optimizer groups": 1, "optimizer states": 25, "parameters": 26},
    "steps": {"steps": 2},
}
BEFORE: tuple[RungName, ...] = ("contract", "structure", "initial_weights", "steps")


def index(name: str = "nemo", **fields: Any) -> Index:
    """An index as a recording has it, validated as one; `fields` replace or add."""
    package = {"nemo": "nemo_toolkit", "nest": "nest-ssl"}.get(name, name)
    tree: dict[str, Any] = {
        "schema": "nest-ssl-recording/2",
        "trainer": {"name": name, "package": package, "version": "3.0.0", "class": f"{package}.Model"},
        "created": "2026-11-26T12:00:00+00:00",
        "command": [f"train_{name}.py", "size=tiny", "seed=42", f"output_dir=outputs/{name}"],
        "seed": 42,
        "data": {"train": {"manifests": [{"name": "t.json", "sha256": "ab"}], "audio": {"a.wav": "11", "b.wav": "22"}}},
        "python": "3.11.9",
        "packages": {"torch": "2.13.0", "numpy": "2.4.0"},
        "device": {"type": "cpu", "name": "a processor"},
        "threads": {"torch": 1},
        "files": {},
    }  # fmt: skip
    return Index.model_validate({**tree, **fields})


def side(label: str, name: str, **fields: Any) -> Side:
    return Side(label, f"outputs/{name}", index(name, **fields), {"seed": 42})


def rungs(steps: tuple[int, ...] = (0, 1)) -> list[Rung]:
    """Every rung, all the same."""
    return [
        Rung(name, [Tally(name, step, 0, Counter(UNITS[name])) for step in ((None,) if name in BEFORE else steps)])
        for name in RUNGS
        if name in UNITS  # no validation
    ]


def comparison(**fields: Any) -> Comparison:
    """Two recordings with the same bits; `fields` replace."""
    same: dict[str, Any] = {
        "reference": side("NeMo 3.0.0", "nemo"),
        "candidate": side("nest-ssl 0.1.0", "nest"),
        "steps": [0, 1],
        "rungs": rungs(),
        "verdict": Status.IDENTICAL,
        "exit_code": 0,
        "first": None,
        "first_bits": None,
        "first_beyond": None,
        "cause": None,
        "follows": [],
        "unexplained": [],
        "calls": [],
        "draws": [draw(), draw(module="masking", step=0), draw(module="masking", step=1)],
        "losses": [Losses(0, 5.0926868, 5.0926868), Losses(1, 5.0, 5.0)],
        "explanations": [],
        "declared": [],
        "known": [],
        "rule": {"kind": "fixed", "atol": 1e-5, "rtol": 1e-5},
        "facts": Facts(681, "2 x 2.0 s", 425, 425, 100_000),
        "notes": [],
    }
    return Comparison(**{**same, **fields})


def finding(
    rung: RungName = "forward", step: int = 0, phase: Phase = Phase.FORWARD, event: int = 26, **fields: Any
) -> Finding:
    """An output of a layer that differs; `fields` are of the finding, and of its address where they have such names."""
    address = {"kind": Kind.OUTPUT, "module": "encoder.layers.1", "call": 0}
    address |= {name: fields.pop(name) for name in list(fields) if name in Address.__slots__}
    rest = {"difference": Difference.VALUES, "reference": 0.18231764435768127, "candidate": 0.18113207817077637}
    return Finding(rung, Moment(step, phase, event), Address(**address), **{**rest, **fields})


def measured(max_abs: float = 4.1e-3, ratio: float = 300.0, relative: float = 2.2e-2, **fields: Any) -> Finding:
    sizes = {"max_abs": max_abs, "relative": relative, "cosine": 0.99, "max_ulp": 78_412}
    metrics = Metrics(64, 60, 10, ratio, index=(0, 1, 2), **sizes)
    judgement = Judgement(ratio <= 1, "fixed", {"atol": 1e-5, "rtol": 1e-5}, ratio)
    shape = {"index": (0, 1, 2), "shape": (2, 4, 8), "dtype": "float32"}
    return finding(metrics=metrics, judgement=judgement, **{**shape, **fields})


def setting(slot: str, reference: Any, candidate: Any) -> Finding:
    values = {"difference": Difference.SETTING, "reference": reference, "candidate": candidate}
    return finding(
        "contract", BEFORE_STEPS, Phase.CONTRACT, 0, kind=Kind.SETTING, module=None, call=None, slot=slot, **values
    )


def draw(
    phase: str = "model_construction", module: str | None = None, step: int = BEFORE_STEPS, fate: Fate = Fate.SAME,
    counts: tuple[int | None, int | None] = (605, 605), generator: str = "torch_cpu", found: Finding | None = None,
    call: int = 0,
) -> Draw:  # fmt: skip
    stage = (Stage(phase if module is None else "forward", module, call),)
    moment = Moment(step, Phase.MODEL_CONSTRUCTION if step < 0 else Phase.FORWARD, 9)
    return Draw(moment, 0, generator, stage, stage, counts, fate, False, found)


def add(made: Comparison, rung: RungName, *found: Finding, differing: int | None = None) -> None:
    """Put findings where they belong; `differing` items, as many as findings if not given."""
    for one in found:
        tallies = made.rung(rung).tallies
        tally = next(t for t in tallies if t.step == (None if one.moment.step < 0 else one.moment.step))
        tally.findings.append(one)
        tally.differing += 1 if differing is None else 0
    if differing is not None:
        made.rung(rung).tallies[0].differing += differing


def diverged(**fields: Any) -> Comparison:
    """A residual factor in a layer, beyond the tolerance: born in its own code."""
    first = measured()
    gradient = measured(3e-10, 1e-5, 0.9, rung="gradients", phase=Phase.GRADIENTS, event=0, kind=Kind.GRADIENT,
                        module="encoder.layers.0.linear_k", call=None, slot="bias")  # fmt: skip
    real = measured(2e-3, 150.0, 1e-2, rung="gradients", phase=Phase.GRADIENTS, event=0, kind=Kind.GRADIENT,
                    module="decoder", call=None, slot="weight")  # fmt: skip
    made = comparison(
        verdict=Status.DIVERGED, exit_code=1, first=first, first_bits=first, first_beyond=first,
        cause=Cause(Birth.OWN_CODE, "encoder.layers.1", order=12, calls=22),
        follows=[Consequence("forward", 0, 7), Consequence("loss", 0, 1, 3.1e-4), Consequence("gradients", 0, 1),
                 Consequence("weights", 0, 40), Consequence("forward", 1, 20)],
        calls=[CallJudgement(0, "encoder.layers.1", 0, Relation.BORN, 13, first),
               CallJudgement(0, "", 0, Relation.INSIDE, 0, first)],
        facts=Facts(681, "2 x 2.0 s", 425, 146, 100_000),
        notes=[Note("weights_part", {"step": 0})],
    )  # fmt: skip
    add(made, "forward", first, measured(1e-3, 90.0), differing=1)
    add(made, "gradients", gradient, real)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def other_experiment(*settings: Finding, **fields: Any) -> Comparison:
    made = diverged(verdict=Status.INCONCLUSIVE, exit_code=4, cause=None, follows=[], **fields)
    made.first = made.first_bits = made.first_beyond = settings[0]
    add(made, "contract", *settings)
    return made
