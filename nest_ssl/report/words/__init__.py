"""The words of a report. A language is one module here with `SENTENCES` and `counted`; `en` is the model for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from string import Formatter
from typing import Protocol, cast

from nest_ssl.compare.findings import Status
from nest_ssl.report.document import Code, Inline, StatusWord, Text, as_text, plain


class Language(Protocol):
    SENTENCES: Mapping[str, str]

    @staticmethod
    def counted(count: int, noun: str) -> str: ...


_LANGUAGE: ContextVar[str] = ContextVar("language", default="en")


@contextmanager
def language(name: str) -> Iterator[None]:
    """Speak another language, e.g. ``"en"``, within the block."""
    token = _LANGUAGE.set(name)
    try:
        yield
    finally:
        _LANGUAGE.reset(token)


def spoken() -> Language:
    return cast(Language, import_module(f"{__name__}.{_LANGUAGE.get()}"))


def say(key: str, **values: object) -> Text:
    """The sentence of a key, with values in their places; what stands between backticks in it is code."""
    said: list[Inline] = []
    code: list[str] | None = None
    for literal, name, _, _ in Formatter().parse(spoken().SENTENCES[key]):
        for position, piece in enumerate(literal.split("`")):
            if position and code is None:
                code = []
            elif position and code is not None:
                said.append(Code("".join(code)))
                code = None
            if piece:
                (said if code is None else code).append(piece)
        if name is not None and code is None:
            said += as_text(values[name])
        elif name is not None and code is not None:
            code.append(plain(as_text(values[name])))
    return tuple(said)


def word(group: str, key: str) -> str:
    """A name from a group of them (``rung``, ``stage``); one without words of its own stands for itself."""
    return spoken().SENTENCES.get(f"{group}.{key}", key)


def knows(key: str) -> bool:
    return key in spoken().SENTENCES


def counted(count: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return spoken().counted(count, noun)


def status(value: Status, strong: bool = False) -> StatusWord:
    return StatusWord(value, word("status", value.value), strong)
