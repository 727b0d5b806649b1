"""The page of what changed from one NeMo to another: what the table names, what it does not, operators and lines."""

from __future__ import annotations

from collections.abc import Iterator

from nest_ssl.base.errors import EXIT_CONTRACT_DIFFERS, EXIT_DIVERGED, EXIT_OK
from nest_ssl.compare.comparison import Comparison
from nest_ssl.releases import BATCH
from nest_ssl.report.document import Block, Bullets, Code, Heading, Paragraph, StatusWord, Text, join, table
from nest_ssl.report.sections.background import commands_of
from nest_ssl.report.sections.causes import note_text
from nest_ssl.report.sections.operators import operators
from nest_ssl.report.sections.proof import born_sentence
from nest_ssl.report.words import counted, word
from nest_ssl.report.words.names import number, steps_text, where
from nest_ssl.track.changes import Tracked, generation_of


def head(found: Tracked) -> list[Block]:
    """Title, what was compared with which outcome, what has a name and what has none."""
    one, other = both = names(found)
    named, unnamed = counted(len(found.named), "named differences"), len(found.unnamed)
    if found.exit_code == EXIT_CONTRACT_DIFFERS:
        title = f"Not the same experiment from {one} to {other}"
    elif found.exit_code == EXIT_DIVERGED:
        title = f"From {one} to {other}: {named}, and {unnamed} without a name"
    else:
        rest = "none without a name" if found.exit_code == EXIT_OK else "not all was compared"
        title = f"From {one} to {other}: {named}, {rest}"
    steps = steps_text(found.between.steps)
    items: list[Text] = [(f"{one} and {other}: ", *_outcome(found.between), ", over ", *steps, ".")]
    for name, side in zip(both, (found.before, found.after), strict=True):
        items.append((f"{name} and the port under generation {generation_of(side)}: ", *_outcome(side), "."))
    return [Heading((title,), 1), Bullets(tuple(items)), *named_table(found), *without_name(found)]


def page(found: Tracked) -> list[Block]:
    """The whole page."""
    sides = (found.before, found.after)
    blocks = [*head(found), *operators_by_place(found)]
    if notes := dict.fromkeys(note_text(note) for side in sides for note in side.unseen):
        blocks += [Heading(("What this run could not see",)), Bullets(tuple(notes))]
    commands = dict.fromkeys(command for side in sides for command in commands_of(side))
    return [*blocks, Heading(("Reproduce",)), Bullets(tuple((Code(command),) for command in commands))]


def names(found: Tracked) -> tuple[str, str]:
    """What to call the two, kept apart where they are of one release."""
    one, other = found.before.reference.label, found.after.reference.label
    return (one, other) if one != other else (f"{one} (before)", f"{other} (after)")


def _outcome(comparison: Comparison) -> Text:
    status = StatusWord(comparison.verdict, word("status", comparison.verdict.value), strong=True)
    facts = comparison.facts
    same = f", {number(facts.tensors_same)} of {number(facts.tensors)} tensors have the same bits"
    first = ("; first at ", *where(comparison.first)) if comparison.first else ()
    return (status, same, *first)


def named_table(found: Tracked) -> list[Block]:
    """What the table of generations says has changed, and what the run shows at that place; one may have several."""
    heading = Heading(("What the table names",))
    if not found.named:
        generations = " and ".join(dict.fromkeys(map(generation_of, (found.before, found.after))))
        return [heading, Paragraph((f"Nothing: to the table both are of generation {generations}.",))]
    first = min(found.between.steps, default=0)  # later ones also follow from what was drawn before
    other = any(one.moment.step == first for one in found.between.rung("batch").findings)
    batches = "other batches" if other else "the same batches"
    rows = []
    for each in found.named:
        changes = sum(len(one.changes) for one in found.at(each.where))
        here = counted(changes, "operators") if changes else "the same operators"
        values = number(each.reference), number(each.candidate)
        rows.append((each.name, Code(each.where), each.what, *values, batches if each.where == BATCH else here))
    return [heading, table(("difference", "where", "what", *names(found), "in this run"), rows)]


def without_name(found: Tracked) -> Iterator[Block]:
    """Each place where the port parts from a NeMo: whose it is, what it could be, and the operators of both NeMos."""
    if found.unnamed:
        yield Heading(("Without a name",))
    for one in found.unnamed:
        sides = [name for name, parts in zip(names(found), (one.before, one.after), strict=True) if parts]
        said: list[object] = [f"The port parts here from {' and '.join(sides)}"]
        if len(sides) == 2:
            said.append(": it did not change between the two")
        if one.names:
            said.append(f". The table has {', '.join(one.names)} at this place: one of them may have another value")
        if files := list(dict.fromkeys(filter(None, one.files))):
            said += [". Its class is in ", join(map(Code, files), ", before, and in ")]
        if not one.operators:
            said.append(". Both NeMos run the same operators here")
        yield Heading(born_sentence(one.born), 3)
        yield Paragraph((*join(said, ""), "."))
        yield from operators(one.operators)


def operators_by_place(found: Tracked) -> Iterator[Block]:
    """Where the two NeMos run others: at the places of named differences, then elsewhere."""
    for place in dict.fromkeys(each.where for each in found.named):
        if there := found.at(place):
            yield Heading(("Operators at ", Code(place)))
            yield from operators(there)
    if other := found.elsewhere():
        yield Heading(("Other operators",))
        same = "Neither a name in the table nor another bit goes with these."
        yield Paragraph((same if found.exit_code == EXIT_OK else "No name in the table goes with these.",))
        yield from operators(other)
