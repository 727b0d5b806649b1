"""That several ranks have as many batches as they train or validate, and lines of what each has, before all is built.

A rank with a batch more than another waits for it without end, in NeMo's training as in the port's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from omegaconf import DictConfig

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.corpus import Corpora, is_stream, sets_of
from nest_ssl.data.loader import validation_sections
from nest_ssl.data.shares import Share, first_without_any, shares_of
from nest_ssl.run.ranks import processes


def say_shares(train: Dataset, shares: Sequence[Share], corpora: Corpora) -> list[str]:
    """A line of what each of several ranks has, before training starts."""
    ranks, (each, batches) = len(shares), shares[0]
    if ranks == 1 or each == math.inf:
        return []
    if len(set(shares)) > 1:
        of_ranks = [f"rank {n}: utterances {share.utterances:,}, batches {share.batches:,}"
                    for n, share in enumerate(shares)]  # fmt: skip
        return [f"train, an epoch of {'; '.join(of_ranks)}"]
    sampled = corpora.in_an_epoch(train)  # by Lightning, the first ones twice where they are too few
    twice = 0 if train.is_tarred or train.is_concat else each * ranks - sampled
    more = f"; {twice} of {sampled:,} come twice, for they cannot be shared out evenly" if twice else ""
    return [f"train, an epoch of each of {ranks} ranks: utterances {each:,}, batches {batches:,}{more}"]


def check_shares(cfg: DictConfig, datasets: dict[str, Dataset]) -> list[str]:
    """What each of several ranks reads where the data share themselves out, as NeMo's do; a line for what is odd.

    Raises:
        UserError: a rank would have no tar file; or Lightning would put its own order in the place of Lhotse's.
    """
    ranks, notes = processes(cfg), []
    for name, dataset in datasets.items() if ranks > 1 else ():
        section = f"model.{name}_ds"
        if dataset.use_lhotse and not is_stream(dataset):
            if cfg.trainer.get("use_distributed_sampler", True) is not False:
                fix = "Give trainer.use_distributed_sampler=false."
                raise UserError("Lhotse itself shares such data out", f"{section}.use_lhotse with {ranks} ranks", fix)
        elif dataset.use_lhotse and not dataset.num_workers:
            same = f"{section}.num_workers=0: every rank reads the same of Lhotse's streams, as in NeMo"
            notes.append(f"{same}; with num_workers=1 each has an order of its own")
        elif dataset.use_lhotse and dataset.force_finite:
            unknown = f"{section}.force_finite=true: how many batches each rank has shows only when Lhotse makes them"
            notes.append(f"{unknown}, and a rank that has more than another waits for it")
        elif dataset.is_tarred and dataset.tarred_shard_strategy == "scatter":
            for tars in (part.tars for parts in sets_of(dataset) for part in parts):
                if len(tars) < ranks:
                    fix = "Write more tar files, or give tarred_shard_strategy=replicate."
                    raise UserError(f"fewer tar files than the {ranks} ranks", f"{section}: {', '.join(tars)}", fix)
                if left := len(tars) % ranks:
                    notes.append(f"{name}: the last {left} of {len(tars)} tar files are read by none of {ranks} ranks")
    return notes


def share_out_limit(cfg: DictConfig, name: str, dataset: Dataset, shares: Sequence[Share], corpora: Corpora) -> None:
    """Make the limit that is a part of an epoch a number of batches, where NeMo does: of tar files and mixtures.

    Source: NeMo 3.0.0 `SpeechEncDecSelfSupervisedModel.setup_training_data`; what it takes for the whole are all tar
    files, or what each rank draws from a mixture, and it shares that out among the ranks.

    Args:
        name: of the section, ``train`` or ``validation``.
        shares: of each rank.
    """
    key = f"limit_{'val' if name == 'validation' else name}_batches"
    part = cfg.trainer.get(key)
    if isinstance(part, float) and not dataset.use_lhotse and (dataset.is_tarred or dataset.is_concat):
        whole = shares[0].utterances if dataset.is_concat else corpora.in_an_epoch(dataset)
        cfg.trainer[key] = int(part * math.ceil(whole / len(shares) / (dataset.batch_size or 1)))


def refuse_uneven(section: str, shares: Sequence[Share], limit: float, key: str) -> None:
    """A rank that has fewer batches than another, and than `limit`, would be waited for without end.

    Args:
        section: of the data, for the message.
        shares: of each rank.
        limit: after how many batches an epoch, or all, ends at the latest.
        key: the setting that limits them.

    Raises:
        UserError: there is such a rank.
    """
    batches = [share.batches for share in shares]
    if min(batches) < min(limit, max(batches)):
        where = f"{section}, " + ", ".join(f"rank {rank}: {number}" for rank, number in enumerate(batches))
        enough = f"give {key}={min(batches)}" if min(batches) else "lower batch_size"
        fix = f"Share the tar files out evenly (those of each bucket), or {enough}."
        raise UserError("the ranks have different numbers of batches", where, fix)


def check_training(cfg: DictConfig, shares: Sequence[Share]) -> None:
    """Whether the ranks have as many batches as they train.

    Raises:
        UserError: as `refuse_uneven`.
    """
    limit, steps = cfg.trainer.get("limit_train_batches"), cfg.trainer.get("max_steps")
    batches = math.inf if steps in (-1, None) else steps * (cfg.trainer.get("accumulate_grad_batches") or 1)
    batches = min(batches, limit) if isinstance(limit, int) else batches
    key = "trainer.limit_train_batches" if cfg.get("batches") is None else "batches"
    refuse_uneven("model.train_ds", shares, batches, key)


def check_validation(cfg: DictConfig, corpora: Corpora) -> None:
    """Whether several ranks have as many batches of each validation set as are validated, and each worker any.

    Raises:
        UserError: as `refuse_uneven` and `refuse_idle_workers`.
    """
    trainer, ranks = cfg.trainer, processes(cfg)
    if trainer.get("limit_val_batches") == 0:
        return
    for section in validation_sections(cfg.model.validation_ds):
        dataset = read(Dataset, section, "model.validation_ds")
        refuse_idle_workers("model.validation_ds", dataset, corpora, ranks)
        if ranks == 1:
            continue
        shares = shares_of(dataset, corpora, ranks)
        share_out_limit(cfg, "validation", dataset, shares, corpora)
        limit = trainer.get("limit_val_batches")
        most = limit if isinstance(limit, int) else math.inf
        before_training_only = (trainer.get("check_val_every_n_epoch") or 1) > (trainer.get("max_epochs") or -1) > 0
        if before_training_only:
            sanity = trainer.get("num_sanity_val_steps", 2)
            most = min(most, {None: 2, -1: math.inf}.get(sanity, sanity))
        refuse_uneven("model.validation_ds", shares, most, "trainer.limit_val_batches")


def refuse_idle_workers(section: str, dataset: Dataset, corpora: Corpora, ranks: int, passes: float = 1) -> None:
    """Of a mixture of manifests each rank and worker makes its part of an epoch's utterances, of its part of each
    manifest. Where that is none, NeMo looks for one without end, or stops at a probability that is NaN.

    Args:
        section: of the data, for the message.
        passes: how often an epoch of it begins.

    Raises:
        UserError: there is such a worker.
    """
    found = first_without_any(dataset, corpora, ranks, passes)
    if found is None:
        return
    number, rank, worker = found
    where, workers = f"{section}, rank {rank} of {ranks}", dataset.num_workers
    if workers:
        raise UserError(
            "a loader worker has no utterance to make a batch of",
            f"{where}, worker {worker} of {workers}",
            f"Give {section}.num_workers={worker or 1}, or mix larger manifests.",
        )
    fix = (
        f"Without workers each epoch shares out what the one before had left, as in NeMo: give {section}.num_workers=1."
    )
    raise UserError("no utterance is left of a mixture", f"{where}, epoch {number}", fix)
