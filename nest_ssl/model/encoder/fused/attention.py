"""x + dropout(attention(norm(x))) as one autograd function.

Kept for backward: x, positions, queries with either bias, keys and values as the products read them, probabilities, the
values that they weigh, and which elements both dropouts keep. Scores, the shift of distances, both masks and dropout's
products are made in place, and some again in backward.

Shapes: B batch, T time, P relative positions, D model width, h heads, k = D / h; N = B x h.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nest_ssl.kernels.available import PAIRS, loops
from nest_ssl.kernels.dropout import drop, drop_, factor_of, loops_for, unfilled
from nest_ssl.kernels.once import once_differentiable
from nest_ssl.model.encoder.attention import MASKED_SCORE, by_pair
from nest_ssl.model.encoder.fused.pieces import draw_kept, linear_backward, normalise, normalise_backward


class AttentionBranch(torch.autograd.Function):
    """`apply(x, pos_emb, mask, eps, rate on probabilities, rate on the branch, 13 weights)`.

    The weights: norm's weight and bias; weight and bias of queries', keys' and values' linear layers; weight of
    positions'; biases of content and of distance (h, k); weight and bias of the last linear layer. `mask` (B, T, T) is
    true where nothing may be seen, or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        pos_1PD: Tensor,
        mask_BTT: Tensor | None,
        eps: float,
        attention_rate: float,
        branch_rate: float,
        *weights: Tensor,
    ) -> Tensor:
        norm_weight, norm_bias, w_q, b_q, w_k, b_k, w_v, b_v, w_pos, content_hk, distance_hk, w_out, b_out = weights
        batch, frames, width = x_BTD.shape
        heads = len(content_hk)
        pairs = loops_for(x_BTD, PAIRS) and loops_of_pairs()
        if mask_BTT is not None and not mask_BTT.any():
            mask_BTT = None  # it fills nothing
        y_BTD, mean, rstd = normalise(x_BTD, norm_weight, norm_bias, eps)
        q_BTD, k_BTD, v_BTD = F.linear(y_BTD, w_q, b_q), F.linear(y_BTD, w_k, b_k), F.linear(y_BTD, w_v, b_v)
        p_1PD = F.linear(pos_1PD, w_pos)
        queries = _rows(q_BTD, heads, content_hk), _rows(q_BTD, heads, distance_hk)
        k_NkT, v_NTk = _columns(k_BTD, heads, batch), _rows(v_BTD, heads)
        del y_BTD, q_BTD, k_BTD, v_BTD
        distance_NTP = torch.bmm(queries[1], _columns(p_1PD, heads, batch))
        scores_NTT = torch.bmm(queries[0], k_NkT)
        _score_(scores_NTT, distance_NTP, mask_BTT, math.sqrt(width // heads), pairs)
        del distance_NTP
        probabilities_NTT = torch.softmax(scores_NTT, dim=-1)
        kept = draw_kept(scores_NTT, attention_rate)
        del scores_NTT
        weighing_NTT = _weighing(probabilities_NTT, kept, mask_BTT, attention_rate, pairs)
        mixed_BhTk = torch.bmm(weighing_NTT, v_NTk).view(batch, heads, frames, -1)
        mixed_BTD = mixed_BhTk.transpose(1, 2).reshape(batch, frames, width)
        out_BTD = F.linear(mixed_BTD, w_out, b_out)
        branch_kept = draw_kept(out_BTD, branch_rate)
        made = (mean, rstd, p_1PD, *queries, k_NkT, v_NTk, probabilities_NTT, kept, mixed_BTD, branch_kept)
        ctx.save_for_backward(x_BTD, pos_1PD, mask_BTT, *made, *weights)
        ctx.numbers = eps, attention_rate, branch_rate
        return drop_(out_BTD, branch_kept, branch_rate).add_(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, pos_1PD, mask_BTT, mean, rstd, *made_and_weights = ctx.saved_tensors
        p_1PD, by_content_NTk, by_distance_NTk, k_NkT, v_NTk, probabilities_NTT, *rest = made_and_weights
        kept, mixed_BTD, branch_kept, *weights = rest
        norm_weight, norm_bias, w_q, b_q, w_k, b_k, w_v, b_v, _, content_hk, _, w_out, b_out = weights
        eps, attention_rate, branch_rate = ctx.numbers
        heads, (batch, frames, _) = len(content_hk), x_BTD.shape
        shape, pairs = (batch, heads, frames, frames), loops_for(x_BTD, PAIRS) and loops_of_pairs()
        grad_BTD = grad_BTD.contiguous()
        d_BTD = drop(grad_BTD, branch_kept, branch_rate)
        d_mixed_BTD, d_w_out, d_b_out = linear_backward(d_BTD, mixed_BTD, w_out, b_out)

        # The product with the values, dropout, both masks, softmax, scale.
        d_NTk = _rows(d_mixed_BTD, heads)
        weighing_NTT = _weighing(probabilities_NTT, kept, mask_BTT, attention_rate, pairs)
        d_v_NTk = torch.bmm(weighing_NTT.transpose(1, 2), d_NTk)
        d_NTT = torch.bmm(d_NTk, v_NTk.transpose(1, 2), out=weighing_NTT)
        d_NTT = _weighing(d_NTT, kept, mask_BTT, attention_rate, pairs)
        d_NTT = torch.ops.aten._softmax_backward_data(d_NTT, probabilities_NTT, -1, d_NTT.dtype)
        del weighing_NTT

        # Scores by content and by distance.
        d_NTP = _unscore_(d_NTT, mask_BTT, math.sqrt(content_hk.size(1)), pos_1PD.size(1), pairs)
        d_content_NTk = torch.bmm(d_NTT, k_NkT.transpose(1, 2))
        d_k_NkT = torch.bmm(by_content_NTk.transpose(1, 2), d_NTT)
        del d_NTT
        d_distance_NTk = torch.bmm(d_NTP, _columns(p_1PD, heads, len(x_BTD)).transpose(1, 2))
        d_p_NkP = torch.bmm(by_distance_NTk.transpose(1, 2), d_NTP)
        d_p_PD = _together(d_p_NkP.view(len(x_BTD), heads, -1, pos_1PD.size(1)).sum(0, keepdim=True).transpose(2, 3))
        d_w_pos = d_p_PD.flatten(0, 1).t().mm(pos_1PD.flatten(0, 1))
        del d_NTP, d_p_NkP

        # Queries, keys, values.
        d_content_BThk, d_distance_BThk = (
            each.view(*shape[:3], -1).transpose(1, 2) for each in (d_content_NTk, d_distance_NTk)
        )
        d_q_BTD = (d_content_BThk + d_distance_BThk).reshape(x_BTD.shape)
        d_k_BTD = _together(d_k_NkT.view(*shape[:2], -1, shape[2]).transpose(2, 3))
        d_v_BTD = _together(d_v_NTk.view(*shape[:3], -1))
        y_BTD, *_ = normalise(x_BTD, norm_weight, norm_bias, eps)
        d_y_BTD, d_w_v, d_b_v = linear_backward(d_v_BTD, y_BTD, w_v, b_v)
        d_y_of_k_BTD, d_w_k, d_b_k = linear_backward(d_k_BTD, y_BTD, w_k, b_k)
        d_y_of_q_BTD, d_w_q, d_b_q = linear_backward(d_q_BTD, y_BTD, w_q, b_q)
        d_y_BTD.add_(d_y_of_k_BTD).add_(d_y_of_q_BTD)  # in the order in which autograd comes to them
        d_x_BTD, *d_norm = normalise_backward(d_y_BTD, x_BTD, mean, rstd, norm_weight, norm_bias)
        d_biases = d_content_BThk.sum((0, 1)), d_distance_BThk.sum((0, 1))
        d_inputs = d_w_q, d_b_q, d_w_k, d_b_k, d_w_v, d_b_v, d_w_pos
        return (d_x_BTD.add_(grad_BTD), *[None] * 5, *d_norm, *d_inputs, *d_biases, d_w_out, d_b_out)


def _rows(x_BTD: Tensor, heads: int, bias_hk: Tensor | None = None) -> Tensor:
    """(B, T, D), with the bias added, as N matrices (T, k), laid out as `torch.matmul` lays them out."""
    x_BThk = x_BTD.view(*x_BTD.shape[:2], heads, -1)
    x_BThk = x_BThk if bias_hk is None else x_BThk + bias_hk
    return x_BThk.transpose(1, 2).reshape(-1, x_BTD.size(1), x_BThk.size(3))


def _columns(x_BTD: Tensor, heads: int, batch: int) -> Tensor:
    """(B or 1, T, D) as N matrices (k, T), laid out as `torch.matmul` lays them out."""
    x_BhkT = x_BTD.view(*x_BTD.shape[:2], heads, -1).permute(0, 2, 3, 1)
    if len(x_BTD) < batch and heads > 1:  # laid out once for all of the batch; of one head it stays as it lies
        x_BhkT = x_BhkT.contiguous()
    return x_BhkT.expand(batch, -1, -1, -1).reshape(-1, *x_BhkT.shape[2:])


def _together(x_BhTk: Tensor) -> Tensor:
    """(B, h, T, k) to (B, T, D): a view where it may be one, as autograd has it, for layouts order sums."""
    return x_BhTk.transpose(1, 2).reshape(x_BhTk.size(0), x_BhTk.size(2), -1)


@cache
def loops_of_pairs() -> ModuleType | None:
    """Those loops over pairs of frames, if they have the bits of torch's operators here: tried once a process."""
    draws, options = torch.Generator().manual_seed(0), {"dtype": torch.float32, "device": "cpu"}
    sizes = (4, 37, 37), (4, 37, 73), (4, 37, 37), (2, 37, 37)
    scores, distance, *rest = (torch.rand(size, generator=draws, **options) - 0.5 for size in sizes)  # type: ignore[call-overload]
    (kept, mask), factor = (each > 0 for each in rest), factor_of(0.1, scores.dtype)
    found = list[list[Tensor]]()
    for pairs in (loops(PAIRS), None):
        score, d = scores.clone(), scores.clone()
        _score_(score, distance, mask, math.sqrt(3), pairs)
        dropped = _weighing(scores, kept, mask, 0.1, pairs) if pairs else _fill_(scores * factor.mul(kept), mask, 0.0)
        found.append([score, dropped, _unscore_(d, mask, math.sqrt(3), 73, pairs), d])
    same = all(torch.equal(*(each.view(torch.int32) for each in both)) for both in zip(*found, strict=True))
    return loops(PAIRS) if same else None


def _score_(
    scores_NTT: Tensor, distance_NTP: Tensor, mask_BTT: Tensor | None, divisor: float, pairs: ModuleType | None
) -> None:
    """To scores by content add those by distance, divide, and mask, in place."""
    if pairs is not None:
        pairs.score(
            scores_NTT.numpy(), distance_NTP.numpy(), _bytes(mask_BTT, scores_NTT.size(1)), divisor, MASKED_SCORE
        )
        return
    scores_NTT.add_(by_pair(distance_NTP.unsqueeze(1)).squeeze(1)).div_(divisor)
    _fill_(scores_NTT, mask_BTT, MASKED_SCORE)


def _weighing(
    x_NTT: Tensor, kept: Tensor | None, mask_BTT: Tensor | None, rate: float, pairs: ModuleType | None
) -> Tensor:
    """What dropout makes of `x`, then masked: NeMo does it the other way round, and zero is zero."""
    if kept is None or pairs is None:
        return _fill_(drop(x_NTT, kept, rate), mask_BTT, 0.0)
    out_NTT, factor = unfilled(x_NTT, *x_NTT.shape), factor_of(rate, x_NTT.dtype).item()
    pairs.drop(out_NTT.numpy(), x_NTT.numpy(), kept.view(torch.uint8).numpy(), _bytes(mask_BTT, x_NTT.size(1)), factor)
    return out_NTT


def _unscore_(
    d_NTT: Tensor, mask_BTT: Tensor | None, divisor: float, distances: int, pairs: ModuleType | None
) -> Tensor:
    """Gradients of scores to those by content, in place, and by distance (N, T, P), zero where no pair of frames is so
    far apart."""
    if pairs is not None:
        d_NTP = unfilled(d_NTT, *d_NTT.shape[:2], distances)
        pairs.unscore(d_NTP.numpy(), d_NTT.numpy(), _bytes(mask_BTT, d_NTT.size(1)), divisor)
        return d_NTP
    d_NTP = d_NTT.new_zeros(*d_NTT.shape[:2], distances)
    by_pair(d_NTP.unsqueeze(1)).squeeze(1).copy_(_fill_(d_NTT, mask_BTT, 0.0).div_(divisor))
    return d_NTP


def _fill_(x_NTT: Tensor, mask_BTT: Tensor | None, value: float) -> Tensor:
    if mask_BTT is not None:
        x_NTT.view(len(mask_BTT), -1, *x_NTT.shape[1:]).masked_fill_(mask_BTT.unsqueeze(1), value)
    return x_NTT


def _bytes(mask_BTT: Tensor | None, frames: int) -> Any:
    """A mask as loops take it: of nothing if there is none."""
    if mask_BTT is None:
        return np.zeros((1, frames, frames), np.uint8)
    return mask_BTT.contiguous().view(torch.uint8).numpy()
