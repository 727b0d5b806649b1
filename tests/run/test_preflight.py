"""What cannot work is said in one line before anything is built, for both trainers alike."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.base.errors import UserError
from nest_ssl.config.strict import read_config
from nest_ssl.data.shares import Share
from nest_ssl.model.models import model_of
from nest_ssl.releases import NEWEST
from nest_ssl.run import preflight
from nest_ssl.run.command_line import read_command_line
from nest_ssl.run.preflight import Length, check_data, check_settings, planned_length, without_graphs
from nest_ssl.run.subject import Subject

LHOTSE = "model.train_ds.use_lhotse=true"
MEMBER = "{type: nemo, manifest_filepath: data/dummy_ssl/val_manifest.json}"  # of a mixture, which has no end
BOTH = pytest.mark.parametrize("subject", [NEMO, NEST], ids=lambda subject: subject.name)


@pytest.fixture(autouse=True)
def _any_nemo(monkeypatch: pytest.MonkeyPatch) -> None:
    """NeMo is not installed beside the port."""
    monkeypatch.setattr(preflight, "_check_generation", lambda subject, wanted: None)


def check(subject: Subject, *overrides: str) -> None:
    cfg = read_command_line(subject.name, ["size=tiny", *overrides])
    check_settings(subject, cfg)
    check_data(subject, cfg)


def refused(subject: Subject, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        check(subject, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@BOTH
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["trainer.devices=2", "noise_floor=1"],
            "not offered in several processes: noise_floor with trainer.devices=2",
        ),
        (["trainer.devices=[0,1]", "bad_audio=skip"], "not offered in several processes: bad_audio=skip"),
        (
            ["trainer.devices=2", "trainer.use_distributed_sampler=false"],
            "not offered in several processes: trainer.use_distributed_sampler=false",
        ),
        (["record=boundaries", "noise_floor=1"], "the noise floor is of all modules of a step: .*record=boundaries"),
        (["trainer.stall_timeout=60", "noise_floor=1"], "repeats of a step would pass .*trainer.stall_timeout=60"),
        (["trainer.devices=two"], "not a number of devices: trainer.devices=two"),
        (["trainer.devices=2", "run=full"], "no batch is full.*batch_size=8, 5 utterances"),
        (["trainer.num_nodes=2"], "nothing started several nodes: trainer.num_nodes=2"),
        (["trainer.strategy=ddp_spawn", "trainer.accelerator=gpu"], "no GPU that torch can use"),
        (["trainer.strategy=fsdp"], "not offered: trainer.strategy=fsdp"),
        (["trainer.accelerator=tpu"], "trainer.accelerator"),
        (["trainer.precision=transformer-engine"], "trainer.precision"),
        (["trainer.precision=64-true", "nemo=2.7"], "NeMo 2.7 does not train in float64"),
        (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches"),
        (["trainer.accumulate_grad_batches={0: 2}"], "trainer.accumulate_grad_batches"),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval"),
        (["trainer.val_check_interval=2500"], "a validation that never comes: .*2500, and an epoch has 2 batches"),
        (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch"),
        (["trainer.log_every_n_steps=0"], "trainer.log_every_n_steps"),
        (["trainer.max_steps=0"], "trainer.max_steps"),
        (["trainer.max_epochs=0"], "trainer.max_epochs"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches"),
        (["trainer.limit_train_batches=0.01"], "nothing to train"),
        (["model.train_ds.batch_size=13", "model.train_ds.drop_last=true"], "no batch is full.*batch_size=13, 10 utt"),
        (["trainer.max_epochs=-1"], "training without end"),
        (
            [LHOTSE, "model.train_ds.force_iterable_dataset=true", "trainer.limit_train_batches=1.0"],
            "an epoch without end: .*limit_train_batches=1.0",
        ),
        (
            ["model.validation_ds.use_lhotse=true", f"model.validation_ds.input_cfg=[{MEMBER},{MEMBER}]"],
            "an epoch without end: .*limit_val_batches",
        ),
        ([LHOTSE, "trainer.max_epochs=1"], "a schedule whose length nothing says"),
        ([LHOTSE, "trainer.max_steps=5", "nemo=2.7"], "the same as NeMo 3.0's alone"),
        (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val"),
        (["model.optim.sched.warmup_ratio=0.1"], "model.optim.sched"),
        (["model.optim.min_lr=3"], "model.optim.min_lr"),
        (["model.optim.sched.min_lr=30"], "a learning rate that is not above its minimum"),
        (["model.optim.betas=[0.9,1.5]"], "model.optim: .*beta"),
        (["model.optim.name=novograd"], "adamw, adam, sgd"),
        (["model.encoder.n_heads=3"], "model.encoder"),
        (["model.optim_param_groups={nothing: {lr: 1}}"], "optim_param_groups.nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work(subject: Subject, overrides: list[str], told: str) -> None:
    line = refused(subject, *overrides)
    assert re.search(told, line), line


@pytest.mark.parametrize("threads", ["0", "two", "-1", ""])
def test_a_number_of_threads(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    with pytest.raises(UserError, match=f"not a number of threads: OMP_NUM_THREADS={threads}"):
        read_command_line("nest", ["size=tiny"])


def test_a_spawning_strategy_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = read_config(["size=tiny", "trainer.accelerator=gpu", "trainer.strategy=ddp_spawn"])[0]
    with pytest.raises(UserError, match="not offered: trainer.strategy=ddp_spawn"):
        check_settings(NEST, cfg)
    cfg = read_config(["size=tiny", "trainer.accelerator=gpu", "trainer.devices=-1"])[0]
    assert any(
        "ddp_find_unused_parameters_true instead" in note for note in check_settings(NEST, cfg)
    )  # one for each GPU
    assert cfg.trainer.strategy == "ddp_find_unused_parameters_true"


def test_nothing_is_drawn_and_nothing_built() -> None:
    """The model that is tried takes no memory and no random number."""
    before = torch.get_rng_state()
    check_settings(NEST, read_command_line("nest", ["size=xxlarge"]))
    assert torch.equal(before, torch.get_rng_state())


@BOTH
def test_a_short_run_of_a_long_recipe_validates_at_its_end(subject: Subject) -> None:
    """NeMo's newest public recipe has val_check_interval=2500; with batches=2 that was a traceback of Lightning."""
    cfg = read_command_line(subject.name, ["size=tiny", "batches=2", "trainer.val_check_interval=2500"])
    notes = check_data(subject, cfg)[3]
    assert cfg.trainer.val_check_interval == 1.0
    assert notes == [
        "trainer.val_check_interval=2500, and an epoch has 2 batches, for batches=2: a validation at its end instead"
    ]
    for accepted in ("trainer.val_check_interval=1", "trainer.val_check_interval=1.0"):
        assert check_data(subject, read_command_line(subject.name, ["size=tiny", accepted]))[3] == []
    over_epochs = ["size=tiny", "trainer.val_check_interval=2500", "trainer.check_val_every_n_epoch=null"]
    cfg = read_command_line(subject.name, over_epochs)
    assert check_data(subject, cfg)[3] == [] and cfg.trainer.val_check_interval == 2500


def test_a_long_run_is_announced() -> None:
    cfg = read_config(["size=tiny", "trainer.max_epochs=20000", "trainer.limit_train_batches=1.0"])[0]
    assert any("this trains 100,000 batches" in note for note in check_data(NEST, cfg)[3])


def plan(utterances: int = 10, size: int = 2, drop_last: bool = False, **trainer: Any) -> Length:
    cfg: DictConfig = OmegaConf.create({"trainer": {"max_epochs": 1, **trainer}})
    batches = utterances // size if drop_last else math.ceil(utterances / size)
    return planned_length(cfg, Share(utterances, batches), size)


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({}, (5, 5, 5)),
        ({"utterances": 9}, (5, 5, 5)),
        ({"utterances": 9, "drop_last": True}, (4, 4, 4)),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, (5, 15, 9)),
        ({"limit_train_batches": 3, "max_epochs": 2}, (3, 6, 6)),
        ({"limit_train_batches": 0.5}, (2, 2, 2)),
        ({"max_steps": 7, "max_epochs": -1}, (5, 7, 7)),
        ({"max_steps": 7, "max_epochs": 1}, (5, 5, 5)),
        ({"max_steps": 4, "max_epochs": -1, "accumulate_grad_batches": 2}, (5, 7, 4)),
        ({"max_steps": 3, "max_epochs": -1, "accumulate_grad_batches": 2}, (5, 5, 3)),
        ({"max_epochs": None}, (5, 5000, 5000)),
        ({"max_epochs": None, "max_steps": 4}, (5, 4, 4)),
        ({"max_epochs": -1, "max_time": "00:01:00:00"}, (5, math.inf, math.inf)),
    ],
)
def test_how_long_training_is(settings: dict[str, Any], length: tuple[int, float, float]) -> None:
    assert plan(**settings) == Length(*length)


@pytest.mark.parametrize(
    "settings",
    [{}, {"limit_train_batches": 3, "max_epochs": 2}, {"max_steps": 4, "accumulate_grad_batches": 2, "max_epochs": -1},
     {"max_steps": 7, "max_epochs": -1}, {"accumulate_grad_batches": 3, "max_epochs": 2}],
)  # fmt: skip
def test_it_is_as_long_as_lightning_trains(settings: dict[str, Any]) -> None:
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel
    from torch.utils.data import DataLoader

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(**{"max_epochs": 1, **settings}, **quiet, enable_model_summary=False, limit_val_batches=0)
    trainer.fit(BoringModel(), DataLoader(torch.ones(10, 32), batch_size=2))
    length = plan(**settings)
    assert (trainer.fit_loop.total_batch_idx + 1, trainer.global_step) == (length.batches, length.steps)


def test_two_trainings_differ_in_nothing_but_their_scripts() -> None:
    """The entry points stay twins: what differs is what they are about."""
    lines = [(Path(__file__).parents[2] / "scripts" / f"train_{name}.py").read_text().splitlines()
             for name in ("nemo", "nest")]  # fmt: skip
    assert (
        len(set(lines[0]) ^ set(lines[1])) < 64
    )  # 20 of them: which NeMo, see `checkout`; 4: the port's numerics; 3: its loops


@pytest.mark.parametrize(
    ("overrides", "on_gpu", "ranks", "why"),
    [
        ([], True, 1, None),
        ([], False, 1, "none is used"),
        ([], True, 2, "in several processes"),
        (["trainer.stall_timeout=60"], True, 1, "every call is watched"),
        (["trainer.detect_anomaly=true"], True, 1, "asked of the device"),
        (["model.encoder.stochastic_depth_drop_prob=0.1"], True, 1, "a Conformer of the paper"),
        (["model.encoder.feat_out=48", "model.decoder.feat_in=48"], True, 1, "of one width"),
    ],
)
def test_graphs_that_are_never_captured_are_said(
    overrides: list[str], on_gpu: bool, ranks: int, why: str | None
) -> None:
    cfg = read_config(["size=tiny", *overrides])[0]
    with torch.device("meta"):
        encoder = model_of(cfg.model, NEWEST).encoder
    notes = without_graphs(encoder, on_gpu, ranks, cfg.trainer)
    assert (why in notes[0] and "no effect" in notes[0]) if why else notes == []


@pytest.mark.parametrize(
    ("subject", "overrides", "said"),
    [
        (NEST, ["numerics=fast"], True),
        (NEST, ["numerics=fast", "save_steps=all"], True),
        (NEST, ["numerics=fast", "save_steps=none"], False),
        (NEST, ["numerics=exact"], False),
        (NEMO, ["numerics=fast"], False),
    ],
)
def test_a_recorded_step_of_the_fast_mode_is_said_to_be_computed_otherwise(
    subject: Subject, overrides: list[str], said: bool
) -> None:
    notes = check_settings(subject, read_command_line(subject.name, ["size=tiny", *overrides]))
    assert any("a recorded step computes the open way" in note for note in notes) == said
