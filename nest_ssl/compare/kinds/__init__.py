"""The likely kind of a fault: what sort of mistake a difference comes from, and the evidence that says so.

A kind is named only where the evidence gives a reason that would hold for any two trainers; else it is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from nest_ssl.compare.born import Born
from nest_ssl.compare.findings import Finding, Note


class FaultKind(str, Enum):
    """The kinds of faults that two trainers differ by, in the order in which a run meets them."""

    CONFIGURATION = "configuration"
    SEED_AND_DRAWS = "seed and draws"  # initial weights among them
    MANIFEST_AND_AUDIO = "manifest and audio"  # what is read, in which order, how decoded
    AUGMENTATION = "augmentation"  # what is made of it before the model
    FEATURES = "features"
    MASKING = "masking"  # of what is to be predicted; padding masks are their readers' matter
    QUANTIZER = "quantizer"
    SUBSAMPLING = "subsampling"
    ATTENTION = "attention"  # with positions
    CONVOLUTION_AND_NORMS = "convolution and norms"
    FEED_FORWARD_AND_RESIDUAL = "feed-forward and residual"  # and how a layer joins its branches
    DROPOUT_AND_FLAGS = "dropout and flags"  # training and evaluation mode, what is frozen
    DECODER_AND_LOSS = "decoder and loss"
    BACKWARD_ONLY = "backward only"
    OPTIMIZER = "optimizer"
    SCHEDULE = "schedule"
    CLIPPING_AND_ACCUMULATION = "clipping and accumulation"
    CHECKPOINT_AND_RESUME = "checkpoint and resume"
    PRECISION_AND_CASTS = "precision and casts"
    ALIASING_AND_IN_PLACE = "aliasing and in-place"
    RANKS = "ranks"
    UNKNOWN = "unknown"


class Basis(str, Enum):
    """How much a reason is worth."""

    MEASURED = "measured"  # from numbers, draws, settings, operators
    CLASS = "class"  # from what a module is: a class of torch, or what was registered about this model
    NAMES = "names"  # from words in names alone


@dataclass(frozen=True, slots=True)
class Likely:
    """What one difference probably comes from.

    Args:
        reason: the evidence that says so; of `UNKNOWN` what is lacking.
        born: the place that it explains; None for a setting.
        finding: the setting.
        own: of `RANKS` where one rank alone differs, what that rank's data shows by itself.
    """

    kind: FaultKind
    reason: Note = field(default_factory=lambda: Note("kind_unknown"))
    basis: Basis = Basis.MEASURED
    born: Born | None = None
    finding: Finding | None = None
    own: tuple[Likely, ...] = ()
