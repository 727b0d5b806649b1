"""Tables and lists below the first screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from nest_ssl.compare.comparison import Comparison, Declared, Explanation, KnownDifference
from nest_ssl.compare.findings import Difference, Fate, Finding, Note, Rung, Stage, Tally
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.report.document import Block, Bullets, CodeBlock, Heading, Paragraph, Table, plain
from nest_ssl.report.sections.background import (
    commands_of,
    declared,
    known,
    notes,
    overview,
    provenance,
    reproduce,
    rule,
)
from nest_ssl.report.sections.calls import calls
from nest_ssl.report.sections.draws import collapse, draws
from nest_ssl.report.sections.rungs import differences, over_steps, rung_table
from tests.report.builder import add, comparison, diverged, draw, finding, index, measured, side


def texts(blocks: Sequence[Block], kind: type = Heading) -> list[str]:
    return [
        plain(block.text) for block in blocks if isinstance(block, (Heading, Paragraph)) and isinstance(block, kind)
    ]


def rows(blocks: Sequence[Block], which: int = 0) -> list[list[str]]:
    found = [block for block in blocks if isinstance(block, Table)][which]
    return [[plain(cell) for cell in row] for row in found.rows]


# --- rungs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tallies", "text"),
    [
        ([], "nothing"),
        ([(None, {})], "nothing"),
        ([(None, {"settings": 1})], "1 setting"),
        ([(None, {"stages": 1}), (0, {"stages": 2, "random states": 12})], "3 stages, 12 random states"),
        ([(0, {"calls": 1004, "outputs": 4})] * 3, "3 x (1,004 calls, 4 outputs)"),
        ([(0, {"losses": 1})] * 2, "2 x 1 loss"),
        ([(0, {"calls": 2}), (1, {"calls": 3})], "5 calls"),
        ([(0, {}), (1, {})], "nothing"),
        ([(None, {"stages": 1}), (0, {"stages": 2}), (1, {"stages": 2})], "1 stage, 2 x 2 stages"),
    ],
)
def test_what_was_compared(tallies: list[tuple[int | None, dict[str, int]]], text: str) -> None:
    made = comparison(losses=[])
    made.rungs[4] = Rung("draws", [Tally("draws", step, 0, Counter(count)) for step, count in tallies])
    assert rows(rung_table(made))[4][2] == text


def test_what_is_missing_says_on_which_side() -> None:
    made = comparison()
    made.rung("batch").tallies[0].missing_candidate = 2
    assert rows(rung_table(made))[4][-1] == "0 in reference, 2 in candidate"


def test_over_steps() -> None:
    found = rows(over_steps(diverged()))
    assert found[0] == [
        "0",
        "identical",
        "identical",
        "identical",
        "diverged",
        "identical",
        "diverged",
        "identical",
        "identical",
        "5.0926868",
        "5.0926868",
    ]
    assert found[1][0] == "1"
    assert over_steps(comparison(steps=[])) == []
    assert rows(over_steps(comparison(losses=[])))[0][-2:] == ["-", "-"]


def test_a_section_counts_what_the_table_of_rungs_counts() -> None:
    """One call with two inputs and an output that differ is one thing and three places; both are said."""
    made = diverged()
    table = {row[0]: row[3] for row in rows(rung_table(made))}
    headings = texts(differences(made))
    assert table["forward"] == "1"
    assert table["gradients"] == "2"
    assert headings == ["Forward: 1 of 52 differ", "Gradients: 2 of 86 differ"]
    assert "Listed by place, 2 places in all" in texts(differences(made), Paragraph)[0]


def test_what_is_missing_is_counted_apart() -> None:
    made = comparison()
    gone = finding("batch", phase=Phase.BATCH, difference=Difference.MISSING_CANDIDATE, module=None, call=None,
                   kind=Kind.FIELD, slot="noise", reference="[2, 32] float32", candidate="absent")  # fmt: skip
    add(made, "batch", gone, differing=0)
    made.rung("batch").tallies[0].missing_candidate = 1
    assert texts(differences(made)) == ["Batch: 1 missing"]
    assert rows(differences(made)) == [["0", "noise", "missing candidate", "[2, 32] float32", "absent"]]


def test_noise_does_not_lead() -> None:
    """`linear_k.bias` differs by 3e-10, which is 90 % of it: noise, however large it is beside itself."""
    assert [row[1] for row in rows(differences(diverged()), 1)] == [
        "decoder, weight",
        "encoder.layers.0.linear_k, bias",
    ]


def test_the_order_of_differences() -> None:
    whole = replace(measured(1.0), judgement=None, address=replace(measured().address, module="whole"))
    assert whole.metrics is not None
    nan = replace(measured(ratio=2.0, module="nan"), metrics=replace(whole.metrics, nonfinite_disagree=1))
    others = [
        measured(1e-7, 0.5, module="within"),
        measured(1e-3, 2.0, module="little"),
        measured(1e-4, 90.0, module="far"),
    ]
    made = comparison()
    add(made, "forward", *others, whole, nan)
    assert [row[1].split(",")[0] for row in rows(differences(made))] == ["nan", "whole", "far", "little", "within"]
    assert [row[-2:] for row in rows(differences(made))] == [
        ["2.0e+00", "no"], ["-", "no"], ["9.0e+01", "no"], ["2.0e+00", "no"], ["5.0e-01", "yes"],
    ]  # fmt: skip


def test_a_table_is_cut_and_says_so() -> None:
    made = comparison()
    add(made, "forward", *(measured(module=f"m{i}") for i in range(12)))
    assert len(rows(differences(made))) == 10
    assert texts(differences(made), Paragraph) == [
        "10 of 12, farthest beyond the rule first; all are in report.json."
    ]  # fmt: skip


def test_states_that_follow_from_a_draw_are_not_repeated() -> None:
    def state(generator: str) -> Finding:
        return finding("draws", phase=Phase.FORWARD_DONE, event=0, kind=Kind.GENERATOR_STATE, module=None, call=None,
                       slot=generator)  # fmt: skip

    drawn = finding("draws", kind=Kind.DRAW, module="masking", slot="torch_cpu")
    made = comparison(draws=[draw(module="masking", step=0, counts=(8, 11), fate=Fate.OTHER_COUNT, found=drawn)])
    add(made, "draws", drawn, state("torch_cpu"), state("numpy"), differing=3)
    assert texts(differences(made)) == ["Random draws: 3 of 26 differ"]
    assert [row[1] for row in rows(differences(made))] == ["rng.forward_done.numpy"]


# --- draws and calls --------------------------------------------------------------------------------------------------


def test_like_modules_share_a_line() -> None:
    found = [
        draw(module=name, step=0, counts=(count, count), call=call, fate=fate)
        for name, call, count, fate in (
            ("a.0.drop", 0, 2, Fate.SAME),
            ("a.1.drop", 0, 3, Fate.SAME),
            ("a.1.drop", 1, 4, Fate.CAME_IN),
            ("a.drop", 0, 5, Fate.SAME),
        )
    ]
    assert [[one.draws[0] for one in group] for group in collapse(found)] == [[2, 3], [4], [5]]
    assert [row[1:6] for row in rows(draws(comparison(draws=found)))] == [
        ["a.*.drop", "2", "torch_cpu", "5", "5"],
        ["a.*.drop", "1", "torch_cpu", "4", "4"],
        ["a.drop", "1", "torch_cpu", "5", "5"],
    ]


def test_the_step_with_a_difference_is_shown() -> None:
    other = finding("draws", step=1, kind=Kind.DRAW, module="masking", slot="torch_cpu")
    found = [draw(), *(draw(module="masking", step=step) for step in (0, 2))]
    found += [draw(module="masking", step=1, counts=(8, 11), fate=Fate.OTHER_COUNT, found=other)]
    blocks = draws(comparison(draws=found))
    assert rows(blocks) == [
        ["-", "model construction", "1", "torch_cpu", "605", "605", "same"],
        ["1", "masking", "1", "torch_cpu", "8", "11", "other count"],
    ]
    assert texts(blocks, Paragraph)[-1] == "In the rest (2 steps) all draws are the same."
    found += [replace(found[1], finding=other)]
    assert texts(draws(comparison(draws=found)), Paragraph)[-1] == "Draws differ at 1 of the rest (2 steps), too."
    assert draws(comparison(draws=[])) == []


@pytest.mark.parametrize(
    ("fields", "counts", "shown"),
    [
        ({"fate": Fate.ELSEWHERE, "candidate": (Stage("forward", "b", 0),)}, (8, 8), ["8", "8", "same, drawn in b"]),
        ({"fate": Fate.ONE_SIDED, "candidate": ()}, (8, 0), ["8", "0", "only in the reference"]),
        ({"fate": Fate.ONE_SIDED, "reference": ()}, (0, 8), ["0", "8", "only in the candidate"]),
        ({"fate": Fate.LEFT_OTHERWISE}, (None, 8), ["uncounted", "8", "left otherwise"]),
    ],
)
def test_what_became_of_a_draw(fields: dict[str, Any], counts: tuple[int | None, int | None], shown: list[str]) -> None:
    made = replace(draw(module="a", step=0, counts=counts), **fields)
    assert rows(draws(comparison(draws=[made])))[0][-3:] == shown


def test_calls_of_the_first_step_that_has_any() -> None:
    made = diverged()
    made.calls += [replace(made.calls[0], step=1)]
    assert texts(calls(made)) == ["Calls that differ at step 0"]
    assert rows(calls(made)) == [
        ["13", "encoder.layers.1", "0", "born here", "output", "4.1e-03"],
        ["0", "(root)", "0", "born inside", "output", "4.1e-03"],
    ]
    made.calls = made.calls[:1] * 41
    assert texts(calls(made), Paragraph)[-1] == "40 of 41 calls; all are in report.json."
    assert calls(comparison()) == []


# --- background -------------------------------------------------------------------------------------------------------


def overviews(made: Comparison) -> str:
    return texts(overview(made), Paragraph)[0]


def test_overview() -> None:
    made = comparison()
    assert overviews(made) == "Tiny (681 parameters), 2 x 2.0 s, cpu, 1 thread, torch 2.13.0 on both sides."
    made.explanations = [Explanation("nest", 0, "Loss over 182 masked frames.")]
    assert overviews(made).endswith("on both sides. Loss over 182 masked frames.")
    made.explanations = [Explanation("nest", 0, "Loss over 16 masked frames.", weakens="No token counts.")]
    assert overviews(made).endswith("on both sides. Loss over 16 masked frames."), "why it proves little: the verdict"
    made.explanations = []
    gpu = {"type": "cuda", "name": "NVIDIA H100"}
    made.candidate = side("nest-ssl 0.1.0", "nest", packages={"torch": "2.12.0"}, device=gpu, threads={}, command=[])
    assert overviews(made) == (
        "Tiny (681 parameters), 2 x 2.0 s, cpu against cuda (NVIDIA H100), 1 thread against unknown, "
        "torch 2.13.0 against 2.12.0."
    )


def test_make_says_its_own_words() -> None:
    """They are recorded; nobody has to know make's variables and their defaults."""
    words = "make align SIZE=tiny SEED=7 STEPS=0,1"
    made = comparison(reference=side("a", "nemo", make_command=words), candidate=side("b", "nest", make_command=words))
    assert commands_of(made) == [words]
    assert texts(reproduce(made), Paragraph) == [f"Reproduce: {words}."]


def test_other_pairs_say_every_command() -> None:
    compare = "python scripts/compare_outputs.py --reference outputs/nemo --candidate outputs/nest"
    made = comparison(
        reference=side("a", "nemo", command=["train_nemo.py", "--config-name", "my own"]),
        candidate=side("b", "nest", make_command="make nest SIZE=tiny"),
    )
    assert commands_of(made) == ["python scripts/train_nemo.py --config-name 'my own'", "make nest SIZE=tiny", compare]
    assert [block.lines for block in reproduce(made) if isinstance(block, CodeBlock)] == [tuple(commands_of(made))]
    assert commands_of(comparison(reference=side("a", "nemo", command=[]), candidate=made.candidate))[1:] == [compare]


def test_the_commit_is_said_where_both_have_it() -> None:
    git = {"commit": "1a2b3c4d5e", "dirty": False}
    words = {"make_command": "make align", "git": git}
    made = comparison(reference=side("a", "nemo", **words), candidate=side("b", "nest", **words))
    assert texts(reproduce(made), Paragraph) == ["Reproduce: make align at commit 1a2b3c4."]
    made.candidate.index = index("nest", **{**words, "git": {**git, "dirty": True}})
    assert texts(reproduce(made), Paragraph) == ["Reproduce: make align at commit 1a2b3c4 with local changes."]
    made.candidate.index = index("nest", **{**words, "git": {"commit": "99"}})
    assert texts(reproduce(made), Paragraph) == ["Reproduce: make align."]


def test_known_differences() -> None:
    assert known(comparison()) == []
    generations = [{"generation": {"name": name}} for name in ("2.7", "3.0")]
    made = comparison(
        reference=side("a", "nemo", **generations[0]), candidate=side("b", "nest", **generations[1]),
        known=[KnownDifference("stft_padding", "preprocessor", "how ends are padded", "reflect", "constant")],
    )  # fmt: skip
    assert texts(known(made)) == ["Known to have changed between NeMo 2.7 and 3.0"]
    assert rows(known(made)) == [["stft_padding", "preprocessor", "how ends are padded", "reflect", "constant"]]


def test_the_rule_is_said_also_where_it_was_not_needed() -> None:
    text = texts(rule(comparison()), Paragraph)[0]
    assert "|candidate - reference| <= 1e-05 + 1e-05 x |reference|" in text
    assert texts(rule(comparison(rule={"kind": "bits"})), Paragraph)[0].startswith("None: nothing but the same bits")
    assert texts(rule(comparison(rule={"kind": "other", "factor": 4.0})), Paragraph) == ["the rule other (factor 4.0)"]


def test_declared_differences() -> None:
    assert texts(declared(comparison()), Paragraph) == ["None."]
    made = comparison(
        declared=[Declared("spec*", "reference", "never called", ("spec",)), Declared("x", "candidate", "y", ())]
    )
    assert rows(declared(made)) == [["spec*", "reference", "spec", "never called"], ["x", "candidate", "none", "y"]]


def test_provenance() -> None:
    found = {row[0]: row[1:] for row in rows(provenance(comparison()))}
    assert found["command"][0] == "train_nemo.py size=tiny seed=42 output_dir=outputs/nemo"
    assert found["data"][0] == "train: 2 files (t.json)"
    assert found["weights from"] == ["-", "-"]
    git = {"commit": "1a2b3c4d5e", "dirty": True}
    made = comparison(reference=side("a", "nemo", git=git, container={"image": "nest"}, init_from={"a.nemo": "0" * 64}))
    found = {row[0]: row[1:] for row in rows(provenance(made))}
    assert (found["git"][0], found["container"][0]) == ("1a2b3c4 with local changes", "nest")
    assert found["weights from"][0] == "a.nemo 000000000000"


def test_notes_are_said_once() -> None:
    made = comparison(
        notes=[Note("weights_part", {"step": 3}), Note("weights_part", {"step": 3}), Note("no_data_hashes")]
    )
    items = next(block.items for block in notes(made) if isinstance(block, Bullets))
    assert list(map(plain, items)) == ["Weights part after step 3.", "Neither recording has hashes of its data files."]
    assert notes(comparison()) == []


@pytest.mark.parametrize(
    ("note", "text"),
    [
        (Note("loader_workers", {"reference": 2, "candidate": 2}), "Batches were fetched with 2 loader workers"),
        (Note("loader_workers", {"reference": 0, "candidate": 2}), "Batches were fetched with 0 and 2 loader workers"),
        (Note("container", {"reference": True, "candidate": False}), "Container: a container against none."),
        (
            Note("setting", {"path": "config.cuda_graphs", "reference": False, "candidate": True}),
            "Setting config.cuda_graphs: False against True; it changes no number.",
        ),
        (Note("no_ledger", {"side": "candidate"}), "The candidate has no ledger of random draws"),
        (Note("no_tensor", {"step": 1, "rung": "weights"}), "step 1: no tensor to compare (after the step)"),
        (Note("same_recording", {"how": "folder"}), "Both sides are the same recording (one folder)"),
        (
            Note("drawn_elsewhere", {"count": 1234, "reference": Stage("fetch"), "candidate": Stage("forward", "a")}),
            "1,234 draws are the same numbers of the same stream, made in another call, first fetching the batch "
            "against a.",
        ),
        (Note("image", {"path": "base", "reference": "ab" * 32, "candidate": 1}), "Image base: abababa... against 1."),
    ],
)  # fmt: skip
def test_notes(note: Note, text: str) -> None:
    items = next(block.items for block in notes(comparison(notes=[note])) if isinstance(block, Bullets))
    assert plain(items[0]).startswith(text)
