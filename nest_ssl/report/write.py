"""Puts the reports in their folder, each whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from nest_ssl.base.errors import from_os_error
from nest_ssl.compare.result import Comparison
from nest_ssl.report.json_report import render_json
from nest_ssl.report.markdown import render_markdown

MARKDOWN, JSON = "report.md", "report.json"


def write_reports(comparison: Comparison, folder: Path) -> Path:
    """Write `report.md` and `report.json` into `folder`, and return the path of the first.

    Both are written beside their places first, so an earlier report is lost only to a complete new one.

    Raises:
        UserError: the folder cannot be made or written.
    """
    texts = {MARKDOWN: render_markdown(comparison), JSON: render_json(comparison)}
    waiting: dict[Path, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            waiting[folder / name] = _write_beside(folder / name, text)
        for target, temporary in waiting.items():
            os.replace(temporary, target)
    except OSError as error:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)
        raise from_os_error(error, str(folder)) from error
    return folder / MARKDOWN


def _write_beside(target: Path, text: str) -> Path:
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    path = Path(temporary)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        path.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner reads
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
