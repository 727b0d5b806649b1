"""What our own command adds to a comparison of NEST trainers: the batch's size, and what the loss was made of."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.compare.comparison import Explanation
from nest_ssl.recording.reader import open_recording
from nest_ssl.run.nest_report import explain_nest
from tests.compare.builder import FRAMES, STRIDE, edit_config, edit_tensors, judge, remove
from tests.compare.conftest import copy, reference

__all__ = ["copy", "reference"]


def explain(reference: Path, candidate: Path, step: int = 0) -> Explanation:
    found = explain_nest(open_recording(reference), open_recording(candidate), step)
    assert found is not None
    return found


def test_the_loss_is_accounted_for(reference: Path) -> None:
    masks = open_recording(reference).step(0).forward_output()["masks"]
    frames = int((masks.mean(1) > 0).sum())
    tokens = int((masks.mean(1).unflatten(1, (-1, STRIDE)).mean(-1) > 0.8).sum())
    assert 0 < tokens < 2 * FRAMES // STRIDE
    found = explain(reference, reference)
    assert found.values == {
        "batch": "2 x 2.0 s", "masked_frames": [frames, frames], "counted_tokens": [tokens, tokens],
        "tokens": 2 * FRAMES // STRIDE,
    }  # fmt: skip
    assert found.sentence == f"Loss at step 0 over {frames} masked frames, {tokens} of 8 tokens counted."
    assert not found.weakens


def test_both_sides_are_said_where_they_differ(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_1/forward_output.pt", lambda output: output["masks"].fill_(1))
    found = explain(reference, copy, 1)
    assert found.values["masked_frames"][1] == 2 * FRAMES
    assert " against 64 masked frames, " in found.sentence
    assert " against 8 of 8 tokens counted." in found.sentence


def test_no_counted_token_weakens_the_verdict(copy: Path) -> None:
    """NaN on both sides is the same bits, and so are two gradients of zeros: said in the verdict, not below it."""
    edit_tensors(copy, "step_0/loss.pt", lambda loss: loss.update(loss=torch.tensor(math.nan)))
    edit_tensors(copy, "step_0/forward_output.pt", lambda output: output["masks"].zero_())
    found = explain(copy, copy)
    assert found.sentence == "Loss at step 0 over 0 masked frames, 0 of 8 tokens counted."
    assert found.weakens.startswith("No token counts at step 0: nowhere does the mean of the mask pass the threshold")
    comparison = judge(copy, copy, explainers=[explain_nest])
    assert [bool(explanation.weakens) for explanation in comparison.explanations] == [True, False]
    assert comparison.facts.batch == "2 x 2.0 s"


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(model=None),
        lambda config: config["model"].update(loss=[], sample_rate="x"),
        lambda config: config["model"].update(loss={"combine_time_steps": 5, "mask_threshold": 0.8}, sample_rate=0),
        lambda config: config["model"].update(loss={"combine_time_steps": 0, "mask_threshold": 0.8}, sample_rate=None),
    ],
)
def test_another_model_is_left_alone(copy: Path, change: Any) -> None:
    edit_config(copy, change)
    assert explain_nest(open_recording(copy), open_recording(copy), 0) is None


def test_the_batch_is_described_where_no_loss_can_be(reference: Path, copy: Path) -> None:
    remove(copy, "step_0/forward_output.pt")
    found = explain(reference, copy)
    assert (found.values, found.sentence) == ({"batch": "2 x 2.0 s"}, "")


@pytest.mark.parametrize("batch", [[torch.ones(2, 3), torch.ones(2)], torch.ones(2, 3), {"audio": torch.ones(3)}])
def test_a_batch_of_another_shape(copy: Path, batch: Any) -> None:
    """A loader of pairs gives a list; nothing of ours is asked of it."""

    def change(value: Any) -> None:
        value.clear()
        value.update(batch if isinstance(batch, dict) else {"other": torch.ones(1)})

    edit_tensors(copy, "step_0/batch.pt", change)
    assert explain(copy, copy).values["batch"] == ""
