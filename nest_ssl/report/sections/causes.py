"""Sentences on how the headline was born, on what follows from it, and on what does not."""

from __future__ import annotations

from collections.abc import Sequence

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Birth, Draw, Fate, Note, Remainder, Stage
from nest_ssl.compare.patterns import Pattern
from nest_ssl.report.document import Code, Text, initial, join
from nest_ssl.report.words import counted, knows, say, word
from nest_ssl.report.words.names import number, own_name, small, stage_name, steps_text

SHOWN = 3  # names in a line on what is not explained
PACKAGES = 8  # of other versions
_DRAW_IS_IT = (Birth.DRAW, Birth.BUILT_OTHERWISE, Birth.FILLED_OTHERWISE)  # the draw explains; elsewhere it comes after


def cause_text(comparison: Comparison) -> Text:
    """What is known of how the headline arose: one or more sentences; empty where nothing is."""
    cause, first = comparison.cause, comparison.first
    if cause is None or first is None:
        return ()
    code = {None: "code.none", "": "code.root"}.get(cause.module, "code.module")
    birth = say(
        f"born.{cause.birth.value}",
        code=say(code, module=cause.module),
        order="" if cause.order is None else say("order", order=number(cause.order + 1), calls=number(cause.calls)),
        after=cause.after or word("name", "root"),
        generator=first.address.slot,
        boundary=word("boundary", first.moment.phase.name.lower()),
    )
    sentences = [birth]
    sentences += [pattern_sentence(pattern) for pattern in comparison.proof.patterns[:1]]
    if cause.draw is not None:
        sentence = draw_sentence(cause.draw, comparison.draws)
        sentences.append(sentence if cause.birth in _DRAW_IS_IT else say("draws_after", draw=sentence))
    if cause.states:
        sentences.append(say("states_after", generators=", ".join(cause.states)))
    if cause.batch_differs:
        sentences.append(say("batch_too"))
    if cause.unrecorded:
        start, end = cause.unrecorded
        sentences.append(say("unrecorded.one" if start == end else "unrecorded.several", first=start, last=end))
    return join(sentences, " ")


def pattern_sentence(pattern: Pattern) -> Text:
    """``All 25 gradients of parameters are the reference's times 0.5: one factor, no module's own (...).``"""
    kind = pattern.kind.value
    some = say("pattern.below", module=pattern.below) if pattern.below else ""
    named = say("pattern.named", name=pattern.own) if pattern.own else ""
    key = "all" if pattern.whole else "some"
    return say(
        f"pattern.{pattern.shape.value}",
        which=say(
            f"pattern.{key}", count=number(pattern.count), what=word("pattern.kind", kind), some=some, named=named
        ),
        factor=number(float(f"{pattern.factor:.6g}")),
        hint=word("pattern.hint", kind),
    )


def draw_sentence(draw: Draw, draws: Sequence[Draw]) -> Text:
    """One sentence on a draw that differs; `draws` are all that were compared."""
    who, counts = draw.reference or draw.candidate, draw.draws
    key = f"draw.{draw.fate.value}"
    if draw.fate is Fate.ONE_SIDED:
        key = "draw.none" if draw.reference else "draw.extra"
    numbers = _count(counts[1] if key == "draw.extra" else counts[0], "number")
    values = {"count": _count(counts[0]), "other": _count(counts[1]), "generator": draw.generator}
    parts = [say(key, stage=_stages(who, subject=True), place=_stages(who), numbers=numbers, **values)]
    if draw.fate is Fate.OTHER_COUNT and draw.candidate != draw.reference:
        parts.append(say("draw.in", place=_stages(draw.candidate)))
    if draw.fate is Fate.OTHER_COUNT and draw.came_in:
        parts.append(say("draw.other_state"))
    for other in draws:
        same_stage = (other.step, other.rank, other.stage) == (draw.step, draw.rank, draw.stage)
        if other.finding and same_stage and other.generator != draw.generator and not other.came_in:
            sides = {"count": _count(other.draws[0]), "other": _count(other.draws[1])}
            parts.append(say("draw.also", generator=other.generator, **sides))
    return (*initial(join(parts, ""), upper=True), ".")


def _stages(stages: Sequence[Stage], subject: bool = False) -> Text:
    last = stage_name(stages[-1], subject)
    return last if len(stages) == 1 else say("to", first=stage_name(stages[0]), last=last)


def _count(draws: int | None, noun: str = "") -> str:
    if draws is None:
        return word("name", f"uncounted {noun}".strip())
    return counted(draws, noun) if noun else number(draws)


def consequence_texts(comparison: Comparison) -> list[Text]:
    """Counts of what differs after the headline: in full for its own step, later steps by number."""
    by_step: dict[int, list[Text]] = {}
    first = comparison.first
    begun = first.moment.step if first else -1
    validations = [found.step or 0 for found in comparison.follows if found.rung == "validation"]
    validations = sorted({step for step in validations if step > begun})  # by how many steps were trained before it
    for found in comparison.follows:
        if found.rung == "validation" and found.step in validations:
            continue
        text: Text = (counted(found.count, f"differing.{found.rung}"),)
        if found.rung == "loss":
            text = say("loss_differs") if found.largest is None else say("loss_by", size=small(found.largest))
        by_step.setdefault(-1 if found.step is None else found.step, []).append(text)
    before = by_step.pop(-1, None)
    own = first.moment.step if first and first.moment.step >= 0 else min(by_step, default=-1)
    texts = [join(before)] if before else []
    if own in by_step:
        texts.append(say("at_step", steps=steps_text([own]), what=join(by_step.pop(own))))
    if by_step:
        texts.append(say("later_steps", steps=steps_text(sorted(by_step))))
    if validations:
        count, after = counted(len(validations), "validations"), counted(validations[0], "steps")
        texts.append(
            say("later_validation" if len(validations) == 1 else "later_validations", count=count, after=after)
        )
    return texts


def remainder_text(remainder: Remainder) -> Text:
    """The first few of what the headline does not explain: of a call its module, of anything else its whole name."""
    names = []
    for finding in remainder.findings:
        address, own = finding.address, own_name(finding)
        full = ".".join(part for part in (address.module, own if address.call is None else "") if part)
        full = full or (word("name", "root") if address.module == "" else own)
        names.append(say("name_of_call", name=full, call=address.call) if address.call else (Code(full),))
    names = list(dict.fromkeys(names))
    more = say("more", count=number(len(names) - SHOWN)) if len(names) > SHOWN else ()
    steps = sorted({finding.moment.step for finding in remainder.findings if finding.moment.step >= 0})
    return say(f"unexplained.{remainder.why.value}", names=(*join(names[:SHOWN]), *more), steps=steps_text(steps))


def note_text(note: Note) -> Text:
    """The sentence of a note; one of an unknown kind is shown as it is, so that nothing is lost."""
    if not knows(f"note.{note.kind}"):
        shown = ", ".join(f"{key} {number(value)}" for key, value in note.values.items())
        return say("note.other", kind=note.kind, values=shown)
    values: dict[str, Text] = {}
    for key, value in note.values.items():
        if isinstance(value, Stage):
            values[key] = stage_name(value)
        elif isinstance(value, dict):  # name to the values of both sides
            texts = [say("package", name=name, reference=a, candidate=b) for name, (a, b) in value.items()]
            more = say("more", count=number(len(texts) - PACKAGES)) if len(texts) > PACKAGES else ()
            values[key] = (*join(texts[:PACKAGES]), *more)
        else:
            values[key] = (word("container" if note.kind == "container" else key, number(value)),)
    same = knows(f"note.{note.kind}.same") and values["reference"] == values["candidate"]
    return say(f"note.{note.kind}.same" if same else f"note.{note.kind}", **values)
