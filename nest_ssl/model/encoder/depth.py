"""Stochastic depth: in training, layers are left out at random, the later ones more often.

Source: arXiv 1603.09382, section 3; NeMo 3.0.0 `nemo.collections.asr.parts.utils.regularization_utils`.

Shapes: B batch, T time, D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nest_ssl.config.parts import Encoder

if TYPE_CHECKING:
    from jaxtyping import Float


def drop_probabilities(settings: Encoder) -> list[float]:
    """The probability of each layer: 0 before the start layer, then growing linearly, or the same for all."""
    begin, most = settings.stochastic_depth_start_layer, settings.stochastic_depth_drop_prob
    others = settings.n_layers - begin
    uniform = settings.stochastic_depth_mode == "uniform"
    return [0.0] * begin + [most if uniform else layer / others * most for layer in range(1, others + 1)]


def left_out(before_BTD: Float[Tensor, "B T D"], after_BTD: Float[Tensor, "B T D"], probability: float) -> Tensor:
    """What goes on behind a layer: its input if it is left out, else its change of it, scaled up.

    One number is drawn on the CPU for the whole batch. Left out, the layer still gets gradients: zeros.
    """
    if torch.rand(1) < probability:
        return after_BTD * 0.0 + before_BTD
    return (after_BTD - before_BTD) / (1.0 - probability) + before_BTD
