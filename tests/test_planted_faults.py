"""The comparer is guilty until proven innocent: real bugs, planted one by one in the trainer, must be found and named.

Each fault is one that people really made (NeMo's own history, ports of it). The trainer runs with and without it; the
comparison must have the verdict, the exit code, the first difference and the birthplace that `planted_verdicts.json`
has for it. That table was made by the comparer before its rebuild. Twin runs and rewrites that keep bits must pass.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig
from torch import nn
from train_nest import NEST

from nest_ssl.compare import FixedTolerance, compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.data.dataset import AudioNoiseDataset
from nest_ssl.model.encoder import attention
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.run.experiment import Subject, run
from nest_ssl.run.nest_report import explain_nest
from nest_ssl.train.module import NestModule
from tests.compare.builder import left, place_of
from tests.replay.planted import optimizer_setting, schedule_off_by_one

UTTERANCES = ("model.train_ds.manifest_filepath=data/dummy_ssl/train_manifest.json",
              "model.validation_ds.manifest_filepath=data/dummy_ssl/val_manifest.json")  # fmt: skip
STARTS = ("model.train_ds.manifest_filepath=tests/against_nemo/starts/train.json",
          "model.validation_ds.manifest_filepath=tests/against_nemo/starts/val.json")  # fmt: skip
# The third utterance is shorter: padding. Half of what tiny records would be the output of its subsampling, and half of
# the rest is left where utterances are cut to their first seconds.
OVERRIDES = [
    *("size=tiny", "batches=2", "save_steps=0,1", "model.train_ds.batch_size=3"),
    "model.encoder.subsampling_conv_channels=4",
    *STARTS,
]
Plant = Callable[[Any], None]


def record(target: Path, plant: Plant | None = None, *overrides: str) -> None:
    """Train and record; `plant` edits the built model before it trains."""

    def build(cfg: DictConfig, trainer: Trainer, inputs: Any) -> LightningModule:
        model = NEST.build_model(cfg, trainer, inputs)
        if plant:
            plant(model)
        return model

    subject = Subject(name=NEST.name, package=NEST.package, load=NEST.load, build_model=build)
    assert run(subject, [*OVERRIDES, *overrides, f"output_dir={target}"]) == 0


def recorded_once(factory: pytest.TempPathFactory, plant: Plant | None = None, *overrides: str) -> Path:
    """What `record` makes of these, made by whichever process of the session is the first to ask. To be read alone."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "recordings"
    folder.mkdir(exist_ok=True)
    settings = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:16]
    target = folder / f"{named(plant) if plant else 'plain'}-{settings}"
    with FileLock(f"{target}.lock"):
        if not target.exists():
            record(target, plant, *overrides)
    return target


EXPECTED = json.loads(Path(__file__).with_name("planted_verdicts.json").read_text())


@functools.cache
def opened_once(folder: Path) -> Recording:
    """A reference, which is compared many times: what it holds is read and checked once."""
    recording = open_recording(folder)
    recording.load = functools.cache(recording.load)  # type: ignore[method-assign]
    return recording


def compare(reference: Path, candidate: Path, tolerance: float | None = None) -> Comparison:
    rule = None if tolerance is None else FixedTolerance(tolerance, tolerance)
    return compare_recordings(opened_once(reference), open_recording(candidate), rule, explainers=[explain_nest])


def judged(comparison: Comparison) -> dict[str, Any]:
    """What `planted_verdicts.json` holds; `first` is rung, step, module, call, name, in what way it differs."""
    first, cause = comparison.first, comparison.cause
    return {
        "verdict": comparison.verdict.value,
        "exit_code": comparison.exit_code,
        "first": [*place_of(first), first.difference.value] if first else None,
        "born_in": cause.module if cause else None,
        "unexplained": {why: len(set(names)) for why, names in left(comparison).items()},
    }


def named(plant: Plant) -> str:
    return plant.__name__


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_once(tmp_path_factory)


def patch_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace a module's own computation, as an edit of its source would."""
    original = module.forward
    module.forward = lambda *args, **kwargs: forward(original, *args, **kwargs)  # type: ignore[method-assign]


# --- the faults: each edits a built NestModule


def other_class(model: NestModule) -> None:
    model.encoder.layers[0].conv.activation = nn.GELU()


def frozen_parameter_trained(model: NestModule) -> None:
    model.mask_processor.mask_embedding.requires_grad_(True)


def extra_buffer(model: NestModule) -> None:
    model.encoder.register_buffer("scale", torch.ones(1))


def initialisation(model: NestModule) -> None:
    with torch.no_grad():
        model.encoder.layers[1].self_attn.linear_q.weight[3, 5] += 1e-3


def weights_by_position(model: NestModule) -> None:
    linear_q, linear_k = (getattr(model.encoder.layers[0].self_attn, f"linear_{name}") for name in "qk")
    with torch.no_grad():
        linear_q.weight.copy_(linear_k.weight)


def length_off_by_one(model: NestModule) -> None:
    original = model.transfer_batch_to_device

    def shorter(batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        batch.noisy_audio_len = batch.noisy_audio_len - 1
        return original(batch, device, dataloader_idx)

    model.transfer_batch_to_device = shorter


def loader_order(model: NestModule) -> None:
    model._train_loader = torch.utils.data.DataLoader(
        model._train_loader.dataset,
        batch_size=3,
        sampler=list(range(9, -1, -1)),
        collate_fn=model._train_loader.collate_fn,
    )


def one_number_more(model: NestModule) -> None:
    patch_forward(model.mask_processor, lambda forward, *a, **k: (torch.rand(1), forward(*a, **k))[1])


def stft_padding(model: NestModule) -> None:
    model.preprocessor.featurizer.stft_padding = "reflect"


def preemphasis_over_padding(model: NestModule) -> None:
    model.preprocessor.featurizer.mask_waveform = False


def features_longer(model: NestModule) -> None:
    model.preprocessor.featurizer.extra_frames = 1


def mask_length(model: NestModule) -> None:
    model.mask_processor.block_size = 39


def subsampling_without_mask(model: NestModule) -> None:
    def plain(forward: Callable[..., Any], x: torch.Tensor, lengths: torch.Tensor) -> Any:
        _, out_lengths = forward(x, lengths)
        x = x.unsqueeze(1)
        for layer in model.encoder.pre_encode.conv:
            x = layer(x)
        return x, out_lengths

    patch_forward(model.encoder.pre_encode.conv, plain)


def norm_eps(model: NestModule) -> None:
    model.encoder.layers[1].norm_conv.eps = 1e-6


def residual_factor(model: NestModule) -> None:
    layer = model.encoder.layers[0]
    patch_forward(layer, lambda forward, *a, **k: forward(*a, **k) * 1.0000002)


def padded_key_visible(model: NestModule) -> None:
    def see_all(forward: Callable[..., Any], *args: Any, mask: torch.Tensor, **kwargs: Any) -> Any:
        return forward(*args, mask=torch.zeros_like(mask), **kwargs)

    patch_forward(model.encoder.layers[0].self_attn, see_all)


def activation(model: NestModule) -> None:
    patch_forward(model.encoder.layers[0].conv.activation, lambda forward, x: F.gelu(x))


def loss_threshold(model: NestModule) -> None:
    model.loss.mlm_loss.mask_threshold = 0.1


def label_smoothing(model: NestModule) -> None:
    patch_forward(model.loss.mlm_loss.nll_loss, lambda forward, x, y: forward(x, y) - 1e-4 * x.mean())


def loss_scale(model: NestModule) -> None:
    step = model.training_step
    model.training_step = lambda batch, batch_idx: step(batch, batch_idx) * 1.001  # type: ignore[method-assign]


def one_gradient(model: NestModule) -> None:
    model.encoder.layers[0].feed_forward1.linear1.bias.register_hook(lambda gradient: gradient * 1.01)


def detached_branch(model: NestModule) -> None:
    patch_forward(model.encoder.layers[1].conv, lambda forward, *a, **k: forward(*a, **k).detach())


def batch_norm_momentum(model: NestModule) -> None:
    model.encoder.layers[0].conv.batch_norm.momentum = 0.05


def clipping(model: NestModule) -> None:
    def clip(*_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

    model.configure_gradient_clipping = clip  # type: ignore[method-assign]


def weight_nudged_after_the_step(model: NestModule) -> None:
    step = model.optimizer_step

    def nudge(*arguments: Any) -> None:
        step(*arguments)
        with torch.no_grad():
            model.encoder.layers[0].norm_out.weight[0] += 1e-3

    model.optimizer_step = nudge  # type: ignore[method-assign]


FAULTS = [
    other_class,
    frozen_parameter_trained,
    extra_buffer,
    initialisation,
    weights_by_position,
    length_off_by_one,
    loader_order,
    one_number_more,
    stft_padding,
    features_longer,
    mask_length,
    subsampling_without_mask,
    padded_key_visible,
    activation,
    loss_threshold,
    label_smoothing,
    loss_scale,
    one_gradient,
    detached_branch,
    optimizer_setting("eps", 1e-7),
    optimizer_setting("weight_decay", 0.0011),
    schedule_off_by_one,
    batch_norm_momentum,
    clipping,
    weight_nudged_after_the_step,
]


@pytest.mark.parametrize("plant", FAULTS, ids=named)
def test_a_planted_fault_is_found_and_named(reference: Path, tmp_path: Path, plant: Plant) -> None:
    record(tmp_path / "nest", plant)
    assert judged(compare(reference, tmp_path / "nest")) == EXPECTED[plant.__name__]


def test_a_fault_in_the_last_frame_of_an_utterance(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Whose window reaches into the padding in some of the whole utterances."""
    record(tmp_path / "nest", preemphasis_over_padding, *UTTERANCES)
    reference = recorded_once(tmp_path_factory, None, *UTTERANCES)
    assert judged(compare(reference, tmp_path / "nest")) == EXPECTED["preemphasis_over_padding"]


# A correct rewrite moves an element behind tiny's batch norm by 1.3e-5, so this is the least that lets one pass here.
LOOSE = 1e-4
# Tiny as it is, and whole utterances, of which that was measured.
WHOLE = ("model.encoder.subsampling_conv_channels=32", *UTTERANCES)


@pytest.mark.parametrize("plant", [norm_eps, residual_factor], ids=named)
def test_a_small_fault_is_found_by_its_bits(tmp_path_factory: pytest.TempPathFactory, plant: Plant) -> None:
    """Too small for a fixed tolerance that rounding passes: it calls them equivalent, and names the first one."""
    reference, candidate = (recorded_once(tmp_path_factory, each, *WHOLE) for each in (None, plant))
    assert judged(compare(reference, candidate, 0.0)) == EXPECTED[f"{plant.__name__} by bits"]
    assert judged(compare(reference, candidate, LOOSE)) == EXPECTED[f"{plant.__name__} within 1e-4"]


def test_an_attention_scale_is_found(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "math", SimpleNamespace(log=math.log, sqrt=lambda x: math.sqrt(x) * 1.01))
    record(tmp_path / "nest")
    assert judged(compare(reference, tmp_path / "nest")) == EXPECTED["attention_scale"]


def test_a_resampler_or_decoder_that_reads_otherwise(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = AudioNoiseDataset.__getitem__

    def nudged(self: AudioNoiseDataset, index: int) -> Any:
        item = original(self, index)
        item.audio[100] += 2**-15  # one step of 16-bit audio
        return item

    monkeypatch.setattr(AudioNoiseDataset, "__getitem__", nudged)
    record(tmp_path / "nest")
    comparison = compare(reference, tmp_path / "nest")
    assert judged(comparison) == EXPECTED["audio_nudged"]
    assert comparison.first is not None and comparison.first.index == (0, 100)


# --- the innocent


def twin(model: NestModule) -> None:
    """Nothing is changed."""


def layer_norm_by_hand(model: NestModule) -> None:
    """The same kernel called through another door."""
    norm = model.encoder.layers[0].norm_conv
    patch_forward(norm, lambda forward, x: torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))


def unread_attribute(model: NestModule) -> None:
    model.encoder.comment = "not a number"


@pytest.mark.parametrize("change", [twin, layer_norm_by_hand, unread_attribute], ids=named)
def test_the_innocent_are_left_alone(reference: Path, tmp_path: Path, change: Plant) -> None:
    record(tmp_path / "nest", change)
    assert judged(compare(reference, tmp_path / "nest")) == EXPECTED[change.__name__]


def split_k_product(model: NestModule) -> None:
    """A correct rewrite whose bits differ: within the tolerance, and told as such."""
    layer = model.encoder.layers[0].feed_forward1

    def split_k(forward: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
        weight, half = layer.linear2.weight, layer.linear2.weight.shape[1] // 2
        return x[..., :half] @ weight[:, :half].T + x[..., half:] @ weight[:, half:].T + layer.linear2.bias

    patch_forward(layer.linear2, split_k)


def test_a_correct_rewrite_with_other_rounding_is_equivalent(tmp_path_factory: pytest.TempPathFactory) -> None:
    reference, rewrite = (recorded_once(tmp_path_factory, each, *WHOLE) for each in (None, split_k_product))
    assert judged(compare(reference, rewrite, LOOSE)) == EXPECTED["split_k_product within 1e-4"]


@pytest.mark.parametrize("override", ["seed=43", "model.encoder.dropout=0.1", "save_steps=0"])
def test_another_experiment_is_not_compared_as_the_same(reference: Path, tmp_path: Path, override: str) -> None:
    record(tmp_path / "nest", None, override)
    assert judged(compare(reference, tmp_path / "nest")) == EXPECTED[override]
