"""What Hugging Face's names and files are made of; that its encoder computes the same, tests/against_nemo shows."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.cli.export import main
from nest_ssl.config.compose import compose
from nest_ssl.export.parakeet import renamed
from nest_ssl.export.safetensors import safetensors
from nest_ssl.train.checkpoint.nemo_archive import save_nemo
from nest_ssl.train.module import NestModule


def test_the_file_is_header_and_bytes() -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.tensor(7)}
    content = safetensors(tensors)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    assert size % 8 == 0 and header["a"] == {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}
    begin, end = header["b"]["data_offsets"]
    assert data[begin:end] == tensors["b"].numpy().tobytes() and len(data) == 20


def test_names() -> None:
    assert renamed("encoder.layers.0.self_attn.linear_q.weight") == "layers.0.self_attn.q_proj.weight"
    assert renamed("encoder.layers.1.self_attn.pos_bias_u") == "layers.1.self_attn.bias_u"
    assert renamed("encoder.pre_encode.conv.2.bias") == "subsampling.layers.2.bias"
    assert renamed("encoder.layers.0.norm_conv.bias") == "layers.0.norm_conv.bias"


def test_an_encoder_that_has_no_place_there(tmp_path: Path) -> None:
    no_data = ["size=tiny", "model.train_ds=null", "model.validation_ds=null"]
    save_nemo(NestModule(compose([*no_data, "model.encoder.self_attention_model=abs_pos"]).model), tmp_path / "a.nemo")
    with pytest.raises(UserError, match="ParakeetEncoder has self_attention_model=rel_pos alone"):
        main([str(tmp_path / "a.nemo"), "--to", "parakeet", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_encoder_trained_in_another_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    no_data = ["size=tiny", "model.train_ds=null", "model.validation_ds=null"]
    model = NestModule(compose(no_data).model).to(dtype)
    save_nemo(model, tmp_path / "a.nemo")
    assert main([str(tmp_path / "a.nemo"), "--to", "parakeet", "--out", str(tmp_path / "out")]) == 0
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert {entry.get("dtype") for name, entry in header.items() if name != "__metadata__"} == {"F32", "I64"}
