"""A trained encoder as Hugging Face's `ParakeetEncoder`: a folder that its `from_pretrained` opens.

The same function in other operators: its outputs agree to rounding, not to the bit. What is left out are the features
(`ParakeetFeatureExtractor` has its own) and the heads of pre-training.

Source of the names: transformers 5 `models.parakeet`.
"""

from __future__ import annotations

import json
from pathlib import Path

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import replacing
from nest_ssl.config.parts import Encoder
from nest_ssl.config.section import read
from nest_ssl.export.safetensors import safetensors
from nest_ssl.export.trained import new_folder, weights_of

# NeMo's name of a part -> the one there.
RENAMED = {"pre_encode.conv.": "subsampling.layers.", "pre_encode.out.": "subsampling.linear.",
           "self_attn.linear_q.": "self_attn.q_proj.", "self_attn.linear_k.": "self_attn.k_proj.",
           "self_attn.linear_v.": "self_attn.v_proj.", "self_attn.linear_out.": "self_attn.o_proj.",
           "self_attn.linear_pos.": "self_attn.relative_k_proj.", "self_attn.pos_bias_": "self_attn.bias_",
           "conv.batch_norm.": "conv.norm."}  # fmt: skip
# What that encoder is; another one has no place there.
FIXED = {"subsampling": "dw_striding", "self_attention_model": "rel_pos", "conv_norm_type": "batch_norm",
         "untie_biases": True, "reduction": None, "feat_out": -1, "conv_context_size": None}  # fmt: skip


def write_parakeet(model_path: str, folder: Path) -> int:
    """Write `config.json` and `model.safetensors` of the encoder in an archive or a checkpoint.

    Returns:
        the number of tensors.

    Raises:
        UserError: as `trained.weights_of`; an encoder with no place there; a folder that is not empty; a full disk.
    """
    config, weights = weights_of(model_path)
    encoder = read(Encoder, config["encoder"], "encoder")
    for key, wanted in FIXED.items():
        if getattr(encoder, key) != wanted:
            where = f"{model_path}: encoder.{key}={getattr(encoder, key)}"
            raise UserError(f"ParakeetEncoder has {key}={wanted} alone", where, "Use the .nemo archive with NeMo.")
    if encoder.att_context_size not in (None, [-1, -1]):
        where = f"{model_path}: encoder.att_context_size={encoder.att_context_size}"
        raise UserError("ParakeetEncoder sees the whole utterance", where, "Use the .nemo archive with NeMo.")
    settings = {
        "model_type": "parakeet_encoder", "architectures": ["ParakeetEncoder"], "dtype": "float32",
        "hidden_size": encoder.d_model, "num_hidden_layers": encoder.n_layers, "num_attention_heads": encoder.n_heads,
        "intermediate_size": encoder.d_model * encoder.ff_expansion_factor, "hidden_act": "silu",
        "attention_bias": encoder.use_bias, "convolution_bias": encoder.use_bias,
        "conv_kernel_size": encoder.conv_kernel_size, "subsampling_factor": encoder.subsampling_factor,
        "subsampling_conv_channels": encoder.subsampling_conv_channels, "num_mel_bins": encoder.feat_in,
        "scale_input": encoder.xscaling, "max_position_embeddings": encoder.pos_emb_max_len, "layerdrop": 0.0,
        "dropout": encoder.dropout_pre_encoder, "dropout_positions": encoder.dropout_emb,
        "activation_dropout": encoder.dropout, "attention_dropout": encoder.dropout_att,
    }  # fmt: skip
    # float32, as `config.json` says: an encoder that was trained in another precision is rounded, or filled up.
    tensors = {renamed(name): tensor.float() if tensor.is_floating_point() else tensor
               for name, tensor in weights.items() if name.startswith("encoder.")}  # fmt: skip
    with new_folder(folder):
        with replacing(folder / "model.safetensors") as partial:
            partial.write_bytes(safetensors(tensors))
        with replacing(folder / "config.json") as partial:
            partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return len(tensors)


def renamed(name: str) -> str:
    """A weight's name there, without the `encoder.` in front."""
    name = name.removeprefix("encoder.")
    for given, wanted in RENAMED.items():
        name = name.replace(given, wanted)
    return name
