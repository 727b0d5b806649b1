"""The terminal: wide and narrow, with and without colour, with and without Unicode."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from nest_ssl.report import print_summary
from nest_ssl.report.document import Bullets, CodeBlock, Paragraph, table
from nest_ssl.report.render.terminal import print_blocks
from tests.report.builder import comparison, diverged

REPORT = Path("outputs/report/report.md")
SEQUENCE = re.compile(r"\x1b\[[0-9;]*m")


class Screen(io.StringIO):
    """A terminal of a given width, as far as rich asks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return Screen()


def test_a_log_has_the_words_alone() -> None:
    stream = io.StringIO()
    print_summary(diverged(), REPORT, stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "nest-ssl 0.1.0 parts from NeMo 3.0.0 at step 0, forward, encoder.layers.1, output"
    assert lines[1].startswith("diverged: its inputs and all calls inside it have the same bits")
    assert "encoder.layers.1, output [2, 4, 8] float32, at [0, 1, 2]  0.182317644" in stream.getvalue()
    assert lines[-1] == "report: outputs/report/report.md"
    assert "\x1b" not in stream.getvalue()
    assert all(line == line.rstrip() for line in lines)


def test_colour_for_a_person(screen: Screen) -> None:
    print_summary(diverged(), REPORT, screen)
    title, verdict = screen.getvalue().splitlines()[:2]
    assert title.startswith("\x1b[1m")
    assert "31m" in verdict
    assert "─" in screen.getvalue()


def test_no_color_means_none(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bold is a colour to whoever asks for none."""
    monkeypatch.setenv("NO_COLOR", "1")
    print_summary(diverged(), REPORT, screen)
    assert "\x1b" not in screen.getvalue()


@pytest.mark.parametrize(("columns", "ruled"), [(20, False), (59, False), (60, True)])
def test_a_narrow_terminal_has_plain_columns(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, columns: int, ruled: bool
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_summary(comparison(), REPORT, screen)
    text = SEQUENCE.sub("", screen.getvalue())
    assert ("┃" in text) == ruled
    assert "..." not in text
    if not ruled:
        assert re.search(r"^gradients +identical +2 x \(18 output gradients", text, re.MULTILINE)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_cannot_be_shown_is_an_escape(encoding: str) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding)
    print_summary(comparison(), Path("日本/report.md"), stream)
    stream.flush()
    assert buffer.getvalue().decode(encoding).splitlines()[-1] == "report: \\u65e5\\u672c/report.md"


def test_other_blocks() -> None:
    stream = io.StringIO()
    print_blocks([Bullets((("a",), ("b",))), CodeBlock(("x", "y")), table(["", "n"], [["a", 10], ["b", 2]], 1)], stream)
    assert stream.getvalue() == "- a\n- b\nx\ny\n    n\na  10\nb   2\n"


def test_markup_of_rich_is_text() -> None:
    stream = io.StringIO()
    print_blocks([Paragraph(("[bold red]x[/] :warning: [link=https://x.example]y[/link]",))], stream)
    assert stream.getvalue() == "[bold red]x[/] :warning: [link=https://x.example]y[/link]\n"
