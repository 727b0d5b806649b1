"""The masked-token loss: negative log-likelihood of the tokens whose frames were (almost) all masked.

Source: NeMo 3.0.0 `nemo.collections.asr.losses.ssl_losses.mlm`. Lengths are taken, for NeMo's
trainer gives them, and not used.

Shapes: B batch, F features, T frames, S tokens, K tokens that count, C codes, H codebooks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.config.parts import Loss

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class MLMLoss(nn.Module):
    """The loss of one codebook.

    Attributes:
        no_masked_token: what the loss is if no token counts: ``nan``, as in NeMo, or ``zero``. It is no setting of
            NeMo's, and so no argument.
    """

    no_masked_token = "nan"

    def __init__(self, settings: Loss) -> None:
        super().__init__()
        self.nll_loss = nn.NLLLoss()
        self.combine_time_steps, self.mask_threshold = settings.combine_time_steps, settings.mask_threshold

    def forward(
        self,
        decoder_outputs: Float[Tensor, "B S C"],
        targets: Int[Tensor, "B _"],
        decoder_lengths: Int[Tensor, " B"] | None = None,
        target_lengths: Int[Tensor, " B"] | None = None,
        spec_masks: Float[Tensor, "B F T"] | None = None,
    ) -> Float[Tensor, ""]:
        """`decoder_outputs` (B, S, C), `targets` (B, S) and `spec_masks` (B, F, T), 1 where masked, to a scalar."""
        assert spec_masks is not None
        batch, _, frames = spec_masks.shape
        by_token = spec_masks.transpose(1, 2).reshape(batch, frames // self.combine_time_steps, -1)
        counts_BS = by_token.mean(-1) > self.mask_threshold
        targets = F.pad(targets, (0, counts_BS.size(1) - targets.size(1)))  # clean and noisy audio may differ in length
        # As indices, found once: with the mask itself the host would wait for the device at each use, and in backward.
        counted = counts_BS.nonzero(as_tuple=True)
        counted_KC = decoder_outputs[counted]
        if self.no_masked_token == "zero" and counted_KC.size(0) == 0:
            return counted_KC.sum()  # of nothing, yet it hangs on the graph: every parameter gets a gradient of zero
        # The mean of one number: it only makes a tensor of its own, so that recorded gradients arrive in NeMo's order.
        loss: Tensor = self.nll_loss(counted_KC, targets[counted]).mean()
        return loss


class MultiMLMLoss(nn.Module):
    """The mean loss over codebooks."""

    def __init__(self, settings: Loss) -> None:
        super().__init__()
        self.num_decoders = settings.num_decoders
        self.squeeze_single = settings.squeeze_single and settings.num_decoders == 1
        self.mlm_loss = MLMLoss(settings)

    def forward(
        self,
        masks: Float[Tensor, "B F T"],
        decoder_outputs: Float[Tensor, "B S C *H"],
        targets: Int[Tensor, "B _ *H"],
        decoder_lengths: Int[Tensor, " B"] | None = None,
        target_lengths: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        """`masks` (B, F, T), `decoder_outputs` (B, S, C, H) and `targets` (B, S, H) to a scalar."""

        def loss_of_one(outputs_BSC: Float[Tensor, "B S C"], targets_BS: Float[Tensor, "B S"]) -> Float[Tensor, ""]:
            loss: Tensor = self.mlm_loss(
                spec_masks=masks,
                decoder_outputs=outputs_BSC,
                targets=targets_BS,
                decoder_lengths=decoder_lengths,
                target_lengths=target_lengths,
            )
            return loss

        if self.squeeze_single:
            return loss_of_one(decoder_outputs, targets)
        books = range(self.num_decoders)
        # Summed from Python's 0, book after book, and divided last: NeMo's order of rounding.
        mean = sum(loss_of_one(decoder_outputs[..., h], targets[..., h]) for h in books) / self.num_decoders
        assert isinstance(mean, Tensor)
        return mean
