"""What part of a model a module is: from its class where torch has it, else from words in the names around it.

Nothing here knows one model. A class of torch is a fact; words (``attn``, ``featurizer``, ``quantizer``) are what
people call such a part, and weaker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nest_ssl.compare.kinds import Basis, FaultKind

Classes = Mapping[str, str]  # of every module, by its name

_TORCH = {
    "batchnorm": FaultKind.CONVOLUTION_AND_NORMS,
    "instancenorm": FaultKind.CONVOLUTION_AND_NORMS,
    "normalization": FaultKind.CONVOLUTION_AND_NORMS,
    "conv": FaultKind.CONVOLUTION_AND_NORMS,
    "dropout": FaultKind.DROPOUT_AND_FLAGS,
    "loss": FaultKind.DECODER_AND_LOSS,
}
# Where a name has several, the first counts: `norm_self_att` is a norm, `ConvSubsampling` subsamples.
_WORDS = {
    FaultKind.DROPOUT_AND_FLAGS: "dropout drop",
    FaultKind.SUBSAMPLING: "subsampling subsample subsampler downsampling downsample",
    FaultKind.QUANTIZER: "quantizer quantize quantization codebook vq",
    FaultKind.AUGMENTATION: "augment augmentation augmentor specaugment",
    FaultKind.FEATURES: "features featurizer preprocessor filterbank fbank mel spectrogram mfcc stft",
    FaultKind.DECODER_AND_LOSS: "loss criterion",
    FaultKind.CONVOLUTION_AND_NORMS: "norm layernorm batchnorm groupnorm rmsnorm",
    FaultKind.ATTENTION: "attention attn att mha positional position pos rotary rope",
    FaultKind.MASKING: "mask masking masker",
    FaultKind.FEED_FORWARD_AND_RESIDUAL: "feed feedforward ffn ff mlp",
}
_LATER = {  # words that also stand in the names of the parts above
    FaultKind.CONVOLUTION_AND_NORMS: "conv convolution conv1d conv2d",
    FaultKind.DECODER_AND_LOSS: "decoder logits classifier",
}
WORDS = [(kind, frozenset(words.split())) for table in (_WORDS, _LATER) for kind, words in table.items()]
# Parts that are made of convolutions, norms and linear layers, and are a part of their own.
_STAGES = (
    FaultKind.FEATURES,
    FaultKind.MASKING,
    FaultKind.QUANTIZER,
    FaultKind.SUBSAMPLING,
    FaultKind.DECODER_AND_LOSS,
)
_MADE_OF = (FaultKind.CONVOLUTION_AND_NORMS, FaultKind.FEED_FORWARD_AND_RESIDUAL)


@dataclass(frozen=True, slots=True)
class Role:
    """What part a module is.

    Args:
        part: the module whose class or name says so: itself, or one around it.
        word: that class or name.
    """

    kind: FaultKind
    basis: Basis
    part: str
    word: str


def kind_of_words(name: str) -> FaultKind | None:
    """By the words of one name: ``RelPositionMultiHeadAttention``, ``linear_pos``."""
    words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+(?:[12]d)?", name)} | {name.lower()}
    return next((kind for kind, own in WORDS if own & words), None)


def role_of(module: str, classes: Classes) -> Role | None:
    """The nearest part that a module is, or is in; of what a stage like subsampling is made of, that stage."""
    own: Role | None = None
    while module:  # outwards; the root is all parts, and none
        for role in _own_role(module, classes):
            own = own or role
            if own.kind not in _MADE_OF or role.kind in _STAGES:
                return role if role.kind in _STAGES else own
        if joins_branches(module, classes):  # a layer of a decoder has attention and norms of its own
            return own
        module = module.rpartition(".")[0]
    return own


def joins_branches(module: str, classes: Classes) -> bool:
    """Whether it is one of several layers alike, and holds parts of more than one kind: it adds up their outputs."""
    children = [name for name in classes if name.rpartition(".")[0] == module]
    kinds = {role.kind for child in children for role in _own_role(child, classes)} - {FaultKind.DROPOUT_AND_FLAGS}
    return module.rpartition(".")[2].isdigit() and len(kinds) > 1


def _own_role(module: str, classes: Classes) -> list[Role]:
    package, _, name = classes.get(module, "").rpartition(".")
    if package.startswith("torch.nn.modules.") and (kind := _TORCH.get(package.rpartition(".")[2])):
        return [Role(kind, Basis.CLASS, module, name)]
    for word in (name, module.rpartition(".")[2]):
        if kind := kind_of_words(word):
            return [Role(kind, Basis.NAMES, module, word)]
    return []
