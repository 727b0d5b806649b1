"""The shipped map of Hugging Face's ParakeetEncoder: every parameter and buffer has its place in NeMo's encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from nest_ssl.compare.name_map import load_names
from nest_ssl.config.compose import compose
from nest_ssl.model.nest import NestModel


def test_every_tensor_of_the_encoder_has_one_of_nemos() -> None:
    parakeet = pytest.importorskip("transformers.models.parakeet", reason="this transformers has no Parakeet")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    front = {"subsampling_conv_channels": 32, "num_mel_bins": 80, "conv_kernel_size": 9}
    encoder = parakeet.ParakeetEncoder(parakeet.ParakeetEncoderConfig(**sizes, **front))
    rename = load_names(Path("huggingface_parakeet"))
    found = {f"encoder.{name}": value.shape for name, value in encoder.state_dict().items()}
    mapped = [(rename.match(name).names()[0] if rename.match(name) else name) for name in found]
    model = NestModel(compose(["size=tiny"]).model, "3.0").state_dict()
    assert dict(zip(mapped, found.values(), strict=True)) == {
        name: value.shape for name, value in model.items() if name.startswith("encoder.")
    }
