"""What the evidence shows: where each difference was born, and why the rest is rounding, or is not shown to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nest_ssl.compare.born import Born
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Finding, Note, Status
from nest_ssl.compare.gaps import Gap
from nest_ssl.compare.proof import Agreement
from nest_ssl.compare.rules.noise_floor import Band
from nest_ssl.compare.rules.same_function import By, Function
from nest_ssl.recording.address import Kind
from nest_ssl.recording.evidence import Check
from nest_ssl.report.document import Block, Bullets, Code, Heading, Paragraph, Text, join, plain, table
from nest_ssl.report.words import counted, heads, say, word
from nest_ssl.report.words.names import cut, number, small, where

SHOWN, LINES, WIDE = 4, 14, 116  # places of the first screen; its lines for them, and letters in one
OPERATORS = 2  # in a sentence
MODULES = 40  # rows


def applies(comparison: Comparison) -> bool:
    """Whether there is a difference, and evidence on it."""
    differs = comparison.first is not None or bool(comparison.proof.born)
    return comparison.proof.had and differs and not comparison.contract_differs


def place(born: Born | Gap) -> Text:
    """Where one difference was born, as a name: a module, or a part of training."""
    return (Code(born.module or word("name", "root")),) if born.module is not None else say(f"place.{born.phase}")


def places(comparison: Comparison) -> list[Born]:
    """Every module, and every part of training that is no module's, once."""
    found: dict[str, Born] = {}
    for born in comparison.proof.born:
        found.setdefault(born.phase if born.module is None else f"module {born.module}", born)
    return list(found.values())


def born_list(comparison: Comparison) -> list[Block]:
    """Every place, a sentence each; and why the rest is not shown to be rounding."""
    proof = comparison.proof
    if not applies(comparison) or comparison.verdict is not Status.DIVERGED:
        return []
    items = first_places(proof.born)
    more = len(proof.born) - len(items)
    items += [say("born_more", count=number(more))] if more > 0 else []
    decided = any(born.decided for born in proof.born)  # then it is a difference whatever else is lacking
    texts = [] if decided else [lacking_text(note) for note in proof.lacking]
    blocks: list[Block] = [Bullets(tuple(items))] if items else []
    return [*blocks, *([Paragraph(say("lacking", what=join(texts, "; ")))] if texts else [])]


def first_places(births: Sequence[Born]) -> list[Text]:
    """A sentence for each of the first, as many as a screen has room for, with what else stands on it; at least one."""
    found: list[Text] = []
    lines = 0
    for born in births[:SHOWN]:
        sentence = born_sentence(born)
        lines += -(-len(plain(sentence)) // WIDE)
        if found and lines > LINES:
            break
        found.append(sentence)
    return found


def other_births(comparison: Comparison) -> list[Block]:
    """The places that the first screen has no room for."""
    proof = comparison.proof
    rest = proof.born[len(first_places(proof.born)) :]
    if not applies(comparison) or comparison.verdict is not Status.DIVERGED or not rest:
        return []
    items = tuple(map(born_sentence, rest[:MODULES]))
    return [Heading(say("heading.other_births")), Bullets(items), *cut("born.cut", MODULES, rest)]


def born_sentence(born: Born) -> Text:
    """What, where, how large against its floor, which operators differ, and the lines of both sides."""
    times = [] if born.step is None else [say("steps.one", step=born.step)]
    times += [say("call", call=born.call)] if born.call else []
    times += [say("times", times=number(born.times))] if born.times > 1 else []
    what: Text = say("its_result")
    if born.address:
        own, other = Code(born.address.own_name), born.address.module
        gradient = born.address.kind is Kind.OUTPUT_GRADIENT
        key = "gradient_at" if gradient else "handed_to"
        elsewhere = other is not None and other != born.module and born.module is not None
        what = say(key, own=own, module=Code(other or word("name", "root"))) if elsewhere else (own,)
    how = (
        "same_bits_else"
        if born.by is None
        else {By.ERROR: "raised", By.FLOAT32: "float32", By.RATES: "rates", By.SCALE: "scale"}.get(born.by, "other")
    )
    said = [
        say(
            f"born_here.{how if born.decided else 'undecided'}",
            place=place(born),
            phase=word("phase", born.phase),
            times=(" (", *join(times), ")") if times else "",
            what=what,
            size=size_text(born),
            why=f": {born.why}" if born.why else "",
        )
    ]
    if born.operators:
        more = [say("more", count=number(len(born.operators) - OPERATORS))] if len(born.operators) > OPERATORS else []
        said.append(say("operators", operators=(*join(map(Code, born.operators[:OPERATORS]), "; "), *sum(more, ()))))
    if any(born.source):
        lines = [Code(line) if line else word("name", "unknown") for line in born.source]
        said.append(say("lines", reference=lines[0], candidate=lines[1]))
    return join(said, " ")


def size_text(born: Born) -> Text:
    """``by 3.1e-05 of its size, 412 floors``; empty where it is no number."""
    if born.size is None:
        return ()
    floors = () if born.floors is None else say("floors", floors=ratio(born.floors))
    there = () if born.in_float64 is None else say("apart_in_double", size=small(born.in_float64))
    return say("by_size", size=small(born.size), floors=join([floors, there], ""))


def ratio(floors: float) -> str:
    return f"{floors:,.0f}" if floors >= 100 else f"{floors:.2g}"


def lacking_text(note: Note) -> Text:
    values = {key: where(value) if isinstance(value, Finding) else number(value) for key, value in note.values.items()}
    gap = note.values.get("at")
    if isinstance(gap, Gap):
        step = say("steps.one", step=gap.step)
        values["at"] = say("gap", place=place(gap), phase=word("phase", gap.phase), step=step, why=gap.why)
    return say(f"note.{note.kind}", **values)


def rounding(comparison: Comparison) -> Text:
    """Why a difference is rounding: how the functions were shown to be the same, and how far the floor is used."""
    proof = comparison.proof
    by: Counter[By | None] = Counter()
    for (function, decided), count in proof.units.items():
        by[decided] += count if function is Function.SAME else 0
    shown = [
        say(f"shown.{how.value}", units=number(by[how]), calls=counted(by[how], "replayed"))
        for how in (By.BITS, By.FLOAT64, By.FLOOR)
        if by[how]
    ]
    if proof.float64.agreement is Agreement.AGREES:
        shown.append(say("shown.float64 end to end", size=small(proof.float64.largest)))
    if proof.float64.agreement is Agreement.PARTLY and proof.float64.without:
        step, _, rung = proof.float64.without
        at, size = say("certified.step", step=step) if step >= 0 else "", small(proof.float64.largest)
        shown.append(say("shown.float64 in part", size=size, rung=word("rung", rung), step=at))
    said = [say("functions", how=join(shown))]
    largest = proof.largest
    if largest is not None and largest.judgement is not None and largest.judgement.ratio is not None:
        said.append(say("floor_used", ratio=ratio(largest.judgement.ratio), where=where(largest)))
    look = proof.bands[Band.LOOK]
    if look:
        said.append(say("look", tensors=counted(look, "tensors")))
    return join(said, " ")


def evidence(comparison: Comparison) -> list[Block]:
    """Which evidence there is, what it cost, what is less certain without the rest; and what the runs certify."""
    proof = comparison.proof
    if not proof.had:
        return []
    rows = [
        [word("kind", one.kind), word("had", str(one.had)), f"{one.seconds:,.0f} s" if one.had else "-",
         join([one.why, one.costs], ": ") or "-"]
        for one in proof.evidence
    ]  # fmt: skip
    found = table(heads("kind", "had", "seconds", "costs"), rows)
    checks = tuple(check_sentence(check) for check in proof.checks)
    return [Heading(say("heading.evidence")), found, *([Bullets(checks)] if checks else [])]


def check_sentence(check: Check) -> Text:
    """``The reference repeats itself: 425 of 425 tensors have the same bits.``"""
    same = say("certified", same=number(check.compared - check.differing), all=number(check.compared))
    first = say("certified.first", name=Code(check.first)) if check.first else ""
    step = "" if check.step is None else say("certified.step", step=check.step)
    key = f"check.{check.what}" if check.compared and not check.differing else f"check.not {check.what}"
    return say(key, side=word("side", check.side), step=step, same=(*same, *first))


def modules(comparison: Comparison) -> list[Block]:
    """Every module by its function: in numbers, and those that are not the same one by one."""
    found = comparison.proof.modules
    if not found:
        return []
    counts = Counter(module.function for module in found)
    shown = [say(f"function.{f.value}", modules=counted(counts[f], "modules")) for f in Function if counts[f]]
    others = [m for m in found if m.function not in (Function.SAME, Function.CAME_IN)]
    rows = [[Code(m.module or word("name", "root")), word("marked", m.function.value), m.why or "-"] for m in others]
    blocks: list[Block] = [Heading(say("heading.modules")), Paragraph(say("functions.counts", counts=join(shown)))]
    if not rows:
        return blocks
    return [*blocks, table(heads("module", "function", "why"), rows[:MODULES]), *cut("modules.more", MODULES, others)]
