"""What was compared and how the loss came about: the lines under a report's verdict."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nest_ssl.compare.result import LossAccount
from nest_ssl.recording import layout as files
from nest_ssl.recording.reader import Recording, StepFiles


def count_parameters(recording: Recording) -> int:
    return sum(torch.Size(entry["shape"]).numel() for entry in recording.structure["parameters"])


def describe_batch(recording: Recording, step: StepFiles) -> str:
    """Size of a batch of audio, e.g. ``2 x 3.0 s``; empty where the batch has no field ``audio`` of shape [B, T]."""
    audio = step.batch().get("audio") if step.has(files.BATCH) else None
    rate = (recording.config.get("model") or {}).get("sample_rate")
    if not isinstance(audio, Tensor) or audio.dim() != 2 or not rate:
        return ""
    return f"{audio.shape[0]:,} x {audio.shape[1] / rate:,.1f} s"


def account_for_loss(
    step: int, reference: StepFiles, candidate: StepFiles, config: dict[str, Any]
) -> LossAccount | None:
    """The loss on both sides, and from how many masked frames and tokens it was made; None where either has no loss."""
    if not (reference.has(files.LOSS) and candidate.has(files.LOSS)):
        return None
    account = LossAccount(step, _loss(reference), _loss(candidate))
    counts = [_counts(side, (config.get("model") or {}).get("loss") or {}) for side in (reference, candidate)]
    if counts[0] and counts[1]:
        account.masked_frames = counts[0][0], counts[1][0]
        account.counted_tokens = counts[0][1], counts[1][1]
        account.tokens = counts[0][2]
        if 0 in account.counted_tokens:
            account.note = (
                f"No token counts: nowhere does the mean of the mask pass the threshold, {_outcome(account)}."
            )
    return account


def _outcome(account: LossAccount) -> str:
    """The loss without any token is a mean of nothing: NaN, or what the port's `no_masked_token` makes of it."""
    losses = [loss for loss in (account.reference, account.candidate) if loss is not None]
    if all(math.isnan(loss) for loss in losses):
        return "so the loss is NaN. Its gradients are zeros"
    return "so the loss is NaN, or 0 with no_masked_token=zero. The gradients are zeros"


def _loss(step: StepFiles) -> float | None:
    loss = step.loss().get("loss")
    return float(loss) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _counts(step: StepFiles, settings: dict[str, Any]) -> tuple[int, int, int] | None:
    """Masked frames, counted tokens and all tokens: a token counts where the mean of its mask exceeds the threshold.

    Source: the loss of NEST (NeMo 3.0.0 `nemo.collections.asr.losses.ssl_losses.mlm`), masks of shape [B, D, T].
    """
    stride, threshold = settings.get("combine_time_steps"), settings.get("mask_threshold")
    masks = step.forward_output().get("masks") if step.has(files.FORWARD_OUTPUT) else None
    if not isinstance(masks, Tensor) or masks.dim() != 3 or not stride or threshold is None:
        return None
    if masks.shape[2] % stride:
        return None
    per_frame_BT = masks.to(torch.float32).mean(1)
    per_token_BS = per_frame_BT.unflatten(1, (-1, stride)).mean(-1)
    return int((per_frame_BT > 0).sum()), int((per_token_BS > threshold).sum()), per_token_BS.numel()
