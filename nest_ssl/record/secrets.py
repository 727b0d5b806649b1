"""A recording travels; passwords must not. What looks like a secret is masked before it is written.

Masked are values of settings, options and environment variables with one of `WORDS` in their own name (``api_key``,
``--hf-token``, ``TORCH_SECRET``), and the password in ``https://user:password@host``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

WORDS = frozenset({"password", "passwd", "passphrase", "token", "secret", "key", "apikey", "credential", "credentials"})
# Before `token` or `key` these make a setting of a model or of its data: masked, two experiments would seem the same.
VOCABULARY = frozenset("masked mask start end stop pad bos eos cls sep unk blank special audio text lang sort".split())
MASK = "***"
_USER_INFO = re.compile(r"(\w://[^/\s@:]*:)[^@\s/]+@")
_PAIR = re.compile(r"([\w.+-]+)['\"]?\s*[:=]\s*(?=([^,}\]\s]+))")  # inside a value: {api_key:abc}


def is_secret(name: str) -> bool:
    """Whether the last part of a dotted name has one of `WORDS` in it, as `apiKey` and `wandb_api_key` have."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name.rpartition(".")[2])]
    return any(word in WORDS and before not in VOCABULARY for before, word in zip(["", *words], words, strict=False))


def masked(value: Any, name: str = "") -> Any:
    """Nested settings with their secrets masked; under a secret name every string is one, a number or a switch none."""
    if isinstance(value, dict):
        return {key: masked(child, str(key)) for key, child in value.items()}
    if isinstance(value, list):
        return [masked(child, name) for child in value]
    if isinstance(value, str):
        return MASK if value and is_secret(name) else _USER_INFO.sub(rf"\1{MASK}@", value)
    return value


def masked_yaml(text: str) -> str:
    """A configuration with its secrets masked; to the letter as it was where it has none."""
    settings = yaml.load(text, Loader=yaml.CSafeLoader)
    safe = masked(settings)
    return text if safe == settings else yaml.safe_dump(safe, sort_keys=False, allow_unicode=True)


def masked_command(command: Sequence[str]) -> list[str]:
    """``a.password=x``, ``--token x``, ``--token=x`` and ``a={api_key:x}`` as words of a command line."""
    safe, value_follows = [], False
    for word in command:
        name, equals, value = word.partition("=")
        if value and is_secret(name):
            safe.append(f"{name}={MASK}")
        else:
            safe.append(MASK if value_follows and not word.startswith("-") else masked(_mask_pairs(word)))
        value_follows = word.startswith("-") and not equals and is_secret(word)
    return safe


def _mask_pairs(word: str) -> str:
    for pair in _PAIR.finditer(word):
        if is_secret(pair[1]):
            return word[: pair.end()] + MASK + _mask_pairs(word[pair.end(2) :])
    return word
