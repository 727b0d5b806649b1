"""The candidate once more, from its own recording: built as it was trained, and fed what the reference recorded."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.determinism import seed_all, set_determinism
from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import SOURCE_KEYS, data_paths
from nest_ssl.record.structure import describe_sources
from nest_ssl.recording.evidence import Replay
from nest_ssl.recording.reader import Recording
from nest_ssl.replay import replay
from nest_ssl.run.experiment import build_trainer
from nest_ssl.run.subject import Inputs, Subject

# Of the Trainer: nothing is kept, shown or validated.
BARE = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
DOUBLE = "64-true"


def replay_recording(
    subject: Subject,
    reference: Recording,
    candidate: Recording,
    double: bool = False,
    steps: Sequence[int] | None = None,
) -> Replay:
    """Feed `reference` to the model that `candidate` says it trained.

    Args:
        subject: the trainer that recorded `candidate`.
        double: build it in float64, whatever it was trained in.
        steps: of the reference; by default all.

    Raises:
        UserError: the candidate cannot be built here, or its code is no longer that of the recording.
    """
    try:
        subject.load()
    except ImportError as error:
        where = f"{subject.package}: {error}"
        raise UserError("the candidate's trainer is not installed here", where, "Run in its environment.") from error
    set_determinism()
    cfg = data_paths(OmegaConf.create(candidate.config))
    if double:
        cfg.trainer.precision = DOUBLE
    trainer, model = build_candidate(subject, cfg)
    refuse_other_code(model, candidate)
    return replay(reference, model, candidate, steps=steps, precision=trainer.precision_plugin.forward_context)


def build_candidate(subject: Subject, cfg: DictConfig) -> tuple[Trainer, LightningModule]:
    """The model as training starts with it, seeded, in its precision and on its device, but for weights of files."""
    for key in SOURCE_KEYS:
        cfg.pop(key, None)
    trainer = build_trainer(cfg, [], **BARE)
    seed_all(cfg.seed)
    model = subject.build_model(cfg, trainer, Inputs())
    trainer.precision_plugin.convert_module(model)
    return trainer, model.to(trainer.strategy.root_device)


def refuse_other_code(model: LightningModule, candidate: Recording) -> None:
    """Evidence about code that has changed since would be evidence about something else."""
    recorded = {entry.file: entry.sha256 for entry in candidate.index.sources.values()}
    for source in describe_sources(model).values():
        if recorded.get(source["file"], source["sha256"]) != source["sha256"]:
            raise UserError("the code has changed since it was recorded", source["file"], "Record the candidate again.")
