"""The likely kind of fault, its reason, and what to look at next."""

from __future__ import annotations

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.kinds import Likely
from nest_ssl.report.document import Block, Code, Paragraph, Text, join
from nest_ssl.report.sections.causes import note_text
from nest_ssl.report.words import say, word
from nest_ssl.report.words.names import number

SHOWN = 3  # kinds on the first screen


def likely_kinds(comparison: Comparison) -> list[Block]:
    """``Likely kind: attention, because ... Look at ...``; those of one kind and reason together."""
    groups: dict[tuple[str, str], list[Likely]] = {}
    for likely in comparison.kinds:
        groups.setdefault((likely.kind.value, likely.reason.kind), []).append(likely)
    if not groups:
        return []
    said: list[Text] = []
    for (kind, _), group in list(groups.items())[:SHOWN]:
        more = say("kind.more", count=number(len(group) - 1)) if len(group) > 1 else ()
        more = (*more, *_own_of_rank(group[0]))
        said.append(say("kind.named", kind=word("fault", kind), reason=note_text(group[0].reason), more=more))
    said += [say("kind.others", count=number(len(groups) - SHOWN))] if len(groups) > SHOWN else []
    first = comparison.kinds[0].kind.value
    key = "kind.one" if len(groups) == 1 else "kind.several"
    key = "kind.setting" if comparison.contract_differs else key
    return [Paragraph(say(key, kinds=join(said, "; "), next=word("next", first)))]


def _own_of_rank(likely: Likely) -> Text:
    """What the one rank that differs shows by itself: kind, place and reason of each."""
    shown = [
        say("kind.placed", kind=word("fault", one.kind.value), reason=note_text(one.reason),
            place=(Code(one.born.module),) if one.born and one.born.module else word("name", "none"))
        for one in likely.own[:SHOWN]
    ]  # fmt: skip
    return say("kind.own", kinds=join(shown, "; ")) if shown else ()
