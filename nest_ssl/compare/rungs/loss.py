"""Rung 7: the loss that backward starts from."""

from __future__ import annotations

import math

from torch import Tensor

from nest_ssl.compare.findings import Losses
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.values import flatten
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.step_files import StepFiles


def compare_loss(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> Losses | None:
    """Returns both sides' loss; None where either has none."""
    if not sheet.both_have(layout.LOSS, reference, candidate):
        return None
    one, other = flatten(reference.loss()), flatten(candidate.loss())
    sheet.table("losses", one, other, Phase.LOSS, lambda name: Address(Kind.LOSS, slot=name))
    sheet.need_tensor(one, other)
    values = [side.get("loss") for side in (one, other)]
    losses = [float(v) if isinstance(v, Tensor) and v.numel() == 1 else None for v in values]
    if not any(loss is not None and math.isfinite(loss) for loss in losses):
        sheet.note("loss_not_finite", step=sheet.step)  # the same on both sides, and little is proved by it
    return Losses(sheet.step, *losses)
