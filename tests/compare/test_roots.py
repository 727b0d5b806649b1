"""What is born once is named once: modes that are switched together, gradients that add up, a weight beside a fault."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from tests.compare.builder import Model, judge
from tests.compare.test_between import accumulating, births, nothing, run, sound

__all__ = ["accumulating", "sound"]


def test_a_mode_that_is_switched_for_a_part_is_that_parts_alone(sound: Path, tmp_path: Path) -> None:
    """Whether within the forward or between two steps: every module in it is switched with it, and stays so."""

    class Switching(Model):
        def forward(self, audio: Tensor, audio_len: Tensor) -> tuple[Tensor, ...]:
            self.encoder.eval()
            return super().forward(audio, audio_len)

    within = judge(sound, run(tmp_path / "within", build=Switching))
    assert births(within)[0] == ("forward", "encoder") and not any(
        phase == "between steps" for phase, _ in births(within)
    )
    between = judge(sound, run(tmp_path / "between", between=lambda step, model: model.encoder.train(step < 1)))
    assert births(between)[0] == ("between steps", "encoder") and ("forward", "encoder") not in births(between)
    parts = {module for _, module in [*births(within), *births(between)] if (module or "").startswith("encoder.")}
    assert parts == set(), "a norm in evaluation mode is another function, which follows"


def test_a_weight_changed_between_two_steps_beside_a_fault_that_has_reached_it(sound: Path, tmp_path: Path) -> None:
    def nudge(step: int, model: nn.Module) -> None:
        if step == 2:
            model.decoder.bias.data[0] *= 1.001

    def doubled() -> Model:
        model = Model()
        model.encoder.layers[1].factor = 1.0
        return model

    alone = judge(sound, run(tmp_path / "alone", build=doubled))
    assert not any(phase == "between steps" for phase, _ in births(alone))
    both = judge(sound, run(tmp_path / "both", build=doubled, between=nudge))
    assert ("between steps", "decoder") in births(both) and births(both)[0][0] == "forward"


def test_gradients_that_are_not_cleared_are_told_once(accumulating: Path, tmp_path: Path) -> None:
    """Those of the next batch are added to them."""
    comparison = judge(accumulating, run(tmp_path / "run", accumulate=2, clear=nothing))
    assert births(comparison) == [("backward", None)]
