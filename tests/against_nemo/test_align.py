"""The whole claim: from one seed, with nothing copied, both trainers make the same bits. Real NeMo is run here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from aligning import (
    GENERATION,
    NARROW,
    ONE_PROCESS,
    RELEASE,
    SMALL,
    STARTS,
    align,
    assert_identical,
    assert_tokens_count,
    compare,
    record,
)
from compare_outputs import main as compare_outputs
from lightning.pytorch import Callback, Trainer
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.base.determinism import seed_all, set_determinism
from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose, data_paths
from nest_ssl.record.observers.parameters import weights
from nest_ssl.recording.reader import open_recording
from nest_ssl.releases import GENERATIONS, describe
from nest_ssl.run.experiment import Subject, build_trainer, run

# What each generation of NeMo draws from: to fetch a batch, and to place the masks.
FETCH_DRAWS = {"2.4": ("numpy", "torch_cpu")}.get(GENERATION, ("python", "numpy", "torch_cpu"))
MASK_DRAWS = {"2.4": ("numpy", "torch_cpu")}.get(GENERATION, ("torch_cpu",))
# In the order in which they draw: the residual dropout of a layer is one module, called four times.
LAYER_DROPOUTS = ("feed_forward1.dropout#0", "dropout#0", "self_attn.dropout#0", "dropout#1", "dropout#2",
                  "feed_forward2.dropout#0", "dropout#3")  # fmt: skip


def test_tiny_over_three_steps(tmp_path: Path) -> None:
    """And by the command, with its page."""
    assert_identical(*align(tmp_path, "size=tiny", "save_steps=0,1,2", "batches=3"))
    sides = [f"--{side}={tmp_path / name}" for side, name in (("reference", "nemo"), ("candidate", "nest"))]
    assert compare_outputs([*sides, f"--out={tmp_path / 'page'}"]) == 0
    page, report = ((tmp_path / place / "report.json").read_bytes() for place in ("page", "report"))
    assert page == report and (tmp_path / "page" / "report.html").is_file()


def test_large_one_step(tmp_path: Path, memory_goes_back: None) -> None:
    code, report = align(tmp_path, "size=large", *STARTS, "model.train_ds.batch_size=2", "batches=1")
    assert_identical(code, report)
    compared = {rung["name"]: rung["compared"] for rung in report["rungs"]}
    parameters = open_recording(tmp_path / "nest", verify=False).initial_weights()
    buffers = ("window", "fb", "running_mean", "running_var", "num_batches_tracked", "pe", "dtype_sentinel_tensor")
    assert sum(t.numel() for name, t in parameters.items() if not name.endswith(buffers)) == 113_106_000
    assert compared["gradients"] >= 643


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.train_ds.batch_size=1", "batches=2"],
        ["model.train_ds.batch_size=4", "model.train_ds.shuffle=true"],
        [
            "model.validation_ds.manifest_filepath=[data/dummy_ssl/val_manifest.json,data/dummy_ssl/train_manifest.json]",
            "trainer.val_check_interval=2",
        ],
        ["trainer.precision=bf16-mixed", "batches=2"],
        ["model.masking.allow_overlap=false", "model.masking.mask_prob=0.5", "batches=2"],
        ["model.num_books=2", "batches=2"],
        ["model.squeeze_single=true", "batches=2"],
        ["trainer.gradient_clip_val=0.01", "trainer.accumulate_grad_batches=2"],
        ["~model.optim.sched", "model.optim.lr=0.001"],
        ["model.optim.sched.warmup_steps=2", "model.optim.sched.min_lr=0.5"],
        ["model.optim.name=sgd", "~model.optim.betas", "model.optim.momentum=0.9", "model.optim.nesterov=true"],
        [
            "model.optim.sched.name=CosineAnnealing",
            "~model.optim.sched.d_model",
            "model.optim.name=adam",
            "model.optim.lr=0.01",
            "model.optim.sched.warmup_steps=1",
            "model.optim.sched.constant_steps=1",
        ],
        [
            "model.optim.sched.hold_ratio=0.3",
            "model.optim.sched.name=NoamHoldAnnealing",
            "~model.optim.sched.d_model",
            "model.optim.lr=0.01",
            "model.optim.sched.warmup_steps=1",
        ],
        [
            "trainer.max_epochs=2",  # how long training is has to be found out from the data
            "batches=null",
            "trainer.limit_train_batches=3",
            "save_steps=0,5",
            "trainer.accumulate_grad_batches=2",
            "model.optim.sched.warmup_steps=null",
            "model.optim.sched.warmup_ratio=0.5",
        ],
        ["model.optim_param_groups.encoder.lr=0.5", "model.optim_param_groups.decoder.weight_decay=0.1", "batches=2"],
        [
            "model.encoder.untie_biases=false",
            "model.encoder.n_layers=2",
            "model.encoder.xscaling=false",
            "model.encoder.use_bias=false",
            "batches=2",
        ],
    ],
    ids=lambda overrides: overrides[0].partition("=")[0].rpartition(".")[2],
)
def test_other_settings(tmp_path: Path, overrides: list[str]) -> None:
    """The first step, and the last, which holds what those between made of weights, moments and generators."""
    batches = 2 if "batches=2" in overrides else 4
    masked = "model.masking.mask_prob=0.03"  # some token of each batch, also of short ones
    assert_identical(*align(tmp_path, *SMALL, masked, f"save_steps=0,{batches - 1}", "batches=4", *overrides))
    assert_tokens_count(tmp_path)


def test_everything_random_on(tmp_path: Path) -> None:
    small = ["size=tiny", NARROW, *STARTS, *ONE_PROCESS]  # of two layers
    overrides = [*small, "run=full", "model.train_ds.batch_size=4", "save_steps=all", "batches=2"]
    assert_identical(*align(tmp_path, *overrides))
    ledgers = [[open_recording(tmp_path / name).step(step).rng().ledger for step in range(2)]
               for name in ("nemo", "nest")]  # fmt: skip
    assert ledgers[0] == ledgers[1], "entry by entry: stages, generators, numbers drawn, states"
    drawn = [(f"{e.module}#{e.call}" if e.module is not None else e.phase, e.generator) for e in ledgers[0][0]]
    assert drawn == [
        *(("fetch", generator) for generator in FETCH_DRAWS),
        *((f"preprocessor.featurizer#{call}", "torch_cpu") for call in (0, 1)),
        *(("mask_processor#0", generator) for generator in MASK_DRAWS),
        ("encoder.pos_enc.dropout#0", "torch_cpu"),
        *((f"encoder.layers.{layer}.{name}", "torch_cpu") for layer in (0, 1) for name in LAYER_DROPOUTS),
    ]
    assert all(entry.draws > 0 for step in ledgers[0] for entry in step)
    before = [open_recording(tmp_path / name).index.ledger for name in ("nemo", "nest")]
    assert before[0] == before[1] and [e.phase for e in before[0]] == ["model_construction", "fit_start"]


@pytest.mark.slow
def test_everything_random_over_many_steps(tmp_path: Path) -> None:
    """Three epochs of shuffled batches, with loader workers and a validation after each."""
    overrides = [*SMALL, "run=full", "model.train_ds.batch_size=2", "model.train_ds.num_workers=2",
                 "model.validation_ds.num_workers=2", "batches=15", "trainer.gradient_clip_val=1.0",
                 "model.optim.sched.warmup_steps=10", "save_steps=0,14"]  # fmt: skip
    assert_identical(*align(tmp_path, *overrides))


def test_the_generation_may_be_told_by_a_recording(tmp_path: Path) -> None:
    record(NEMO, tmp_path / "nemo", *SMALL, "batches=1", f"nemo={RELEASE}")
    record(NEST, tmp_path / "nest", *SMALL, "batches=1", f"nemo={tmp_path / 'nemo'}")
    assert_identical(*compare(tmp_path, "nemo", "nest"))
    for name in ("nemo", "nest"):
        recording = open_recording(tmp_path / name, verify=False)
        assert recording.index.generation.model_dump() == describe(GENERATION)
        assert recording.config["nemo"] == GENERATION


def test_nemo_is_only_its_own_generation(tmp_path: Path) -> None:
    other = next(name for name in GENERATIONS if name != GENERATION)
    with pytest.raises(UserError, match=rf"NeMo {RELEASE} is installed.*Pass nemo={GENERATION}, or .*NEMO_VERSION"):
        run(NEMO, ["size=tiny", f"nemo={other}", f"output_dir={tmp_path / 'nemo'}"])
    assert not (tmp_path / "nemo").exists()


@pytest.mark.parametrize("other", [name for name in GENERATIONS if name != GENERATION])
def test_another_generation_does_not_pass(tmp_path: Path, recorded: Callable[..., Path], other: str) -> None:
    overrides = [*SMALL, "run=full", *ONE_PROCESS, "batches=1"]
    record(NEST, tmp_path / "nest", *overrides, f"nemo={other}")
    code, report = compare(tmp_path, recorded(NEMO, *overrides), "nest")
    assert code != 0 and report["verdict"] != "identical"
    assert any(rung["differing"] + rung["missing_candidate"] for rung in report["rungs"] if rung["name"] != "contract")


class _Weights(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.last = {name: tensor.clone() for name, tensor in weights(pl_module).items()}


@pytest.mark.parametrize("subject", [NEMO, NEST], ids=lambda subject: subject.name)
def test_recording_changes_no_weight(tmp_path: Path, subject: Subject) -> None:
    overrides = [*SMALL, "batches=3", "model.encoder.dropout=0.1"]
    record(subject, tmp_path / "run", *overrides, "save_steps=all")
    recorded = open_recording(tmp_path / "run").step(2).weights()
    bare = _Weights()
    cfg = data_paths(compose([*overrides, f"nemo='{GENERATION}'"]))
    set_determinism()
    trainer = build_trainer(cfg, [bare])
    seed_all(cfg.seed)
    trainer.fit(subject.build_model(cfg, trainer))
    assert recorded.keys() == bare.last.keys()
    assert all(torch.equal(recorded[name], bare.last[name]) for name in recorded)


def test_nemo_against_nemo(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        record(NEMO, tmp_path / name, *SMALL, "batches=1", f"seed={seed}")
    assert_identical(*compare(tmp_path, "a", "b"))
    code, report = compare(tmp_path, "a", "c")
    assert code == report["exit_code"] == 4 and report["first_difference"]["rung"] == "contract"


def test_nemos_own_yaml_on_both(tmp_path: Path) -> None:
    """A config in the shape that NeMo ships: many GPUs, an exp_manager, manifests left open."""
    cfg = compose([*SMALL, "run=full"])
    section = {"name": "NEST", "model": cfg.model, "exp_manager": {"exp_dir": None, "resume_if_exists": True},
               "trainer": {**cfg.trainer, "devices": -1, "strategy": "ddp_find_unused_parameters_true",
                           "sync_batchnorm": True}}  # fmt: skip
    from omegaconf import OmegaConf

    foreign = OmegaConf.create(section)
    for ds in (foreign.model.train_ds, foreign.model.validation_ds):
        ds.manifest_filepath = "???"
        ds.num_workers = 0
    foreign.model.train_ds.batch_size = 2
    (tmp_path / "other.yaml").write_text(OmegaConf.to_yaml(foreign))
    options = [f"--config-path={tmp_path}", "--config-name=other", *STARTS, "batches=2", "save_steps=0-1"]
    assert_identical(*align(tmp_path, *options))
