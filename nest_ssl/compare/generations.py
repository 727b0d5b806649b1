"""What is known to have changed between the generations of NeMo that two recordings follow.

Each recording names its generation and the values of that generation's named differences. Comparing two releases of
NeMo, they say what to expect, in order of execution; comparing a port with a reference of another generation, they say
that the port was told of the wrong one.
"""

from __future__ import annotations

from typing import Any

from nest_ssl.compare.result import KnownDifference
from nest_ssl.recording.reader import Recording


def generation_of(recording: Recording) -> str | None:
    """The generation that a recording follows, e.g. ``2.7``; None where it does not say."""
    return (recording.index.get("generation") or {}).get("name")


def is_same_trainer(reference: Recording, candidate: Recording) -> bool:
    """Whether both sides are releases of one trainer: then the generation is what is compared, not what is shared."""
    names = [recording.index["trainer"].get("name") for recording in (reference, candidate)]
    return names[0] == names[1]


def known_differences(reference: Recording, candidate: Recording) -> list[KnownDifference]:
    """The named differences of the two generations that have other values, in the order in which they take effect."""
    ours, theirs = (_differences(recording) for recording in (reference, candidate))
    found = [
        KnownDifference(name, ours[name]["where"], ours[name]["what"], ours[name]["value"], theirs[name]["value"])
        for name in ours
        if name in theirs and ours[name]["value"] != theirs[name]["value"]
    ]
    order = _first_calls(reference)
    return sorted(found, key=lambda difference: order.get(difference.where, -1))


def _differences(recording: Recording) -> dict[str, dict[str, Any]]:
    entries = (recording.index.get("generation") or {}).get("differences") or []
    return {entry["name"]: entry for entry in entries}


def _first_calls(recording: Recording) -> dict[str, int]:
    """Module name to the position of its first call in the first recorded step; what is no module comes before all."""
    steps = recording.index.get("calls") or {}
    calls = steps[min(steps, key=int)] if steps else []
    positions: dict[str, int] = {}
    for position, call in enumerate(calls):
        positions.setdefault(call.rpartition("#")[0], position)
    return positions
