"""docs/detection.md: every case with what was found, and the sum that reports quote. Every number is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date
from statistics import median

from nest_ssl.report.detection import Detection, comparer_hash
from nest_ssl.report.document import Block, Bullets, CodeBlock, Heading, Paragraph, table
from nest_ssl.selftest.cases import PAIRS, REWRITES, Case, Places, places
from nest_ssl.selftest.score import Score, found_places, smallest, verdict_of

LEGEND = (
    "Written by the command below; not by hand. Each case replaces a line of the port's source (the catalogue is "
    "nest_ssl/selftest/catalogue), trains a tiny model, and is compared with the port as it is, with all evidence of "
    "make explain (of several ranks by their recordings alone). Caught: the verdict is the one that it must be. "
    "Placed: every place where the fault was born is named, and no other one. Kind: of all kinds of fault that the "
    "report names none is wrong; unknown is no mistake. Limit: the smallest size, of powers of ten, at which it is "
    "still caught: below it the recorded bits are the same, or the difference is within rounding; empty where none "
    "was sought."
)


def summed(scores: Sequence[Score], commit: str) -> Detection:
    """The sum over all cases."""
    faults = [score for score in scores if score.case.is_fault]
    rewrites = [score for score in scores if not score.case.is_fault]
    return Detection(
        commit=commit,
        day=str(date.today()),
        comparer=comparer_hash(),
        faults=len(faults),
        placed=sum(score.placed for score in faults),
        rewrites=len(rewrites),
        spared=sum(score.placed for score in rewrites),
        smallest=smallest(faults),
        smallest_float64=smallest(faults, in_float64=True),
    )


def page(scores: Sequence[Score], total: Detection, catalogue: Sequence[Case]) -> list[Block]:
    """The whole document; it says what of the catalogue was not tried."""
    faults = [score for score in scores if score.case.is_fault]
    groups = list(dict.fromkeys(score.case.group for score in scores))
    caught, seconds = sum(score.caught for score in faults), sum(score.outcome.seconds for score in scores)
    sizes = [(total.smallest, "float32"), (total.smallest_float64, "float64")]
    seen = " and ".join(f"{size:.1e} in {kind}" for size, kind in sizes if size is not None)
    named = [score for score in faults if score.kind]
    kinds = {kind: sum(score.kind == kind for score in named) for kind in ("right", "unknown", "wrong")}
    sums = [
        f"{caught:,} of {total.faults:,} planted faults are caught, {total.placed:,} are placed as well.",
        f"{total.spared:,} of {total.rewrites:,} correct rewrites and refactorings are spared.",
        f"The smallest relative error by which a fault was caught and placed: {seen}.",
        f"Of {len(named):,} kinds of fault named {kinds['right']:,} are right, {kinds['unknown']:,} unknown and "
        f"{kinds['wrong']:,} wrong.",
        limits_text(scores),
        f"{seconds / max(len(scores), 1):.1f} s of one core a case; measured {total.day} at commit {total.commit[:7]}.",
    ]
    blocks: list[Block] = [Heading(("What this comparer catches",), 1), Paragraph((LEGEND,))]
    blocks += [CodeBlock(("make selftest",)), Bullets(tuple((text,) for text in sums))]
    left = [case.name for case in catalogue if all(case is not score.case for score in scores)]
    if left:
        blocks.append(Paragraph((f"Not tried of {len(catalogue):,} cases: {', '.join(left)}.",)))
    blocks += [Heading(("By kind",)), by_kind(scores, groups)]
    blocks += not_right(scores)
    for group in groups:
        of_group = [score for score in scores if score.case.group == group]
        blocks += [Heading((group[0].upper() + group[1:],)), details(of_group)]
    return blocks


def limits_text(scores: Sequence[Score]) -> str:
    """Of how many cases with a size the limit was sought, and how far below that size it lies."""
    sized = [score for score in scores if score.case.size is not None]
    decades = [math.log10(score.case.size / score.limit) for score in sized if score.case.size and score.limit]
    found = f"The detection limit was sought for {len(decades):,} of {len(sized):,} faults with a size"
    return found + (f"; in the median it is 1e-{median(decades):.0f} of that size." if decades else ".")


def by_kind(scores: Sequence[Score], groups: Sequence[str]) -> Block:
    """A line a group."""
    rows = []
    for group in groups:
        of_group = [score for score in scores if score.case.group == group]
        counts = [sum(score.caught for score in of_group), sum(score.placed for score in of_group)]
        right = "" if group in REWRITES else f"{sum(score.kind == 'right' for score in of_group)}"
        rows.append((group, f"{len(of_group)}", *map(str, counts), right))
    return table(("kind", "cases", "caught or spared", "placed", "kind right"), rows, right=4)


def not_right(scores: Sequence[Score]) -> Iterator[Block]:
    """What is not as it must be: a finding about the comparer, each."""
    rows = [
        (score.case.name, score.case.verdict, verdict_of(score.outcome), _shown(places(score.case.born)),
         score.outcome.error or _shown(found_places(score.outcome)))
        for score in scores if not (score.caught and score.placed)
    ]  # fmt: skip
    yield Heading(("Not caught, not placed, not spared",))
    if rows:
        yield table(("case", "verdict must be", "verdict is", "born", "named"), rows)
    else:
        yield Paragraph(("Nothing.",))
    wrong = [score for score in scores if score.kind == "wrong"]
    if wrong:
        yield Paragraph(("Another kind of fault was named than is right:",))
        rows_of_kinds = [(s.case.name, ", ".join(s.case.expected_kinds), ", ".join(s.outcome.kinds)) for s in wrong]
        yield table(("case", "right", "named"), rows_of_kinds)


def details(scores: Sequence[Score]) -> Block:
    """A line a case."""
    sized = any(score.case.size is not None for score in scores)
    swept = any(score.limit is not None for score in scores)
    rows = []
    for score in scores:
        one, limit = score.case, "" if score.limit is None else f"{score.limit:g}"
        size = "" if one.size is None else f"{one.size:g}"
        born = _shown(found_places(score.outcome)) or verdict_of(score.outcome)
        said = "yes" if score.placed else "caught" if score.caught else "no"
        kinds = [] if one.group in REWRITES or one.group == PAIRS else [score.kind]
        rows.append((one.name, said, *kinds, born, *((size,) if sized else ()), *((limit,) if swept else ())))
    first = scores[0].case.group
    head = ["case", "spared" if first in REWRITES else "caught and placed"]
    head += [] if first in REWRITES or first == PAIRS else ["kind"]
    head += ["named", *(("size",) if sized else ()), *(("limit",) if swept else ())]
    return table(head, rows, right=sized + swept)


def _shown(found: Places) -> str:
    """``both`` for the forward and backward of one module."""
    both = {module for phase, module in found if phase == "forward" and ("backward", module) in found}
    texts = [f"both {module or '(root)'}" for module in both]
    for phase, module in found:
        if not (module in both and phase in ("forward", "backward")):
            texts.append(phase if module is None else f"{phase} {module or '(root)'}")
    return ", ".join(sorted(texts))
