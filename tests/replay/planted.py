"""Edits of a built NEST model, as an edit of its source would be: faults, and correct rewrites that round otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.model.encoder.attention import MASKED_SCORE, by_pair

Model = Any
LAYER = "encoder.layers.1"


def part(model: Model, name: str) -> Any:
    return model.get_submodule(name)


def patch_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace a module's own computation; `forward` gets the original one first."""
    original = module.forward
    module.forward = lambda *args, **kwargs: forward(original, *args, **kwargs)  # type: ignore[method-assign]


# --- faults


def optimizer_setting(key: str, value: Any) -> Callable[[Model], None]:
    def plant(model: Model) -> None:
        model.settings.optim[key] = value

    plant.__name__ = f"optimizer {key}"
    return plant


def schedule_off_by_one(model: Model) -> None:
    original = model.configure_optimizers

    def later() -> Any:
        optimizers, schedules = original()
        optimizers[0].step()
        schedules[0]["scheduler"].step()
        return optimizers, schedules

    model.configure_optimizers = later


def norm_eps(model: Model, eps: float = 1e-6) -> None:
    part(model, f"{LAYER}.norm_conv").eps = eps


def norm_eps_a_tenth_more(model: Model) -> None:
    norm_eps(model, 1.1e-5)


def residual_factor(model: Model) -> None:
    """0.50001 instead of 0.5 before the second feed-forward is added."""
    layer = part(model, LAYER)

    def forward(
        _: Any, x: Tensor, att_mask: Any = None, pos_emb: Any = None, pad_mask: Any = None, **__: Any
    ) -> Tensor:
        x = x + layer.dropout(layer.feed_forward1(layer.norm_feed_forward1(x))) * 0.5
        y = layer.norm_self_att(x)
        x = x + layer.dropout(layer.self_attn(query=y, key=y, value=y, mask=att_mask, pos_emb=pos_emb, cache=None))
        x = x + layer.dropout(layer.conv(layer.norm_conv(x), pad_mask=pad_mask, cache=None))
        x = x + layer.dropout(layer.feed_forward2(layer.norm_feed_forward2(x))) * 0.50001
        out: Tensor = layer.norm_out(x)
        return out

    patch_forward(layer, forward)


def attend(model: Model, scores: Callable[..., Tensor], scale: float = 1.0) -> None:
    """Attention of one layer written again; `scores` gets q, k, v, the scores by distance and the mask."""
    attention = part(model, f"{LAYER}.self_attn")

    def forward(_: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, pos_emb: Tensor, **__: Any) -> Tensor:
        q, k, v, p = (
            linear(x).view(x.size(0), -1, attention.h, attention.d_k)
            for linear, x in ((attention.linear_q, query), (attention.linear_k, key), (attention.linear_v, value),
                              (attention.linear_pos, pos_emb))
        )  # fmt: skip
        by_distance = by_pair(torch.matmul((q + attention.pos_bias_v).transpose(1, 2), p.permute(0, 2, 3, 1)))
        root = math.sqrt(attention.d_k) * scale
        x = scores((q + attention.pos_bias_u).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), by_distance,
                   mask.unsqueeze(1), root, attention.dropout)  # fmt: skip
        out: Tensor = attention.linear_out(x.transpose(1, 2).reshape(query.size(0), -1, attention.h * attention.d_k))
        return out

    patch_forward(attention, forward)


def _probabilities(
    q: Tensor, k: Tensor, v: Tensor, by_distance: Tensor, mask: Tensor, root: float, dropout: nn.Module
) -> Tensor:
    weights = ((torch.matmul(q, k.transpose(-2, -1)) + by_distance) / root).masked_fill(mask, MASKED_SCORE)
    return torch.matmul(dropout(torch.softmax(weights, -1).masked_fill(mask, 0.0)), v)


def attention_scale(model: Model) -> None:
    attend(model, _probabilities, 1 + 1e-6)


def one_gradient(model: Model) -> None:
    part(model, f"{LAYER}.feed_forward1.linear1").bias.register_hook(lambda gradient: gradient * 1.0001)


def detached_branch(model: Model) -> None:
    patch_forward(part(model, f"{LAYER}.conv"), lambda forward, *a, **k: forward(*a, **k).detach())


def stft_padding(model: Model) -> None:
    model.preprocessor.featurizer.stft_padding = "reflect"


def batch_norm_momentum(model: Model) -> None:
    part(model, f"{LAYER}.conv.batch_norm").momentum = 0.05


def dropout_missing(model: Model) -> None:
    part(model, f"{LAYER}.feed_forward1").dropout.p = 0.0


def one_number_more(model: Model) -> None:
    patch_forward(model.mask_processor, lambda forward, *a, **k: (forward(*a, **k), torch.rand(1))[0])


# --- correct rewrites


def twin(model: Model) -> None:
    """Nothing is changed."""


def swish_by_hand(model: Model) -> None:
    patch_forward(part(model, f"{LAYER}.conv.activation"), lambda _, x: x / (1 + torch.exp(-x)))


def split_product(model: Model) -> None:
    linear = part(model, f"{LAYER}.feed_forward1.linear2")
    half = linear.in_features // 2

    def forward(_: Any, x: Tensor) -> Tensor:
        return x[..., :half] @ linear.weight[:, :half].T + x[..., half:] @ linear.weight[:, half:].T + linear.bias

    patch_forward(linear, forward)


def softmax_in_another_order(model: Model) -> None:
    def scores(q: Tensor, k: Tensor, v: Tensor, by_distance: Tensor, mask: Tensor, root: float, drop: Any) -> Tensor:
        weights = ((torch.matmul(q, k.transpose(-2, -1)) + by_distance) / root).masked_fill(mask, MASKED_SCORE)
        weights = torch.exp(weights - torch.logsumexp(weights, -1, keepdim=True))
        return torch.matmul(drop(weights.masked_fill(mask, 0.0)), v)

    attend(model, scores)


def fused_attention(model: Model) -> None:
    """torch's own; the dropout of rate 0 is not called."""

    def scores(q: Tensor, k: Tensor, v: Tensor, by_distance: Tensor, mask: Tensor, root: float, _: Any) -> Tensor:
        bias = (by_distance / root).masked_fill(mask, MASKED_SCORE)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1 / root)
        return x.masked_fill(mask.all(-1, keepdim=True), 0.0)

    attend(model, scores)


def norm_by_hand(model: Model) -> None:
    norm = part(model, f"{LAYER}.norm_out")

    def forward(_: Any, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias

    patch_forward(norm, forward)


def norm_through_another_door(model: Model) -> None:
    """The same kernel."""
    norm = part(model, f"{LAYER}.norm_conv")
    patch_forward(norm, lambda _, x: torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
