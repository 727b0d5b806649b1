"""Markdown. Whatever a recording holds is escaped here, and nowhere else: it is shown, and never read as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nest_ssl.base.errors import visible
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Heading, Paragraph, Ref, StatusWord, Table, Text

_MARKUP = re.compile(r"([\\`*<>\[\]!#|~&:])|(?<![0-9A-Za-z])(_)|(_)(?![0-9A-Za-z])")


def render_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join("\n".join(_lines(block)) for block in blocks) + "\n"


def _lines(block: Block) -> list[str]:
    if isinstance(block, Heading):
        return [f"{'#' * block.level} {_text(block.text)}"]
    if isinstance(block, Paragraph):
        return [_opening(_text(block.text))]
    if isinstance(block, Bullets):
        return [f"- {_opening(_text(item))}" for item in block.items]
    if isinstance(block, CodeBlock):
        lines = [visible(line) for line in block.lines]
        fence = _fence(lines, 3)
        return [fence, *lines, fence]
    return _table(block)


def _table(block: Table) -> list[str]:
    marks = ["--:" if align == "right" else "---" for align in block.align]
    rows = [[_text(cell, in_table=True) for cell in row] for row in (block.columns, *block.rows)]
    return ["| " + " | ".join(row) + " |" for row in [rows[0], marks, *rows[1:]]]


def _text(text: Text, in_table: bool = False) -> str:
    shown = []
    for part in text:
        if isinstance(part, Ref):
            shown.append(_text(part.shown, in_table))
        elif isinstance(part, Code):
            shown.append(_code(part.text, in_table))
        elif isinstance(part, StatusWord):
            shown.append(f"**{part.word}**" if part.strong else part.word)
        else:
            shown.append(escape(part))
    return "".join(shown)


def escape(text: str) -> str:
    """Text that stays text: no heading, list, link, image, HTML, entity, address or mention is made of it."""
    text = _MARKUP.sub(lambda match: f"\\{match[0]}", visible(text))
    text = re.sub(r"(?i)\bwww\.", lambda match: f"{match[0][:3]}\\.", text).replace("@", "`@`")
    return re.sub(r" {2,}", " ", text)


def _opening(line: str) -> str:
    """What would begin a list, a rule or an underlined heading at the start of a line does not."""
    return re.sub(r"^(\s*)([-+=]|\d+(?=[.)]))", lambda m: f"{m[1]}\\{m[2]}" if m[2] in "-+=" else f"{m[1]}{m[2]}\\", line)


def _code(text: str, in_table: bool) -> str:
    """A code span; its fence is longer than any run of backticks in it. A bar would end the cell of a table."""
    text = visible(text)
    text = text.replace("|", "\\x7c") if in_table else text
    fence = _fence([text], 1)
    pad = " " if text[:1] in ("`", " ", "") or text[-1:] == "`" else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _fence(lines: Sequence[str], least: int) -> str:
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    return "`" * max(least, longest + 1)
