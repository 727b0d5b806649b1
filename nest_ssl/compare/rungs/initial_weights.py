"""Rung 3: parameters and buffers before the first step, in the order in which the reference built them."""

from __future__ import annotations

from collections.abc import Mapping

from nest_ssl.base.nested import pairs
from nest_ssl.compare.rungs.sheet import Named, Sheet
from nest_ssl.recording.address import Kind, of_entry
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.reader import Recording

Kinds = Mapping[str, Kind]  # of every parameter and buffer by name
_UNITS = {Kind.PARAMETER: "parameters", Kind.BUFFER: "buffers"}


def kinds_of(reference: Recording, candidate: Recording) -> Kinds:
    """What each name in either structure is; the reference's word counts where they do not agree."""
    structures = [recording.structure for recording in (candidate, reference)]
    kinds: dict[str, Kind] = {}
    for structure in structures:
        kinds |= dict.fromkeys((entry.name for entry in structure.parameters), Kind.PARAMETER)
        kinds |= dict.fromkeys((entry.name for entry in structure.buffers), Kind.BUFFER)
    return kinds


def compare_initial_weights(sheet: Sheet, reference: Recording, candidate: Recording, start: int | None = None) -> None:
    """Compare what both sides began with; where one was resumed, what the other had when it was at step `start`."""
    kinds = kinds_of(reference, candidate)
    sides = [r.initial_weights() if start is None else r.step(start).start_weights() for r in (reference, candidate)]
    if sides[0] is not None and sides[1] is not None:
        compare_entries(sheet, sides[0], sides[1], kinds, Phase.INITIAL_WEIGHTS)
    if not sheet.tally.compared["parameters"]:
        sheet.nothing("no_shared_initial")


def compare_entries(sheet: Sheet, reference: Named, candidate: Named, kinds: Kinds, phase: Phase) -> None:
    """Two tables of parameters and buffers; a name that no structure lists counts as a parameter."""
    for name, one, other in pairs(reference, candidate):
        kind = kinds.get(name, Kind.PARAMETER)
        sheet.pair(_UNITS[kind], sheet.spot(of_entry(kind, name), phase), one, other)
