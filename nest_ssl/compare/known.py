"""What is known to have changed between the generations of NeMo that two recordings follow.

Each recording names its generation and the values of that generation's named differences. Comparing two releases of
NeMo, they say what to expect, in order of execution; comparing a port with a reference of another generation, they say
that the port followed the wrong one.
"""

from __future__ import annotations

from nest_ssl.compare.comparison import KnownDifference
from nest_ssl.recording.reader import Recording


def known_differences(reference: Recording, candidate: Recording) -> list[KnownDifference]:
    """The named differences of the two generations that have other values, in the order in which they take effect."""
    if reference.index.generation is None or candidate.index.generation is None:
        return []
    others = {entry.name: entry.value for entry in candidate.index.generation.differences}
    found = [
        KnownDifference(entry.name, entry.where, entry.what, entry.value, others[entry.name])
        for entry in reference.index.generation.differences
        if entry.name in others and entry.value != others[entry.name]
    ]
    calls = reference.index.calls[min(reference.index.calls)] if reference.index.calls else []
    order = [call.rpartition("#")[0] for call in calls]  # what is no module comes before all
    return sorted(found, key=lambda entry: order.index(entry.where) if entry.where in order else -1)
