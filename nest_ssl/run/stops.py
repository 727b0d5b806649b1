"""Where NeMo stops at a batch that no setting foretells: in one line, as the port says it, in place of a traceback.

Source: NeMo 2.4.1, 2.7.3 and 3.0.0 `nemo.collections.asr`, `losses.ssl_losses.contrastive`,
`parts.submodules.ssl_quantizers` and `parts.numba.rnnt_loss.rnnt_pytorch`.
"""

from __future__ import annotations

import traceback
from typing import NamedTuple

from nest_ssl.base.errors import UserError


class Stop(NamedTuple):
    """One of them: the exception and a function that it comes out of, words of its message; what is said of it."""

    kind: type[Exception]
    function: str
    words: str
    what: str
    where: str
    fix: str


STOPS = (
    Stop(
        RuntimeError, "forward", "is invalid for input of size",
        "NeMo stops at a batch whose masked steps are not shared out evenly", "sample_from_same_utterance_only=true",
        "Mask less by frequency (model.spec_augment), or give sample_from_same_utterance_only=false.",
    ),
    Stop(
        RuntimeError, "sample_negatives", "cannot sample",
        "NeMo before 3.0 stops at a batch with fewer steps masked than negatives to be drawn", "num_negatives",
        "Lower it, or give nemo=3.0 (NEMO_VERSION=3.0.0).",
    ),
    Stop(
        AssertionError, "sample_from_codebook", "is greater than size of codebook",
        "NeMo stops at a batch with as many steps masked as there are codes to draw", "sample_from_codebook=true",
        "Raise codebook_size, num_groups or combine_time_steps, or leave sample_from_codebook out.",
    ),
    Stop(
        ValueError, "certify_inputs", "Output length mismatch",
        "NeMo stops at a batch with more tokens than its longest utterance has", "RNNTLossForSSL",
        "Give reduce_ids=true to the loss whose tokens they are.",
    ),
)  # fmt: skip
KINDS = tuple({stop.kind for stop in STOPS})
FILES = ("contrastive.py", "ssl_quantizers.py", "rnnt_pytorch.py")


def stop_behind(error: Exception) -> UserError | None:
    """What is said of an error that NeMo raised in training; None of one that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    functions = {frame.name for frame in frames if frame.filename.endswith(FILES)}
    for stop in STOPS:
        if isinstance(error, stop.kind) and stop.function in functions and stop.words in str(error):
            return UserError(stop.what, stop.where, stop.fix)
    return None
