"""One recorded training run, the same for every trainer: only `build_model` differs.

`scripts/train_nemo.py` and `scripts/train_nest.py` call `run` and add nothing, so whatever differs between two
recordings comes from the two models and what they bring along.
"""

from __future__ import annotations

import importlib.metadata
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.determinism import flags, seed_all, set_determinism
from nest_ssl.base.errors import EXIT_OK, InterruptedRun, UserError
from nest_ssl.config.compose import parse_steps
from nest_ssl.data.audio import decoder_errors
from nest_ssl.data.check import find_bad_audio
from nest_ssl.data.loader import fingerprint
from nest_ssl.data.skipping import SkippedAudio
from nest_ssl.record.lightning import Recorder
from nest_ssl.recording.writer import RecordingWriter, check_target
from nest_ssl.releases import describe, generation_of
from nest_ssl.run.command_line import check_data, read_command_line
from nest_ssl.run.console import Progress, noise_to_file, summary
from nest_ssl.run.exp_manager import Experiment, open_experiment
from nest_ssl.run.loggers import build_loggers, closing
from nest_ssl.train.checkpoint.init_from import fingerprint_sources

# What `forward` of a NEST model returns (NeMo 3.0.0 `EncDecDenoiseMaskedTokenPredModel.forward`).
FORWARD_OUTPUTS = ("log_probs", "encoded_len", "masks", "tokens")


@dataclass(frozen=True)
class Subject:
    """A trainer under test.

    Args:
        name: what to call it; also its default output folder.
        package: the distribution whose version is recorded.
        load: imports what the model needs, before anything is seeded.
        build_model: makes the model from the whole configuration (data paths absolute) and the Trainer.
        keeps_experiments: whether `exp_manager` has effect: checkpoints, resuming, logs.
        skips_bad_audio: whether it can go on without audio files that cannot be used (`bad_audio=skip`). Its model then
            has an attribute `skipped`.
    """

    name: str
    package: str
    load: Callable[[], Any]
    build_model: Callable[[DictConfig, Trainer], LightningModule]
    keeps_experiments: bool = False
    skips_bad_audio: bool = False


def run(subject: Subject, argv: Sequence[str] | None = None) -> int:
    """Train and record what the command line asks for; returns the exit code.

    Raises:
        UserError: whatever the user can mend, before training starts where it can be known then.
    """
    started = time.perf_counter()
    cfg = read_command_line(subject.name, argv)
    _refuse_another_generation(subject, cfg.nemo)
    target = Path(cfg.output_dir)
    check_target(target, cfg.overwrite)
    checked = check_data(cfg, subject.skips_bad_audio)
    sources = fingerprint_sources(checked)  # now: training may write to the same place
    experiment = open_experiment(checked) if subject.keeps_experiments else Experiment()
    for note in experiment.notes:
        print(f"note: {note}")
    log = target.with_name(f"{target.name}.log")
    writer = RecordingWriter(target, cfg.overwrite)
    recorder = Recorder(writer, parse_steps(cfg.save_steps), FORWARD_OUTPUTS, OmegaConf.to_yaml(cfg))
    with recorder.session:
        with noise_to_file(log) as console:
            trainer = _train(subject, checked, recorder, Progress(console, subject.name), experiment)
        if not _trained(trainer, experiment):
            print(f"{subject.name}: nothing is left to train; an earlier recording in {target} stays as it was")
            return EXIT_OK
        skipped = getattr(trainer.lightning_module, "skipped", None) if subject.skips_bad_audio else None
        recorder.finish(
            trainer=_describe(subject),
            seed=cfg.seed,
            flags=flags(),
            data=_describe_data(checked, skipped),
            generation=describe(cfg.nemo),
            init_from=sources,
            duration_s=round(time.perf_counter() - started, 1),
            **experiment.describe(),
        )
    steps = ", ".join(map(str, recorder.session.recorded)) or "none"
    print(f"{subject.name}: {summary(trainer, skipped, log)}")
    print(f"{subject.name}: recorded step {steps} in {target} ({time.perf_counter() - started:.1f} s)")
    return EXIT_OK


def build_trainer(cfg: DictConfig, callbacks: list[Any], **ours: Any) -> Trainer:
    """Lightning's Trainer with the settings of `cfg.trainer` and `ours`; the progress bar is ours.

    Raises:
        UserError: Lightning refuses a setting, or there are loggers and `trainer.logger` asks for one more.
    """
    settings = OmegaConf.to_container(cfg.trainer)
    assert isinstance(settings, dict)
    settings |= ours
    shown = [c for c in callbacks if settings.get("enable_progress_bar", True) or not isinstance(c, Progress)]
    try:
        return Trainer(**{**settings, "callbacks": shown, "enable_progress_bar": False, "enable_model_summary": False})
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError("a trainer setting is wrong", f"trainer: {error}", "See lightning.pytorch.Trainer.") from error


def _train(
    subject: Subject, cfg: DictConfig, recorder: Recorder, progress: Progress, experiment: Experiment
) -> Trainer:
    subject.load()
    set_determinism()
    loggers = build_loggers(cfg.exp_manager, experiment.log_dir) if experiment.log_dir else []
    with closing(loggers):
        ours = {**experiment.trainer_settings, **_logger_setting(cfg, loggers)}
        trainer = build_trainer(cfg, [*experiment.callbacks, recorder, progress], **ours)
        seed_all(cfg.seed)
        recorder.mark_rng("before_model")
        model = subject.build_model(cfg, trainer)
        recorder.mark_rng("after_model")
        try:
            _fit(trainer, model, experiment.attach(trainer, model))
        except decoder_errors() as error:  # NeMo's do not say which file
            raise _with_its_file(error, cfg) from error
    return trainer


def _with_its_file(error: Exception, cfg: DictConfig) -> Exception:
    sections = [cfg.model[name] for name in ("train_ds", "validation_ds") if cfg.model.get(name) is not None]
    return find_bad_audio(sections) or error


def _trained(trainer: Trainer, experiment: Experiment) -> bool:
    """Whether there was anything to train."""
    return experiment.resumed is None or trainer.fit_loop.total_batch_idx + 1 > experiment.resumed.batches


def _logger_setting(cfg: DictConfig, loggers: list[Logger]) -> dict[str, Any]:
    """The Trainer's argument for the loggers of `exp_manager`.

    Raises:
        UserError: there are some and `trainer.logger` asks for one more.
    """
    if loggers and cfg.trainer.get("logger"):
        where = f"trainer.logger={cfg.trainer.logger} and exp_manager"
        raise UserError("two places ask for loggers", where, "Set trainer.logger=false, as NeMo wants it.")
    return {"logger": loggers} if loggers else {}


def _fit(trainer: Trainer, model: LightningModule, checkpoint: str | None) -> None:
    """Train; Lightning ends the process itself on Ctrl-C with code 1, which means diverged here, and on SIGTERM with 0.

    Raises:
        InterruptedRun: a signal stopped training.
        UserError: a setting that Lightning refuses only now, such as a metric to monitor that nothing logs.
    """
    try:
        trainer.fit(model, ckpt_path=checkpoint)
    except SIGTERMException as stop:
        raise InterruptedRun(signal.SIGTERM) from stop
    except SystemExit as stop:
        raise InterruptedRun(signal.SIGINT) from stop
    except MisconfigurationException as error:
        raise UserError("a setting is wrong", str(error), "See Lightning's documentation of it.") from error


def _refuse_another_generation(subject: Subject, wanted: str) -> None:
    """The port is exact with any generation of NeMo, NeMo itself only with its own."""
    if subject.package != "nemo_toolkit":
        return
    release = importlib.metadata.version(subject.package)
    installed = generation_of(release)
    if installed != wanted:
        what = f"NeMo {release} is installed, of generation {installed}, and generation {wanted} is asked for"
        fix = f"Pass nemo={installed}, or take another NeMo with NEMO_VERSION=..."
        raise UserError(what, f"nemo={wanted}", fix)


def _describe(subject: Subject) -> dict[str, Any]:
    version = importlib.metadata.version(subject.package)
    return {"name": subject.name, "package": subject.package, "version": version}


def _describe_data(cfg: DictConfig, skipped: SkippedAudio | None) -> dict[str, Any]:
    sections = {"train": cfg.model.train_ds, "validation": cfg.model.get("validation_ds")}
    data = {name: fingerprint(section) for name, section in sections.items() if section is not None}
    return data if skipped is None else {**data, "skipped": skipped.describe()}
