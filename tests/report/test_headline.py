"""The first screen: title, verdict, both values, and what weakens a verdict."""

from __future__ import annotations

import math

from nest_ssl.compare.comparison import Comparison, Explanation, Facts, Losses
from nest_ssl.compare.findings import Birth, Cause, Note, Status
from nest_ssl.compare.metrics import Metrics
from nest_ssl.recording.clock import Phase
from nest_ssl.report.document import Heading, Paragraph, Table, plain
from nest_ssl.report.sections import summary
from tests.report.builder import comparison, diverged, finding, measured, other_experiment, setting, side


def lines(made: Comparison) -> list[str]:
    """The title and the paragraphs of the first screen as words."""
    blocks = [block for block in summary(made) if isinstance(block, (Heading, Paragraph))]
    return [plain(block.text) for block in blocks if not (isinstance(block, Heading) and block.level > 1)]


def rows(made: Comparison, which: int = 0) -> list[list[str]]:
    tables = [block for block in summary(made) if isinstance(block, Table)]
    return [[plain(cell) for cell in row] for row in tables[which].rows]


def test_identical() -> None:
    assert lines(comparison()) == [
        "NeMo 3.0.0 and nest-ssl 0.1.0 train identically",
        "identical: 425 of 425 tensors have the same bits, over steps 0 to 1, from seed 42. Nothing missing on either "
        "side.",
    ]


def test_a_loop_without_a_seed_is_said_to_have_none() -> None:
    made = comparison()
    made.reference = side("a loop 1.0", "loop", seed=None)
    assert lines(made)[1].endswith("have the same bits, over steps 0 to 1. Nothing missing on either side.")


def test_a_pass_by_a_tolerance_is_named_as_such() -> None:
    found = measured(1e-6, 0.1)
    made = comparison(verdict=Status.EQUIVALENT, first=found, first_bits=found, facts=Facts(1, "", 1677, 742))
    assert lines(made)[:2] == [
        "NeMo 3.0.0 and nest-ssl 0.1.0 agree within the tolerance you gave",
        "equivalent: 742 of 1,677 tensors have the same bits, over steps 0 to 1; the others are within the tolerance "
        "you gave (atol 1e-05, rtol 1e-05). That does not tell rounding from a small bug. Nothing missing on either "
        "side.",
    ]


def test_diverged() -> None:
    said = lines(diverged())
    assert said[:2] == [
        "nest-ssl 0.1.0 parts from NeMo 3.0.0 at step 0, forward, encoder.layers.1, output",
        "diverged: its inputs and all calls inside it have the same bits, its output does not: born in its own code. It"
        " is the first such call in execution order (13 of 22). (146 of 425 tensors have the same bits, over steps 0 "
        "to 1.)",
    ]
    assert said[-3].startswith("Follows from it: at step 0: 7 calls")
    assert said[-2] == "Not explained by it: nothing."
    assert "make explain" in said[-1]  # which evidence to gather comes last
    assert rows(diverged()) == [
        ["encoder.layers.1, output [2, 4, 8] float32, at [0, 1, 2]", "0.182317644", "0.181132078"],
        ["largest difference / relative / ulp", "4.1e-03 / 2.2e-02 / 78,412", ""],
        ["elements that differ", "60 of 64", ""],
    ]


def test_nothing_known_of_how_it_came_about() -> None:
    assert lines(diverged(cause=None))[1] == "diverged (146 of 425 tensors have the same bits, over steps 0 to 1.)"


def test_nan_on_one_side_has_rows_of_its_own() -> None:
    metrics = Metrics(1, 1, 1, nonfinite_disagree=1, nan_candidate=1)
    first = finding(metrics=metrics, reference=1.0, candidate=math.nan)
    assert rows(diverged(first=first))[-2:] == [["NaN", "0", "1"], ["NaN or infinity on one side only", "1", ""]]


def test_where_bits_part_earlier_and_what_the_rule_does_not_allow() -> None:
    first, earlier = measured(), measured(1e-7, 0.01, module="encoder.layers.0")
    said = lines(diverged(first=first, first_bits=earlier, first_beyond=first, cause=Cause(Birth.GROWN)))
    assert "Bits part earlier, within the rule, at step 0, forward, encoder.layers.0, output (by 1.0e-07)." in said
    assert not any("beyond it" in line for line in said)
    said = lines(diverged(first=earlier, first_bits=earlier, first_beyond=first))
    assert (
        "This one is within the rule; the first one beyond it is at step 0, forward, encoder.layers.1, output (by "
        "4.1e-03)."
    ) in said


def test_another_experiment() -> None:
    made = other_experiment(setting("config.model.optim.lr", 0.01, 5.0), setting("seed", 1, 2))
    assert lines(made) == [
        "NeMo 3.0.0 and nest-ssl 0.1.0 did not run the same experiment: config.model.optim.lr differs",
        "inconclusive: a setting that both sides must share differs and 1 more. What follows is shown as information "
        "only.",
    ]
    assert rows(made) == [["config.model.optim.lr", "0.01", "5"]]


def test_what_means_nothing_is_not_called_diverged() -> None:
    """Where the experiment is another one, only same bits say something."""
    statuses = {row[0]: row[1] for row in rows(other_experiment(setting("seed", 1, 2)), 1)}
    assert statuses["forward"] == statuses["gradients"] == "not judged"
    assert (statuses["contract"], statuses["batch"]) == ("diverged", "identical")


def test_steps_alone_are_no_reason_to_train_again() -> None:
    made = other_experiment(setting("steps", "0, 1, 2", "0, 1"))
    assert lines(made)[1].endswith("Both sides recorded steps 0 to 1: compare what both have with --steps 0,1.")
    made.steps = []
    assert "--steps" not in lines(made)[1]
    made = other_experiment(setting("steps", "0, 1, 2", "0, 1"), setting("config.batches", 3, 2))
    assert "--steps" not in lines(made)[1], "with the same steps it would still be another experiment"


def test_too_little_says_what_is_lacking() -> None:
    made = comparison(verdict=Status.INCONCLUSIVE, exit_code=2)
    made.rung("batch").tallies[0].absent = [Note("file_missing", {"step": 0, "side": "candidate", "file": "batch.pt"})]
    assert lines(made) == [
        "Too little was recorded to compare NeMo 3.0.0 with nest-ssl 0.1.0",
        "inconclusive: nothing that was compared differs, but step 0: the candidate has no batch.pt.",
    ]
    made.rung("loss").tallies[0].absent = [Note("no_tensor", {"step": i, "rung": "loss"}) for i in range(4)]
    assert lines(made)[1].endswith(
        "; step 0: no tensor to compare (loss); step 1: no tensor to compare (loss); 2 more."
    )
    made = comparison(verdict=Status.INCONCLUSIVE, exit_code=2, steps=[])
    assert lines(made)[1].endswith("but no step was recorded by both.")


def test_what_proves_little_stands_in_the_verdict() -> None:
    """Two NaN have the same bits; so have two gradients of zeros."""
    made = comparison(losses=[Losses(0, math.nan, math.nan), Losses(1, 5.0, 5.0)])
    assert lines(made)[1].endswith("The loss is NaN or infinite on both sides at step 0: little is proved by that.")
    made.explanations = [Explanation("nest", 0, "", {}, "No token counts at step 0.")]
    assert lines(made)[1].endswith("Nothing missing on either side. No token counts at step 0.")
    made.explanations += [Explanation("nest", 1, "", {}, "No token counts at step 1.")] * 2
    assert lines(made)[1].endswith("No token counts at step 0. So it is at 2 steps more.")
    made.losses = [Losses(0, math.nan, math.inf), Losses(3, -math.inf, -math.inf)]
    made.explanations = []
    assert "on both sides at steps 0, 3: " in lines(made)[1]
    made.losses = [Losses(0, math.nan, 5.0)]
    assert "NaN" not in lines(made)[1]


def test_a_missing_value_is_shown_as_it_is() -> None:
    from nest_ssl.compare.findings import Difference

    first = finding(
        "batch",
        phase=Phase.BATCH,
        difference=Difference.MISSING_CANDIDATE,
        reference="[2, 32] float32",
        candidate="absent",
    )
    assert rows(diverged(first=first))[0][1:] == ["[2, 32] float32", "absent"]
