"""Rung 4: every field of the batch as the model received it."""

from __future__ import annotations

from nest_ssl.compare.rungs.sheet import Sheet, whole_numbers_first
from nest_ssl.compare.values import flatten
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.reader import StepFiles


def compare_batch(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> None:
    """A batch may be nested in any way: its leaves are compared by their paths."""
    if sheet.both_have(layout.BATCH, reference, candidate):
        one, other = whole_numbers_first(flatten(reference.batch())), flatten(candidate.batch())
        sheet.table("fields", one, other, Phase.BATCH, lambda name: Address(Kind.FIELD, slot=name))
        sheet.need_tensor(one, other)
