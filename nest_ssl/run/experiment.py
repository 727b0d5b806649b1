"""One recorded training run, the same for every trainer: only `build_model` differs.

`scripts/train_nemo.py` and `scripts/train_nest.py` end here and add nothing, so whatever differs between two recordings
comes from the two models and what they bring along. `record` is the order of things; what can go wrong before training
is in `preflight`, what is kept besides the recording in `exp_manager`, what a person sees in `console`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.determinism import flags, seed_all, set_determinism
from nest_ssl.base.errors import EXIT_OK, InterruptedRun, UserError
from nest_ssl.base.nested import plain
from nest_ssl.base.steps import parse_steps
from nest_ssl.config.compose import data_paths
from nest_ssl.config.schema import WAV2VEC_BERT, class_of
from nest_ssl.data.audio import decoder_errors
from nest_ssl.data.check import audio_behind
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.workers import shielded_workers
from nest_ssl.record.levels import Level
from nest_ssl.record.lightning import Recorder
from nest_ssl.recording import layout
from nest_ssl.recording.writer import RecordingWriter, check_target
from nest_ssl.releases import describe
from nest_ssl.run.command_line import read_command_line
from nest_ssl.run.console import Progress, quiet, summary
from nest_ssl.run.exp_manager import Experiment, open_experiment
from nest_ssl.run.floor.repeats import NoiseFloorRepeats
from nest_ssl.run.importing import importing
from nest_ssl.run.interrupts import Interrupts
from nest_ssl.run.loggers import build_loggers, closing
from nest_ssl.run.preflight import check_data, check_settings, data_sections
from nest_ssl.run.ranks import Rank, Together, launch, of_torchrun, own_rank, processes, stall_watch
from nest_ssl.run.same_experiment import other_experiment
from nest_ssl.run.stops import KINDS, stop_behind
from nest_ssl.run.subject import Inputs, Subject

# What `forward` returns (NeMo 3.0.0 `EncDecDenoiseMaskedTokenPredModel.forward`; its parent's, with a list of losses).
FORWARD_OUTPUTS = ("log_probs", "encoded_len", "masks", "tokens")
LISTED_OUTPUTS = ("spectrograms", "spec_masks", "encoded", "encoded_len")
UNASKED = 2  # steps that are recorded where none is named


def run(subject: Subject, argv: Sequence[str] | None = None) -> int:
    """Train and record what the command line asks for; returns the exit code.

    Raises:
        UserError: whatever the user can mend, before training starts where it can be known then.
    """
    words = sys.argv[1:] if argv is None else argv
    return record(subject, read_command_line(subject.name, words), words)


def record(subject: Subject, cfg: DictConfig, words: Sequence[str]) -> int:
    """Train and record what `cfg` says, in as many processes as it says; returns the exit code.

    Args:
        words: the command line that `cfg` was read from; other ranks are started with it.

    Raises:
        UserError: as `run`.
    """
    if (node := of_torchrun(cfg)) is not None:
        if os.environ["LOCAL_RANK"] != "0":
            return EXIT_OK
        started = {"trainer.devices": node.ranks} | ({"trainer.num_nodes": node.nodes} if node.nodes > 1 else {})
        for key, value in started.items():
            OmegaConf.update(cfg, key, value, force_add=True)
        words = [*words, *(f"{key}={value}" for key, value in started.items())]
    notes = check_settings(subject, cfg)
    rank, number = own_rank(), processes(cfg)
    if rank is not None:
        return rank.reporting(lambda: _record(subject, cfg, notes, rank))
    return launch(subject, cfg, words, number, node) if number > 1 else _record(subject, cfg, notes)


def _record(subject: Subject, cfg: DictConfig, notes: list[str], rank: Rank | None = None) -> int:
    started = time.perf_counter()
    target = rank.target if rank else Path(cfg.output_dir)
    place = rank.place(cfg.output_dir) if rank else target  # where it will be
    check_target(target, cfg.overwrite)
    checked = data_paths(cfg)
    inputs, data, length, more = check_data(subject, checked)
    first = frozenset(range(int(min(UNASKED, length.batches))))
    saved = first if cfg.save_steps is None else parse_steps(cfg.save_steps)
    more += other_experiment(target, subject.name, cfg, saved, data)
    kept = checked if subject.keeps_experiments else OmegaConf.create()
    with open_experiment(kept, length, rank) as experiment:
        for note in notes + more + experiment.notes:
            print(f"note: {note}")
        log = rank.log(cfg.output_dir) if rank else target.with_name(f"{target.name}.log")
        number = rank.number if rank else None
        with RecordingWriter(target, cfg.overwrite, number) as writer:  # drops what is not finished
            watched, text = plain(cfg.operators), OmegaConf.to_yaml(cfg)
            rates, stops = cfg.learning_rates, cfg.stop_when_recorded
            listed = class_of(cfg.model.get("target")) == WAV2VEC_BERT
            outputs = LISTED_OUTPUTS if listed else FORWARD_OUTPUTS
            level = Level(cfg.record, plain(cfg.include) or (), plain(cfg.exclude) or ())
            recorder = Recorder(writer, saved, outputs, text, watched, rates, stops, level)
            with quiet(log) as console:
                progress = Progress(console, subject.name)
                trainer = _train(subject, checked, inputs, experiment, recorder, progress, rank)
                trained = experiment.close(trainer)
            if not trained:
                kept_as = "stays as it was" if (target / layout.INDEX).exists() else "there is none"
                print(f"{subject.name}: nothing is left to train; an earlier recording in {target}: {kept_as}")
                return EXIT_OK
            skipped = getattr(trainer.lightning_module, "skipped", None) if subject.skips_bad_audio else None
            recorder.finish(
                trainer={"name": subject.name, "package": subject.package, "version": subject.version()},
                seed=cfg.seed,
                flags=flags(),
                data=data.describe(skipped),
                generation=describe(cfg.nemo),
                init_from={loaded.source.name: loaded.sha256 for loaded in inputs.sources or ()},
                duration_s=round(time.perf_counter() - started, 1),
                **experiment.describe(),
            )
    recorded = ", ".join(map(str, recorder.session.recorded)) or "none"
    print(f"{subject.name}: {summary(trainer, skipped, log, progress.outputs)}")
    print(f"{subject.name}: recorded step {recorded} in {place} ({time.perf_counter() - started:.1f} s)")
    return EXIT_OK


def build_trainer(cfg: DictConfig, callbacks: list[Any], **settings: Any) -> Trainer:
    """Lightning's Trainer with the settings of `cfg.trainer` and then `settings`; the progress bar is `Progress`.

    Raises:
        UserError: Lightning refuses a setting.
    """
    given = OmegaConf.to_container(cfg.trainer)
    assert isinstance(given, dict)
    shown = [c for c in callbacks if given.get("enable_progress_bar") in (True, None) or not isinstance(c, Progress)]
    given.pop("stall_timeout", None)  # not Lightning's, see `stall`
    fixed = {"callbacks": shown, "enable_progress_bar": False, "enable_model_summary": False}
    try:
        return Trainer(**{**given, **settings, **fixed})
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError("a trainer setting is wrong", f"trainer: {error}", "See lightning.pytorch.Trainer.") from error


def _train(
    subject: Subject, cfg: DictConfig, inputs: Inputs, experiment: Experiment, recorder: Recorder, progress: Progress,
    rank: Rank | None,
) -> Trainer:  # fmt: skip
    """Train. On Ctrl-C Lightning would end the process with code 1, which means diverged here, and on SIGTERM with 0.

    Raises:
        InterruptedRun: a signal stopped training.
        UserError: `exp_manager` and `trainer.logger` both ask for loggers; an audio file that NeMo cannot decode; a
            batch at which NeMo stops; a setting that Lightning refuses only now, such as a metric to monitor that
            nothing logs.
    """
    with importing():
        subject.load()
    set_determinism()
    loggers = build_loggers(cfg.exp_manager, experiment.log_dir) if experiment.log_dir and not experiment.done else []
    with closing(loggers):
        if loggers and cfg.trainer.get("logger"):
            where = f"trainer.logger={cfg.trainer.logger} and exp_manager"
            raise UserError("two places ask for loggers", where, "Set trainer.logger=false, as NeMo wants it.")
        settings = experiment.trainer_settings | ({"logger": loggers} if loggers else {})
        again = [NoiseFloorRepeats(recorder.session, cfg.noise_floor, progress.say)] if cfg.noise_floor else []
        interrupts = Interrupts()
        watching = [*([Together()] if rank else []), *stall_watch(cfg.trainer.get("stall_timeout"), rank, progress.say)]
        callbacks = [*experiment.callbacks, *watching, recorder, *again, progress, interrupts]
        trainer = build_trainer(cfg, callbacks, **settings)
        seed_all(cfg.seed)
        recorder.mark_rng("before_model")
        model = subject.build_model(cfg, trainer, inputs)
        recorder.mark_rng("after_model")
        checkpoint = experiment.attach(trainer, model)
        try:
            with shielded_workers(), interrupts.noted():
                trainer.fit(model, ckpt_path=checkpoint)
        except SIGTERMException as stop:
            raise InterruptedRun(signal.SIGTERM) from stop
        except SystemExit as stop:
            raise InterruptedRun(signal.SIGINT) from stop
        except MisconfigurationException as error:
            fix = "See Lightning's documentation of it."
            raise UserError("a setting is wrong", str(error).rstrip("."), fix) from error
        except decoder_errors() as error:  # NeMo's do not say which file
            bad = audio_behind(error, list(data_sections(cfg).values()), inputs.corpora or Corpora())
            if bad is None:
                raise
            raise bad from error
        except KINDS as error:
            if (known := stop_behind(error)) is None:
                raise
            raise known from error
    return trainer
