"""NeMo's recipe with everything random on, both trainers from one seed, every bit of the steps recorded.

The first step is, and the last, which holds what those between have made of weights, moments and generators.

Dither, dropout, block masks, noise and speaker augmentation from a noise manifest, shuffling: nothing is switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from aligning import GENERATION, RELEASE, SMALL, assert_identical, assert_tokens_count, compare, record
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import tensors
from nest_ssl.recording.reader import open_recording
from nest_ssl.releases import generation
from nest_ssl.run import command_line as command
from nest_ssl.run.experiment import Subject

RECIPE = [*SMALL, "run=full", "model.train_ds.batch_size=3", "model.train_ds.num_workers=0",
          "model.validation_ds.num_workers=0", "save_steps=0,2", "batches=3"]  # fmt: skip
BF16, FLOAT64 = "bf16-mixed", "float64, two codebooks"
CASES: dict[str, list[str]] = {
    "as published, into a second epoch": ["batches=6", "save_steps=0,3,5", "model.encoder.n_layers=2"],
    "another seed": ["seed=7"],
    BF16: ["trainer.precision=bf16-mixed"],
    FLOAT64: ["trainer.precision=64", "model.num_books=2"],
    "one sample a batch": ["model.train_ds.batch_size=1", "model.masking.mask_prob=0.03"],
    "loader workers": ["model.train_ds.num_workers=2", "model.validation_ds.num_workers=2"],
    "two epochs with validation between": ["batches=null", "trainer.max_epochs=2", "save_steps=0,5"],
    "validation within an epoch": ["batches=4", "trainer.val_check_interval=2", "trainer.limit_val_batches=1",
                                   "save_steps=0,3"],
    "accumulation and clipping": [
        "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.05", "model.optim.sched.warmup_steps=2",
        "batches=6", "save_steps=0,2,4"],
    "accumulation, clipping and workers over epochs": [
        "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.05", "batches=null", "trainer.max_epochs=2",
        "model.train_ds.num_workers=2", "trainer.precision=bf16-mixed", "save_steps=0,5"],
    "the last batch kept": [
        "model.train_ds.drop_last=false", "batches=null", "trainer.max_epochs=1", "save_steps=0,3"],
    "many segments and speakers": [
        "model.train_ds.batch_augmentor.prob=1.0", "model.train_ds.batch_augmentor.max_num_segments=3",
        "model.train_ds.batch_augmentor.max_num_speakers=2", "model.train_ds.batch_augmentor.min_mix_rate=0.2"],
}  # fmt: skip


FLOAT64_FAILS = generation(GENERATION).float64 == "fails"
needs_float64 = pytest.mark.skipif(FLOAT64_FAILS, reason=f"NeMo {RELEASE} fails in float64, as the last test shows")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=needs_float64 if case.startswith("float64") else ()) for case in CASES]
)
def test_every_bit_of_the_recipe(tmp_path: Path, recorded: Callable[..., Path], case: str) -> None:
    sides = [recorded(subject, *RECIPE, *CASES[case]) for subject in (NEMO, NEST)]
    assert_identical(*compare(tmp_path, *sides))
    assert_tokens_count(tmp_path)


@pytest.mark.parametrize("subject", [NEMO, NEST], ids=lambda subject: subject.name)
@pytest.mark.parametrize(
    ("case", "computed", "kept"),
    [
        pytest.param(FLOAT64, torch.float64, torch.float64, marks=needs_float64),
        (BF16, torch.bfloat16, torch.float32),
    ],
)
def test_the_precision_is_what_it_says(
    recorded: Callable[..., Path], subject: Subject, case: str, computed: torch.dtype, kept: torch.dtype
) -> None:
    """Otherwise both sides could be alike in float32."""
    step = open_recording(recorded(subject, *RECIPE, *CASES[case])).step(0)
    query = "encoder.layers.0.self_attn.linear_q"
    assert {call.output.dtype for call in step.calls() if call.module == query} == {computed}
    assert step.weights()[f"{query}.weight"].dtype == kept
    assert {gradient.dtype for _, gradient in tensors(step.gradients())} == {kept}
    assert {state.dtype for _, state in tensors(step.optimizer_state()["state"]) if state.dim() > 0} == {kept}


@needs_float64
@pytest.mark.parametrize("subject", [NEMO, NEST], ids=lambda subject: subject.name)
def test_in_float64_features_are_float32_up_to_their_normalisation(
    recorded: Callable[..., Path], subject: Subject
) -> None:
    """As conf/ says: NeMo casts the audio, and only the means that it divides by counts are float64."""
    step = open_recording(recorded(subject, *RECIPE, *CASES[FLOAT64])).step(0)
    call = next(call for call in step.calls() if call.module == "preprocessor.featurizer")
    assert step.batch()["audio"].dtype == torch.float64 and call.args[0].dtype == torch.float32
    assert call.output[0].dtype == torch.float64


@pytest.mark.skipif(not FLOAT64_FAILS, reason=f"NeMo {RELEASE} trains in float64")
def test_a_nemo_that_fails_in_float64_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before training, for both; and NeMo does fail, or this refusal is out of date."""
    for subject in (NEMO, NEST):
        with pytest.raises(UserError, match=rf"NeMo {GENERATION} does not train in float64: trainer.precision=64-true"):
            record(subject, tmp_path / "run", *RECIPE, "trainer.precision=64-true")
    monkeypatch.setattr(command, "FLOAT64", ())
    with pytest.raises(RuntimeError, match="Found dtype Double but expected Float"):
        record(NEMO, tmp_path / "run", *RECIPE, "trainer.precision=64-true")
