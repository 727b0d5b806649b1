"""A recording from a stranger: whatever its texts say, no renderer takes it for markup or for a terminal's orders."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from pydantic import BaseModel

from nest_ssl.base.errors import UserError, run_command
from nest_ssl.compare.comparison import Comparison, Declared, Explanation, KnownDifference
from nest_ssl.compare.findings import Cause, Difference, Fate, Note, Remainder, Unexplained
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.report import print_summary
from nest_ssl.report.document import Heading, Table
from nest_ssl.report.render.json import render_json
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.render.terminal import print_blocks
from nest_ssl.report.sections import details, summary
from tests.report.builder import add, diverged, draw, finding, index, other_experiment, setting

FORGED = "NeMo 3.0.0 and nest-ssl 0.1.0 train identically"
HOSTILE = (
    f"x\n# {FORGED}\n\n<script>alert(1)</script>![i](https://evil.example/i.png)[l](https://evil.example)"
    "<img src=https://evil.example>`|\r\x1b[2J\x1b]0;t\x07\x08\x9b31m\u202egnp\u2028\u2066\ud800 https://evil.example\\`"
)
PARSER = MarkdownIt("commonmark").enable("table")
OURS = re.compile(r"\x1b\[[0-9;]*m")  # colours


def poison(value: Any) -> Any:
    """The same value with hostile text in place of every text in it, keys of mappings too."""
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: poison(getattr(value, name)) for name in type(value).model_fields})
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: poison(getattr(value, field.name)) for field in fields(value)})
    if isinstance(value, dict):
        return {key if isinstance(key, int) else HOSTILE: poison(child) for key, child in value.items()}
    if isinstance(value, list):
        return [poison(child) for child in value]
    return tuple(map(poison, value)) if type(value) is tuple else value


def full() -> Comparison:
    """A comparison with something in every list, all that a recording says in it hostile."""
    made = diverged()
    drawn = finding("draws", kind=Kind.DRAW, module=HOSTILE, slot=HOSTILE)
    lost = finding("batch", phase=Phase.BATCH, difference=Difference.MISSING_CANDIDATE, kind=Kind.FIELD, module=None,
                   call=None, slot=HOSTILE, reference=HOSTILE, candidate="absent")  # fmt: skip
    named = {"module": HOSTILE, "slot": HOSTILE, "path": HOSTILE}
    for rung in made.rungs:
        for tally in rung.tallies:
            tally.findings = [replace(f, address=replace(f.address, **named), dtype=HOSTILE) for f in tally.findings]
    add(made, "batch", lost)
    made.first = replace(made.rung("forward").findings[0])
    made.first_bits, made.first_beyond = lost, drawn
    made.draws = [draw(HOSTILE), draw(module=HOSTILE, step=0, fate=Fate.OTHER_COUNT, generator=HOSTILE, found=drawn)]
    made.draws.append(replace(made.draws[1], generator="other"))
    made.cause = Cause(made.cause.birth, HOSTILE, HOSTILE, 1, 2, made.draws[1], (HOSTILE,)) if made.cause else None
    made.unexplained = [Remainder(why, (made.first, lost, drawn)) for why in Unexplained]
    made.calls = [replace(made.calls[0], module=HOSTILE, worst=made.first)]
    made.explanations = [Explanation(HOSTILE, 0, HOSTILE, {HOSTILE: HOSTILE})]
    made.explanations.append(Explanation(HOSTILE, 1, HOSTILE, weakens=HOSTILE))
    made.declared = [Declared(HOSTILE, "reference", HOSTILE, (HOSTILE,))]
    made.known = [KnownDifference(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)]
    made.facts.batch = HOSTILE
    values = {"reference": HOSTILE, "candidate": HOSTILE, "path": HOSTILE, "module": HOSTILE, "step": 0, "count": 1}
    kinds = ("model_class", "environment", "image", "by_keyword", "call_order", HOSTILE)
    made.notes = [Note(kind, values) for kind in kinds]
    made.notes.append(Note("packages", {"versions": {HOSTILE: [HOSTILE, HOSTILE]}}))
    rich = {
        "git": {"commit": "ab" * 20, "dirty": True}, "container": {"image": "i"}, "init_from": {"a": None}, "seed": "x",
        "generation": {"name": "g", "differences": [{"name": "n", "what": "w", "where": "v", "value": "u"}]},
        "cuda": {"runtime": "12", "driver": "5", "gpus": ["g"]}, "host": {"system": "s", "release": "r"},
        "environment": {"A": "b"}, "make_command": "make", "device": {"type": "cuda", "name": "n"},
    }  # fmt: skip
    for side in (made.reference, made.candidate):
        side.index = poison(index("nemo", **rich))
        side.config, side.label, side.path = poison(side.config), f"{side.label} {HOSTILE}", HOSTILE
    made.candidate.label += "2"
    return made


def contract() -> Comparison:
    made = full()
    another = other_experiment(setting(HOSTILE, HOSTILE, HOSTILE))
    made.first, made.verdict, made.rungs[0] = another.first, another.verdict, another.rungs[0]
    return made


MADE: dict[str, Callable[[], Comparison]] = {"diverged": full, "contract": contract}


def readable(text: str) -> list[str]:
    """Characters that steer a terminal or an editor, other than the ends of our own lines."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]


@pytest.mark.parametrize("kind", MADE)
def test_markdown(kind: str) -> None:
    made = MADE[kind]()
    blocks = [*summary(made), *details(made)]
    text = render_markdown(blocks)
    assert readable(text) == []
    assert text.count(FORGED) > 50, "the words are shown"
    tokens = PARSER.parse(text)
    inline = [child for token in tokens for child in (token.children or [])]
    made_of = {"html_block", "html_inline", "image", "link_open", "hardbreak", "softbreak", "blockquote_open"}
    assert {token.type for token in [*tokens, *inline]} & made_of == set()
    assert sum(t.type == "heading_open" for t in tokens) == sum(isinstance(block, Heading) for block in blocks)
    words = "".join(token.content for token in inline if token.type == "text")
    assert "https://evil.example" in words
    outside_code = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
    assert re.findall(r"[^\\]://", outside_code) == [], "GitHub would link it"


@pytest.mark.parametrize("kind", MADE)
def test_tables_keep_their_columns(kind: str) -> None:
    made = MADE[kind]()
    blocks = [*summary(made), *details(made)]
    tokens = PARSER.parse(render_markdown(blocks))
    cells = sum(len(row) for block in blocks if isinstance(block, Table) for row in (block.columns, *block.rows))
    assert sum(token.type in ("th_open", "td_open") for token in tokens) == cells


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("terminal", [False, True])
def test_terminal(kind: str, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "400")
    made = MADE[kind]()
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    print_summary(made, Path(HOSTILE.replace("\ud800", "")), stream)
    print_blocks(details(made), stream)
    text = OURS.sub("", stream.getvalue())
    assert readable(text) == []
    assert not any(line.strip().startswith((FORGED, f"# {FORGED}")) for line in text.splitlines())


@pytest.mark.parametrize("kind", MADE)
def test_json(kind: str) -> None:
    text = render_json(MADE[kind]())
    assert text.isascii()
    assert readable(text) == []
    tree = json.loads(text)
    assert HOSTILE in tree["reference"]["path"], "the findings are what they are"
    assert tree["reference"]["recording"]["trainer"]["version"] == HOSTILE


def test_an_error_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError("damaged recording", f"{HOSTILE} is no file", HOSTILE)

    with pytest.raises(SystemExit, match="3"):
        run_command(fail)
    text = capsys.readouterr().err
    assert readable(text) == []
    assert text.count("\n") == 1


def test_the_hostile_text_reaches_every_textual_field() -> None:
    """So that a field that a later recording has is tried here, too."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, Enum):
            return []
        if isinstance(value, str):
            return [value]
        if isinstance(value, BaseModel):
            return [text for name in type(value).model_fields for text in texts(getattr(value, name))]
        if isinstance(value, dict):
            return [text for pair in value.items() for part in pair for text in texts(part)]
        return [text for child in value for text in texts(child)] if isinstance(value, (list, tuple)) else []

    made = full()
    assert set(texts(made.reference.index)) | set(texts(made.candidate.config)) == {HOSTILE}
