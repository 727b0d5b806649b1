"""How large each wing may be, in lines of code (reasons and docstrings are wanted and not counted), and its words."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "nest_ssl"
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__")
# What a stranger must trust; what is compared; what trains; what measures both.
WINGS = {
    "proof": (4_700, "base recording record compare report".split()),
    "port": (5_600, "data model practice releases.py".split()),
    "trainer": (2_900, "config train run cli".split()),
    "bench": (1_200, ["bench"]),
}
# reference and candidate, wherever two sides are compared; and the words that people of the field use.
SIDES = "ours theirs mine yours"
DIALECT = "told tell tells nobody anew"


def files(room: str) -> list[Path]:
    return [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))


def code_lines(text: str) -> int:
    """Lines that are neither empty, nor comments, nor docstrings."""
    texts = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    docstrings = [node for node in texts if isinstance(getattr(node.value, "value", None), str)]
    inside = {line for node in docstrings for line in range(node.lineno, node.end_lineno + 1)}
    lines = [line.strip() for number, line in enumerate(text.splitlines(), start=1) if number not in inside]
    return sum(1 for line in lines if line and not line.startswith("#"))


def test_every_room_is_in_a_wing() -> None:
    assert sorted(room for _, rooms in WINGS.values() for room in rooms if not room.endswith(".py")) == ROOMS


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_keeps_its_budget(wing: str) -> None:
    budget, rooms = WINGS[wing]
    lines = {room: sum(code_lines(path.read_text("utf-8")) for path in files(room)) for room in rooms}
    assert sum(lines.values()) <= budget, lines


@pytest.mark.parametrize("words", [SIDES, DIALECT], ids=["sides", "dialect"])
def test_the_words_are_the_fields_own(words: str) -> None:
    pattern = re.compile(rf"\b({'|'.join(words.split())})\b", re.IGNORECASE)
    found = Counter(
        f"{path.relative_to(PACKAGE)}: {word.lower()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for word in pattern.findall(path.read_text("utf-8").replace("_", " ").replace(".tell()", ""))
    )
    assert found == {}
