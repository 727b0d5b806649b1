"""Whether a run is going to be the experiment that its counterpart recorded, before anything is trained."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import plain
from nest_ssl.compare.findings import Finding
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.rungs.contract import compare_contract
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.values import Comparer
from nest_ssl.data.fingerprint import DataRecord
from nest_ssl.recording.index import Data, Generation, Step
from nest_ssl.recording.layout import INDEX
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.releases import describe

SHOWN = 3  # settings that are named
SECOND, FIRST = "nest", "nemo"  # folders beside each other; what lies beside the first one is of an earlier pair


class _Planned(Recording):
    """What the run will record of its settings; whatever is not known beforehand is as in `first`."""

    def __init__(self, first: Recording, name: str, cfg: DictConfig, steps: frozenset[int] | None, data: Data) -> None:
        planned: Any = plain(cfg)
        update: dict[str, Any] = {
            "trainer": first.index.trainer.model_copy(update={"name": name}),
            "seed": cfg.seed,
            "generation": Generation.model_validate(describe(cfg.nemo)),
            "data": data,
        }
        if steps and first.index.level is None and cfg.record == "modules":
            update["steps"] = {n: Step(epoch=0, batch=n, optimizer_stepped=True, calls=0) for n in steps}
        super().__init__(first.path, first.index.model_copy(update=update), verified=True)
        self._planned: dict[str, Any] = planned

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._planned


def other_experiment(
    target: Path, name: str, cfg: DictConfig, steps: frozenset[int] | None, data: DataRecord
) -> list[str]:
    """A line for each setting that makes this run another experiment than the recording beside it, at most `SHOWN`.

    Args:
        target: where this run is recorded; the reference's recording is looked for beside it.
        name: of the trainer.
        steps: that will be recorded; None: all.
        data: what was read of it.
    """
    place = target.with_name(FIRST)
    if target.name != SECOND or not (place / INDEX).is_file():
        return []
    try:
        first = open_recording(place, verify=False)
    except UserError:  # whoever compares is going to hear of it
        return []
    batches = Sheet("batch", Comparer(SameBits()))
    batches.tally.compared["fields"] = 1  # settings that only batches show make no difference yet
    sheet = Sheet("contract", Comparer(SameBits()))
    compare_contract(
        sheet, first, _Planned(first, name, cfg, steps, Data.model_validate(data.describe())), None, [batches.tally]
    )
    found = sheet.tally.findings
    lines = [f"{_setting(one)}: {place} is of another experiment, and comparing the two ends with exit code 4"
             for one in found[:SHOWN]]  # fmt: skip
    return [*lines, f"and {len(found) - SHOWN} more such settings"] if len(found) > SHOWN else lines


def _setting(finding: Finding) -> str:
    return f"{finding.address.slot.removeprefix('config.')} is {finding.candidate}, and was {finding.reference}"
