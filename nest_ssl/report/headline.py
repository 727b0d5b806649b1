"""The first screen of a report: the title, the verdict, and the first difference."""

from __future__ import annotations

from nest_ssl.compare.result import (
    DIVERGED,
    EQUIVALENT,
    IDENTICAL,
    MISSING_CANDIDATE,
    MISSING_REFERENCE,
    Comparison,
    Difference,
)
from nest_ssl.report.wording import labels, name, number, sizes, small, steps_text, table, where

REASONS = 3  # shown for an inconclusive verdict


def title(comparison: Comparison) -> str:
    reference, candidate = labels(comparison)
    first = comparison.first
    if _contract_differs(comparison):
        assert first is not None
        return f"{reference} and {candidate} did not run the same experiment: {name(first.place)} differs"
    if comparison.verdict == IDENTICAL:
        return f"{reference} and {candidate} train identically"
    if comparison.verdict == EQUIVALENT:
        return f"{reference} and {candidate} train equivalently"
    if comparison.verdict == DIVERGED and first is not None:
        return f"{candidate} parts from {reference} at {where(first.place)}"
    return f"Too little was recorded to compare {reference} with {candidate}"


def verdict(comparison: Comparison) -> str:
    """``**identical**: 12,304 of 12,304 tensors have the same bits, over steps 0 to 2, from seed 42. ...``"""
    facts = comparison.facts
    word = f"**{comparison.verdict}**"
    same = (
        f"{facts.tensors_same:,} of {facts.tensors:,} tensors have the same bits, over {steps_text(comparison.steps)}"
    )
    seed = comparison.reference.index.get("seed")
    if comparison.verdict == IDENTICAL:
        return f"{word}: {same}, from seed {seed}. Nothing missing on either side."
    if comparison.verdict == EQUIVALENT:
        return f"{word}: {same}; the others are within {tolerance(comparison)}. Nothing missing on either side."
    if _contract_differs(comparison):
        count = comparison.rung("contract").differing
        more = f" and {count - 1:,} more" if count > 1 else ""
        return f"{word}: a setting that both sides must share differs{more}. What follows is shown as information only."
    if comparison.verdict == DIVERGED:
        origin = comparison.origin[:1].lower() + comparison.origin[1:]
        return f"{word}: {origin}".rstrip(": ") + f" ({same}.)"
    return f"{word}: nothing that was compared differs, but {_reasons(comparison)}."


def _reasons(comparison: Comparison) -> str:
    """Why too little was compared: the first few reasons; the notes have all."""
    reasons = list(dict.fromkeys(reason for rung in comparison.rungs for t in rung.tallies for reason in t.absent))
    more = f"; and {len(reasons) - REASONS:,} more" if len(reasons) > REASONS else ""
    return "; ".join(reasons[:REASONS]) + more if reasons else "no step was recorded by both"


def tolerance(comparison: Comparison) -> str:
    rule = comparison.tolerance
    return f"a {rule['kind']} tolerance (atol {rule.get('atol', '-')}, rtol {rule.get('rtol', '-')})"


def first_difference(comparison: Comparison) -> list[str]:
    """The table of both values, and what follows from the difference; nothing where there is none."""
    first = comparison.first
    if first is None:
        return []
    reference, candidate = labels(comparison)
    rows = [[_what(first), _value(first, first.reference), _value(first, first.candidate)]]
    if first.metrics:
        rows.append(["largest difference / relative / ulp", sizes(first), ""])
        rows.append(["elements that differ", f"{first.metrics.differing:,} of {first.metrics.elements:,}", ""])
        rows += _nonfinite(first)
    lines = table(["", reference, candidate], rows)
    for text, other in (
        ("Bits part earlier, within the tolerance,", comparison.first_bits),
        ("Within the tolerance there; beyond it first", comparison.first_beyond),
    ):
        if other is not None and other is not first:
            size = f" (by {small(other.metrics.max_abs)})" if other.metrics else ""
            lines += [f"{text} at {where(other.place)}{size}.", ""]
    return lines + consequences(comparison)


def consequences(comparison: Comparison) -> list[str]:
    if _contract_differs(comparison):
        return []
    follows = "; ".join(comparison.follows) or "nothing that was recorded"
    unexplained = "; ".join(comparison.unexplained) or "nothing"
    return [f"Follows from it: {follows}.", f"Not explained by it: {unexplained}.", ""]


def _what(first: Difference) -> str:
    text = name(first.place)
    shape = f" {list(first.shape)} {first.dtype}" if first.shape is not None else ""
    index = f", at {list(first.index)}" if first.index else ""
    return f"{text}{shape}{index}"


def _value(first: Difference, value: object) -> str:
    missing = first.kind in (MISSING_REFERENCE, MISSING_CANDIDATE)
    return str(value) if missing else number(value)


def _nonfinite(first: Difference) -> list[list[str]]:
    metrics = first.metrics
    if metrics is None or not (metrics.nan_reference or metrics.nan_candidate or metrics.nonfinite_disagree):
        return []
    return [
        ["NaN", f"{metrics.nan_reference:,}", f"{metrics.nan_candidate:,}"],
        ["NaN or infinity on one side only", f"{metrics.nonfinite_disagree:,}", ""],
    ]


def _contract_differs(comparison: Comparison) -> bool:
    return comparison.first is not None and comparison.first.place.rung == "contract"
