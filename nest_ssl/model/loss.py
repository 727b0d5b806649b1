"""Losses of tokens: negative log-likelihood of those whose frames were (almost) all masked, or of their sequence.

Source: NeMo 3.0.0 `nemo.collections.asr.losses`: `ssl_losses.mlm`, `ssl_losses.ctc`, `ctc`. The first takes lengths,
for NeMo's trainer gives them, and does not use them.

Shapes: B batch, F features, T frames, S tokens, K tokens that count, C codes, H codebooks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.config.losses import Ctc, Loss, Mlm

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


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
        counts_BS = self.counts(spec_masks)
        targets = F.pad(targets, (0, counts_BS.size(1) - targets.size(1)))  # clean and noisy audio may differ in length
        # As indices, found once: with the mask itself the host would wait for the device at each use, and in backward.
        counted = counts_BS.nonzero(as_tuple=True)
        counted_KC = decoder_outputs[counted]
        return self.of_counted(counted_KC, targets[counted])

    def counts(self, masks_BFT: Float[Tensor, "B F T"]) -> Bool[Tensor, "B S"]:
        """Which tokens count."""
        batch, _, frames = masks_BFT.shape
        by_token = masks_BFT.transpose(1, 2).reshape(batch, frames // self.combine_time_steps, -1)
        return by_token.mean(-1) > self.mask_threshold

    def of_counted(self, log_probs_KC: Float[Tensor, "K C"], targets_K: Int[Tensor, " K"]) -> Float[Tensor, ""]:
        """The loss of the tokens that count."""
        if self.no_masked_token == "zero" and log_probs_KC.size(0) == 0:
            return log_probs_KC.sum()  # of nothing, yet it hangs on the graph: every parameter gets a gradient of zero
        # The mean of one number: it only makes a tensor of its own, so that recorded gradients arrive in NeMo's order.
        loss: Tensor = self.nll_loss(log_probs_KC, targets_K).mean()
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

        return self.over_books(loss_of_one, decoder_outputs, targets)

    def over_books(self, one: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean of `one` over codebooks, of which each has a last index of `outputs` and `targets`."""
        if self.squeeze_single:
            return one(outputs, targets)
        # Summed from Python's 0, book after book, and divided last: NeMo's order of rounding.
        mean = sum(one(outputs[..., h], targets[..., h]) for h in range(self.num_decoders)) / self.num_decoders
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
