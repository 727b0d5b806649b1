"""NeMo's configuration of a model's parts to our modules: which class, which keys, which values are supported.

One table, `PARTS`. A key is taken by the constructor, or listed here as one that NeMo accepts and we do not implement:
with the values that change nothing, or as unused. Everything else is a mistake, told before the part is built.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.model.conformer import ConformerEncoder
from nest_ssl.model.features import NORMALISATIONS, WINDOWS, AudioToMelSpectrogramPreprocessor
from nest_ssl.model.heads import INITIALISATIONS, MultiSoftmaxDecoder
from nest_ssl.model.loss import MultiMLMLoss
from nest_ssl.model.masking import RandomBlockMasking
from nest_ssl.model.quantizer import RandomProjectionVectorQuantizer
from nest_ssl.releases import Generation, concerning

NEMO = "nemo.collections.asr."
NEVER = (False, None, 0)  # an option that we do not have, switched off


class Numbers:
    """The choice of any number, or of some words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) or value in self.words

    def __iter__(self) -> Iterator[str]:
        return iter(("any number", *self.words))


@dataclass(frozen=True)
class Part:
    """One section of `model:`.

    Args:
        cls: our class, under NeMo's name.
        choices: key -> the values that are supported; a key that `cls` does not take is checked and dropped.
        unused: keys that change nothing as long as `choices` hold.
    """

    cls: type[nn.Module]
    choices: Mapping[str, Sequence[Any] | Numbers] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()


PARTS = {
    "preprocessor": Part(
        AudioToMelSpectrogramPreprocessor,
        choices={
            "window": tuple(WINDOWS),
            "normalize": (*NORMALISATIONS, None, False),
            "log_zero_guard_type": ("add", "clamp"),
            "mel_norm": ("slaney", None),
            "log_zero_guard_value": Numbers("tiny", "eps"),
            "pad_to": Numbers(),
            "frame_splicing": (1,),
            "exact_pad": NEVER,
            "nb_augmentation_prob": NEVER,  # NeMo draws it from a generator that nothing can seed
        },
        unused=frozenset({"rng", "nb_max_freq", "stft_exact_pad", "stft_conv"}),
    ),
    # NeMo's own `cosine` cannot run: it multiplies float32 by float64. The nearest code would be the same.
    "quantizer": Part(RandomProjectionVectorQuantizer, choices={"dist_fn": ("l2",)}),
    "masking": Part(RandomBlockMasking),
    "encoder": Part(
        ConformerEncoder,
        choices={
            "subsampling": ("dw_striding", "striding"),
            "causal_downsampling": NEVER,
            "reduction": NEVER,
            "self_attention_model": ("rel_pos",),
            "att_context_size": (None, [-1, -1], [[-1, -1]]),
            "att_context_probs": (None, [1.0]),
            "att_chunk_context_size": NEVER,
            "att_context_style": ("regular",),
            "conv_norm_type": ("batch_norm",),
            "conv_context_style": ("regular",),
            "stochastic_depth_drop_prob": NEVER,
            "global_tokens": NEVER,
            "global_attn_separate": NEVER,
            "use_pytorch_sdpa": NEVER,
        },
        unused=frozenset(
            {
                "reduction_position",
                "reduction_factor",
                "conv_dual_mode",
                "stochastic_depth_mode",
                "stochastic_depth_start_layer",
                "global_tokens_spacing",
                "use_pytorch_sdpa_backends",
            }
        ),
    ),
    "decoder": Part(MultiSoftmaxDecoder, choices={"init_mode": tuple(INITIALISATIONS)}),
    "loss": Part(MultiMLMLoss),
}

# NeMo builds SpecAugment and never calls it; it has no parameters and draws nothing, so we do not build it.
# fmt: off
SPEC_AUGMENT_KEYS = frozenset({
    "freq_masks", "time_masks", "freq_width", "time_width", "rect_masks", "rect_time", "rect_freq", "rng", "mask_value",
    "use_vectorized_spec_augment", "use_numba_spec_augment",
})
# fmt: on


def allowed_keys(section: str) -> set[str]:
    """The keys that may stand below `model.<section>`; empty if that is no section of the model itself."""
    if section == "spec_augment":
        return {"_target_", *SPEC_AUGMENT_KEYS}
    if section not in PARTS:
        return set()
    part = PARTS[section]
    return {"_target_", *_parameters(part), *part.choices, *part.unused}


def build(section: str, cfg: Mapping[str, Any], generation: Generation) -> nn.Module:
    """The module that `model.<section>` describes.

    Args:
        section: a key of `PARTS`.
        cfg: all of `model:`, in plain builtins.
        generation: whose numbers to reproduce.

    Raises:
        UserError: another target, an unknown or missing key, a value that is not supported.
    """
    part, where = PARTS[section], f"model.{section}"
    if not isinstance(cfg.get(section), Mapping):
        raise UserError("a section is missing", where, "Add it; conf/nest_fast-conformer.yaml has one.")
    given = dict(cfg[section])
    _check_target(where, given.pop("_target_", None), part)
    parameters = _parameters(part)
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    for key, value in {**defaults, **given}.items():
        _check(f"{where}.{key}", key, value, part, allowed_keys(section))
    for name in parameters:
        if name not in given and name not in defaults:
            raise UserError("a key is missing", f"{where}.{name}", "Give it a value.")
    return part.cls(**{k: v for k, v in given.items() if k in parameters}, **concerning(part.cls, generation))


def plain(value: Any) -> Any:
    """Nested mappings and sequences (OmegaConf's too) as dicts and lists, interpolations resolved."""
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _check_target(where: str, target: Any, part: Part) -> None:
    name = part.cls.__name__
    if not isinstance(target, str) or not target.startswith(NEMO) or target.rsplit(".", 1)[-1] != name:
        raise UserError(f"not supported: {target}", f"{where}._target_", f"Only NeMo's {name} is.")


def _check(where: str, key: str, value: Any, part: Part, known: set[str]) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
        raise UserError("unknown key", where, f"Did you mean {near[0]}?")
    if key in part.choices and value not in part.choices[key]:
        supported = ", ".join(map(_in_yaml, part.choices[key]))
        raise UserError(f"not supported: {_in_yaml(value)}", where, f"Supported: {supported}.")


def _in_yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _parameters(part: Part) -> dict[str, inspect.Parameter]:
    """What the constructor takes from the configuration: all but the named differences between generations."""
    differences = {f.name for f in fields(Generation)}
    parameters = inspect.signature(part.cls).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in differences}
