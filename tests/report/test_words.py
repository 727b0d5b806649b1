"""Sentences, numbers and names; every language is one file."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from nest_ssl.compare import findings
from nest_ssl.compare.findings import Note, Stage
from nest_ssl.compare.kinds import FaultKind
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.report import words
from nest_ssl.report.document import Code, Ref, plain
from nest_ssl.report.sections.causes import note_text
from nest_ssl.report.words import LANGUAGES, counted, language, load, say
from nest_ssl.report.words.names import labels, name, number, small, stage_name, steps_text, where
from tests.report.builder import comparison, finding, setting, side

REPORT = Path(words.__file__).parents[1]
ENUMS = {
    "fault": FaultKind, "next": FaultKind,
    "status": findings.Status, "born": findings.Birth, "unexplained": findings.Unexplained, "drawn": findings.Fate,
}  # fmt: skip


def test_numbers() -> None:
    values = (1234567, 0.18231764435768127, True, None, math.nan, "0123456789abcdef" * 4, "x" * 500)
    shown = ["1,234,567", "0.182317644", "True", "None", "nan", "0123456...", "x" * 120 + "..."]
    assert [number(value) for value in values] == shown
    assert [small(value) for value in (0.0041, 78412, None)] == ["4.1e-03", "78,412", "-"]


def test_one_and_several() -> None:
    assert [counted(1, "losses"), counted(2, "losses"), counted(0, "calls")] == ["1 loss", "2 losses", "0 calls"]
    assert [counted(1, "differing.structure"), counted(1000, "random states")] == [
        "1 entry of the structure", "1,000 random states",
    ]  # fmt: skip


def test_steps() -> None:
    texts = [plain(steps_text(steps)) for steps in ([], [0], [0, 1, 2], [0, 9])]
    assert texts == ["no step", "step 0", "steps 0 to 2", "steps 0, 9"]


def test_values_are_no_template_and_no_code() -> None:
    hostile = "`x` {status}"
    assert say("title.identical", reference=hostile, candidate="b")[0] == hostile
    assert say("code.module", module="a`b") == ("the own code of ", Code("a`b"))


@pytest.mark.parametrize("group", ENUMS)
def test_every_member_has_words(group: str) -> None:
    known = load("en").sentences
    assert [member for member in ENUMS[group] if f"{group}.{member.value}" not in known] == []


def test_every_draw_and_rung_has_words() -> None:
    known = load("en").sentences
    assert [rung for rung in findings.RUNGS if f"rung.{rung}" not in known] == []
    silent = (findings.Fate.SAME, findings.Fate.ELSEWHERE, findings.Fate.ONE_SIDED)
    assert [fate for fate in findings.Fate if fate not in silent and f"draw.{fate.value}" not in known] == []
    assert [
        rung for rung in findings.RUNGS[1:-1] if rung != "loss" and f"differing.{rung}" not in load("en").nouns
    ] == []


def test_every_note_of_the_comparer_has_a_sentence() -> None:
    sources = [path.read_text() for path in (REPORT.parent / "compare").rglob("*.py")]
    kinds = {kind for text in sources for kind in re.findall(r"""(?:\.note|\.nothing|Note)\(\s*"(\w+)\"""", text)}
    assert len(kinds) > 12
    assert sorted(kind for kind in kinds if f"note.{kind}" not in load("en").sentences) == []


def test_every_key_asked_for_is_there_and_every_key_is_asked_for() -> None:
    text = "".join(path.read_text() for kind in ("*.py", "*.html") for path in REPORT.rglob(kind))
    known = load("en").sentences
    asked = set(re.findall(r"""say\(\s*["']([^"'{]+)["']""", text))
    assert sorted(asked - set(known)) == []
    heads = {
        f"head.{column}" for found in re.findall(r"heads\(([^)]*)\)", text) for column in re.findall(r'"(\w+)"', found)
    }
    assert sorted(heads - set(known)) == []
    groups = """status born born_here unexplained drawn draw rung stage boundary name side note container how within
        kind fault next drawing marked title verdict rule place phase shown had function operators pattern check
        state relation function_of change picture.plane"""
    built = rf"({'|'.join(groups.split())})\."
    literal = set(re.findall(r"""["']([a-z_. ]+)["']""", text)) | heads | asked
    assert sorted(key for key in known if key not in literal and not re.match(built, key)) == []


@pytest.mark.parametrize("name", LANGUAGES[1:])
def test_every_language_says_the_same(name: str) -> None:
    """Every key, with the same values and the same names in it."""
    english, other = (
        words.Language(**yaml.safe_load((REPORT / f"words/{each}.yaml").read_text("utf-8")))
        for each in (LANGUAGES[0], name)
    )
    assert english.sentences.keys() == other.sentences.keys()
    assert english.nouns.keys() - other.nouns.keys() == set()
    parts = r"{\w+}|`[^`]+`"
    unlike = [
        key
        for key, sentence in english.sentences.items()
        if sorted(re.findall(parts, sentence)) != sorted(re.findall(parts, other.sentences[key]))
    ]
    assert unlike == []


def test_another_language_is_one_more_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree = yaml.safe_load((Path(words.__file__).parent / "en.yaml").read_text())
    tree["sentences"]["title.identical"] = "{reference} 与 {candidate} 的训练完全相同"
    tree["nouns"]["threads"] = ["个线程", "个线程"]
    (tmp_path / "xx.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    monkeypatch.setattr(words, "__file__", str(tmp_path / "__init__.py"))
    with language("xx"):
        assert plain(say("title.identical", reference="a", candidate="b")) == "a 与 b 的训练完全相同"
        assert counted(2, "threads") == "2 个线程"
    assert counted(2, "threads") == "2 threads"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (finding(), "step 0, forward, encoder.layers.1, output"),
        (finding(call=2, path="0"), "step 0, forward, encoder.layers.1, call 2, output.0"),
        (finding(module="", kind=Kind.INPUT, slot="x", rank=1), "step 0, rank 1, forward, (root), inputs.x"),
        (finding("forward", kind=Kind.MODEL_OUTPUT, module=None, call=None, slot="tokens"), "step 0, forward, tokens"),
        (finding("loss", phase=Phase.LOSS, kind=Kind.LOSS, module=None, call=None, slot="loss"), "step 0, loss, loss"),
        (setting("config.seed", 1, 2), "contract, config.seed"),
        (finding("structure", -1, kind=Kind.MODULE, call=None, slot="class"), "structure, encoder.layers.1, class"),
        (
            finding("weights", 3, kind=Kind.OPTIMIZER_SETTING, module=None, call=None, slot="0", path="lr"),
            "step 3, after the step, param_groups.0.lr",
        ),
        (
            finding("weights", kind=Kind.OPTIMIZER_STATE, call=None, slot="weight", path="exp_avg"),
            "step 0, after the step, encoder.layers.1, weight.exp_avg",
        ),
        (
            finding("draws", phase=Phase.FORWARD_DONE, kind=Kind.GENERATOR_STATE, module=None, call=None, slot="numpy"),
            "step 0, random draws, rng.forward_done.numpy",
        ),
        (
            finding("draws", phase=Phase.FETCH, kind=Kind.DRAW, module=None, call=None, slot="numpy"),
            "step 0, random draws, fetch.numpy",
        ),
        (
            finding("draws", event=44, kind=Kind.DRAW, module=None, call=None, slot="numpy"),
            "step 0, random draws, loss.numpy",
        ),
        (finding("draws", kind=Kind.DRAW, module="masking", slot="numpy"), "step 0, random draws, masking, numpy"),
        (finding("forward", kind=Kind.CALL, module=None, call=None), "step 0, forward"),
    ],
)  # fmt: skip
def test_where(found: findings.Finding, text: str) -> None:
    assert plain(where(found)) == text


def test_a_name_keeps_its_address() -> None:
    found = finding()
    assert name(found) == (Ref(found.address, (Code("encoder.layers.1"), ", ", Code("output"))),)


def test_stages() -> None:
    stages = [
        Stage("fetch"),
        Stage("forward", "a.b", 0),
        Stage("forward", "a.b", 2),
        Stage("forward", "", 0),
        Stage("new"),
    ]
    assert [plain(stage_name(stage, subject=True)) for stage in stages] == [
        "fetching the batch", "a.b", "a.b, call 2,", "the model's own forward", "new",
    ]  # fmt: skip
    assert plain(stage_name(Stage("loss"))) == "the training step, after the forward"


def test_labels_are_kept_apart() -> None:
    assert labels(comparison()) == ("NeMo 3.0.0", "nest-ssl 0.1.0")
    same = side("NeMo 3.0.0", "nemo")
    assert labels(comparison(candidate=same)) == ("NeMo 3.0.0 (reference)", "NeMo 3.0.0 (candidate)")


def test_a_note_of_an_unknown_kind_is_not_lost() -> None:
    assert plain(note_text(Note("colour", {"of": "x", "count": 1000}))) == "colour: of x, count 1,000"


def test_packages_are_cut_short() -> None:
    versions = {f"p{i}": ["1", "2"] for i in range(10)}
    text = plain(note_text(Note("packages", {"versions": versions})))
    assert text.startswith("Packages of other versions: p0 1 against 2, p1")
    assert text.endswith("p7 1 against 2 and 2 more.")
