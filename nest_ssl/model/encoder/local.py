"""Self-attention within a window of frames, and from and to a few global tokens; relative positions.

Source: Longformer (arXiv 2004.05150, sections 3.1 and 3.2) with Transformer-XL's positions (arXiv 1901.02860); NeMo
3.0.0 `nemo.collections.asr.parts.submodules.multi_head_attention`. Products are taken over chunks of two windows, as
NeMo takes them, for how a product is cut into parts decides its bits; what lies on a band is then picked out of them.

Shapes: B batch, T time (filled up to whole chunks), w window, D model width, h heads, k = D / h, J = 2w + 1 places in
the band of a frame, G global tokens, P relative positions (left + right + 1), C chunks, n = T / w blocks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.kernels.dropout import Dropout
from nest_ssl.model.encoder.attention import MASKED_SCORE, RelPositionMultiHeadAttention, sinusoids

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

FILLING = -1.0  # stands for values beyond both ends; their probability is zero


class LocalAttRelPositionalEncoding(nn.Module):
    """Scales the input, and hands out the sinusoids of all distances within the window.

    Args:
        d_model: D.
        context: frames to the left and to the right.
        dropout_rate: on the input; `dropout_rate_emb` on the sinusoids, no module if 0.
        xscale: factor on the input, or None.
    """

    pe: Tensor

    def __init__(
        self, d_model: int, context: list[int], dropout_rate: float, xscale: float | None, dropout_rate_emb: float
    ) -> None:
        super().__init__()
        left, right = context
        self.xscale = xscale
        self.dropout = Dropout(dropout_rate)
        self.dropout_emb = Dropout(dropout_rate_emb) if dropout_rate_emb > 0 else None
        farthest = max(left, right) + 1
        table = sinusoids(farthest, d_model, torch.device("cpu"))[:, farthest - 1 - left : farthest + right]
        self.register_buffer("pe", table, persistent=False)

    def extend_pe(self, length: int) -> None:
        """The window does not grow with the input."""

    def forward(
        self, x: Float[Tensor, "B T D"], cache_len: int = 0
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "1 P D"]]:
        """Input (B, T, D) to scaled input and encodings (1, P, D). `cache_len` is always 0."""
        if self.xscale:
            x = x * self.xscale
        pos_emb = self.pe
        if self.dropout_emb is not None:
            pos_emb = self.dropout_emb(pos_emb)
        return self.dropout(x), pos_emb


class RelPositionMultiHeadAttentionLongformer(RelPositionMultiHeadAttention):
    """Multi-head attention to the frames around each, and to global tokens.

    Args:
        n_head, n_feat, dropout_rate, use_bias: as in the class below it.
        context: frames to the left and to the right.
        global_tokens: how many frames see all and are seen by all, `global_tokens_spacing` frames apart.
        global_attn_separate: whether they have queries, keys and values of their own.
    """

    SEES = ("pad_mask", "pos_emb")

    def __init__(
        self,
        n_head: int,
        n_feat: int,
        dropout_rate: float,
        use_bias: bool,
        context: list[int],
        global_tokens: int = 0,
        global_tokens_spacing: int = 1,
        global_attn_separate: bool = False,
    ) -> None:
        super().__init__(n_head, n_feat, dropout_rate, use_bias=use_bias)
        self.left, self.right = context
        self.global_tokens, self.spacing = global_tokens, global_tokens_spacing
        self.separate = global_attn_separate
        width = self.h * self.d_k
        if global_attn_separate:
            self.global_q = nn.Linear(width, width, bias=use_bias)
            self.global_k = nn.Linear(width, width, bias=use_bias)
            self.global_v = nn.Linear(width, width, bias=use_bias)

    def forward(  # type: ignore[override]
        self,
        query: Float[Tensor, "B _ D"],
        key: Float[Tensor, "B _ D"],
        value: Float[Tensor, "B _ D"],
        pad_mask: Bool[Tensor, "B _"],
        pos_emb: Float[Tensor, "1 P D"],
        cache: None = None,
    ) -> Float[Tensor, "B _ D"]:
        """`query`, `key` and `value` (B, T, D) to (B, T, D); `pad_mask` (B, T) is true beyond the utterance."""
        frames, window = query.size(1), max(self.left, self.right)
        missing = -frames % (2 * window)
        q_BhTk = self._filled(self.linear_q(query), missing)
        k_BhTk = self._filled(self.linear_k(key), missing)
        v_BhTk = self._filled(self.linear_v(value), missing)
        beyond_BT = F.pad(pad_mask, (0, missing), value=True)

        scores_BhTJ = self.local_scores(q_BhTk, k_BhTk, pos_emb, beyond_BT, window)
        if not self.global_tokens:
            x_BThk = weighted_band(self.probabilities(scores_BhTJ, beyond_BT), v_BhTk, window)
            x_BTD: Tensor = self.linear_out(x_BThk.reshape(query.size(0), -1, self.h * self.d_k)[:, :frames])
            return x_BTD
        own = (q_BhTk, k_BhTk, v_BhTk)
        if self.separate:
            own = (
                self._filled(self.global_q(query), missing),
                self._filled(self.global_k(key), missing),
                self._filled(self.global_v(value), missing),
            )
        x_BTD = self.linear_out(self.with_tokens(scores_BhTJ, *own, v_BhTk, beyond_BT, window, frames))
        return x_BTD

    def with_tokens(
        self,
        scores_BhTJ: Float[Tensor, "B h T J"],
        global_q_BhTk: Float[Tensor, "B h T k"],
        global_k_BhTk: Float[Tensor, "B h T k"],
        global_v_BhTk: Float[Tensor, "B h T k"],
        v_BhTk: Float[Tensor, "B h T k"],
        beyond_BT: Bool[Tensor, "B T"],
        window: int,
        frames: int,
    ) -> Float[Tensor, "B _ D"]:
        """What each of so many `frames` sees of its band and of the global tokens, and these of all."""
        global_q_BhTk = global_q_BhTk / math.sqrt(self.d_k)
        last = min(frames, self.global_tokens * self.spacing)
        tokens_G = torch.arange(0, last, self.spacing, device=v_BhTk.device)
        seen_BThG = torch.einsum(
            "blhd,bshd->blhs", global_q_BhTk.transpose(1, 2), global_k_BhTk.transpose(1, 2)[:, tokens_G]
        )
        scores_BhTX = torch.cat((seen_BThG.transpose(1, 2), scores_BhTJ), dim=-1)
        attention_BhTX = self.probabilities(scores_BhTX, beyond_BT)
        to_tokens_BhTG, to_band_BhTJ = attention_BhTX[..., : len(tokens_G)], attention_BhTX[..., len(tokens_G) :]
        v_BThk = v_BhTk.transpose(1, 2)  # one view for both uses: in backward, what comes of these is added up first
        values_BhGk = v_BThk[:, tokens_G].transpose(1, 2)
        from_tokens_BThk = torch.matmul(to_tokens_BhTG.clone(), values_BhGk.clone()).transpose(1, 2)
        x_BThk = from_tokens_BThk + weighted_band(to_band_BhTJ.contiguous(), v_BThk.transpose(1, 2), window)

        x_BTD = x_BThk.reshape(v_BhTk.size(0), -1, self.h * self.d_k)[:, :frames]
        x_BTD[:, tokens_G] = self.seeing_all(global_q_BhTk, global_k_BhTk, global_v_BhTk, tokens_G, beyond_BT)
        return x_BTD

    def probabilities(
        self, scores_BhTX: Float[Tensor, "B h T X"], beyond_BT: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B h T X"]:
        """Their softmax, zero in rows beyond the utterance, dropped out in training."""
        hidden_B1T1 = beyond_BT[:, None, :, None]
        dropped: Tensor = self.dropout(torch.softmax(scores_BhTX, dim=-1).masked_fill(hidden_B1T1, 0.0))
        return dropped

    def local_scores(
        self,
        q_BhTk: Float[Tensor, "B h T k"],
        k_BhTk: Float[Tensor, "B h T k"],
        pos_emb: Float[Tensor, "1 P D"],
        beyond_BT: Bool[Tensor, "B T"],
        window: int,
    ) -> Float[Tensor, "B h T J"]:
        """Scores of each frame's band, out[t, j] for the frame t - w + j; -10000 outside of the context.

        NeMo adds the scores of distances at both ends of the band, where they belong only if `left` and `right` are the
        same: with a smaller `right`, say, those of the future fall outside of the context. So it is here.
        """
        q_content_BhTk = q_BhTk + self.pos_bias_u.unsqueeze(1)
        q_distance_BhTk = q_BhTk + self.pos_bias_v.unsqueeze(1)
        content_BhTJ = banded_product(q_content_BhTk, k_BhTk, window)
        p_1hPk = self._heads(self.linear_pos(pos_emb)).transpose(1, 2)
        distance_BhTP = torch.matmul(q_distance_BhTk, p_1hPk.transpose(-2, -1))
        past_BhTL, future_BhTR = distance_BhTP[..., : self.left], distance_BhTP[..., self.left :]
        between = torch.zeros_like(content_BhTJ[..., : 2 * window - self.left - self.right])
        scores_BhTJ = (content_BhTJ + torch.cat((past_BhTL, between, future_BhTR), dim=-1)) / math.sqrt(self.d_k)

        places_J = torch.arange(2 * window + 1, device=q_BhTk.device)
        outside_J = (places_J < window - self.left) | (places_J > window + self.right)
        scores_BhTJ = scores_BhTJ.masked_fill(outside_J, MASKED_SCORE)
        keys_BT = torch.zeros_like(beyond_BT, dtype=q_BhTk.dtype).masked_fill(beyond_BT, MASKED_SCORE)
        hidden_BTJ = F.pad(keys_BT, (window, window), value=-math.inf).unfold(1, 2 * window + 1, 1)
        return scores_BhTJ + hidden_BTJ.unsqueeze(1)

    def seeing_all(
        self,
        q_BhTk: Float[Tensor, "B h T k"],
        k_BhTk: Float[Tensor, "B h T k"],
        v_BhTk: Float[Tensor, "B h T k"],
        tokens_G: Int[Tensor, " G"],
        beyond_BT: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B G D"]:
        """What the global tokens make of all frames.

        NeMo reads the queries (G, B, h, k) as (B h, G, k), so that with several utterances or heads they meet the
        keys of others. So it is here.
        """
        batch, tokens = q_BhTk.size(0), len(tokens_G)
        q_BGhk = q_BhTk.transpose(1, 2)[:, tokens_G]
        q_XGk = q_BGhk.transpose(0, 1).reshape(batch * self.h, -1, self.d_k)
        k_XTk, v_XTk = (x.reshape(batch * self.h, -1, self.d_k) for x in (k_BhTk, v_BhTk))
        scores_BhGT = torch.bmm(q_XGk, k_XTk.transpose(1, 2)).view(batch, self.h, tokens, -1)
        scores_BhGT = scores_BhGT.masked_fill(beyond_BT[:, None, None, :], torch.finfo(scores_BhGT.dtype).min)
        scores_XGT = scores_BhGT.view(batch * self.h, tokens, -1)
        # NeMo's is float32, so that it stops in float64.
        dtype = torch.promote_types(scores_XGT.dtype, torch.float32) if self.training else None
        attention_XGT = self.dropout(torch.softmax(scores_XGT, dim=-1, dtype=dtype))
        x_BhGk = torch.bmm(attention_XGT, v_XTk).view(batch, self.h, tokens, self.d_k)
        return x_BhGk.transpose(1, 2).reshape(batch, tokens, -1)

    def _filled(self, x_BTD: Float[Tensor, "B _ D"], missing: int) -> Float[Tensor, "B h T k"]:
        return F.pad(self._heads(x_BTD).transpose(1, 2), (0, 0, 0, missing))


def banded_product(
    q_BhTk: Float[Tensor, "B h T k"], k_BhTk: Float[Tensor, "B h T k"], window: int
) -> Float[Tensor, "B h T J"]:
    """Products of each row of `q` with those of `k` up to `window` rows away; -inf beyond both ends.

    Row r of block i lies in chunk i at r and in chunk i - 1 at window + r: of the first come the places from the row
    itself on, of the second those before it. The first block has no chunk before it, the last none of its own.
    """
    batch, heads, frames, width = q_BhTk.shape
    q_XCwk, k_XCwk = (_chunks(x.reshape(batch * heads, frames, width), 2 * window, window) for x in (q_BhTk, k_BhTk))
    products_XCww = torch.einsum("bcxd,bcyd->bcxy", q_XCwk, k_XCwk)
    device = q_BhTk.device
    row_T1 = torch.arange(frames, device=device).unsqueeze(1)
    other_TJ = row_T1 + torch.arange(-window, window + 1, device=device)
    block_T1 = row_T1 // window
    chunk_TJ = torch.where(other_TJ < row_T1, block_T1 - 1, block_T1).clamp(0, frames // window - 2)
    exists_TJ = (other_TJ >= 0) & (other_TJ < frames)
    place_TJ = torch.where(exists_TJ, other_TJ - chunk_TJ * window, 0)
    band_XTJ = products_XCww[:, chunk_TJ, row_T1 - chunk_TJ * window, place_TJ]
    return band_XTJ.view(batch, heads, frames, -1).masked_fill(~exists_TJ, -math.inf)


def weighted_band(
    attention_BhTJ: Float[Tensor, "B h T J"], v_BhTk: Float[Tensor, "B h T k"], window: int
) -> Float[Tensor, "B T h k"]:
    """Sums of the rows of `v` in each row's band, weighted by `attention`."""
    batch, heads, frames, width = v_BhTk.shape
    blocks = frames // window
    padded = F.pad(v_BhTk.reshape(batch * heads, frames, width), (0, 0, window, window), value=FILLING)
    v_XnYk = _chunks(padded, 3 * window, window)
    # Row r of a block meets rows r to r + 2w of its 3w: the band, written one place further right in each row.
    rows = attention_BhTJ.reshape(batch * heads, blocks, window, 2 * window + 1)
    skewed = F.pad(rows, (0, window)).flatten(2)[..., : window * 3 * window]
    attention_XnwY = skewed.view(batch * heads, blocks, window, 3 * window)
    x_Xnwk = torch.einsum("bcwd,bcdh->bcwh", attention_XnwY, v_XnYk)
    return x_Xnwk.view(batch, heads, frames, width).transpose(1, 2)


def _chunks(x_XTk: Float[Tensor, "X T k"], size: int, step: int) -> Float[Tensor, "X C size k"]:
    """Overlapping stretches of `size` rows, `step` apart: a view."""
    number = (x_XTk.size(1) - size) // step + 1
    batch, row, column = x_XTk.stride()
    return x_XTk.as_strided((x_XTk.size(0), number, size, x_XTk.size(2)), (batch, step * row, row, column))
