"""What a GPU alone knows of a step: how many tokens count, and how many rows of the quantizer are too close to call.

It is asked for both as soon as it can know, and the host looks behind the encoder, whose kernels are launched
meanwhile. In `nearest_codes` and `MLMLoss.forward` the host asks when it needs to know, and waits.

The operations on numbers are those of `quantizer.py` and `loss.py`, in their order, and so are the bits.

Shapes: B batch, F features, T frames, S tokens (T / 8), K tokens that count, H codebooks, R rows to look up (B x S),
D code dimension, C codes.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.model.encoder.fused.choice import Methods
from nest_ssl.model.loss import MLMLoss, MultiMLMLoss
from nest_ssl.model.quantizer import RandomProjectionVectorQuantizer, by_score, distances, nearest_codes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from nest_ssl.model.nest import NestModel

DEVICE = "cuda"  # the kind that is asked in the exact mode
METHODS = Methods(RandomProjectionVectorQuantizer, MultiMLMLoss, MLMLoss, nn.NLLLoss)


class Places:
    """Where a mask is true. How often it is, a GPU sends to the host from now on; `look` waits for it."""

    def __init__(self, mask: Bool[Tensor, "*N"]) -> None:
        self._mask, self._number, self._known = mask.flatten(), mask.sum(), None
        if mask.is_cuda:
            there = torch.empty_like(self._number, device="cpu", pin_memory=True)
            self._number = there.copy_(self._number, non_blocking=True)
            self._known = torch.cuda.current_stream(mask.device).record_event()

    def look(self) -> Int[Tensor, " K"]:
        """The places in the flattened mask, in order."""
        if self._known is not None:
            self._known.synchronize()
        number = int(self._number.numpy())  # of a GPU's memory there is no such array
        if number == 0:
            return self._mask.new_empty(0, dtype=torch.long)
        order: Tensor = self._mask.to(torch.uint8).argsort(descending=True, stable=True)
        return order[:number]


class LateTokens:
    """The tokens of clean features, as the quantizer names them. Silence is looked at again at once: there is one kind
    of it. Other rows that are too close to call, or are no numbers, are looked at last; if there are any, the host
    waits for the device."""

    @torch.no_grad()
    def __init__(self, quantizer: RandomProjectionVectorQuantizer, clean_BFT: Float[Tensor, "B F _"]) -> None:
        x_BSHD = quantizer.projected(clean_BFT)
        self._shape, self._squeezed = x_BSHD.shape[:-1], quantizer.squeeze_single
        rows = [x_BSD.reshape(-1, quantizer.code_dim) for x_BSD in x_BSHD.unbind(2)]
        self._books, self._tokens, unsure = list(zip(rows, quantizer.codebooks, strict=True)), list[Tensor](), []
        for x_RD, codes_CD in self._books:
            tokens_R, unsure_R = by_score(x_RD, codes_CD)
            silent_R, silence_1D = (x_RD == 0).all(-1), torch.zeros_like(x_RD[:1])
            self._tokens.append(torch.where(silent_R, distances(silence_1D, codes_CD).argmin(-1), tokens_R))
            unsure.append(unsure_R & ~silent_R)
        self._unsure = Places(torch.stack(unsure))

    def look(self) -> Int[Tensor, "B S *H"]:
        """All of them."""
        tokens = [nearest_codes(*book) for book in self._books] if len(self._unsure.look()) else self._tokens
        tokens_BSH = torch.stack(tokens, dim=-1).view(self._shape)
        return tokens_BSH.squeeze(-1) if self._squeezed else tokens_BSH


def loss_ahead(
    model: NestModel,
    clean_BFT: Float[Tensor, "B F _"],
    heard_BFT: Float[Tensor, "B F T"],
    length_B: Int[Tensor, " B"],
) -> Float[Tensor, ""]:
    """The loss of the tokens of `clean_BFT` by what is heard, masked: as `NestModel.encode`, decoder and loss compute
    it where no one looks, with `METHODS` as imported."""
    late, loss = LateTokens(model.quantizer, clean_BFT), model.loss
    heard_BFT, masks_BFT = model.mask_processor(input_feats=heard_BFT, input_lengths=length_B)
    counts_BS = loss.mlm_loss.counts(masks_BFT)
    masked, steps = Places(counts_BS), counts_BS.size(1)
    encoded_BDS, _ = (model.graphed or model.encoder)(audio_signal=heard_BFT, length=length_B)
    log_probs_BSCH = model.decoder(encoder_output=encoded_BDS)
    places_K, tokens_BSH = masked.look(), late.look()
    counted = places_K // steps, places_K % steps
    missing = steps - tokens_BSH.size(1)  # clean and noisy audio may differ in length
    targets_BSH = F.pad(tokens_BSH, (*[0, 0] * (tokens_BSH.dim() - 2), 0, missing))
    return loss.over_books(loss.mlm_loss.of_counted, log_probs_BSCH[counted], targets_BSH[counted])
