from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from nest_ssl.base.errors import UserError
from nest_ssl.config.losses import Decoder
from nest_ssl.config.parts import Encoder, Quantizer
from nest_ssl.config.section import read
from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.nest import NestModel
from nest_ssl.model.quantizer import RandomProjectionVectorQuantizer


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    lengths = torch.tensor([32000, 20000])
    audio = torch.randn(2, 32000)
    return {
        "input_signal": audio,
        "input_signal_length": lengths,
        "noisy_input_signal": audio + 0.1 * torch.randn(2, 32000),
        "noisy_input_signal_length": lengths,
    }


def test_shapes(build: Callable[..., NestModel], batch: dict[str, torch.Tensor]) -> None:
    log_probs, lengths, masks, tokens = build()(**batch, apply_mask=True)
    assert (log_probs.shape, tokens.shape, masks.shape) == ((2, 26, 128, 1), (2, 26, 1), (2, 80, 208))
    assert lengths.tolist() == [25, 16]


def test_a_seed_decides_everything(build: Callable[..., NestModel], batch: dict[str, torch.Tensor]) -> None:
    outputs = []
    for _ in range(2):
        model = build(seed=7)
        outputs.append(model(**{name: value.clone() for name, value in batch.items()}, apply_mask=True))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def test_the_first_encoder_and_decoder_are_drawn_and_thrown_away(build: Callable[..., NestModel], tiny: Any) -> None:
    model = build()
    torch.manual_seed(0)
    first = ConformerEncoder(read(Encoder, tiny.encoder))
    MultiSoftmaxDecoder(read(Decoder, tiny.decoder))
    quantizer = RandomProjectionVectorQuantizer(read(Quantizer, tiny.quantizer))
    assert not torch.equal(first.pre_encode.out.weight, model.encoder.pre_encode.out.weight)
    assert torch.equal(quantizer.codebooks, model.quantizer.codebooks)


def test_the_tiny_model_has_nemos_size_and_order(build: Callable[..., NestModel]) -> None:
    model = build()
    assert sum(p.numel() for p in model.parameters()) == 246_160
    assert list(model._modules) == ["preprocessor", "encoder", "loss", "quantizer", "mask_processor", "decoder"]


def test_without_masks_nothing_is_masked(build: Callable[..., NestModel], batch: dict[str, torch.Tensor]) -> None:
    assert not build()(**batch)[2].any()


def test_tokens_come_from_clean_audio_only(build: Callable[..., NestModel], batch: dict[str, torch.Tensor]) -> None:
    model = build().eval()
    tokens = model(**batch)[3]
    other = {**batch, "noisy_input_signal": torch.randn(2, 32000)}
    assert torch.equal(model(**other)[3], tokens)
    assert not torch.equal(model(**{**batch, "input_signal": torch.randn(2, 32000)})[3], tokens)


def test_a_step_reaches_every_parameter_that_is_not_frozen(
    build: Callable[..., NestModel], batch: dict[str, torch.Tensor]
) -> None:
    model = build()
    log_probs, lengths, masks, tokens = model(**batch, apply_mask=True)
    model.loss(masks=masks, decoder_outputs=log_probs, targets=tokens, decoder_lengths=lengths).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["quantizer.codebooks", "quantizer.proj.weight", "mask_processor.mask_embedding"]


def test_features_may_take_the_place_of_audio(build: Callable[..., NestModel], batch: dict[str, torch.Tensor]) -> None:
    model = build().eval()
    clean, clean_length = model.preprocessor(input_signal=batch["input_signal"], length=batch["input_signal_length"])
    noisy = {name: value for name, value in batch.items() if name.startswith("noisy")}
    output = model(processed_signal=clean, processed_signal_length=clean_length, **noisy)
    assert all(torch.equal(a, b) for a, b in zip(output, model(**batch), strict=True))
    with pytest.raises(ValueError, match="a signal and its length, or"):
        model(processed_signal=clean, processed_signal_length=clean_length, **batch)
    with pytest.raises(ValueError, match="a signal and its length, or"):
        model(**noisy)


def test_it_is_a_lightning_module_by_inheritance(tiny: Any, batch: dict[str, torch.Tensor]) -> None:
    class Trainable(NestModel, LightningModule):
        pass

    model = Trainable(tiny)
    assert model.forward(**batch, apply_mask=True)[0].shape == (2, 26, 128, 1)


def test_masks_after_the_convolutions_are_refused(tiny: Any) -> None:
    tiny.mask_position = "post_conv"
    with pytest.raises(UserError, match=r"model\.mask_position"):
        NestModel(tiny)
