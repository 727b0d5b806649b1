"""Losses of tokens: negative log-likelihood of those whose frames were (almost) all masked, or of their sequence.

Source: NeMo 3.0.0 `nemo.collections.asr.losses`: `ssl_losses.mlm`, `ssl_losses.ctc`, `ctc`. The first takes lengths,
for NeMo's trainer gives them, and does not use them.

Shapes: B batch, F features, T frames, S tokens, K tokens that count, C codes, H codebooks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.config.losses import Ctc, Loss, Mlm

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class MLMLoss(nn.Module):
    """The loss of one codebook.

    Attributes:
        no_masked_token: what the loss is if no token counts: ``nan``, as in NeMo, or ``zero``. It is no setting of
            NeMo's, and so no argument.
    """

    no_masked_token = "nan"
    needs_labels = True

    def __init__(self, settings: Mlm) -> None:
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


class CTCLoss(nn.CTCLoss):
    """Torch's, on log-probabilities (B, S, C) whose last class is the blank."""

    def __init__(self, settings: Ctc) -> None:
        self.averaged = settings.reduction if settings.reduction.startswith("mean_") else None
        reduction = "none" if self.averaged else settings.reduction
        super().__init__(blank=settings.num_classes, reduction=reduction, zero_infinity=settings.zero_infinity)

    def forward(  # type: ignore[override]
        self,
        log_probs: Float[Tensor, "B S C"],
        targets: Int[Tensor, "B _"],
        input_lengths: Int[Tensor, " B"],
        target_lengths: Int[Tensor, " B"],
    ) -> Float[Tensor, "*B"]:
        """To a scalar; to one number an utterance (B) where `reduction` is none."""
        lengths = input_lengths.long(), target_lengths.long()
        losses = super().forward(log_probs.transpose(1, 0), targets.long(), *lengths)
        if self.averaged == "mean_volume":
            return losses.sum() / target_lengths.sum()
        return losses.mean() if self.averaged else losses


class CTCLossForSSL(nn.Module):
    """The loss of a sequence of tokens, or of a transcript, wherever the mask is."""

    needs_labels = True

    def __init__(self, settings: Ctc) -> None:
        super().__init__()
        self.loss = CTCLoss(settings)

    def forward(
        self,
        spec_masks: Float[Tensor, "B F T"],
        decoder_outputs: Float[Tensor, "B S C"],
        targets: Int[Tensor, "B _"],
        decoder_lengths: Int[Tensor, " B"] | None = None,
        target_lengths: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "*B"]:
        """See `CTCLoss`."""
        loss: Tensor = self.loss(
            log_probs=decoder_outputs, targets=targets, input_lengths=decoder_lengths, target_lengths=target_lengths
        )
        return loss
