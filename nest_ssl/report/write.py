"""Puts the reports in their folder, each whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TextIO

from nest_ssl.base.errors import write_errors
from nest_ssl.base.files import replacing, write_atomically
from nest_ssl.compare.comparison import Comparison
from nest_ssl.report.document import Paragraph
from nest_ssl.report.render.json import render_json
from nest_ssl.report.render.junit import render_junit, render_refusal
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.render.terminal import print_blocks
from nest_ssl.report.sections import details, summary
from nest_ssl.report.words import say

MARKDOWN, JSON, JUNIT = "report.md", "report.json", "report.junit.xml"
DIGEST = 16  # letters of the SHA-256 of report.json that report.md carries


def write_reports(comparison: Comparison, folder: Path) -> Path:
    """Write `report.json` and `report.md` into `folder`, and return the path of the second.

    Both are written beside their places before either is moved there, so an earlier report is lost only to a complete
    new one. `report.md` names the digest of its `report.json`: the halves of two runs cannot pass for one.

    Raises:
        UserError: the folder cannot be made or written.
    """
    findings = render_json(comparison).encode()
    digest = hashlib.sha256(findings).hexdigest()[:DIGEST]
    text = report_text(comparison, digest)
    with write_errors(str(folder)), replacing(folder / MARKDOWN) as report, replacing(folder / JSON) as data:
        data.write_bytes(findings)
        report.write_bytes(text.encode())
    return folder / MARKDOWN


def report_text(comparison: Comparison, digest: str = "") -> str:
    """The whole of `report.md`; `digest` is of the `report.json` that it belongs to."""
    belongs = [Paragraph(say("belongs", digest=digest))] if digest else []
    return render_markdown([*summary(comparison), *details(comparison), *belongs])


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
