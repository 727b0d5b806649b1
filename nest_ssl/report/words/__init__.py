"""The words of a report: every sentence stands once, in a file of its language (`en.yaml`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from nest_ssl.report.document import Code, Inline, Text, as_text, plain


@dataclass(frozen=True, slots=True)
class Language:
    sentences: dict[str, str]
    nouns: dict[str, list[str]]  # one, several


LANGUAGES = ("en", "zh")  # the first is spoken where no other is asked for
_LANGUAGE: ContextVar[str] = ContextVar("language", default="en")


@contextmanager
def language(name: str) -> Iterator[None]:
    """Speak another language, e.g. ``"en"``, within the block."""
    token = _LANGUAGE.set(name)
    try:
        yield
    finally:
        _LANGUAGE.reset(token)


@cache
def load(name: str) -> Language:
    """The words of a language; a sentence that it lacks is said in the first of all."""
    own = Language(**yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")))
    if name == LANGUAGES[0]:
        return own
    first = load(LANGUAGES[0])
    return Language(first.sentences | own.sentences, first.nouns | own.nouns)


def say(key: str, **values: object) -> Text:
    """The sentence of a key, with values in their places; what stands between backticks in it is code."""
    texts = {name: as_text(value) for name, value in values.items()}
    said: list[Inline] = []
    for piece in re.findall(r"`[^`]+`|{\w+}|[^`{]+", load(_LANGUAGE.get()).sentences[key]):
        if piece.startswith("`"):
            said.append(Code(piece[1:-1].format(**{name: plain(text) for name, text in texts.items()})))
        else:
            said += texts[piece[1:-1]] if piece.startswith("{") else (piece,)
    return tuple(part for part in said if part != "")


def word(group: str, key: str) -> str:
    """A name from a group of them (``rung``, ``stage``); one without words of its own stands for itself."""
    return load(_LANGUAGE.get()).sentences.get(f"{group}.{key}", key)


def knows(key: str) -> bool:
    return key in load(_LANGUAGE.get()).sentences


def heads(*columns: str) -> list[Text]:
    return [say(f"head.{column}") for column in columns]


def counted(count: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    one, several = load(_LANGUAGE.get()).nouns.get(noun, (noun.removesuffix("s"), noun))
    return f"{count:,} {one if count == 1 else several}"
