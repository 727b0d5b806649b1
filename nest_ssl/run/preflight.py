"""Before anything is built: what this machine, Lightning and the data cannot do together, the same for both trainers.

Single settings are the schema's matter (`nest_ssl.config`), which has refused wrong ones already.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.base.steps import parse_steps
from nest_ssl.config.data import Dataset
from nest_ssl.config.schema import NEST, class_of
from nest_ssl.config.section import plain, read
from nest_ssl.data.check import check_dataset
from nest_ssl.data.corpus import Corpora, is_mixed, is_stream
from nest_ssl.data.fingerprint import DataRecord
from nest_ssl.data.shares import Share, shares_of
from nest_ssl.data.sources.seeding import seed_lhotse
from nest_ssl.model.encoder.graphs import is_alike
from nest_ssl.model.models import model_of
from nest_ssl.releases import NEWEST, generation, generation_of, unlisted
from nest_ssl.run.ranks import own_rank, processes
from nest_ssl.run.shares import (
    check_shares,
    check_training,
    check_validation,
    refuse_idle_workers,
    say_shares,
    share_out_limit,
)
from nest_ssl.run.subject import Inputs, Subject
from nest_ssl.train.checkpoint.init_from import load_sources
from nest_ssl.train.optim import build_optimizer
from nest_ssl.train.schedules import build_schedule
from nest_ssl.train.validation import loss_prefixes

DDP = "ddp_find_unused_parameters_true"  # in NeMo's own file
FLOAT64 = (64, "64", "64-true")  # Lightning's names
MANY_BATCHES = 10_000  # of which a run says beforehand that it trains so many, unless it keeps checkpoints
SOME_STEPS = 1_000_000  # that a schedule is tried with


@dataclass(frozen=True)
class Length:
    """How long a run trains.

    Args:
        epoch: batches in an epoch; infinite where they are not counted.
        batches: in all, at most; infinite where nothing but a signal, the clock or the data ends it.
        steps: of the optimizer.
    """

    epoch: float
    batches: float
    steps: float


def check_settings(subject: Subject, cfg: DictConfig) -> list[str]:
    """Refuse what cannot work here; change what NeMo's own recipes ask of many GPUs. A line for each change.

    Raises:
        UserError: the first such setting.
    """
    accelerator = cfg.trainer.get("accelerator")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        fix = "Use trainer.accelerator=cpu (DEVICE=cpu), or check the driver and the torch build."
        raise UserError("no GPU that torch can use", f"trainer.accelerator={accelerator}", fix)
    unknown = _check_generation(subject, cfg.nemo)
    if cfg.trainer.get("precision") in FLOAT64 and generation(cfg.nemo).float64 == "fails":
        fix = "Compare with another generation in float64: NEMO_VERSION=3.0.0 (nemo=3.0)."
        raise UserError(f"NeMo {cfg.nemo} does not train in float64", f"trainer.precision={cfg.trainer.precision}", fix)
    if cfg.noise_floor and (cfg.record != "modules" or cfg.include or cfg.exclude):
        where = f"noise_floor={cfg.noise_floor} with record={cfg.record}, include={cfg.include}, exclude={cfg.exclude}"
        fix = "Record all modules: record=modules, without include and exclude."
        raise UserError("the noise floor is of all modules of a step", where, fix)
    if cfg.noise_floor and cfg.trainer.get("stall_timeout") is not None:
        where = f"noise_floor={cfg.noise_floor} with trainer.stall_timeout={cfg.trainer.stall_timeout}"
        raise UserError("the repeats of a step would pass for a step that stalled", where, "Leave one of them out.")
    notes = [*filter(None, [unknown]), *adapt_to_machine(cfg, torch.cuda.device_count())]
    notes += check_processes(cfg)
    notes += seed_lhotse(cfg) if cfg.seeded_data else []
    # Without memory (torch's `meta` device) the port's model and its optimizer are built: what fails, fails now, and
    # NeMo, which would end in a traceback, is not asked.
    section = plain(cfg.model.optim)
    with torch.device("meta"):
        model = model_of(cfg.model, cfg.nemo)
    optimizer = build_optimizer(model, section, plain(cfg.model.get("optim_param_groups")))
    build_schedule(optimizer, section.get("sched"), SOME_STEPS)
    if cfg.cuda_graphs and subject.package != "nemo_toolkit":
        on_gpu = accelerator != "cpu" and torch.cuda.is_available()
        notes += without_graphs(model.encoder, on_gpu, processes(cfg), cfg.trainer)
    if cfg.model.preprocessor.get("nb_augmentation_prob"):
        how = "follows from the seed; NeMo's own follows from the clock (seeded_data=false)"
        unseeded = "follows from the clock in both trainers, so no two runs agree (seeded_data=true)"
        notes.append(f"which spectra are cut off (nb_augmentation_prob) {how if cfg.seeded_data else unseeded}")
    if subject.package == "nemo_toolkit":
        if cfg.no_masked_token != "nan":
            notes.append(f"no_masked_token={cfg.no_masked_token} is the port's alone: NeMo's loss stays NaN there")
        if cfg.numerics != "exact":
            notes.append(f"numerics={cfg.numerics} is the port's alone: NeMo computes as it always does")
        if cfg.cuda_graphs:
            notes.append("cuda_graphs=true is the port's alone: NeMo launches its kernels as it always does")
        if cfg.bad_audio == "skip":
            notes.append("bad_audio=skip is the port's alone: NeMo stops at a file that cannot be used")
        if cfg.get("exp_manager"):
            notes.append("exp_manager is not used: no logger or checkpoint is written")
    elif cfg.numerics == "fast" and (cfg.save_steps is None or parse_steps(cfg.save_steps) != frozenset()):
        notes.append("numerics=fast: a recorded step computes the open way, so weights after it differ by rounding")
    return notes


def check_data(subject: Subject, cfg: DictConfig) -> tuple[Inputs, DataRecord, Length, list[str]]:
    """Read manifests, audio headers and sources of weights once, hash the data, and see how long training will be.

    Returns:
        what was read, the record of the data, the length of training, and lines that the user should read.

    Raises:
        UserError: the first file that is missing or cannot be read, and where it is named; validation sets with
            losses that would have no name; nothing to train; a validation that never comes.
    """
    skip = cfg.bad_audio == "skip" and subject.skips_bad_audio
    datasets, corpora = data_sections(cfg), Corpora(transcripts=class_of(cfg.model.get("target")) != NEST)
    rate = cfg.model.sample_rate
    checked = {name: check_dataset(dataset, rate, skip, corpora) for name, dataset in datasets.items()}
    if "validation" in checked:
        loss_prefixes(plain(cfg.model.validation_ds))
    train = datasets["train"]
    if any(data.is_tarred or data.is_concat or data.use_lhotse for data in datasets.values()) and cfg.nemo != NEWEST:
        fix = f"Give nemo={NEWEST}, or a plain manifest."
        raise UserError(f"such data is the same as NeMo {NEWEST}'s alone", f"model.train_ds, nemo={cfg.nemo}", fix)
    for name, dataset in datasets.items():
        if dataset.use_lhotse:
            check_unknown_length(cfg, name, dataset)
    notes = [f"{name}: {left_out}" for name, corpus in checked.items() if (left_out := corpus.left_out())]
    shares = shares_of(train, corpora, processes(cfg))
    notes += [*say_shares(train, shares, corpora), *check_shares(cfg, datasets)]
    share_out_limit(cfg, "train", train, shares, corpora)
    check_training(cfg, shares)
    if "validation" in checked:
        check_validation(cfg, corpora)
    length = planned_length(cfg, min(shares, key=lambda share: share.batches), train.batch_size or 1)
    refuse_idle_workers("model.train_ds", train, corpora, len(shares), length.batches / max(1, length.epoch))
    if cfg.seeded_data and (train.is_concat or (train.is_tarred and train.shuffle is not False)):
        drawn = "the order of tar files, and of a mixture's sets,"
        notes.append(f"{drawn} follows from the seed; NeMo's own follows from the clock (seeded_data=false)")
    interval = cfg.trainer.get("val_check_interval")
    counted_in_epochs = cfg.trainer.get("check_val_every_n_epoch", 1) is not None
    if isinstance(interval, int) and interval > length.epoch and counted_in_epochs:  # Lightning stops at it
        where = f"trainer.val_check_interval={interval}, and an epoch has {length.epoch} batches"
        if cfg.batches is None:
            fix = "Lower it, or count over epochs: trainer.check_val_every_n_epoch=null."
            raise UserError("a validation that never comes", where, fix)
        cfg.trainer.val_check_interval = 1.0  # our own doing (`batches=N` of a long recipe): shortened to the epoch
        notes.append(f"{where}, for batches={cfg.batches}: a validation at its end instead")
    if MANY_BATCHES < length.batches < math.inf and not (cfg.get("exp_manager") or {}).get("exp_dir"):
        notes.append(f"this trains {length.batches:,.0f} batches and keeps no checkpoint; batches=N ends it earlier")
    return Inputs(load_sources(cfg), corpora), DataRecord(checked), length, notes


def data_sections(cfg: DictConfig) -> dict[str, Dataset]:
    """The settings of ``train`` and, if there is any, ``validation`` data."""
    given = {name: cfg.model.get(f"{name}_ds") for name in ("train", "validation")}
    return {name: read(Dataset, section, f"model.{name}_ds") for name, section in given.items() if section is not None}


def check_unknown_length(cfg: DictConfig, name: str, dataset: Dataset) -> None:
    """Ask for the numbers that follow from the length of the data elsewhere; NeMo stops without them, with no word.

    Raises:
        UserError: an epoch of a stream, or a schedule, whose length nothing says.
    """
    limit = f"limit_{'train' if name == 'train' else 'val'}_batches"
    given = cfg.trainer.get(limit)
    # A mixture ends no training that `max_steps` ends, but there is no end to a validation.
    mixed = name == "validation" and not dataset.force_finite and is_mixed(dataset.model_dump())
    if (mixed or is_stream(dataset)) and not (isinstance(given, int) and not isinstance(given, bool)):
        fix = f"Give trainer.{limit}=N batches (of training, batches=N says it too)."
        what = "an epoch without end: Lhotse repeats such data"
        raise UserError(what, f"model.{name}_ds, trainer.{limit}={given}", fix)
    sched = plain(cfg.model.optim).get("sched") or {}
    if name == "train" and sched and cfg.trainer.get("max_steps", -1) in (-1, None) and sched.get("max_steps") is None:
        where, fix = "model.optim.sched, model.train_ds.use_lhotse=true", "Give trainer.max_steps=N."
        raise UserError("a schedule whose length nothing says: Lhotse does not count its batches", where, fix)


def planned_length(cfg: DictConfig, share: Share, batch_size: int) -> Length:
    """How long `cfg.trainer` trains.

    Args:
        cfg: the whole configuration.
        share: what a rank has in an epoch.
        batch_size: utterances in a batch.

    Raises:
        UserError: there is nothing to train, or no end to it.
    """
    trainer, limit = cfg.trainer, cfg.trainer.get("limit_train_batches")
    epoch, counted = share.batches, share.batches != math.inf
    if epoch == 0:
        where, fix = (
            f"model.train_ds.batch_size={batch_size}, {share.utterances} utterances",
            "Lower it, or drop_last=false.",
        )
        raise UserError("no batch is full, so there is nothing to train", where, fix)
    if limit is not None:
        epoch = min(epoch, limit) if isinstance(limit, int) else int(epoch * limit) if counted else epoch
    max_epochs, max_steps = trainer.get("max_epochs"), trainer.get("max_steps", -1)
    if 0 in (epoch, max_epochs, max_steps):
        where = f"trainer.limit_train_batches={limit}, max_epochs={max_epochs}, max_steps={max_steps}"
        raise UserError("nothing to train", where, "Give each of them more, or leave it out.")
    steps = math.inf if max_steps in (-1, None) else max_steps
    if max_epochs is None:
        max_epochs = 1000 if steps == math.inf else -1  # as in Lightning
    epochs = math.inf if max_epochs == -1 else max_epochs
    if (
        steps == math.inf
        and math.inf in (epochs, epoch)
        and not (trainer.get("max_time") or (cfg.get("exp_manager") or {}).get("max_time_per_run"))
    ):
        fix = "Give trainer.max_steps, trainer.max_epochs or batches=N."
        raise UserError("training without end", f"trainer.max_epochs={max_epochs} and no max_steps", fix)
    accumulate = trainer.get("accumulate_grad_batches") or 1
    if epoch == math.inf:
        return Length(epoch, steps * accumulate, steps)
    steps_of_epoch = math.ceil(epoch / accumulate)
    if epochs * steps_of_epoch <= steps:
        return Length(epoch, epochs * epoch, epochs * steps_of_epoch)
    whole_epochs, left = divmod(steps, steps_of_epoch)  # an epoch's last step may have fewer batches
    return Length(epoch, whole_epochs * epoch + left * accumulate, steps)


def adapt_to_machine(cfg: DictConfig, cuda_devices: int) -> list[str]:
    """Turn NeMo's many-GPU trainer settings into what this machine can run; returns a line for each change.

    Lightning rejects ``devices=-1``, ``ddp`` and synchronised batch norm without a GPU; NeMo's YAML has all three.
    """
    trainer = cfg.trainer
    accelerator = trainer.get("accelerator")
    if not (accelerator == "cpu" or (accelerator in ("auto", None) and not cuda_devices)):
        return []
    one = str(trainer.get("devices")) in ("1", "-1", "auto", "None")
    wanted: dict[str, Any] = {"devices": 1} if one else {}
    if one and str(trainer.get("strategy", "auto")).startswith("ddp"):
        wanted["strategy"] = "auto"
    if trainer.get("sync_batchnorm"):
        wanted["sync_batchnorm"] = False
    changes = []
    for key, value in wanted.items():
        if trainer.get(key) != value:
            changes.append(f"trainer.{key}={trainer.get(key)} needs GPUs and none is used: {value} instead")
            OmegaConf.update(cfg, f"trainer.{key}", value, force_add=True)
    return changes


def without_graphs(encoder: Any, on_gpu: bool, ranks: int, trainer: Mapping[str, Any]) -> list[str]:
    """A line if `cuda_graphs=true` changes nothing in this run, and why."""
    reasons = {
        "none is used": not on_gpu,
        "in several processes nothing is captured": ranks > 1,
        "with trainer.stall_timeout every call is watched": trainer.get("stall_timeout") is not None,
        "with trainer.detect_anomaly every gradient is asked of the device": bool(trainer.get("detect_anomaly")),
        "only a Conformer of the paper is captured, of one width, depth, rate and context": not is_alike(encoder),
    }
    return [f"cuda_graphs=true is of a GPU and has no effect: {why}" for why, holds in reasons.items() if holds][:1]


def check_processes(cfg: DictConfig) -> list[str]:
    """Refuse what several processes cannot do, and turn `auto` into what NeMo's recipe has; a line for that.

    Raises:
        UserError: several nodes that torchrun did not start (a second one would be waited for), a strategy that is not
            `ddp`, or something that is offered in one process alone.
    """
    strategy, nodes = str(cfg.trainer.get("strategy", "auto")), cfg.trainer.get("num_nodes", 1)
    if nodes not in (1, None) and own_rank() is None and os.environ.get("GROUP_WORLD_SIZE") != str(nodes):
        fix = "Start torchrun on each node (--nnodes), or give trainer.num_nodes=1."
        raise UserError("nothing started several nodes", f"trainer.num_nodes={nodes}", fix)
    if any(word in strategy for word in ("spawn", "fork", "notebook", "fsdp", "deepspeed", "xla", "model_parallel")):
        raise UserError("not offered", f"trainer.strategy={strategy}", "Give trainer.strategy=auto.")
    number = processes(cfg)
    if number == 1:
        return []
    devices, train = f"trainer.devices={plain(cfg.trainer.get('devices'))}", read(Dataset, cfg.model.train_ds)
    shares_itself = train.is_tarred or train.is_concat or train.use_lhotse
    alone = {
        "noise_floor": (cfg.noise_floor, "Measure it in one process: trainer.devices=1."),
        "bad_audio=skip": (
            cfg.bad_audio == "skip",
            "A rank that lacks a batch would be waited for. Leave such lines out of the manifest (nest-ssl data inspect"
            " names them), and give bad_audio=stop.",
        ),
        "trainer.use_distributed_sampler=false": (
            cfg.trainer.get("use_distributed_sampler") is False and not shares_itself,
            "Each rank would train on everything. Leave it out.",
        ),
    }
    for what, (asked, fix) in alone.items():
        if asked:
            raise UserError("not offered in several processes", f"{what} with {devices}", fix)
    if strategy.startswith("ddp"):
        return []
    OmegaConf.update(cfg, "trainer.strategy", DDP, force_add=True)
    return [f"trainer.strategy={strategy} with {devices}: {DDP} instead, as in NeMo's recipe"]


def _check_generation(subject: Subject, wanted: str) -> str | None:
    """The port is exact with any generation of NeMo, NeMo itself only with its own; a note on a release not known."""
    if subject.package != "nemo_toolkit":
        return None
    release = subject.version()
    installed = generation_of(release)
    if installed != wanted:
        what = f"NeMo {release} is installed, of generation {installed}, and generation {wanted} is asked for"
        raise UserError(what, f"nemo={wanted}", f"Pass nemo={installed}, or take another NeMo with NEMO_VERSION=...")
    return unlisted(release)
