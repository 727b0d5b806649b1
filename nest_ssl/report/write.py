"""Puts the reports in their folder, each whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from nest_ssl.base.errors import write_errors
from nest_ssl.base.files import replacing, write_atomically
from nest_ssl.compare.comparison import Comparison
from nest_ssl.report.document import Block, Figure, Heading, Paragraph
from nest_ssl.report.pictures import Pictures
from nest_ssl.report.pictures.draw import Drawing, drawings
from nest_ssl.report.render.html import render_html
from nest_ssl.report.render.json import render_json
from nest_ssl.report.render.junit import render_junit, render_refusal
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.render.terminal import print_blocks
from nest_ssl.report.sections import details, summary
from nest_ssl.report.words import say

MARKDOWN, JSON, JUNIT = "report.md", "report.json", "report.junit.xml"
PAGE, PICTURES = "report.html", "pictures"
DIGEST = 16  # letters of the SHA-256 of report.json that report.md carries


def write_reports(comparison: Comparison, folder: Path, pictures: Pictures | None = None) -> Path:
    """Write `report.json`, `report.md`, and with `pictures` also `report.html` and `pictures/*.svg` into `folder`.

    All are written beside their places before any is moved there, so an earlier report is lost only to a complete new
    one. `report.md` and `report.html` name the digest of their `report.json`: parts of two runs cannot pass for one.
    Returns the path of `report.md`.

    Raises:
        UserError: the folder cannot be made or written.
    """
    findings = render_json(comparison).encode()
    digest = hashlib.sha256(findings).hexdigest()[:DIGEST]
    drawn = drawings(pictures) if pictures else []
    files = {JSON: findings, MARKDOWN: report_text(comparison, digest, drawn).encode()}
    if pictures:
        files[PAGE] = render_html(comparison, pictures, digest).encode()
        files |= {f"{PICTURES}/{drawing.name}.svg": drawing.svg(style=True).encode() for drawing in drawn}
    with write_errors(str(folder)):
        with ExitStack() as whole:  # the data are moved first: until the text is, it does not name them
            places = [(whole.enter_context(replacing(folder / name)), files[name]) for name in reversed(files)]
            for place, content in reversed(places):
                place.write_bytes(content)
        for left in (folder / PICTURES).glob("*.svg") if pictures else ():  # of an earlier report
            if f"{PICTURES}/{left.name}" not in files:
                left.unlink()
    return folder / MARKDOWN


def report_text(comparison: Comparison, digest: str = "", drawn: Sequence[Drawing] = ()) -> str:
    """The whole of `report.md`; `digest` is of the `report.json` that it belongs to."""
    shown = [Figure(f"{PICTURES}/{drawing.name}.svg", drawing.alt) for drawing in drawn]
    heading: list[Block] = [Heading(say("heading.pictures")), Paragraph(say("pictures.more"))] if shown else []
    belongs = [Paragraph(say("belongs", digest=digest))] if digest else []
    return render_markdown([*summary(comparison), *details(comparison), *heading, *shown, *belongs])


def write_junit(comparison: Comparison | str, folder: Path) -> None:
    """Write `report.junit.xml` into `folder`; of a refused comparison (a text) the one line that says why.

    Raises:
        UserError: it cannot be written.
    """
    text = render_refusal(comparison) if isinstance(comparison, str) else render_junit(comparison)
    with write_errors(str(folder)):
        write_atomically(folder / JUNIT, text)


def append_step_summary(comparison: Comparison, path: Path) -> None:
    """Add the report's first screen and the table of rungs to a job's page; earlier steps' words stay.

    Raises:
        UserError: it cannot be written.
    """
    with write_errors(str(path)), path.open("a", encoding="utf-8") as stream:
        stream.write(render_markdown(summary(comparison)) + "\n")


def print_summary(comparison: Comparison, report: Path, stream: TextIO | None = None) -> None:
    """Verdict, first difference, the table of rungs, and where the report lies."""
    print_blocks([*summary(comparison), Paragraph(say("report", path=report))], stream)
