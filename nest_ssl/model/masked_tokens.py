"""Decoder and loss of the tokens that count, and of no other: what `heads.py` and `loss.py` compute, in a third of the
time and memory where a third is masked.

Sums are added up in another order than there, and the softmax is taken in float32 whatever the precision: of
`numerics: fast` alone.

Shapes: B batch, F features, T frames, S tokens (T / 8), K tokens that count, D model width, C codes, H codebooks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.loss import MultiMLMLoss

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class MaskedTokens:
    """Which tokens count. Made as soon as there is a mask: by the time of the loss a GPU has said how many they are,
    and the host does not wait for it.

    Args:
        masks_BFT: 1 where masked, whole frames.
        combine_time_steps: frames of a token.
        threshold: the share of a token's frames above which it counts.
    """

    def __init__(self, masks_BFT: Float[Tensor, "B F T"], combine_time_steps: int, threshold: float) -> None:
        by_token = masks_BFT[:, 0].reshape(len(masks_BFT), -1, combine_time_steps)
        self.counts_BS = by_token.mean(-1) > threshold
        self._number, self._known = self.counts_BS.sum(), None
        if masks_BFT.is_cuda:
            there = torch.empty_like(self._number, device="cpu", pin_memory=True)
            self._number = there.copy_(self._number, non_blocking=True)
            self._known = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._known.record()

    def places(self) -> Int[Tensor, " K"]:
        """Where they are among all tokens of the batch (B x S), in order."""
        if self._known is not None:
            self._known.synchronize()
        order_BS: Tensor = self.counts_BS.flatten().to(torch.uint8).argsort(descending=True, stable=True)
        return order_BS[: int(self._number)]


def masked_token_loss(
    decoder: MultiSoftmaxDecoder,
    loss: MultiMLMLoss,
    encoded_BDS: Float[Tensor, "B D S"],
    tokens_BSH: Int[Tensor, "B _ *H"],
    masked: MaskedTokens,
) -> Float[Tensor, ""]:
    """The loss of `decoder` and `loss` from encodings (B, D, S) and tokens (B, S, H), or (B, S) of one codebook."""
    batch, width, steps = encoded_BDS.shape
    places_K = masked.places()
    (linear,) = decoder.decoder_layers
    assert isinstance(linear, nn.Conv1d)
    rows_KD = encoded_BDS.transpose(1, 2).reshape(-1, width).index_select(0, places_K)
    logits_KX = F.linear(rows_KD, linear.weight.squeeze(-1), linear.bias)
    if len(places_K) == 0 and loss.mlm_loss.no_masked_token == "zero":
        return logits_KX.sum()  # of nothing, on the graph
    logits_KX = logits_KX.to(torch.promote_types(logits_KX.dtype, torch.float32))
    logits_KCH = logits_KX.view(-1, decoder.num_classes, decoder.num_decoders)
    targets_BSH = tokens_BSH.reshape(batch, tokens_BSH.size(1), -1)
    targets_BSH = F.pad(targets_BSH, (0, 0, 0, steps - targets_BSH.size(1)))  # clean and noisy audio differ in length
    targets_KH = targets_BSH.flatten(0, 1).index_select(0, places_K)
    books = range(loss.num_decoders)
    return torch.stack([F.cross_entropy(logits_KCH[..., h], targets_KH[:, h]) for h in books]).mean()
