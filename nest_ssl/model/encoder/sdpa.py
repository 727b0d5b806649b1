"""Both kinds of attention over all frames, through torch's own `scaled_dot_product_attention`.

Its dropout is its own, so that other draws than the open kind's decide. Source: NeMo 3.0.0
`nemo.collections.asr.parts.submodules.multi_head_attention`, `use_pytorch_sdpa`.

Shapes: B batch, T time, P relative positions, D model width, h heads, k = D / h.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nest_ssl.model.encoder import absolute, attention
from nest_ssl.model.encoder.attention import MASKED_SCORE, by_pair

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Kernel:
    """The call of torch's function.

    Args:
        backends: names of `torch.nn.attention.SDPBackend` that it may choose from; none: all.
    """

    def __init__(self, backends: Sequence[str] | None) -> None:
        self.backends = [getattr(SDPBackend, name) for name in backends or ()]

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, hidden_rows: Tensor | None, dropout: float
    ) -> Tensor:
        """`q`, `k` and `v` (B, h, T, k) to (B, h, T, k), zero in rows where everything is masked."""
        with sdpa_kernel(self.backends) if self.backends else nullcontext():
            x_BhTk = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        return x_BhTk if hidden_rows is None else x_BhTk.masked_fill(hidden_rows, 0.0)


def hidden_rows(mask: Bool[Tensor, "B T T"] | None) -> Bool[Tensor, "B 1 T 1"] | None:
    """The queries that may see nothing."""
    return None if mask is None else mask.unsqueeze(1).all(-1, keepdim=True)


class MultiHeadAttention(absolute.MultiHeadAttention):
    """Attention over content alone."""

    def __init__(self, *args: Any, backends: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kernel = Kernel(backends)

    def attend(
        self,
        q_BhTk: Float[Tensor, "B h T k"],
        k_BhTk: Float[Tensor, "B h T k"],
        v_BhTk: Float[Tensor, "B h T k"],
        mask: Bool[Tensor, "B T T"] | None,
    ) -> Float[Tensor, "B h T k"]:
        visible = None if mask is None else ~mask.unsqueeze(1)
        dropout = self.dropout.p if self.training else 0.0
        return self.kernel(q_BhTk, k_BhTk, v_BhTk, attn_mask=visible, hidden_rows=hidden_rows(mask), dropout=dropout)


class RelPositionMultiHeadAttention(attention.RelPositionMultiHeadAttention):
    """Attention over content and distance: scores by distance go in as a mask that is added."""

    def __init__(self, *args: Any, backends: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kernel = Kernel(backends)

    def attend(
        self,
        q_content_BhTk: Float[Tensor, "B h T k"],
        q_distance_BhTk: Float[Tensor, "B h T k"],
        k_BhTk: Float[Tensor, "B h T k"],
        v_BhTk: Float[Tensor, "B h T k"],
        p_1hPk: Float[Tensor, "1 h P k"],
        mask: Bool[Tensor, "B T T"] | None,
    ) -> Float[Tensor, "B h T k"]:
        distance_BhTT = by_pair(torch.matmul(q_distance_BhTk, p_1hPk.transpose(-2, -1))) * (1 / math.sqrt(self.d_k))
        if mask is not None:
            distance_BhTT = distance_BhTT.masked_fill(mask.unsqueeze(1), MASKED_SCORE)
        return self.kernel(
            q_content_BhTk,
            k_BhTk,
            v_BhTk,
            attn_mask=distance_BhTT,
            hidden_rows=hidden_rows(mask),
            dropout=self.dropout.p if self.training else 0.0,
        )
