"""Rung 4: every field of the batch as the model received it."""

from __future__ import annotations

from nest_ssl.compare.findings import Difference
from nest_ssl.compare.rungs.sheet import Sheet, whole_numbers_first
from nest_ssl.compare.values import flatten
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.step_files import StepFiles


def compare_batch(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> None:
    """A batch may be nested in any way: its leaves are compared by their paths."""
    if sheet.both_have(layout.BATCH, reference, candidate):
        one, other = whole_numbers_first(flatten(reference.batch())), flatten(candidate.batch())
        sheet.table("fields", one, other, Phase.BATCH, lambda name: Address(Kind.FIELD, slot=name))
        sheet.need_tensor(one, other)
    _compare_memory(sheet, reference, candidate)


def _compare_memory(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> None:
    """Which fields lie in the same memory; that matters where the forward edits one of them in place."""
    facts = reference.facts(), candidate.facts()
    if facts[0] is None or facts[1] is None or facts[0].shared == facts[1].shared:
        return
    groups = [{name: group for group in side.shared for name in group} for side in facts if side]
    edited = {*facts[0].edited, *facts[1].edited}
    for name in {**groups[0], **groups[1]}:
        others = [[other for other in side.get(name, []) if other != name] for side in groups]
        if others[0] == others[1]:
            continue
        said = [f"in the memory of {', '.join(side)}" if side else "in memory of its own" for side in others]
        if edited.intersection({name, *others[0], *others[1]}):
            spot = sheet.spot(Address(Kind.FIELD, slot=name, path="memory"), Phase.BATCH)
            sheet.item("fields in shared memory", [spot.finding(Difference.SETTING, *said)])
        else:
            sheet.note("shared_memory", step=sheet.step, path=name, reference=said[0], candidate=said[1])
