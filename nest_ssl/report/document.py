"""A report as a document: what is said and how it hangs together. There is no markup in it; a renderer adds that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from nest_ssl.compare.findings import Status
from nest_ssl.recording.address import Address

Align = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Code:
    """A name, a path, a command: to be read letter by letter."""

    text: str


@dataclass(frozen=True, slots=True)
class StatusWord:
    """The word for a status; `strong` where it is the verdict."""

    status: Status
    word: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Ref:
    """The name of a thing in the recordings, and its address, which a renderer may link to."""

    address: Address
    shown: tuple[Inline, ...]


Inline = str | Code | StatusWord | Ref
Text = tuple[Inline, ...]


@dataclass(frozen=True, slots=True)
class Heading:
    text: Text
    level: int = 2


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: Text


@dataclass(frozen=True, slots=True)
class Table:
    """`sides` is the first of two neighbouring columns, the reference's and the candidate's; None: it has no such."""

    columns: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]
    align: tuple[Align, ...]
    sides: int | None = None


@dataclass(frozen=True, slots=True)
class CodeBlock:
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bullets:
    items: tuple[Text, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture in a file beside the report, and the same in words."""

    file: str
    alt: Text


Block = Heading | Paragraph | Table | CodeBlock | Bullets | Figure


def as_text(value: object) -> Text:
    """Anything that stands in a sentence or a cell, as text."""
    if isinstance(value, tuple):
        return value
    return (value if isinstance(value, (Code, StatusWord, Ref)) else str(value),)


def table(
    columns: Iterable[object], rows: Iterable[Iterable[object]], right: int = 0, sides: int | None = None
) -> Table:
    """A table of anything; the last `right` columns hold numbers, and from `sides` on two those of both sides."""
    head, *body = (tuple(as_text(cell) for cell in row) for row in (columns, *rows))
    align: list[Align] = ["right" if i >= len(head) - right else "left" for i in range(len(head))]
    return Table(head, tuple(body), tuple(align), sides)


def join(parts: Iterable[object], separator: str = ", ") -> Text:
    """Texts with something between them; empty ones are passed over."""
    texts = [text for text in map(as_text, parts) if text and text != ("",)]
    return tuple(part for i, text in enumerate(texts) for part in ((separator, *text) if i and separator else text))


def initial(text: Text, upper: bool) -> Text:
    """The same text with its first letter in upper or lower case, unless it begins with a name."""
    if not text or not isinstance(text[0], str):
        return text
    letter = text[0][:1].upper() if upper else text[0][:1].lower()
    return (letter + text[0][1:], *text[1:])


def plain(text: Sequence[Inline]) -> str:
    """The words alone."""
    words = []
    for part in text:
        if isinstance(part, Ref):
            words.append(plain(part.shown))
        elif isinstance(part, StatusWord):
            words.append(part.word)
        else:
            words.append(part.text if isinstance(part, Code) else part)
    return "".join(words)
