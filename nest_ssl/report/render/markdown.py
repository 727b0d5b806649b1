"""Markdown. Whatever a recording holds is escaped here, and nowhere else: it is shown, and never read as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nest_ssl.base.errors import visible
from nest_ssl.report.document import (
    Block,
    Bullets,
    Code,
    CodeBlock,
    Figure,
    Heading,
    Inline,
    Paragraph,
    Ref,
    StatusWord,
)

# Everywhere; an underscore at the edge of a word; the address of a page, which GitHub would link.
_MARKUP = re.compile(r"[\\`*<\[!#|~&]|(?<![0-9a-z])_|_(?![0-9a-z])|:(?=/)|(?<=www)\.", re.IGNORECASE)
_OPENING = re.compile(r"^(?=[-+=>])|^\d+(?=[.)])")  # of a list, a rule, a quotation


def render_markdown(blocks: Sequence[Block]) -> str:
    shown = []
    for block in blocks:
        if isinstance(block, Heading):
            lines = [f"{'#' * block.level} {_text(block.text)}"]
        elif isinstance(block, (Paragraph, Bullets)):
            mark, texts = ("", (block.text,)) if isinstance(block, Paragraph) else ("- ", block.items)
            lines = [mark + _OPENING.sub(lambda match: f"{match[0]}\\", _text(text).strip()) for text in texts]
        elif isinstance(block, Figure):
            lines = [f"![{_text(block.alt)}]({block.file})"]
        elif isinstance(block, CodeBlock):
            lines = [visible(line) for line in block.lines]
            lines = [_fence(lines, 3), *lines, _fence(lines, 3)]
        else:
            marks = ["--:" if align == "right" else "---" for align in block.align]
            rows = [[_text(cell, in_table=True) for cell in row] for row in (block.columns, *block.rows)]
            lines = ["| " + " | ".join(row) + " |" for row in (rows[0], marks, *rows[1:])]
        shown.append("\n".join(lines))
    return "\n\n".join(shown) + "\n"


def _text(text: Sequence[Inline], in_table: bool = False) -> str:
    shown = []
    for part in text:
        if isinstance(part, Ref):
            shown.append(_text(part.shown, in_table))
        elif isinstance(part, Code):  # behind a fence longer than any in it; a bar would end the cell of a table
            code = visible(part.text).replace("|", "\\x7c" if in_table else "|")
            edge = " " if code[:1] in ("", "`", " ") or code[-1:] in ("`", " ") else ""
            shown.append(f"{_fence([code], 1)}{edge}{code}{edge}{_fence([code], 1)}")
        elif isinstance(part, StatusWord):
            shown.append(f"**{part.word}**" if part.strong else part.word)
        else:  # text that stays text: no heading, list, link, image, HTML, entity, address or mention is made of it
            shown.append(_MARKUP.sub(lambda match: f"\\{match[0]}", visible(part)).replace("@", "`@`"))
    return "".join(shown)


def _fence(lines: Sequence[str], least: int) -> str:
    return "`" * max(least, 1 + max((len(run) for line in lines for run in re.findall("`+", line)), default=0))
