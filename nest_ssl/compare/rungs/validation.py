"""Validations: their first batches, what the model made of these, and what each gave in all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, takewhile, zip_longest

from nest_ssl.base.nested import pairs
from nest_ssl.compare.findings import Difference, Tally
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.values import Comparer, flatten
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.contents import Validation
from nest_ssl.recording.reader import Recording


def compare_validations(
    comparer: Comparer, reference: Recording, candidate: Recording, steps: Sequence[int] | None
) -> list[Tally]:
    """The k-th of one side against the k-th of the other; nothing where a side was recorded before they were.

    Args:
        steps: only those before one of these training batches; all when None.
    """
    found, other_found = reference.validations(), candidate.validations()
    if found is None or other_found is None:
        return []
    tallies = []
    for one, other in zip_longest(found, other_found):
        step = next(side["before_step"] for side in (one, other) if side)
        if steps is None or step in steps:
            sheet = Sheet("validation", comparer, step)
            _compare(sheet, one, other)
            tallies.append(sheet.tally)
    return tallies


def without_weights(reference: Recording) -> frozenset[str]:
    """What the batch alone makes: the parts of the model that a validation calls before any that has weights, such as
    features."""
    found = reference.validations() or []
    owners = {entry.name.partition(".")[0] for entry in reference.structure.parameters}
    called = [[output["module"] for output in batch["outputs"]] for each in found for batch in each["batches"]]
    first = [takewhile(lambda name: name and name.partition(".")[0] not in owners, names) for names in called]
    return frozenset(chain.from_iterable(first))


def _compare(sheet: Sheet, reference: Validation | None, candidate: Validation | None) -> None:
    whole = sheet.spot(Address(Kind.METRIC, slot="validation"), Phase.VALIDATION)
    if reference is None or candidate is None:
        kind = Difference.MISSING_REFERENCE if reference is None else Difference.MISSING_CANDIDATE
        sheet.missing(whole.finding(kind, *("absent" if side is None else "made" for side in (reference, candidate))))
        return
    before = reference["before_step"], candidate["before_step"]
    sheet.item("validations", [whole.finding(Difference.SETTING, *before)] if before[0] != before[1] else [])
    event = 0
    for batch, other in zip(reference["batches"], candidate["batches"], strict=False):
        fields = (flatten(side["fields"]) for side in (batch, other))
        for name, field, other_field in pairs(*fields):
            spot = sheet.spot(Address(Kind.FIELD, slot=name), Phase.VALIDATION, event)
            sheet.pair("fields", spot, field, other_field)
        made, other_made = ({(o["module"], o["call"]): o["output"] for o in s["outputs"]} for s in (batch, other))
        for key, output, other_output in pairs(made, other_made):
            event += 1
            spot = sheet.spot(Address(Kind.OUTPUT, *key), Phase.VALIDATION, event)
            sheet.pair("calls", spot, output, other_output)
    for name, value, other_value in pairs(reference["metrics"], candidate["metrics"]):
        spot = sheet.spot(Address(Kind.METRIC, slot=name), Phase.VALIDATION, math.inf)
        sheet.pair("metrics", spot, value, other_value)
