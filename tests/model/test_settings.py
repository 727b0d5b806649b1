"""Which configurations are taken, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Encoder, Preprocessor
from nest_ssl.config.section import plain
from nest_ssl.model.nest import NestModel


def test_keys_that_nemo_takes_are_known_and_others_are_not() -> None:
    assert {"use_pytorch_sdpa", "reduction_factor", "d_model", "_target_"} <= Encoder.known()
    assert {"dither", "nb_max_freq"} <= Preprocessor.known()
    assert "stft_padding" not in Preprocessor.known(), "a difference between generations is no setting"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("encoder.d_modle", 64, "Did you mean model.encoder.d_model"),
        ("encoder.self_attention_model", "rel_pos_global", "Supported: rel_pos, abs_pos, rel_pos_local_attn"),
        ("encoder.att_context_size", [70], "[left, right]"),
        ("encoder.att_context_size", [[70, 1], [70, -2]], "-1 for all"),
        ("encoder.att_context_probs", [0.5, 0.5], "1 contexts need as many probabilities"),
        ("encoder.conv_norm_type", "rms_norm", "group_normN"),
        ("encoder.conv_norm_type", "group_norm", "group_normN"),
        ("encoder.conv_norm_type", "group_norm7", "group_normN"),
        ("encoder.reduction", "averaging", "Supported: pooling, striding"),
        ("encoder.subsampling", "resnet", "Supported: dw_striding, striding"),
        ("encoder.causal_downsampling", True, "not supported: true"),
        ("encoder.use_pytorch_sdpa_backends", ["METAL"], "a list of MATH or FLASH_ATTENTION"),
        ("encoder.stochastic_depth_drop_prob", 1.1, "any number from 0 to 1"),
        ("encoder.stochastic_depth_start_layer", 3, "it starts at no layer"),
        ("encoder.subsampling_factor", 6, "power of two"),
        ("encoder._target_", "nemo.collections.asr.modules.SqueezeformerEncoder", "Only NeMo's ConformerEncoder"),
        ("encoder._target_", "somewhere.else.ConformerEncoder", "Only NeMo's ConformerEncoder"),
        ("encoder._target_", None, "Only NeMo's ConformerEncoder"),
        ("preprocessor.normalize", "per_band", "Supported: per_feature, all_features, NA, false, null"),
        ("preprocessor.pad_to", "max", "Supported: any whole number from 0"),
        ("preprocessor.log_zero_guard_value", "huge", "any number, tiny, eps"),
        ("quantizer.dist_fn", "cosine", "Supported: l2"),
        ("decoder.init_mode", "orthogonal", "Supported: xavier_uniform"),
        ("loss", None, "a section is null"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(tiny: Any, key: str, value: Any, told: str) -> None:
    OmegaConf.update(tiny, key, value)
    with pytest.raises(UserError) as error:
        NestModel(tiny)
    assert told in str(error.value)
    assert f"model.{key}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(tiny: Any) -> None:
    del tiny.encoder.n_layers
    with pytest.raises(UserError, match=r"a key is missing: model\.encoder\.n_layers"):
        NestModel(tiny)


def test_a_default_of_nemos_that_is_not_supported_has_to_be_given_otherwise(tiny: Any) -> None:
    del tiny.quantizer.dist_fn
    with pytest.raises(UserError, match=r"a key is missing: model\.quantizer\.dist_fn"):
        NestModel(tiny)


def test_the_full_path_of_a_class_is_taken_too(tiny: Any) -> None:
    tiny.masking._target_ = "nemo.collections.asr.modules.ssl_modules.masking.RandomBlockMasking"
    NestModel(tiny)


def test_plain_resolves_references() -> None:
    config = OmegaConf.create({"a": 1, "b": {"c": "${a}", "d": [1, {"e": "x"}]}})
    assert plain(config) == {"a": 1, "b": {"c": 1, "d": [1, {"e": "x"}]}}
