"""What this comparer was measured to catch, in a sentence: how far its verdict can be trusted."""

from __future__ import annotations

from nest_ssl.compare.comparison import Comparison
from nest_ssl.report.detection import read_detection
from nest_ssl.report.document import Block, Paragraph
from nest_ssl.report.words import say
from nest_ssl.report.words.names import small


def detection(_: Comparison) -> list[Block]:
    """The sum of the last self-test, and whether the comparer has changed since; the same in every report."""
    found = read_detection()
    if found is None:
        return [Paragraph(say("detection.none"))]
    sizes = [("fp32", found.smallest), ("float64", found.smallest_float64)]
    smallest = ", ".join(f"{small(size)} {kind}" for kind, size in sizes if size is not None)
    text = say(
        "detection",
        placed=f"{found.placed:,}",
        faults=f"{found.faults:,}",
        spared=f"{found.spared:,}",
        rewrites=f"{found.rewrites:,}",
        smallest=smallest,
        commit=found.commit[:7],
        day=found.day,
    )
    return [Paragraph(text if found.is_of_this_comparer else (*text, " ", *say("detection.stale")))]
