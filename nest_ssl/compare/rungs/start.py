"""What a step finds: weights and modes, as far as anything between two steps has changed them; say, a validation."""

from __future__ import annotations

from nest_ssl.compare.findings import Difference
from nest_ssl.compare.rungs.initial_weights import Kinds, compare_entries
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.step_files import StepFiles

Modes = dict[str, bool]


def compare_start(
    sheet: Sheet, reference: StepFiles, candidate: StepFiles, kinds: Kinds, modes: tuple[Modes, Modes]
) -> set[tuple[str | None, str | None]]:
    """Compare where both sides recorded it.

    Args:
        kinds: what each name is.
        modes: of all modules when training began.

    Returns:
        module and name of the weights that one side alone has changed since the step before.
    """
    facts, other_facts = reference.facts(), candidate.facts()
    if facts is None or other_facts is None:
        return set()
    now, other_now = modes[0] | facts.training, modes[1] | other_facts.training
    for name in [name for name in now if name in other_now]:
        spot = sheet.spot(Address(Kind.MODULE, name, slot="training"), Phase.STEP_START)
        changed = name in facts.training or name in other_facts.training  # else it is the structure's matter
        found = [spot.finding(Difference.SETTING, now[name], other_now[name])]
        sheet.item("modes", found if changed and now[name] is not other_now[name] else [])
    changes, other_changes = reference.changed(layout.STEP_START), candidate.changed(layout.STEP_START)
    if changes == [] and other_changes == []:
        return set()  # they are what the step before left
    weights, other_weights = reference.start_weights(), candidate.start_weights()
    if weights is None or other_weights is None:
        return set()
    moved = set[str]()
    if changes is not None and other_changes is not None:
        names, moved = {*changes, *other_changes}, {*changes} ^ {*other_changes}
        weights, other_weights = ({n: t for n, t in s.items() if n in names} for s in (weights, other_weights))
    compare_entries(sheet, weights, other_weights, kinds, Phase.STEP_START)
    return {(address.module, address.slot) for address in (of_entry(Kind.PARAMETER, name) for name in moved)}
