"""What each of several ranks reads, and that ranks with other numbers of batches do not start; no training is run."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.loader import build_dataloader
from nest_ssl.data.shares import Share, shares_of
from nest_ssl.data.sources.mixed import Mixture
from nest_ssl.run.shares import (
    check_shares,
    check_training,
    check_validation,
    refuse_idle_workers,
    say_shares,
    share_out_limit,
)

TARS = {"is_tarred": True, "manifest_filepath": "a.json", "tarred_audio_filepaths": "audio__OP_0..4_CL_.tar",
        "batch_size": 2}  # fmt: skip
CUTS = {"use_lhotse": True, "manifest_filepath": "a.json", "batch_size": 2}


@pytest.mark.parametrize(
    ("ranks", "section", "trainer", "said"),
    [
        (1, TARS, {}, []),
        (5, TARS, {}, []),
        (2, TARS, {}, ["train: the last 1 of 5 tar files are read by none of 2 ranks"]),
        (2, {**TARS, "tarred_shard_strategy": "replicate"}, {}, []),
        (6, TARS, {}, "fewer tar files than the 6 ranks: model.train_ds: audio_0.tar, .* Write more tar files"),
        (2, CUTS, {}, "Lhotse itself shares such data out: model.train_ds.use_lhotse with 2 ranks"),
        (2, CUTS, {"use_distributed_sampler": False}, []),
        (2, {**CUTS, "force_iterable_dataset": True}, {}, ["every rank reads the same of Lhotse's streams"]),
        (2, {**CUTS, "force_iterable_dataset": True, "num_workers": 1}, {}, []),
        (
            2,
            {**CUTS, "force_iterable_dataset": True, "num_workers": 1, "force_finite": True},
            {},
            ["how many batches each rank has shows only when Lhotse makes them"],
        ),
        (2, {"manifest_filepath": "a.json", "batch_size": 2}, {}, []),
    ],
)
def test_what_ranks_read_of_data_that_share_themselves_out(
    ranks: int, section: dict[str, Any], trainer: dict[str, Any], said: list[str] | str
) -> None:
    cfg = OmegaConf.create({"trainer": {"devices": ranks, **trainer}})
    with pytest.raises(UserError, match=said) if isinstance(said, str) else nullcontext():
        notes = check_shares(cfg, {"train": read(Dataset, section)})
        assert len(notes) == len(said) and all(one in note for one, note in zip(said, notes, strict=True)), notes


def write_bucket(folder: Path, held: Sequence[int]) -> dict[str, Any]:
    """Tar files with so many utterances; and with what no line names, or is no audio."""
    folder.mkdir()
    lines = []
    for tar, count in enumerate(held):
        with tarfile.open(folder / f"audio_{tar}.tar", "w") as archive:
            for name in [*(f"{tar}-{number}.wav" for number in range(count)), "unnamed.wav", f"{tar}-0.txt"]:
                archive.addfile(tarfile.TarInfo(name))
        lines += [{"audio_filepath": f"{tar}-{number}.wav", "duration": 2.0} for number in range(count)]
    (folder / "a.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tars = str(folder / f"audio__OP_0..{len(held) - 1}_CL_.tar")
    return {"is_tarred": True, "manifest_filepath": str(folder / "a.json"), "tarred_audio_filepaths": tars}


def write_buckets(folder: Path, *held: Sequence[int]) -> dict[str, Any]:
    sections = [write_bucket(folder / str(number), one) for number, one in enumerate(held)]
    return {"is_tarred": True, **{key: [[one[key]] for one in sections] for key in list(sections[0])[1:]}}


def shares(section: dict[str, Any], ranks: int) -> list[Share]:
    return shares_of(read(Dataset, section), Corpora(), ranks)


@pytest.mark.parametrize(
    ("ranks", "more", "expected"),
    [
        (2, {}, [(7, 4), (4, 2)]),
        (2, {"tarred_shard_strategy": "replicate"}, [(11, 6), (11, 6)]),
        (2, {"batch_size": 5}, [(7, 2), (4, 1)]),
        (2, {"batch_size": 5, "drop_last": True}, [(7, 1), (4, 0)]),
        (2, {"num_workers": 2}, [(7, 4), (4, 3)]),  # 2 tar files a rank, each read by a worker: 5, 2; 1, 3
        (4, {"batch_size": 5}, [(5, 1), (2, 1), (1, 1), (3, 1)]),
        (3, {"num_workers": 4, "batch_size": 20}, [(5, 1), (2, 1), (1, 1)]),
    ],
)
def test_tar_files_of_a_rank(tmp_path: Path, ranks: int, more: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    assert shares({**write_bucket(tmp_path / "set", (5, 2, 1, 3)), "batch_size": 2, **more}, ranks) == expected


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [(6, 6), (4, 4)]),  # the practice corpus: 3 and 2, and 3 and 2
        ({"batch_size": 2}, [(6, 3), (4, 2)]),  # a batch goes on from a bucket to the next
        ({"bucketing_weights": [2, 1]}, [(9, 9), (6, 6)]),
        ({"num_workers": 2, "batch_size": 4}, [(6, 2), (4, 1)]),  # of a rank's tar file a bucket, one worker reads all
    ],
)
def test_each_bucket_is_shared_out_by_itself(
    tmp_path: Path, more: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    section = {**write_buckets(tmp_path, (3, 2), (3, 2)), "batch_size": 1, "bucketing_strategy": "fully_randomized"}
    assert shares({**section, **more}, 2) == expected


@pytest.mark.parametrize(("strategy", "expected"), [("fixed_order", 6), ("synced_randomized", 4)])
def test_a_bucket_in_drawn_order_ends_at_its_length(tmp_path: Path, strategy: str, expected: int) -> None:
    """Where a file comes twice in the archives of a bucket, as in the order of `mixed.RandomOrderChain`."""
    section = write_buckets(tmp_path, (2,), (2,))
    tar = section["tarred_audio_filepaths"][0][0].replace("__OP_0..0_CL_", "_0")
    section["tarred_audio_filepaths"][0] = [tar, tar]
    one = {**section, "batch_size": 1, "bucketing_strategy": strategy, "tarred_shard_strategy": "replicate"}
    assert shares(one, 2) == [(expected, 4)] * 2  # batches: as many as the loader has by its length


def test_shares_of_what_lightning_or_a_mixture_shares_out(tmp_path: Path) -> None:
    manifests = [write_bucket(tmp_path / str(n), (n,))["manifest_filepath"] for n in (3, 7)]
    plain = {"manifest_filepath": ",".join(manifests), "batch_size": 2}
    assert shares(plain, 1) == [(10, 5)] and shares(plain, 2) == [(5, 3)] * 2
    assert shares({**plain, "drop_last": True}, 4) == [(3, 1)] * 4
    mixed = {"manifest_filepath": manifests, "batch_size": 2, "is_concat": True}
    assert shares(mixed, 1) == [(10, 5)] and shares(mixed, 2) == [(4, 2)] * 2  # 1 of 3 and 3 of 7
    assert shares({**mixed, "concat_sampling_scale": 1.5}, 2) == [(6, 3)] * 2
    assert shares(CUTS, 2) == [(math.inf, math.inf)] * 2


@pytest.mark.parametrize("more", [{}, {"is_concat": True}])
def test_a_share_is_the_length_of_the_loader(tmp_path: Path, more: dict[str, Any]) -> None:
    """Of a mixture of tar files, too, of which each rank draws as many as all of it has."""
    sets = [write_bucket(tmp_path / str(n), (n, n)) for n in (2, 3)]
    keys = ("manifest_filepath", "tarred_audio_filepaths")
    section = {
        **sets[0],
        "batch_size": 1,
        **({key: [one[key] for one in sets] for key in keys} if more else {}),
        **more,
    }
    dataset = read(Dataset, section)
    loader = build_dataloader(dataset, 16_000, rank=1, world_size=2)
    assert loader is not None and shares(section, 2)[1].batches == (len(loader) if more else len(loader) // 2)


def test_what_each_rank_has_is_said_before_training(tmp_path: Path) -> None:
    def said(section: dict[str, Any], ranks: int) -> list[str]:
        dataset = read(Dataset, section)
        return say_shares(dataset, shares_of(dataset, Corpora(), ranks), Corpora())

    plain = {"manifest_filepath": write_bucket(tmp_path / "plain", (10,))["manifest_filepath"], "batch_size": 2}
    assert said(plain, 1) == [] and said(CUTS, 2) == []
    assert said(plain, 2) == ["train, an epoch of each of 2 ranks: utterances 5, batches 3"]
    (line,) = said({**plain, "drop_last": True}, 4)
    assert line.endswith("utterances 3, batches 1; 2 of 10 come twice, for they cannot be shared out evenly")
    buckets = {**write_buckets(tmp_path, (3, 2), (3, 2)), "batch_size": 1}
    assert said(buckets, 2) == ["train, an epoch of rank 0: utterances 6, batches 6; rank 1: utterances 4, batches 4"]
    replicated = {**buckets, "tarred_shard_strategy": "replicate"}
    assert said(replicated, 2) == ["train, an epoch of each of 2 ranks: utterances 10, batches 10"]


@pytest.mark.parametrize(
    ("batches", "settings", "said"),
    [
        ((6, 4), {}, "batches: model.train_ds, rank 0: 6, rank 1: 4. .*trainer.limit_train_batches=4"),
        ((6, 4), {"limit_train_batches": 5, "max_steps": 5}, "rank 0: 6, rank 1: 4"),
        ((6, 4), {"limit_train_batches": 4}, None),  # as far as all have some
        ((6, 4), {"max_steps": 2, "accumulate_grad_batches": 2}, None),
        ((6, 4), {"max_steps": 2, "accumulate_grad_batches": 3}, "rank 1: 4"),
        ((1, 0), {}, "or lower batch_size"),
        ((5, 5), {}, None),
        ((math.inf, math.inf), {}, None),
    ],
)
def test_ranks_train_as_many_batches(batches: Sequence[float], settings: dict[str, Any], said: str | None) -> None:
    cfg = OmegaConf.create({"batches": None, "trainer": {"max_steps": -1, "limit_train_batches": 1.0, **settings}})
    with pytest.raises(UserError, match=said) if said else nullcontext():
        check_training(cfg, [Share(math.nan, number) for number in batches])
    cfg.batches = 5  # which says both limits
    with pytest.raises(UserError, match="or (give batches=4|lower)") if said else nullcontext():
        check_training(cfg, [Share(math.nan, number) for number in batches])


@pytest.mark.parametrize(
    ("held", "more", "settings", "said"),
    [
        ((3, 2), {}, {}, "batches: model.validation_ds, rank 0: 3, rank 1: 2. .*trainer.limit_val_batches=2"),
        ((3, 2), {}, {"devices": 1}, None),
        ((3, 2), {"tarred_shard_strategy": "replicate"}, {}, None),
        ((3, 2), {"batch_size": 4}, {}, None),
        ((3, 2), {}, {"limit_val_batches": 2}, None),
        ((3, 2), {}, {"limit_val_batches": 0}, None),
        ((3, 2), {}, {"limit_val_batches": 0.7}, None),  # 2 of 3, as NeMo counts
        ((3, 2), {}, {"check_val_every_n_epoch": 2, "max_epochs": 1}, None),
        ((3, 2), {}, {"check_val_every_n_epoch": 2, "max_epochs": 1, "num_sanity_val_steps": -1}, "rank 1: 2"),
        ((3, 2), {}, {"check_val_every_n_epoch": 2, "max_epochs": -1}, "rank 1: 2"),
        ((3, 3), {}, {}, None),
    ],
)
def test_ranks_validate_as_many_batches(
    tmp_path: Path, held: Sequence[int], more: dict[str, Any], settings: dict[str, Any], said: str | None
) -> None:
    trainer = {"devices": 2, "limit_val_batches": 1.0, "num_sanity_val_steps": 0, **settings}
    section = {**write_bucket(tmp_path / "set", held), "batch_size": 1, **more}
    cfg: DictConfig = OmegaConf.create({"trainer": trainer, "model": {"validation_ds": section}})
    with pytest.raises(UserError, match=said) if said else nullcontext():
        check_validation(cfg, Corpora())


def test_a_limit_that_is_a_part_of_data_that_share_themselves_out(tmp_path: Path) -> None:
    """NeMo makes a number of it: of all tar files, shared out; of what a rank draws from a mixture, again."""
    sets = [write_bucket(tmp_path / str(n), (n, n)) for n in (3, 7)]
    mixed = {"is_concat": True, "manifest_filepath": [one["manifest_filepath"] for one in sets]}
    for section, part, expected in (
        (sets[1], 0.5, 3),
        (mixed, 1.0, 5),
        ({**mixed, "is_concat": False}, 0.5, 0.5),
        (sets[1], 9, 9),
    ):
        dataset = read(Dataset, {**section, "batch_size": 1})
        cfg = OmegaConf.create({"trainer": {"limit_train_batches": part}})
        share_out_limit(cfg, "train", dataset, shares_of(dataset, Corpora(), 2), Corpora())
        assert cfg.trainer.limit_train_batches == expected


@pytest.mark.parametrize(
    ("ranks", "workers", "passes", "said"),
    [
        (1, 0, 9, None),
        (1, 3, 9, None),
        (
            1,
            4,
            1,
            "worker has no utterance to make a batch of: model.train_ds, rank 0 of 1, worker 3 of 4. Give .*=3, or",
        ),
        (2, 1, 9, None),
        (2, 2, 1, "rank 0 of 2, worker 1 of 2. Give model.train_ds.num_workers=1, or"),
        (2, 0, 1, None),
        (2, 0, 1.5, "no utterance is left of a mixture: model.train_ds, rank 0 of 2, epoch 1. Without workers each"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_a_mixture_of_which_a_worker_has_nothing(
    tmp_path: Path, ranks: int, workers: int, passes: float, said: str | None
) -> None:
    """It is refused where the mixture that would be made stops (as it would in a worker), and nowhere else."""
    # Of three utterances each: a rank of two has one of them, and the other rank two.
    manifests = [write_bucket(tmp_path / str(n), (3,))["manifest_filepath"] for n in range(2)]
    mixed = {"is_concat": True, "manifest_filepath": manifests, "batch_size": 1, "num_workers": workers,
             "concat_sampling_technique": "temperature", "concat_sampling_temperature": 5}  # fmt: skip
    dataset = read(Dataset, mixed)
    with pytest.raises(UserError, match=said) if said else nullcontext():
        refuse_idle_workers("model.train_ds", dataset, Corpora(), ranks, passes)
    if not workers:
        mixture = Mixture([[*range(3)], [*range(3)]], dataset, rank=0, world_size=ranks)
        with pytest.raises(ValueError, match="NaN") if said else nullcontext():
            assert all(len(list(mixture)) == len(mixture) for _ in range(math.ceil(passes)))


def test_a_tar_file_that_is_none(tmp_path: Path) -> None:
    section = write_bucket(tmp_path / "set", (3, 2))
    (tmp_path / "set/audio_1.tar").write_bytes(b"no tar file")
    with pytest.raises(UserError, match="a tar file that cannot be read: .*audio_1.tar: file could not be opened"):
        shares({**section, "batch_size": 1}, 2)
