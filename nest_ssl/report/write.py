"""Puts the reports in their folder, each whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TextIO

from nest_ssl.base.errors import from_os_error
from nest_ssl.base.files import write_atomically
from nest_ssl.compare.comparison import Comparison
from nest_ssl.report.document import Paragraph
from nest_ssl.report.render.json import render_json
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.render.terminal import print_blocks
from nest_ssl.report.sections import details, summary
from nest_ssl.report.words import say

MARKDOWN, JSON = "report.md", "report.json"
DIGEST = 16  # letters of the SHA-256 of report.json that report.md carries


def write_reports(comparison: Comparison, folder: Path) -> Path:
    """Write `report.json` and `report.md` into `folder`, and return the path of the second.

    Both are whole beside their places before either is moved there, so an earlier report is lost only to a complete
    new one; and `report.md` names the digest of its `report.json`, so nobody takes the halves of two runs for one.

    Raises:
        UserError: the folder cannot be made or written.
    """
    findings = render_json(comparison)
    digest = hashlib.sha256(findings.encode()).hexdigest()[:DIGEST]
    text = render_markdown([*summary(comparison), *details(comparison), Paragraph(say("belongs", digest=digest))])
    waiting = {folder / name: folder / f".{name}.new" for name in (JSON, MARKDOWN)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for temporary, content in zip(waiting.values(), (findings, text), strict=True):
            write_atomically(temporary, content)
        for target, temporary in waiting.items():
            os.replace(temporary, target)
    except OSError as error:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)
        raise from_os_error(error, str(folder)) from error
    return folder / MARKDOWN


def print_summary(comparison: Comparison, report: Path, stream: TextIO | None = None) -> None:
    """Verdict, first difference, the table of rungs, and where the report lies."""
    print_blocks([*summary(comparison), Paragraph(say("report", path=report))], stream)
