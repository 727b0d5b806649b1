"""Self-attention with absolute positions, and the positional encoding that goes with it.

Source: Transformer (arXiv 1706.03762, sections 3.2 and 3.5); NeMo 3.0.0
`nemo.collections.asr.parts.submodules.multi_head_attention`.

Shapes: B batch, T time, D model width, h heads, k = D / h.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nest_ssl.kernels.dropout import Dropout
from nest_ssl.model.encoder.attention import AttentionHeads, masked_softmax, sinusoids

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class PositionalEncoding(nn.Module):
    """Adds to the scaled input the sinusoids of its frames' places.

    Args:
        d_model: D.
        dropout_rate: on the sum.
        max_len: the table's initial size, in frames.
        xscale: factor on the input, or None.
    """

    pe: Tensor

    def __init__(self, d_model: int, dropout_rate: float, max_len: int, xscale: float | None) -> None:
        super().__init__()
        self.xscale = xscale
        self.dropout = Dropout(dropout_rate)
        self.register_buffer("pe", _of_places(max_len, d_model, torch.device("cpu")), persistent=False)

    def extend_pe(self, length: int) -> None:
        """Make the table large enough for inputs of `length` frames."""
        if self.pe.size(1) < length:
            self.pe = _of_places(length, self.pe.size(2), self.pe.device).to(self.pe.dtype)

    def forward(
        self, x: Float[Tensor, "B T D"], cache_len: int = 0
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "1 T D"]]:
        """Input (B, T, D) to its sum with the encodings, and these (1, T, D). `cache_len` is always 0."""
        if self.xscale:
            x = x * self.xscale
        pos_emb = self.pe[:, : x.size(1)]
        return self.dropout(x + pos_emb), pos_emb


def _of_places(length: int, d_model: int, device: torch.device) -> Tensor:
    """Encodings (1, length, D) of 0 up to length - 1."""
    return sinusoids(length, d_model, device)[:, :length].flip(1)


class MultiHeadAttention(AttentionHeads):
    """Multi-head attention whose scores depend on content alone."""

    SEES = ("mask",)  # of what a layer knows, the arguments of `forward`

    def forward(
        self,
        query: Float[Tensor, "B T D"],
        key: Float[Tensor, "B T D"],
        value: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T T"] | None,
        cache: None = None,
    ) -> Float[Tensor, "B T D"]:
        """`query`, `key` and `value` (B, T, D) to (B, T, D); `mask` (B, T, T) is true where nothing may be seen."""
        q_BhTk, k_BhTk, v_BhTk = (
            self._heads(linear(x)).transpose(1, 2)
            for linear, x in ((self.linear_q, query), (self.linear_k, key), (self.linear_v, value))
        )
        return self._joined(self.attend(q_BhTk, k_BhTk, v_BhTk, mask))

    def attend(
        self,
        q_BhTk: Float[Tensor, "B h T k"],
        k_BhTk: Float[Tensor, "B h T k"],
        v_BhTk: Float[Tensor, "B h T k"],
        mask: Bool[Tensor, "B T T"] | None,
    ) -> Float[Tensor, "B h T k"]:
        """The values, weighted by how well keys fit the queries."""
        scores_BhTT = torch.matmul(q_BhTk, k_BhTk.transpose(-2, -1)) / math.sqrt(self.d_k)
        return torch.matmul(self.dropout(masked_softmax(scores_BhTT, mask)), v_BhTk)
