"""The report over several ranks: one verdict, a line a rank, and whether the ranks of either side stayed together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TextIO

from nest_ssl.base.errors import write_errors
from nest_ssl.base.files import write_atomically
from nest_ssl.compare.findings import Status
from nest_ssl.compare.ranks import OverRanks, SideRanks
from nest_ssl.recording.layout import rank_folder
from nest_ssl.report.document import Block, Code, Heading, Paragraph, StatusWord, Text, plain, table
from nest_ssl.report.render.html import render_front
from nest_ssl.report.render.json import strict
from nest_ssl.report.render.junit import render_verdict
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.render.terminal import print_blocks
from nest_ssl.report.sections import summary
from nest_ssl.report.sections.background import known_differences
from nest_ssl.report.sections.headline import title
from nest_ssl.report.sections.kinds import likely_kinds
from nest_ssl.report.words import counted, heads, say, word
from nest_ssl.report.words.names import labels, number, steps_text, where
from nest_ssl.report.write import JSON, JUNIT, MARKDOWN, PAGE, PICTURES

SCHEMA = "nest-ssl-ranks-report/1"


def write_ranks_report(over: OverRanks, folder: Path) -> Path:
    """Write `report.md`, `report.html` and `report.json` over the ranks into `folder`, beside each one's in `rank_R/`.

    Pictures of an earlier comparison go. Returns the path of `report.md`.

    Raises:
        UserError: they cannot be written.
    """
    with write_errors(str(folder)):
        shutil.rmtree(folder / PICTURES, ignore_errors=True)
        write_atomically(folder / JSON, json.dumps(strict(_as_tree(over)), indent=1, allow_nan=False) + "\n")
        write_atomically(folder / PAGE, render_front(over.verdict, lambda: over_ranks(over), lambda: _pages(over)))
        write_atomically(folder / MARKDOWN, render_markdown(over_ranks(over)))
    return folder / MARKDOWN


def print_ranks_summary(over: OverRanks, report: Path, stream: TextIO | None = None) -> None:
    """The verdict over the ranks, and the first screen of the first that is not like the others."""
    unlike = [one for one in over.ranks if one.exit_code == over.exit_code != 0]
    print_blocks([*over_ranks(over), *(summary(unlike[0]) if unlike else ()), Paragraph(say("report", path=report))],
                 stream)  # fmt: skip


def write_ranks_junit(over: OverRanks, folder: Path) -> None:
    """Write `report.junit.xml` into `folder`: the verdict over the ranks; the rungs of each are in its own.

    Raises:
        UserError: it cannot be written.
    """
    head, *rest = over_ranks(over)
    assert isinstance(head, Heading)
    with write_errors(str(folder)):
        write_atomically(folder / JUNIT, render_verdict(over.verdict, plain(head.text), render_markdown(rest)))


def append_ranks_summary(over: OverRanks, path: Path) -> None:
    """Add the verdict over the ranks to a job's page.

    Raises:
        UserError: it cannot be written.
    """
    with write_errors(str(path)), path.open("a", encoding="utf-8") as stream:
        stream.write(render_markdown(over_ranks(over)) + "\n")


def over_ranks(over: OverRanks) -> list[Block]:
    """Title, verdict, a row for each rank, and a sentence for each side."""
    ranks, sides = over.ranks, labels(over.ranks[0])
    worst = next((rank for rank, one in enumerate(ranks) if one.exit_code == over.exit_code), None)
    if worst is None:  # no rank by itself is at fault
        key = "ranks.known" if any(used.fault for used in over.ledger) else "ranks.apart"
        head = say(key, reference=sides[0], candidate=sides[1])
    elif over.exit_code == 0:
        like_all = next(one for one in ranks if one.verdict is over.verdict)
        head = say("ranks.all", ranks=counted(len(ranks), "ranks"), title=title(like_all))
    else:
        head = say("ranks.one", rank=worst, count=len(ranks), title=title(ranks[worst]))
    same = sum(one.facts.tensors_same for one in ranks)
    verdict = say(
        "ranks.verdict",
        status=StatusWord(over.verdict, word("status", over.verdict.value), strong=True),
        same=say("same", same=number(same), all=number(sum(one.facts.tensors for one in ranks)),
                 steps=steps_text(ranks[0].steps)),
    )  # fmt: skip
    rows = [
        [say("rank", rank=rank), StatusWord(one.verdict, word("status", one.verdict.value)),
         where(one.first) if one.first else word("name", "none"), Code(f"{rank_folder(rank)}/{MARKDOWN}"),
         f"{one.facts.tensors_same:,} / {one.facts.tensors:,}"]
        for rank, one in enumerate(ranks)
    ]  # fmt: skip
    columns = heads("rank", "status", "first", "report", "same")
    said = [Paragraph(_together(label, side)) for label, side in zip(sides, (over.reference, over.candidate),
                                                                     strict=True)]  # fmt: skip
    kinds = [] if worst is None else likely_kinds(ranks[worst])
    known = known_differences(over.ledger)
    return [Heading(head, 1), Paragraph(verdict), *kinds, table(columns, rows, right=1), *said, *known]


def _pages(over: OverRanks) -> dict[str, str]:
    return {plain(say("rank", rank=rank)): f"{rank_folder(rank)}/{PAGE}" for rank in range(len(over.ranks))}


def _together(label: str, side: SideRanks) -> Text:
    if side.parted:
        found = side.parted
        values = {"step": found.step, "rank": found.rank, "parameter": (Code(found.parameter),)}
        return say("ranks.parted", side=label, more=number(found.more), **values)
    own = say("ranks.buffers", buffers=counted(side.buffers, "buffers")) if side.buffers else ()
    own += say("ranks.frozen", parameters=counted(side.frozen, "parameters")) if side.frozen else ()
    parameters = counted(side.parameters, "parameters")
    return say("ranks.together", side=label, steps=steps_text(side.steps), parameters=parameters, own=own)


def _as_tree(over: OverRanks) -> dict[str, object]:
    """Keys are only ever added to this schema."""
    ranks = [
        {"rank": rank, "verdict": one.verdict, "exit_code": one.exit_code, "first_difference": one.first,
         "report": f"{rank_folder(rank)}/{JSON}"}
        for rank, one in enumerate(over.ranks)
    ]  # fmt: skip
    sides = {"reference": over.reference, "candidate": over.candidate}
    return {"schema": SCHEMA, "verdict": over.verdict, "exit_code": over.exit_code, "ranks": ranks,
            "passed": over.verdict in (Status.IDENTICAL, Status.EQUIVALENT), "known": over.ledger, **sides}  # fmt: skip
