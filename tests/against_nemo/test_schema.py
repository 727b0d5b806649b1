"""The settings' schema against NeMo itself: the same keys, the same defaults, and what is refused stops NeMo too."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.config.data import BatchAugmentor, MultiBatchAugmentor
from nest_ssl.config.losses import Decoder, Loss
from nest_ssl.config.parts import Encoder, Masking, Preprocessor, Quantizer
from nest_ssl.config.perturbations import NAMES, REFUSED
from nest_ssl.config.section import Section
from nest_ssl.config.strict import read_config
from nest_ssl.config.trainer import CheckpointParams, ExpManager

PARTS = (Preprocessor, Masking, Quantizer, Encoder, Decoder, Loss, BatchAugmentor, MultiBatchAugmentor)


def parameters(section: type[Section]) -> dict[str, inspect.Parameter]:
    """What the constructor of NeMo's class takes."""
    from nemo.collections.asr import losses, modules
    from nemo.collections.asr.losses import ssl_losses
    from nemo.collections.asr.modules import ssl_modules

    name = section.TARGETS[0]
    cls = next(getattr(m, name) for m in (modules, ssl_modules, losses, ssl_losses) if hasattr(m, name))
    taken = dict(inspect.signature(cls.__init__).parameters)
    del taken["self"]
    return taken


@pytest.mark.parametrize("section", PARTS)
def test_the_keys_are_those_of_nemos_constructor(release: str, section: type[Section]) -> None:
    keys, reference = section.known() - {"_target_"}, set(parameters(section))
    assert reference <= keys, "a key of NeMo's that the schema does not know"
    if release == "3.0":
        assert keys <= reference, "a key that NeMo stops at"


@pytest.mark.parametrize("section", PARTS)
def test_the_defaults_are_nemos(release: str, section: type[Section]) -> None:
    reference = {name: p.default for name, p in parameters(section).items()}
    for key, field in section.fields().items():
        if key in reference and not field.is_required():
            assert field.default == reference[key], key


def test_every_perturbation_of_nemos_registry_is_supported_or_refused() -> None:
    """A release with another one fails here; and what is supported has the keys and the defaults of NeMo's class."""
    from nemo.collections.asr.parts.preprocessing.perturb import perturbation_types

    assert set(perturbation_types) == {*NAMES, *REFUSED} and not set(NAMES) & set(REFUSED)
    for name, section in NAMES.items():
        reference = {n: p.default for n, p in inspect.signature(perturbation_types[name]).parameters.items()}
        assert set(reference) == section.known() - {"prob"}, name
        for key, field in section.fields().items():
            assert key == "prob" or field.is_required() or field.default == reference[key], (name, key)


def test_the_keys_of_the_experiment_manager(release: str) -> None:
    from dataclasses import fields

    from nemo.utils.exp_manager import CallbackParams, ExpManagerConfig

    assert {f.name for f in fields(ExpManagerConfig)} <= ExpManager.known()
    assert {f.name for f in fields(CallbackParams)} <= CheckpointParams.known()


def train_a_little(*overrides: str) -> None:
    """Build NeMo's model, and compute one loss."""
    from train_nemo import build_model

    cfg = compose(["size=tiny", *overrides])
    cfg.model.validation_ds = None
    if "train_ds" not in "".join(overrides):
        cfg.model.train_ds = None
    audio, length = torch.randn(2, 48000), torch.tensor([48000, 37000])
    batch: dict[str, Any] = {"input_signal": audio, "input_signal_length": length}
    batch |= {f"noisy_{name}": value.clone() for name, value in batch.items()}
    model = build_model(cfg).train()
    log_probs, encoded, masks, tokens = model.forward(**batch, apply_mask=True)
    model.loss(masks=torch.ones_like(masks), decoder_outputs=log_probs, targets=tokens, decoder_lengths=encoded)


def test_a_right_configuration_does_not_stop_nemo(release: str) -> None:
    train_a_little()
    train_a_little("~model.train_ds.batch_augmentor")


@pytest.mark.parametrize(
    "override",
    [
        "+model.encoder.conv_dual_mode=true", "model.spec_augment=null", "~model.spec_augment",
        "model.test_ds={manifest_filepath:data/dummy_ssl/val_manifest.json,batch_size:2,sample_rate:16000}",
        "model.train_ds.batch_augmentor=null", "model.encoder.n_layers=0", "model.encoder.n_heads=3",
        "model.encoder.conv_kernel_size=8", "model.preprocessor.pad_to=0", "model.preprocessor.pad_to=1",
        "model.loss.combine_time_steps=4", "model.decoder.num_classes=16", "model.decoder.feat_in=80",
        "model.masking.feat_in=64", "model.quantizer.feat_in=64", "model.loss.num_decoders=2",
        "model.preprocessor.window=null",
    ],
)  # fmt: skip
def test_what_is_refused_stops_nemo(release: str, override: str) -> None:
    """Refused in one line before either trainer; if a release can do it, the schema is too strict."""
    with pytest.raises(Exception, match=r"(?s).*") as stop:
        train_a_little(override)
    assert not isinstance(stop.value, UserError)
    with pytest.raises(UserError):
        read_config(["size=tiny", override])
