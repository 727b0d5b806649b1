"""Self-attention with relative positions, and the positional encoding that goes with it.

Source: Transformer-XL (arXiv 1901.02860, section 3.3, appendix B); NeMo 3.0.0
`nemo.collections.asr.parts.submodules.multi_head_attention`.
Its other kinds: `absolute.py`, `local.py` (a window and global tokens), `sdpa.py` (torch's own function).

Shapes: B batch, T time, P relative positions (2T - 1, from T - 1 down to -(T - 1)), D model width, h heads, k = D / h.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nest_ssl.kernels.dropout import Dropout

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

MASKED_SCORE = -10000.0
WAVELENGTHS = 10000.0  # the longest sinusoid, in positions (and 2 pi)


class RelPositionalEncoding(nn.Module):
    """Scales the input, and hands out the sinusoids of all distances between two of its frames.

    Args:
        d_model: D.
        dropout_rate: on the input; `dropout_rate_emb` on the sinusoids, no module if 0.
        max_len: the table's initial size, in frames.
        xscale: factor on the input, or None.
    """

    pe: Tensor

    def __init__(
        self, d_model: int, dropout_rate: float, max_len: int, xscale: float | None, dropout_rate_emb: float
    ) -> None:
        super().__init__()
        self.xscale = xscale
        self.dropout = Dropout(dropout_rate)
        self.dropout_emb = Dropout(dropout_rate_emb) if dropout_rate_emb > 0 else None
        self.register_buffer("pe", sinusoids(max_len, d_model, torch.device("cpu")), persistent=False)

    def extend_pe(self, length: int) -> None:
        """Make the table large enough for inputs of `length` frames."""
        if self.pe.size(1) < 2 * length - 1:
            self.pe = sinusoids(length, self.pe.size(2), self.pe.device).to(self.pe.dtype)

    def forward(
        self, x: Float[Tensor, "B T D"], cache_len: int = 0
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "1 P D"]]:
        """Input (B, T, D) to scaled input and encodings (1, P, D). `cache_len` is NeMo's, for streaming: always 0."""
        if self.xscale:
            x = x * self.xscale
        frames, zero_distance = x.size(1), self.pe.size(1) // 2
        pos_emb = self.pe[:, zero_distance - frames + 1 : zero_distance + frames]
        if self.dropout_emb is not None:
            pos_emb = self.dropout_emb(pos_emb)
        return self.dropout(x), pos_emb


def sinusoids(length: int, d_model: int, device: torch.device) -> Tensor:
    """Encodings (1, 2 * length - 1, D) of the distances length - 1 down to -(length - 1), sine and cosine by turns."""
    distances_P1 = torch.arange(length - 1, -length, -1, dtype=torch.float32, device=device).unsqueeze(1)
    frequencies = torch.exp(
        torch.arange(0, d_model, 2, dtype=torch.float32, device=device) * -(math.log(WAVELENGTHS) / d_model)
    )
    table_PD = torch.zeros(2 * length - 1, d_model, device=device)
    table_PD[:, 0::2] = torch.sin(distances_P1 * frequencies)
    table_PD[:, 1::2] = torch.cos(distances_P1 * frequencies)
    return table_PD.unsqueeze(0)


class AttentionHeads(nn.Module):
    """The linear layers into the heads of attention and out of them.

    Args:
        n_head, n_feat: h, D.
        dropout_rate: on the attention probabilities.
        use_bias: biases in the linear layers.
    """

    def __init__(self, n_head: int, n_feat: int, dropout_rate: float, use_bias: bool = True) -> None:
        super().__init__()
        self.h, self.d_k = n_head, n_feat // n_head
        self.linear_q = nn.Linear(n_feat, n_feat, bias=use_bias)
        self.linear_k = nn.Linear(n_feat, n_feat, bias=use_bias)
        self.linear_v = nn.Linear(n_feat, n_feat, bias=use_bias)
        self.linear_out = nn.Linear(n_feat, n_feat, bias=use_bias)
        self.dropout = Dropout(dropout_rate)

    def _heads(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T h k"]:
        return x_BTD.view(x_BTD.size(0), -1, self.h, self.d_k)

    def _joined(self, x_BhTk: Float[Tensor, "B h T k"]) -> Float[Tensor, "B T D"]:
        x_BTD: Tensor = self.linear_out(x_BhTk.transpose(1, 2).reshape(x_BhTk.size(0), -1, self.h * self.d_k))
        return x_BTD


class RelPositionMultiHeadAttention(AttentionHeads):
    """Multi-head attention whose scores depend on content and on distance.

    Args:
        n_head, n_feat, dropout_rate: as in the class below it.
        pos_bias_u, pos_bias_v: biases (h, k) shared with other layers; None for this layer's own, zero at first.
        use_bias: as there (never in the linear layer of positions).
    """

    SEES = ("mask", "pos_emb")  # of what a layer knows, the arguments of `forward`

    def __init__(
        self,
        n_head: int,
        n_feat: int,
        dropout_rate: float,
        pos_bias_u: nn.Parameter | None = None,
        pos_bias_v: nn.Parameter | None = None,
        use_bias: bool = True,
    ) -> None:
        super().__init__(n_head, n_feat, dropout_rate, use_bias)
        self.linear_pos = nn.Linear(n_feat, n_feat, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(self.h, self.d_k)) if pos_bias_u is None else pos_bias_u
        self.pos_bias_v = nn.Parameter(torch.zeros(self.h, self.d_k)) if pos_bias_v is None else pos_bias_v

    def forward(
        self,
        query: Float[Tensor, "B T D"],
        key: Float[Tensor, "B T D"],
        value: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T T"] | None,
        pos_emb: Float[Tensor, "1 P D"],
        cache: None = None,
    ) -> Float[Tensor, "B T D"]:
        """`query`, `key` and `value` (B, T, D) to (B, T, D).

        `mask` (B, T, T) is true where nothing may be seen, `pos_emb` (1, P, D); `cache`, for streaming, is always None.
        """
        q_BThk = self._heads(self.linear_q(query))
        k_BhTk = self._heads(self.linear_k(key)).transpose(1, 2)
        v_BhTk = self._heads(self.linear_v(value)).transpose(1, 2)
        p_1hPk = self._heads(self.linear_pos(pos_emb)).transpose(1, 2)
        q_content_BhTk = (q_BThk + self.pos_bias_u).transpose(1, 2)
        q_distance_BhTk = (q_BThk + self.pos_bias_v).transpose(1, 2)
        return self._joined(self.attend(q_content_BhTk, q_distance_BhTk, k_BhTk, v_BhTk, p_1hPk, mask))

    def attend(
        self,
        q_content_BhTk: Float[Tensor, "B h T k"],
        q_distance_BhTk: Float[Tensor, "B h T k"],
        k_BhTk: Float[Tensor, "B h T k"],
        v_BhTk: Float[Tensor, "B h T k"],
        p_1hPk: Float[Tensor, "1 h P k"],
        mask: Bool[Tensor, "B T T"] | None,
    ) -> Float[Tensor, "B h T k"]:
        """The values, weighted by how well keys and distances fit the queries."""
        distance_BhTT = by_pair(torch.matmul(q_distance_BhTk, p_1hPk.transpose(-2, -1)))
        content_BhTT = torch.matmul(q_content_BhTk, k_BhTk.transpose(-2, -1))
        scores_BhTT = (content_BhTT + distance_BhTT) / math.sqrt(self.d_k)

        attention_BhTT = self.dropout(masked_softmax(scores_BhTT, mask))
        x_BhTk = torch.matmul(attention_BhTT, v_BhTk)
        return x_BhTk


def by_pair(scores_BhTP: Float[Tensor, "B h T P"]) -> Float[Tensor, "B h T T"]:
    """Scores by distance to scores by pair of frames: out[i, j] = in[i, T - 1 - i + j] (B, h, T, T), a view.

    Read on from element T - 1 in rows shorter by one, so that each row begins one element further left. (NeMo pads and
    copies for it; at 16 s this is 2.5 times faster, backward included.)
    """
    batch, heads, frames, distances = scores_BhTP.shape
    if frames == 1:
        return scores_BhTP
    shifted = scores_BhTP.flatten(2)[..., frames - 1 : frames - 1 + frames * (distances - 1)]
    return shifted.view(batch, heads, frames, distances - 1)[..., :frames]


def masked_softmax(
    scores_BhTT: Float[Tensor, "B h T T"], mask_BTT: Bool[Tensor, "B T T"] | None
) -> Float[Tensor, "B h T T"]:
    """Probabilities that are zero where masked, also in rows where everything is."""
    if mask_BTT is None:
        return torch.softmax(scores_BhTT, dim=-1)
    mask_B1TT = mask_BTT.unsqueeze(1)
    return torch.softmax(scores_BhTT.masked_fill(mask_B1TT, MASKED_SCORE), dim=-1).masked_fill(mask_B1TT, 0.0)
