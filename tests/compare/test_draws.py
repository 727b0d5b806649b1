"""Random draws: faults in their order, count and generator are named; the same draws made elsewhere are no fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Birth, Draw, Fate
from nest_ssl.recording import layout as files
from nest_ssl.report.write import report_text
from tests.compare.builder import (
    STRIDE,
    Plan,
    batch_of,
    edit_index,
    first,
    judge,
    left,
    noted,
    record,
    reindex,
    statuses,
)

Make = Callable[..., Path]


def headline(comparison: Comparison) -> tuple[Any, ...]:
    """Place and both values of the headline."""
    assert comparison.first is not None
    return (*first(comparison), comparison.first.reference, comparison.first.candidate)


def blamed(comparison: Comparison) -> Draw:
    assert comparison.cause is not None and comparison.cause.draw is not None
    return comparison.cause.draw


def of_module(comparison: Comparison, module: str) -> list[Draw]:
    return [draw for draw in comparison.draws if draw.stage.module == module]


def patch(name: str, change: Callable[..., Any]) -> Callable[[nn.Module], None]:
    """Replace the forward of a submodule: ``change(original, *arguments)``."""

    def plant(model: nn.Module) -> None:
        module = model.get_submodule(name)
        original = module.forward
        module.forward = lambda *args, **kwargs: change(original, *args, **kwargs)  # type: ignore[method-assign]

    return plant


# --- faults in a recording --------------------------------------------------------------------------------------------


def test_a_module_that_draws_more(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(after_build=patch("masking", lambda f, x: (torch.rand(3), f(x))[1])))
    assert headline(comparison) == ("draws", 0, "masking", 0, "torch_cpu", 8, 11)
    assert (blamed(comparison).stage.module, blamed(comparison).fate) == ("masking", Fate.OTHER_COUNT)
    assert comparison.exit_code == 1
    assert comparison.unexplained == []
    assert statuses(comparison)["batch"] == "identical", "it was made without the global generator"
    by_step = {draw.step: draw.fate for draw in of_module(comparison, "masking")}
    assert by_step == {0: "other count", 1: "other count"}
    born = next(call for call in comparison.calls if call.module == "masking")
    assert born.relation == "other random numbers"


def test_a_draw_that_changes_no_value(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(after_build=patch("quantizer", lambda f, x: f(x * (torch.rand(1) * 0 + 1)))))
    assert headline(comparison) == ("draws", 0, "quantizer", 0, "torch_cpu", 0, 1)
    assert (blamed(comparison).reference, blamed(comparison).fate) == ((), Fate.ONE_SIDED)
    after = of_module(comparison, "masking")[0]
    assert (after.fate, after.draws) == ("came in", (8, 8))
    assert comparison.unexplained == []


def test_a_draw_that_the_candidate_lacks(make: Make, tmp_path: Path) -> None:
    more = record(tmp_path / "more", Plan(after_build=patch("quantizer", lambda f, x: (torch.rand(1), f(x))[1])))
    comparison = judge(more, make())
    assert headline(comparison) == ("draws", 0, "quantizer", 0, "torch_cpu", 1, 0)
    assert (blamed(comparison).candidate, blamed(comparison).fate) == ((), Fate.ONE_SIDED)


def test_another_generator(reference: Path, make: Make) -> None:
    class Masking(nn.Module):
        def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
            drawn = torch.from_numpy(np.random.uniform(size=(features.shape[0], features.shape[2] // STRIDE)))
            masks = (drawn < 0.6).repeat_interleave(STRIDE, 1).unsqueeze(1).expand_as(features)
            return torch.where(masks, self.mask_emb[None, :, None].expand_as(features), features), masks.float()

    def plant(model: nn.Module) -> None:
        model.masking.forward = Masking.forward.__get__(model.masking)  # type: ignore[method-assign]

    comparison = judge(reference, make(after_build=plant))
    assert headline(comparison) == ("draws", 0, "masking", 0, "torch_cpu", 8, 0)
    by_generator = {draw.generator: draw.draws for draw in of_module(comparison, "masking") if draw.step == 0}
    assert by_generator == {"torch_cpu": (8, 0), "numpy": (0, 16)}


def test_the_generator_of_another_device(reference: Path, make: Make) -> None:
    """What the model draws there is not compared on devices of two kinds, and what a loader draws is."""

    def moved(recording: Path, what: Callable[[dict[str, Any]], bool]) -> None:
        for step in (0, 1):
            path = recording / f"step_{step}/rng.json"
            facts = json.loads(path.read_text())
            for entry in filter(what, facts["ledger"]):
                entry |= {"generator": "torch_cuda:0", "draws": 4, "before": "3" * 16, "after": "4" * 16}
            path.write_text(json.dumps(facts))
            reindex(recording, f"step_{step}/rng.json")

    candidate = make()
    moved(candidate, lambda entry: entry["module"] is not None)
    assert statuses(judge(reference, candidate))["draws"] == "diverged"
    edit_index(candidate, lambda index: index["device"].update(type="cuda"))
    assert statuses(judge(reference, candidate))["draws"] == "identical"

    drawn = record(candidate.with_name("drawn"), Plan(on_batch=lambda step, batch: torch.rand(1)))
    edit_index(drawn, lambda index: index["device"].update(type="cuda"))
    assert statuses(judge(reference, drawn))["draws"] == "diverged"


def test_a_draw_after_the_forward(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(on_loss=lambda step, loss: torch.rand(1) * 0 + loss))
    assert headline(comparison) == ("draws", 0, None, None, "forward.torch_cpu", 0, 1)
    assert blamed(comparison).stage.phase == "loss", "after the model's own forward"


def test_a_draw_while_the_batch_is_fetched(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(on_batch=lambda step, batch: torch.rand(1) if step == 1 else None))
    assert headline(comparison) == ("draws", 1, None, None, "fetch.torch_cpu", 0, 1)
    assert blamed(comparison).stage.phase == "fetch"


def test_a_batch_that_follows_from_its_draws(reference: Path, make: Make) -> None:
    def noisy(step: int, batch: dict[str, Tensor]) -> None:
        batch["audio"] += torch.rand(1)

    comparison = judge(reference, make(on_batch=noisy))
    assert headline(comparison)[:5] == ("draws", 0, None, None, "fetch.torch_cpu")
    assert comparison.cause is not None and comparison.cause.batch_differs
    assert comparison.unexplained == []
    assert next((c.count, c.step) for c in comparison.follows if c.rung == "batch") == (1, 0)


def test_a_batch_that_differs_before_the_draws_do(reference: Path, make: Make) -> None:
    """No draw made it so: the batch is the headline, and a fault in the draws of a later call stands on its own."""

    def louder(step: int, batch: dict[str, Tensor]) -> None:
        batch["audio"] += 1

    comparison = judge(reference, make(on_batch=louder))
    assert first(comparison) == ("batch", 0, None, None, "audio")
    assert statuses(comparison)["draws"] == "identical"


def test_a_draw_in_backward(reference: Path, make: Make) -> None:
    class Drawing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            torch.rand(1)
            return gradients[0]

    comparison = judge(reference, make(on_loss=lambda step, loss: Drawing.apply(loss)))
    assert headline(comparison) == ("draws", 0, None, None, "backward.torch_cpu", 0, 1)


def test_a_draw_in_the_optimizer_step(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(after_step=lambda step, model: torch.rand(1)))
    assert headline(comparison) == ("draws", 0, None, None, "optimizer_step.torch_cpu", 0, 1)


def test_an_extra_draw_while_the_model_is_built(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(after_build=lambda model: torch.rand(1)))
    assert first(comparison) == ("draws", None, None, None, "model_construction.torch_cpu")
    assert comparison.first is not None
    assert comparison.first.candidate == comparison.first.reference + 1
    assert blamed(comparison).stage.phase == "model_construction"
    assert statuses(comparison)["initial_weights"] == "identical"
    assert comparison.rung("forward").status == "diverged"  # another mask
    assert comparison.unexplained == []


def test_initial_weights_tell_how_many_numbers_they_took(reference: Path, make: Make) -> None:
    def redraw(model: nn.Module) -> None:
        nn.init.normal_(model.decoder.weight)

    comparison = judge(reference, make(after_build=redraw))
    assert first(comparison) == ("initial_weights", None, "decoder", None, "weight")
    assert blamed(comparison).stage.phase == "model_construction"


def test_another_state_to_start_from(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(seed=43, index={"seed": 42}))
    assert first(comparison) == ("draws", None, None, None, "rng.before_model.python")
    assert comparison.unexplained == []


def test_a_stream_that_nobody_draws_from_may_differ(reference: Path, make: Make) -> None:
    def at_second(step: int, batch: dict[str, Tensor]) -> None:
        if step == 1:
            np.random.uniform()

    comparison = judge(reference, make(on_batch=at_second))
    assert headline(comparison)[:5] == ("draws", 1, None, None, "fetch.numpy")


# --- forward and draws in the order in which they happen --------------------------------------------------------------


def test_other_inputs_are_the_origin_of_other_draws(reference: Path, make: Make) -> None:
    def longer(forward: Callable[..., Any], audio: Tensor, length: Tensor) -> Any:
        features, length = forward(audio, length=length)
        return torch.cat([features, features[..., :STRIDE]], -1), length

    comparison = judge(reference, make(after_build=patch("preprocessor", longer)))
    assert first(comparison)[:4] == ("forward", 0, "preprocessor", 0)
    assert blamed(comparison) is of_module(comparison, "masking")[0]
    assert blamed(comparison).draws == (8, 10)
    assert comparison.unexplained == []
    assert any(consequence.rung == "draws" for consequence in comparison.follows)


def test_draws_that_no_input_explains_stand_on_their_own(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        patch("quantizer", lambda f, x: (f(x) + 1) % 5)(model)
        patch("masking", lambda f, x: (torch.rand(3), f(x))[1])(model)

    comparison = judge(reference, make(after_build=plant))
    assert first(comparison)[:4] == ("forward", 0, "quantizer", 0)
    assert left(comparison)["DRAWS"] == ["masking.torch_cpu"]


def test_a_fault_upstream_of_the_first_draw_comes_first(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        patch("masking", lambda f, x: (torch.rand(3), f(x))[1])(model)
        model.encoder.layers[1].factor = 0.51

    comparison = judge(reference, make(after_build=plant))
    assert first(comparison)[:4] == ("draws", 0, "masking", 0), "the encoder comes after the mask"


# --- correct rewrites -------------------------------------------------------------------------------------------------


def drawn_by_the_parent(model: nn.Module) -> None:
    """The model draws the mask's numbers itself, and the masking module takes them."""
    forward, masking, rand = model.forward, model.masking.forward, torch.rand

    def outer(audio: Tensor, audio_len: Tensor) -> Any:
        numbers = rand(audio.shape[0], audio.shape[1] // STRIDE)

        def inner(features: Tensor) -> Any:
            torch.rand = lambda *size: numbers  # type: ignore[assignment]
            try:
                return masking(features)
            finally:
                torch.rand = rand  # type: ignore[assignment]

        model.masking.forward = inner  # type: ignore[method-assign]
        return forward(audio=audio, audio_len=audio_len)

    model.forward = outer  # type: ignore[method-assign]


def test_the_same_draws_one_call_up_are_no_difference(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(after_build=drawn_by_the_parent))
    assert (comparison.verdict, comparison.first) == ("identical", None)
    moved = [draw for draw in comparison.draws if draw.fate == Fate.ELSEWHERE]
    assert [(d.reference[0].module, d.candidate[0].module, d.draws) for d in moved] == [("masking", "", (8, 8))] * 2
    assert noted(comparison, "drawn_elsewhere")[0] == {
        "step": 0, "count": 1, "reference": moved[0].reference[0], "candidate": moved[0].candidate[0],
    }  # fmt: skip


class Dropping(nn.Module):
    """Two dropouts one after the other, as modules or as functions."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.functional = functional
        self.a, self.b = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        if self.functional:
            return nn.functional.dropout(nn.functional.dropout(x, 0.1), 0.1)
        return self.b(self.a(x))


@pytest.mark.parametrize("swapped", [False, True])
def test_functional_dropout_in_the_parent(tmp_path: Path, swapped: bool) -> None:
    def with_dropouts(functional: bool) -> Path:
        def plant(model: nn.Module) -> None:
            model.spare = Dropping(functional)
            forward = model.preprocessor.forward
            model.preprocessor.forward = lambda audio, length: (model.spare(forward(audio, length)[0]), length)

        return record(tmp_path / str(functional), Plan(after_build=plant))

    comparison = judge(with_dropouts(swapped), with_dropouts(not swapped))
    assert statuses(comparison)["draws"] == "identical"
    assert comparison.verdict == "identical"
    assert noted(comparison, "computed_otherwise")[0]["around"] == "spare"  # a function in place of a module


def test_what_was_drawn_is_shown(reference: Path, make: Make) -> None:
    comparison = judge(reference, make())
    drawn = [draw for draw in comparison.draws if draw.step is not None]
    assert [(d.step, d.stage.module, d.generator, d.draws, d.fate) for d in drawn] == [
        (step, "masking", "torch_cpu", (8, 8), "same") for step in (0, 1)
    ]
    assert comparison.rung("draws").tallies[1].compared["stages"] == 1


# --- recordings without a ledger --------------------------------------------------------------------------------------


def forget_ledgers(recording: Path) -> Path:
    """As recordings were before there were ledgers."""
    edit_index(recording, lambda index: index.pop("ledger"))
    for path in recording.glob(f"step_*/{files.RNG}"):
        path.write_text(json.dumps({"states": json.loads(path.read_text())["states"]}))
        reindex(recording, path.relative_to(recording).as_posix())
    return recording


@pytest.mark.parametrize("both", [False, True])
def test_older_recordings_are_judged_by_their_states(copy: Path, make: Make, both: bool) -> None:
    forget_ledgers(copy)
    twin = make()
    comparison = judge(copy, forget_ledgers(twin) if both else twin)
    assert comparison.verdict == "identical"
    assert statuses(comparison)["draws"] == "identical"
    assert bool(noted(comparison, "no_ledger")) is not both
    assert "## Random draws" not in report_text(comparison)


def test_older_recordings_name_the_boundary(copy: Path, make: Make) -> None:
    forget_ledgers(copy)
    drawn = make(after_build=patch("quantizer", lambda f, x: (f(x), torch.rand(1))[0]))
    assert first(judge(copy, drawn))[:4] == ("forward", 0, "masking", 0), "at once seen in what is drawn next"
    drawn = make(on_loss=lambda step, loss: torch.rand(1) * 0 + loss)
    comparison = judge(copy, drawn)
    assert first(comparison) == ("draws", 0, None, None, "rng.forward_done.torch_cpu")
    assert comparison.cause is not None and comparison.cause.birth == Birth.STATE
    drawn = make(on_batch=lambda step, batch: torch.rand(1) if step == 1 else None)
    assert first(judge(copy, drawn)) == ("draws", 1, None, None, "rng.batch_ready.torch_cpu")


def test_loader_workers_draw_unseen(copy: Path) -> None:
    path = copy / "step_0" / files.RNG
    path.write_text(json.dumps({**json.loads(path.read_text()), "loader_workers": 2}))
    reindex(copy, f"step_0/{files.RNG}")
    assert noted(judge(copy, copy), "loader_workers") == [{"reference": 2, "candidate": 2}]


def test_batches_do_not_draw_from_the_global_generators() -> None:
    before = torch.get_rng_state()
    batch_of(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["", "CPU", "meta"])
def test_a_device_that_is_not_known_excuses_no_draw(reference: Path, make: Make, kind: str) -> None:
    candidate = make(on_loss=lambda step, loss: torch.rand(3).sum() * 0 + loss)
    edit_index(candidate, lambda index: index["device"].update(type=kind))
    comparison = judge(reference, candidate)
    assert statuses(comparison)["draws"] == "diverged" and not noted(comparison, "other_device")
