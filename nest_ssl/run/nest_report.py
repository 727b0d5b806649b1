"""What a comparison of two NEST trainers adds to a report: the size of the batch, and what the loss was made of.

The comparer knows no model; this is registered with it: ``compare_recordings(..., explainers=[explain_nest])``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, float32

from nest_ssl.compare.comparison import Comparison, Explanation
from nest_ssl.compare.values import flatten
from nest_ssl.recording import layout
from nest_ssl.recording.reader import Recording
from nest_ssl.recording.step_files import StepFiles
from nest_ssl.report.pictures import Utterance

UTTERANCES = 2  # pictures of a batch


def explain_nest(reference: Recording, candidate: Recording, step: int) -> Explanation | None:
    """Masked frames and counted tokens at one step of both sides; None where nothing says that this is NEST."""
    model = reference.config.get("model")
    model = model if isinstance(model, dict) else {}
    batch = reference.step(step).batch() if reference.step(step).has(layout.BATCH) else None
    audio = batch.get("audio") if isinstance(batch, dict) else None
    rate: Any = model.get("sample_rate")
    values: dict[str, Any] = {"batch": ""}
    if isinstance(audio, Tensor) and audio.dim() == 2 and _is_number(rate):  # of shape [B, T]
        values["batch"] = f"{audio.shape[0]:,} x {audio.shape[1] / rate:,.1f} s"
    counts = _counts(reference.step(step), model.get("loss"))
    other_counts = _counts(candidate.step(step), model.get("loss"))
    if counts is None or other_counts is None:
        return Explanation("nest", step, "", values) if values["batch"] else None
    (masked, counted, tokens), (other_masked, other_counted, _) = counts, other_counts
    values |= {"masked_frames": [masked, other_masked], "counted_tokens": [counted, other_counted], "tokens": tokens}
    at = f" at step {step}" if len(reference.steps) > 1 else ""
    frames = f"{_pair(masked, other_masked)} masked frames"
    sentence = f"Loss{at} over {frames}, {_pair(counted, other_counted)} of {tokens:,} tokens counted."
    weakens = ""
    if 0 in (counted, other_counted):
        values["note"] = weakens = (
            f"No token counts at step {step}: nowhere does the mean of the mask pass the threshold, so the loss is a "
            "mean of nothing (NaN, or 0 with no_masked_token=zero) and its gradients are zeros: little is proved by it."
        )
    return Explanation("nest", step, sentence, values, weakens)


def picture_nest(comparison: Comparison, reference: Recording, candidate: Recording) -> list[Utterance]:
    """The first utterances of the first step compared: log-mel features, what is masked of them, and both tokens.

    Empty where nothing says that this is NEST, or where the recording has no such call or output.
    """
    step = min(comparison.steps, default=None)
    sides = [side.step(step) for side in (reference, candidate)] if step is not None else []
    if not sides or not all(side.has(layout.FORWARD_OUTPUT) and side.has(layout.CALLS) for side in sides):
        return []
    outputs = [side.forward_output() for side in sides]
    named = {"preprocessor", "features"}
    made = [flatten(call.output).get("0") for call in sides[0].calls() if call.module in named]
    features = next((leaf for leaf in made if isinstance(leaf, Tensor) and leaf.dim() == 3), None)
    outside = (outputs[0].get("masks"), *(output.get("tokens") for output in outputs))
    given = [value for value in outside if isinstance(value, Tensor) and value.dim() in (2, 3)]
    if features is None or len(given) < 3 or given[0].shape != features.shape or len({len(v) for v in given}) > 1:
        return []
    masks, *tokens = given
    found = []
    for number in range(min(UTTERANCES, len(features))):
        # Of several codebooks the first: tokens are of shape [B, S] or [B, S, N].
        lists = [(side[number] if side.dim() == 2 else side[number, :, 0]).tolist() for side in tokens]
        log_mel_DT, mask_DT = features[number].to(float32).numpy(), masks[number].to(float32)
        masked_T = (mask_DT.mean(0) > 0).numpy()
        found.append(Utterance(step or 0, number, log_mel_DT, masked_T, (tuple(lists[0]), tuple(lists[1]))))
    return found


def _counts(step: StepFiles, settings: Any) -> tuple[int, int, int] | None:
    """Masked frames, counted tokens and all tokens: a token counts where the mean of its mask exceeds the threshold.

    Source: the loss of NEST (NeMo 3.0.0 `nemo.collections.asr.losses.ssl_losses.mlm`), masks of shape [B, D, T].
    """
    settings = settings if isinstance(settings, dict) else {}
    stride, threshold = settings.get("combine_time_steps"), settings.get("mask_threshold")
    masks = step.forward_output().get("masks") if step.has(layout.FORWARD_OUTPUT) else None
    if not isinstance(masks, Tensor) or masks.dim() != 3 or not isinstance(stride, int) or not _is_number(threshold):
        return None
    if stride < 1 or masks.shape[2] % stride:
        return None
    per_frame_BT = masks.to(float32).mean(1)
    per_token_BS = per_frame_BT.reshape(masks.shape[0], -1, stride).mean(-1)
    return int((per_frame_BT > 0).sum()), int((per_token_BS > threshold).sum()), per_token_BS.numel()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _pair(reference: int, candidate: int) -> str:
    return f"{reference:,}" if reference == candidate else f"{reference:,} against {candidate:,}"
