"""The README in both languages says the same, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


def _code(text: str) -> list[str]:
    """Commands and reports, without comments: what must not differ between languages."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(make|docker|TORCH=cpu) |scripts/\w", line)]


def test_both_languages_have_the_same_commands_reports_and_headings() -> None:
    english, chinese = (path.read_text(encoding="utf-8") for path in READMES)
    assert _code(english) == _code(chinese) != []
    quotes = [[line for line in text.splitlines() if line.startswith(">")] for text in (english, chinese)]
    assert quotes[0] == quotes[1] != []
    levels = [[line.split()[0] for line in text.splitlines() if line.startswith("#")] for text in (english, chinese)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_links_lead_somewhere(readme: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", readme.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_tree_names_what_is_there(readme: Path) -> None:
    blocks = readme.read_text(encoding="utf-8").split("```")
    folders = re.findall(r"^(\w+)/", blocks[-4], re.MULTILINE)
    assert folders
    assert [name for name in folders if not (ROOT / name).is_dir()] == []
    rooms = re.findall(r"^  (\w+/|\w+\.py) +(.*)$", blocks[-2], re.MULTILINE)
    package = ROOT / "nest_ssl"
    there = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {name for name, _ in rooms} == there | {"releases.py"}
    parts = [(name, part) for name, words in rooms for part in re.findall(r"\b(?<!/)\w+(?:/|\.py)(?=[^\w]|$)", words)]
    assert [f"{name}{part}" for name, part in parts if not (package / name / part).exists()] == []


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)", READMES[0].read_text(), re.MULTILINE))
    assert targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
