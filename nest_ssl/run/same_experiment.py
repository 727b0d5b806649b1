"""Whether a run is going to be the experiment of its counterpart, before anything is trained.

The counterpart has recorded its own, or is trained at the same time: then each trainer leaves its plan where both look,
and whoever comes second compares the two. Nothing waits for the other one.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pydantic import BaseModel, ConfigDict

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import plain
from nest_ssl.compare.findings import Finding
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.rungs.contract import compare_contract
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.values import Comparer
from nest_ssl.data.fingerprint import DataRecord
from nest_ssl.recording.index import Data, Generation, Index, Scalar, Step, Structure, Trainer
from nest_ssl.recording.layout import INDEX, SCHEMA
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.releases import describe

SHOWN = 3  # settings that are named
SECOND, FIRST = "nest", "nemo"  # folders beside each other; what lies beside the first one is of an earlier pair
MEETING = "NEST_SSL_MEETING"  # in the environment of two that are trained at once: the folder of their plans


class Plan(BaseModel):
    """What a run will record of its settings. `steps` is None for all, and where a step is not recorded whole."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    name: str
    config: dict[str, Any]
    seed: Scalar
    generation: Generation
    data: Data
    steps: list[int] | None


class _Planned(Recording):
    """The recording that `plan` will become; whatever is not known beforehand is as in `first`."""

    def __init__(self, first: Recording, plan: Plan, steps: list[int] | None) -> None:
        update: dict[str, Any] = {
            "trainer": first.index.trainer.model_copy(update={"name": plan.name}),
            "seed": plan.seed,
            "generation": plan.generation,
            "data": plan.data,
        }
        if steps:
            update["steps"] = {n: Step(epoch=0, batch=n, optimizer_stepped=True, calls=0) for n in steps}
        super().__init__(first.path, first.index.model_copy(update=update), verified=True)
        self._plan = plan

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._plan.config

    @cached_property
    def structure(self) -> Structure:
        return Structure()


def other_experiment(
    target: Path, name: str, cfg: DictConfig, steps: frozenset[int] | None, data: DataRecord
) -> list[str]:
    """A line for each setting that makes this run another experiment than the one beside it, at most `SHOWN`.

    Args:
        target: where this run is recorded; the other's recording, made or in the making, is looked for beside it.
        name: of the trainer.
        steps: that will be recorded; None: all.
        data: what was read of it.
    """
    place, meeting = target.with_name(FIRST), os.environ.get(MEETING)
    looks = target.name in (FIRST, SECOND) if meeting else target.name == SECOND and (place / INDEX).is_file()
    if not looks:
        return []
    whole = sorted(steps) if steps and cfg.record == "modules" else None
    described, generation = Data.model_validate(data.describe()), Generation.model_validate(describe(cfg.nemo))
    own = Plan(name=name, config=plain(cfg), seed=cfg.seed, generation=generation, data=described, steps=whole)
    if meeting:
        if (other := leave(own, Path(meeting))) is None:
            return []
        reference, candidate = sorted((own, other), key=lambda plan: plan.name != FIRST)
        blank = Trainer.model_validate({"name": "", "package": "", "version": "", "class": ""})
        nothing = Recording(place, Index.model_validate({"schema": SCHEMA, "trainer": blank, "files": {}}), True)
        both = all(plan.steps for plan in (reference, candidate))
        first: Recording = _Planned(nothing, reference, reference.steps if both else None)
        second = _Planned(first, candidate, candidate.steps if both else None)
    else:
        try:
            first = open_recording(place, verify=False)
        except UserError:  # whoever compares is going to hear of it
            return []
        second = _Planned(first, own, whole if first.index.level is None else None)
    batches = Sheet("batch", Comparer(SameBits()))
    batches.tally.compared["fields"] = 1  # settings that only batches show make no difference yet
    sheet = Sheet("contract", Comparer(SameBits()))
    compare_contract(sheet, first, second, None, [batches.tally])
    what = "these are two experiments" if meeting else f"{place} is of another experiment"
    end = f"{what}, and comparing the two ends with exit code 4"
    said = [f"{_setting(one, bool(meeting))}: {end}" for one in sheet.tally.findings]
    lines = list(dict.fromkeys(said))  # a seed is there twice
    return [*lines[:SHOWN], f"and {len(lines) - SHOWN} more such settings"] if len(lines) > SHOWN else lines


def leave(own: Plan, meeting: Path) -> Plan | None:
    """Leave a plan in the folder `meeting`; returns the other one's where that was there before.

    Of two that come at once exactly one finds the other's.
    """
    written, first = meeting / f"{own.name}.json", meeting / "first.json"
    written.write_text(own.model_dump_json(by_alias=True), encoding="utf-8")
    try:
        os.link(written, first)  # at once, with its whole content, and only where there is none
    except FileExistsError:
        return Plan.model_validate_json(first.read_bytes())
    return None


def _setting(finding: Finding, at_once: bool) -> str:
    name = finding.address.slot.removeprefix("config.")
    if at_once:
        return f"{name} is {finding.reference} in {FIRST} and {finding.candidate} in {SECOND}"
    return f"{name} is {finding.candidate}, and was {finding.reference}"
