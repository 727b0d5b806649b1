"""A batch in which no token is masked: NeMo's loss is NaN, its gradients zeros; the port does the same unless told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from aligning import GENERATION, NARROW, ONE_LAYER, RELEASE, SMALL, align, assert_identical, compare, record
from lightning.pytorch import Callback, Trainer
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.base.determinism import seed_all
from nest_ssl.config.compose import compose, data_paths
from nest_ssl.recording.reader import open_recording
from nest_ssl.releases import generation
from nest_ssl.run.experiment import Subject, build_trainer

RATE = 16_000
leaves_short_audio = pytest.mark.skipif(
    generation(GENERATION).block_draw != "whole_batch",
    reason=f"NeMo {RELEASE} masks short audio with one smaller block",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Utterances of 1.2 s and of 4 s and a click of noise, and manifests: short, mixed, click."""
    folder = tmp_path_factory.mktemp("no_masked_token")
    seconds = {"short_0": 1.2, "short_1": 1.1, "long_0": 4.0, "click": 0.2}
    for number, (name, duration) in enumerate(seconds.items()):
        samples = 0.1 * np.random.default_rng(number).standard_normal(int(duration * RATE)) + 0.01
        soundfile.write(folder / f"{name}.wav", samples, RATE)
    for manifest, names in {
        "short": ["short_0", "short_1"],
        "mixed": ["short_0", "long_0", "short_1"],
        "click": ["click"],
    }.items():
        lines = [json.dumps({"audio_filepath": f"{name}.wav", "duration": seconds[name]}) + "\n" for name in names]
        (folder / f"{manifest}.json").write_text("".join(lines))
    return folder


def settings(corpus: Path, manifest: str, *more: str) -> list[str]:
    """Blocks of 1.5 s: none fits into a short utterance. One utterance a batch."""
    data = [
        f"model.{section}.{setting}"
        for section in ("train_ds", "validation_ds")
        for setting in (f"manifest_filepath={corpus / manifest}.json", "batch_size=1")
    ]
    masking = ["model.masking.block_size=150", "model.masking.mask_prob=0.05"]
    return ["size=tiny", ONE_LAYER, NARROW, "batches=3", "save_steps=all", *data, *masking, *more]


def test_nan_where_no_block_is_drawn(tmp_path: Path) -> None:
    """In every generation."""
    overrides = [*SMALL, "batches=2", "save_steps=all", "model.masking.mask_prob=0.0"]
    assert_identical(*align(tmp_path, *overrides))
    for name in ("nemo", "nest"):
        step = open_recording(tmp_path / name).step(1)
        assert step.loss()["loss"].isnan() and all(tensor.isfinite().all() for tensor in step.weights().values())


@leaves_short_audio
def test_nan_as_nemo_has_it_and_the_report_says_why(tmp_path: Path, corpus: Path) -> None:
    assert_identical(*align(tmp_path, *settings(corpus, "short")))
    told = (tmp_path / "report" / "report.md").read_text()
    assert "No token counts at step 0" in told and "mean of nothing (NaN, or 0 with no" in told
    assert "its gradients are zeros: little is proved by it" in told
    for name in ("nemo", "nest"):
        step = open_recording(tmp_path / name).step(1)
        assert step.loss()["loss"].isnan()
        assert all(gradient is not None and not gradient.any() for gradient in step.gradients().values())
        assert all(tensor.isfinite().all() for tensor in step.weights().values())


@leaves_short_audio
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["trainer.precision=bf16-mixed"],
        ["trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=0.1"],
        ["model.num_books=2", "model.optim.name=sgd", "~model.optim.betas", "model.optim.momentum=0.9"],
    ],
    ids=["plain", "bf16", "accumulated", "two books"],
)
def test_nan_between_other_batches(tmp_path: Path, corpus: Path, more: list[str]) -> None:
    assert_identical(*align(tmp_path, *settings(corpus, "mixed", *more)))
    losses = [open_recording(tmp_path / "nest").step(step).loss()["loss"].isnan().item() for step in range(3)]
    assert losses == [True, False, True]


@leaves_short_audio
def test_noise_shorter_than_a_block_leaves_no_token_either(tmp_path: Path, corpus: Path) -> None:
    """An utterance that is not augmented is masked over its noise's length (NeMo)."""
    noise = [f"model.train_ds.noise_manifest={corpus / 'click'}.json", "model.train_ds.batch_augmentor.prob=0.0"]
    assert_identical(*align(tmp_path, *settings(corpus, "mixed", "model.masking.block_size=40", *noise)))
    assert all(open_recording(tmp_path / "nest").step(step).loss()["loss"].isnan() for step in range(3))


@leaves_short_audio
def test_zero_changes_that_loss_and_nothing_else(tmp_path: Path, corpus: Path) -> None:
    overrides = settings(corpus, "mixed", "no_masked_token=zero")
    record(NEMO, tmp_path / "nemo", *overrides)
    record(NEST, tmp_path / "nest", *overrides)
    code, report = compare(tmp_path, "nemo", "nest")
    assert code == 1 and report["first_difference"]["module"].startswith("loss.")  # whose mean is not taken
    status = {rung["name"]: rung["status"] for rung in report["rungs"]}
    assert {status.pop(rung) for rung in ("loss", "forward", "validation")} == {"diverged"}  # val_loss counts it, too
    assert status.pop("steps") != "identical"
    assert set(status.values()) == {"identical"}, status
    assert "or 0 with no_masked_token=zero" in (tmp_path / "report" / "report.md").read_text()
    assert [float(open_recording(tmp_path / "nest").step(step).loss()["loss"]) for step in (0, 2)] == [0.0, 0.0]


def test_zero_changes_nothing_where_tokens_are_masked(tmp_path: Path) -> None:
    assert_identical(*align(tmp_path, *SMALL, "no_masked_token=zero", "batches=2", "save_steps=all"))


class _ValidationLoss(Callback):
    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.value = trainer.callback_metrics["val_loss"]


def validation_loss(subject: Subject, overrides: list[str]) -> torch.Tensor:
    cfg = data_paths(compose([*overrides, "trainer.accelerator=cpu"]))
    seen = _ValidationLoss()
    trainer = build_trainer(cfg, [seen])
    seed_all(cfg.seed)
    trainer.fit(subject.build_model(cfg, trainer))
    return seen.value


@leaves_short_audio
def test_validation_is_nan_too(corpus: Path) -> None:
    overrides = settings(corpus, "mixed")
    assert validation_loss(NEMO, overrides).isnan() and validation_loss(NEST, overrides).isnan()
    assert validation_loss(NEST, [*overrides, "no_masked_token=zero"]) > 1
