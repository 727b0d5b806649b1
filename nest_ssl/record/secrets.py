"""A recording travels; passwords must not. What looks like a secret is masked before it is written.

Masked are the values of settings, options and environment variables in whose last name one of `WORDS` stands (as in
``api_key``, ``--hf-token``, ``AWS_SECRET``), and the password in ``https://user:password@host``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

WORDS = frozenset({"password", "passwd", "passphrase", "token", "secret", "key", "apikey", "credential", "credentials"})
MASK = "***"

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # apiKey has two
_USER_INFO = re.compile(r"(\w://[^/\s@:]*:)[^@\s/]+@")
_PAIR = re.compile(r"([\w.+-]+)['\"]?\s*[:=]\s*([^,}\]\s]+)")  # inside a value: {api_key:abc}


def is_secret(name: str) -> bool:
    return not WORDS.isdisjoint(word.lower() for word in _WORD.findall(name.rpartition(".")[2]))


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
    """A configuration with its secrets masked; to the letter as it was where it has none, or is no YAML."""
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError:
        return _USER_INFO.sub(rf"\1{MASK}@", text)
    safe = masked(settings)
    return text if safe == settings else yaml.safe_dump(safe, sort_keys=False, allow_unicode=True)


def masked_command(command: Sequence[str]) -> list[str]:
    """``a.password=x``, ``--token x``, ``--token=x`` and ``a={api_key:x}`` as words of a command line."""
    safe, after_option = [], False
    for word in command:
        name, equals, value = word.partition("=")
        if after_option and not word.startswith("-"):
            safe.append(MASK)
        elif equals and is_secret(name):
            safe.append(f"{name}={MASK}" if value else word)
        else:
            inner = _PAIR.sub(lambda pair: pair[0].replace(pair[2], MASK) if is_secret(pair[1]) else pair[0], word)
            safe.append(_USER_INFO.sub(rf"\1{MASK}@", inner))
        after_option = word.startswith("-") and not equals and is_secret(word)
    return safe
