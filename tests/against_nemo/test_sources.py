"""Batches of tar files, buckets and mixtures against NeMo's, byte for byte and draw for draw.

Both loaders are built from the same section and walked from the same seeds; one NeMo process does for all kinds.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
from omegaconf import OmegaConf
from test_batches import RATE, RECIPE, assert_same, walk

from nest_ssl.cli.data import main as data
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.check import check_dataset
from nest_ssl.data.loader import AudioNoiseLoader, build_dataloader
from nest_ssl.data.manifest import read_speech
from nest_ssl.data.sources.making import convert
from nest_ssl.data.sources.seeding import seeded_sources
from nest_ssl.releases import generation

pytestmark = pytest.mark.filterwarnings("ignore")  # NeMo's and its libraries' own


@pytest.fixture(autouse=True)
def _streams_are_closed() -> Iterator[None]:
    """Streams cut short keep their tar files open until they are collected: here, where their warnings are ignored."""
    yield
    while FirstBatches.all:  # workers that the collector ends take 5 s each
        loader = FirstBatches.all.pop().loader
        loader._iterator = None
        if isinstance(loader, AudioNoiseLoader) and loader._epoch is not None:
            loader._epoch._batches = iter(())
    gc.collect()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The practice corpus in all kinds; and a set of tar files with several lines for a file."""
    folder = tmp_path_factory.mktemp("sources")
    for kind in ("tarred", "buckets", "shar"):
        data(["--out", str(folder / "plain"), "--kind", kind])
    manifest = read_speech(str(folder / "plain" / "train_manifest.json"))
    pieces = [(line, start) for line in manifest.lines[:4] for start in (None, 0.5)]
    lines = [dataclasses.replace(line, offset=start, duration=1.5) for line, start in pieces]
    convert(dataclasses.replace(manifest, lines=lines), "tarred", folder / "pieces", 1)
    convert(dataclasses.replace(manifest, lines=manifest.lines[5:]), "shar", folder / "other_shar", 2)
    told = [json.loads(line) for line in (folder / "plain" / "train_manifest.json").read_text().splitlines()]
    told[0] |= {"validation_status": "fail"}
    told[1] |= {"validation_status": "pass", "alt_text": {"one": {"text": "a", "lang": "b"}}}
    (folder / "plain" / "told_manifest.json").write_text("".join(json.dumps(line) + "\n" for line in told))
    return folder


TARRED = {"is_tarred": True, "manifest_filepath": "plain_tarred/tarred_audio_manifest.json",
          "tarred_audio_filepaths": "plain_tarred/audio__OP_0..1_CL_.tar"}  # fmt: skip
BUCKETS = {"is_tarred": True,
           "manifest_filepath": [[f"plain_buckets/bucket{n}/tarred_audio_manifest.json"] for n in (1, 2)],
           "tarred_audio_filepaths": [[f"plain_buckets/bucket{n}/audio_{{0..1}}.tar"] for n in (1, 2)]}  # fmt: skip
CONCAT = {"is_concat": True, "manifest_filepath": ["plain/train_manifest.json", "plain/val_manifest.json"]}
MIXED_TARS = {"is_tarred": True, "is_concat": True,
              "manifest_filepath": ["plain_tarred/tarred_audio_manifest.json",
                                    "plain_buckets/bucket1/tarred_audio_manifest.json"],
              "tarred_audio_filepaths": ["plain_tarred/audio_(0..1).tar",
                                         "plain_buckets/bucket1/audio__OP_0..1_CL_.tar"]}  # fmt: skip
MIXED = {"noise_manifest": "plain/noise_manifest.json", "batch_augmentor": RECIPE, "shuffle": True}
CASES: dict[str, dict[str, Any]] = {
    "tarred": TARRED,
    "tarred, shuffled, with noise": {**TARRED, **MIXED, "shuffle_n": 8},
    "tarred, shuffled by default": {**TARRED, **MIXED, "drop_last": True},
    "tarred, two workers": {**TARRED, **MIXED, "num_workers": 2, "shuffle_n": 8},
    "tarred, one worker": {**TARRED, **MIXED, "num_workers": 1, "shuffle_n": 2},
    "tarred, a list of tars, within limits": {
        **TARRED, "tarred_audio_filepaths": ["plain_tarred/audio_1.tar", "plain_tarred/audio_0.tar"],
        "min_duration": 2.5, "max_duration": 5.0, "int_values": True, "trim_silence": True},
    "tarred, several pieces of a file": {
        "is_tarred": True, "manifest_filepath": "pieces/tarred_audio_manifest.json",
        "tarred_audio_filepaths": "pieces/audio_0.tar", **MIXED},
    "buckets, in order": {**BUCKETS, **MIXED, "bucketing_strategy": "fixed_order"},
    "buckets, synced": {**BUCKETS, **MIXED},
    "buckets, synced, two workers": {**BUCKETS, **MIXED, "num_workers": 2},
    "buckets, at random, one twice": {
        **BUCKETS, **MIXED, "bucketing_strategy": "fully_randomized", "bucketing_weights": [2, 1]},
    "concat, by turns": {**CONCAT, "concat_sampling_technique": "round-robin", **MIXED},
    "concat, by turns, two workers": {**CONCAT, "concat_sampling_technique": "round-robin", **MIXED, "num_workers": 2},
    "concat, nothing said": {**CONCAT, "concat_shuffle": False},
    "concat, temperature": {**CONCAT, **MIXED, "concat_sampling_technique": "temperature",
                            "concat_sampling_temperature": 2.0, "concat_sampling_scale": 1.5},
    "concat, at random, two workers": {
        **CONCAT, **MIXED, "concat_sampling_technique": "random", "concat_sampling_probabilities": [0.3, 0.7],
        "num_workers": 2},
    "concat, a seed given": {**CONCAT, **MIXED, "concat_sampling_technique": "random", "concat_sampling_seed": 5},
    "concat of tars": {**MIXED_TARS, **MIXED, "concat_sampling_technique": "temperature"},
    "concat of tars, two workers": {**MIXED_TARS, **MIXED, "concat_sampling_technique": "round-robin",
                                    "num_workers": 2},
}  # fmt: skip

SECONDS = {"batch_size": None, "batch_duration": 9.0}
# Endless streams fill the buffer from which they shuffle before the first batch, with the audio.
LHOTSE = {"use_lhotse": True, "seed": 11, "shard_seed": "randomized", "shuffle_buffer_size": 7,
          "bucket_buffer_size": 20}  # fmt: skip
SHAR = {**LHOTSE, **SECONDS, "shar_path": "plain_shar"}
ENDLESS = 9  # batches of an endless stream that are looked at
MANIFEST = {**LHOTSE, "manifest_filepath": "plain/train_manifest.json"}
SHARDED = {"manifest_filepath": "plain_tarred/sharded_manifests/manifest__OP_0..1_CL_.json",
           "tarred_audio_filepaths": "plain_tarred/audio__OP_0..1_CL_.tar"}  # fmt: skip
CUT_CASES: dict[str, dict[str, Any]] = {
    "manifest": MANIFEST,
    "manifest, seconds a batch, with noise": {**MANIFEST, **MIXED, **SECONDS, "quadratic_duration": 4.0},
    "manifest, what its lines tell": {**LHOTSE, **MIXED, "manifest_filepath": "plain/told_manifest.json"},
    "manifest, buckets": {
        **MANIFEST, **MIXED, **SECONDS, "use_bucketing": True, "num_buckets": 3, "max_duration": 6.0,
        "concurrent_bucketing": False, "drop_last": True},
    "manifest, bins, two workers": {
        **MANIFEST, **MIXED, **SECONDS, "bucket_duration_bins": [2.5, 4.2], "concurrent_bucketing": False,
        "num_workers": 2},
    "manifest, a size for each bucket": {
        **MANIFEST, **MIXED, "batch_size": None, "bucket_duration_bins": [2.5, 4.2], "bucket_batch_size": [3, 2],
        "concurrent_bucketing": False},
    "shar, sizes of buckets up to the longest, two workers": {
        **SHAR, **MIXED, "max_duration": 6.0, "num_buckets": 3, "bucket_batch_size": [3, 1], "num_workers": 2,
        "concurrent_bucketing": False},
    "shar, with noise": {**SHAR, **MIXED},
    "shar, two workers": {**SHAR, **MIXED, "num_workers": 2, "shard_seed": 3},
    "shar, mixed by weight": {**SHAR, **MIXED, "shar_path": [["plain_shar", 0.7], ["other_shar", 0.3]]},
    "tars, a whole manifest": {**LHOTSE, **SECONDS, **MIXED, "manifest_filepath": TARRED["manifest_filepath"],
                               "tarred_audio_filepaths": SHARDED["tarred_audio_filepaths"]},
    "tars, manifest in shards, two workers": {**LHOTSE, **SECONDS, **SHARDED, **MIXED, "num_workers": 2},
    "tars, pieces": {**LHOTSE, **SECONDS, "manifest_filepath": "pieces/tarred_audio_manifest.json",
                     "tarred_audio_filepaths": "pieces/audio_0.tar"},
    "mux": {**LHOTSE, **SECONDS, **MIXED, "input_cfg": [
        {"type": "nemo_tarred", "weight": 2, **SHARDED},
        {"type": "lhotse_shar", "weight": 1, "shar_path": "plain_shar"}]},
    "mux of groups, two workers": {**LHOTSE, **SECONDS, **MIXED, "num_workers": 2, "input_cfg": [
        {"type": "group", "weight": 0.3, "input_cfg": [
            {"type": "lhotse_shar", "shar_path": "plain_shar"}, {"type": "lhotse_shar", "shar_path": "other_shar"}]},
        {"type": "nemo_tarred", "weight": 0.7, "tags": {"from": "tars"}, **SHARDED}]},
    "manifests, mixed": {
        **LHOTSE, **MIXED, "manifest_filepath": ["plain/train_manifest.json", "plain/val_manifest.json"]},
    "tars, mixed by weight": {
        **LHOTSE, **SECONDS, **MIXED, "manifest_filepath": [[TARRED["manifest_filepath"], 0.8],
                                                            ["pieces/tarred_audio_manifest.json", 0.2]],
        "tarred_audio_filepaths": [[SHARDED["tarred_audio_filepaths"]], ["pieces/audio_0.tar"]]},
    "mux of few open streams": {**LHOTSE, **SECONDS, **MIXED, "max_open_streams": 1, "input_cfg": [
        {"type": "lhotse_shar", "weight": 2, "shar_path": "plain_shar"},
        {"type": "lhotse_shar", "weight": 1, "shar_path": "other_shar"}]},
}  # fmt: skip
# With workers: mixed manifests are drawn from in the main process, few open streams by a mux of their own in each
# worker. Sets of shar or tar files by weight are drawn from by what "mux of groups, two workers" has: no case for them.
CUT_CASES |= {f"{case}, two workers": {**CUT_CASES[case], "num_workers": 2}
              for case in ("manifests, mixed", "mux of few open streams")}  # fmt: skip
FROM_THE_CLOCK = {"tarred, shuffled, with noise": False, "tarred": True, "concat, a seed given": True}


def section_of(case: str, corpus: Path) -> dict[str, Any]:
    """The case as a section of the config, with whole paths."""

    def located(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: located(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [located(part, key) for part in value]
        is_path = key.endswith(("manifest", "filepath", "filepaths", "shar_path")) and isinstance(value, str)
        return str(corpus / value) if is_path else value

    section: dict[str, Any] = located({"sample_rate": RATE, "batch_size": 2, "shuffle": False, **all_cases()[case]})
    return section


def all_cases() -> dict[str, dict[str, Any]]:
    return {**CASES, **CUT_CASES}


def build_reference(nemo_model: Any, section: dict[str, Any], seeded: bool = True) -> Any:
    from nemo.collections.common.data.dataset import ConcatDataset

    with seeded_sources(ConcatDataset) if seeded else nullcontext():
        return nemo_model._setup_dataloader_from_config(OmegaConf.create(section))


@pytest.mark.parametrize("case", CASES)
def test_batches_and_draws_are_nemos(
    case: str,
    corpus: Path,
    nemo_model: Any,
    build_candidate: Callable[..., Any],
) -> None:
    section = section_of(case, corpus)
    check_dataset(read(Dataset, section), RATE)
    expected, reference_ledger = walk(lambda: build_reference(nemo_model, section), 42)
    got, candidate_ledger = walk(lambda: build_candidate(section), 42)
    assert_same(expected, got)
    assert candidate_ledger == reference_ledger


@pytest.mark.parametrize("case", CUT_CASES)
def test_batches_of_cuts_are_nemos(
    case: str, corpus: Path, nemo_model: Any, build_candidate: Callable[..., Any]
) -> None:
    section = section_of(case, corpus)
    check_dataset(read(Dataset, section), RATE)
    expected, reference_ledger = walk(lambda: FirstBatches(build_reference(nemo_model, section)), 42)
    got, candidate_ledger = walk(lambda: FirstBatches(build_candidate(section)), 42)
    assert len(got) > 1
    assert_same(expected, got)
    assert candidate_ledger == reference_ledger


class FirstBatches:
    """A loader cut short, as `trainer.limit_train_batches` does: most of these streams have no end."""

    all: ClassVar[list[FirstBatches]] = []

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.all.append(self)

    def __iter__(self) -> Any:
        return itertools.islice(iter(self.loader), ENDLESS)


# Whether two ranks read different audio. Without workers nothing tells Lhotse's streams which rank they are of.
OF_TWO = {
    "tarred, shuffled, with noise": True,
    "tarred, two workers": True,
    "buckets, at random, one twice": True,
    "concat, temperature": True,
    "concat of tars": True,
    "manifest, seconds a batch, with noise": True,
    "manifest, buckets": True,
    "shar, with noise": False,
    "mux of groups, two workers": True,
}


@pytest.mark.parametrize("case", OF_TWO)
def test_each_of_two_ranks_gets_its_own(
    case: str, corpus: Path, nemo_model: Any, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process's part is as NeMo splits it: the loaders are built as rank 0 and rank 1 of 2, without processes."""
    section = section_of(case, corpus)
    monkeypatch.setattr(nemo_model, "world_size", 2)

    def batches_of(rank: int) -> list[bytes]:
        monkeypatch.setattr(type(nemo_model), "global_rank", property(lambda model: rank))
        dataset, of = read(Dataset, section), generation(release)
        expected, reference_ledger = walk(lambda: FirstBatches(build_reference(nemo_model, section)), 42)
        got, candidate_ledger = walk(
            lambda: FirstBatches(build_dataloader(dataset, RATE, differences=of, rank=rank, world_size=2)), 42
        )
        assert_same(expected, got)
        assert candidate_ledger == reference_ledger
        return [batch["audio"].numpy().tobytes() for batch in got]

    assert (batches_of(0) != batches_of(1)) == OF_TWO[case]


@pytest.mark.parametrize("case", FROM_THE_CLOCK)
def test_what_nemo_repeats_by_itself(case: str, corpus: Path, nemo_model: Any) -> None:
    """What is seeded here is what two runs of NeMo do not agree on: else the table in seeding.py is wrong."""
    section = section_of(case, corpus)
    section["batch_size"] = 1
    runs = [walk(lambda: build_reference(nemo_model, section, seeded=False), 42, epochs=6)[0] for _ in range(2)]
    lengths = [[int(batch["audio_len"][0]) for batch in run] for run in runs]
    assert (lengths[0] == lengths[1]) == FROM_THE_CLOCK[case]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"manifest_filepath": "plain_tarred/sharded_manifests/manifest__OP_0..1_CL_.json"}, "manifest in shards"),
        ({**BUCKETS, "bucketing_batch_size": [2, 1], "batch_size": 1}, "stops at batches of a size"),
    ],
)
def test_what_is_refused_stops_nemo(more: dict[str, Any], message: str, corpus: Path, nemo_model: Any) -> None:
    from nest_ssl.base.errors import UserError

    CASES["refused"] = {**TARRED, **more}
    section = section_of("refused", corpus)
    del CASES["refused"]
    with pytest.raises(UserError, match=message):
        check_dataset(read(Dataset, section), RATE)
    with pytest.raises(Exception, match=r"(?s).*") as stop:
        walk(lambda: build_reference(nemo_model, section), 42)
    assert not isinstance(stop.value, UserError)
