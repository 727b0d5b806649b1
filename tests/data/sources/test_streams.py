"""Streams of data: every kind repeats from the seed, is taken up in the middle of an epoch, and is shared out."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nest_ssl.base.determinism import seed_all
from nest_ssl.base.errors import UserError
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.cli.data import main as data
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.check import check_dataset
from nest_ssl.data.lines import Entry, Place
from nest_ssl.data.loader import AudioNoiseLoader, build_dataloader
from nest_ssl.data.manifest import read_speech
from nest_ssl.data.skipping import SkippedAudio
from nest_ssl.data.sources import tarred
from nest_ssl.data.sources.making import convert

pytestmark = pytest.mark.filterwarnings("ignore")  # of workers on few cores, and of tar files that stay open
RATE = 16_000
OPEN: list[AudioNoiseLoader] = []
EPOCH = 3  # batches; most of Lhotse's streams have no end
MIXING = {"_target_": "nemo.collections.asr.modules.ssl_modules.MultiSpeakerNoiseAugmentation", "prob": 0.7,
          "min_num_segments": 1, "max_num_segments": 1, "max_num_speakers": 1, "noise_ratio": 0.5}  # fmt: skip


@pytest.fixture(autouse=True)
def _streams_are_closed() -> Iterator[None]:
    """Streams cut short keep their tar files open until they are collected: here, where their warnings are ignored."""
    yield
    for loader in iter(lambda: OPEN.pop() if OPEN else None, None):  # workers that the collector ends take 5 s each
        loader._iterator = None
        if loader._epoch is not None:
            loader._epoch._batches = iter(())
    gc.collect()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    for kind in ("tarred", "buckets", "shar"):
        data(["--out", str(folder / "plain"), "--kind", kind])
    return folder


TARRED = {"is_tarred": True, "manifest_filepath": "tarred/tarred_audio_manifest.json", "batch_size": 3,
          "tarred_audio_filepaths": "tarred/audio__OP_0..1_CL_.tar", "shuffle_n": 4}  # fmt: skip
BUCKETS = {"is_tarred": True, "batch_size": 3, "bucketing_strategy": "fully_randomized",
           "manifest_filepath": [[f"buckets/bucket{n}/tarred_audio_manifest.json"] for n in (1, 2)],
           "tarred_audio_filepaths": [[f"buckets/bucket{n}/audio_{{0..1}}.tar"] for n in (1, 2)]}  # fmt: skip
LHOTSE = {"use_lhotse": True, "batch_duration": 8.0, "shard_seed": "randomized", "shuffle_buffer_size": 5}
SHAR = {**LHOTSE, "shar_path": "shar"}
KINDS: dict[str, dict[str, Any]] = {
    "tarred": TARRED,
    "tarred, two workers": {**TARRED, "num_workers": 2},
    "buckets": BUCKETS,
    "concat": {"is_concat": True, "manifest_filepath": ["/train_manifest.json", "/val_manifest.json"],
               "batch_size": 3, "concat_sampling_technique": "temperature"},
    "cuts": {**LHOTSE, "manifest_filepath": "/train_manifest.json"},
    "cuts, in buckets, two workers": {
        **LHOTSE, "manifest_filepath": "/train_manifest.json", "bucket_duration_bins": [3.0], "num_workers": 2,
        "concurrent_bucketing": False},
    "shar": SHAR,
    "shar, two workers": {**SHAR, "num_workers": 2},
    "mux": {**LHOTSE, "input_cfg": [
        {"type": "lhotse_shar", "weight": 0.4, "shar_path": "shar"},
        {"type": "nemo_tarred", "weight": 0.6, "manifest_filepath": TARRED["manifest_filepath"],
         "tarred_audio_filepaths": TARRED["tarred_audio_filepaths"]}]},
}  # fmt: skip


def section_of(kind: str, corpus: Path, **more: Any) -> dict[str, Any]:
    def located(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: located(part, name) for name, part in value.items()}
        if isinstance(value, list):
            return [located(part, key) for part in value]
        is_path = key.endswith(("filepath", "filepaths", "shar_path", "noise_manifest")) and isinstance(value, str)
        return f"{corpus}/plain{'' if value.startswith('/') else '_'}{value}" if is_path else value

    common = {"sample_rate": RATE, "shuffle": True, "noise_manifest": "/noise_manifest.json", "batch_augmentor": MIXING}
    section: dict[str, Any] = located({**common, **KINDS[kind], **more})
    return section


def loader_of(section: dict[str, Any], **more: Any) -> AudioNoiseLoader:
    dataset = read(Dataset, section)
    check_dataset(dataset, RATE)
    loader = build_dataloader(dataset, RATE, **more)
    assert loader is not None
    OPEN.append(loader)
    return loader


def epoch_of(loader: AudioNoiseLoader, number: int, batches: int = EPOCH) -> Iterator[Any]:
    """An epoch as Lightning walks it: the sampler is told its number, and no more batches are taken than it has."""
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(number)
    return itertools.islice(iter(loader), batches)


def content(batch: Any) -> str:
    """A digest of all of a batch."""
    fields = [value.numpy().tobytes() for value in vars(batch).values() if value is not None]
    return hashlib.sha256(b"".join(fields)).hexdigest()[:12]


@pytest.mark.parametrize("kind", KINDS)
def test_taken_up_in_the_middle_of_the_second_epoch(kind: str, corpus: Path) -> None:
    """A run that was stopped there goes on with the bits of one that was not, and so does the third epoch."""
    section = section_of(kind, corpus)
    seed_all(3)
    whole = loader_of(section)
    first = [content(batch) for batch in epoch_of(whole, 0)]
    second = epoch_of(whole, 1)
    passed = content(next(second))
    state, generators = whole.state_dict(), generator_states()
    wanted = [content(batch) for batch in [*second, *epoch_of(whole, 2)]]
    assert passed != first[0], "another order each epoch"

    seed_all(3)
    resumed = loader_of(section)
    seed_all(99)
    resumed.load_state_dict(state)
    rest = epoch_of(resumed, 1, EPOCH - 1)
    restore_generators(generators)
    assert [content(batch) for batch in [*rest, *epoch_of(resumed, 2)]] == wanted


@pytest.mark.parametrize("kind", ["tarred", "concat", "cuts", "shar, two workers"])
def test_two_ranks_read_different_utterances(kind: str, corpus: Path) -> None:
    seen = []
    for rank in range(2):
        seed_all(3)
        loader = loader_of(section_of(kind, corpus, noise_manifest=None), rank=rank, world_size=2)
        seen.append([batch.audio.numpy().tobytes() for batch in epoch_of(loader, 0)])
    assert not set(seen[0]) & set(seen[1])


def test_a_worker_that_has_no_tar_file_of_a_set(corpus: Path) -> None:
    """NeMo's mixture asks such a worker again and again."""
    sets = {key: [TARRED[key], TARRED[key]] for key in ("manifest_filepath", "tarred_audio_filepaths")}
    section = section_of("tarred", corpus, is_concat=True, num_workers=2, **sets)
    assert len([*epoch_of(loader_of(section), 0)]) == EPOCH
    with pytest.raises(UserError, match="fewer tar files of a set than there are workers"):
        loader_of(section, rank=1, world_size=2)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"shar_path": "nowhere"}, "no folder with Lhotse's shar"),
        ({"batch_duration": None}, "no size of a batch is given"),
        ({"shar_path": None}, "no data is named"),
        ({"input_cfg": [{"type": "lhotse_shar", "shar_pth": "shar"}]}, r"unknown key: input_cfg\[0\].shar_pth"),
        ({"input_cfg": [{"type": "txt", "shar_path": "shar"}]}, "input_cfg.*type"),
        ({"input_cfg": [{"type": "group"}]}, "a member of a mixture names no data"),
        ({"input_cfg": "no/such.yaml"}, "a file that cannot be read"),
        ({"input_cfg": [{"type": "lhotse_shar", "shar_path": "shar", "weight": 1}, {"type": "lhotse_shar",
                         "shar_path": "shar"}]}, "a member of a mixture without a weight"),
        ({"input_cfg": [{"type": "lhotse_shar", "shar_path": "shar"}, {"type": "nemo",
                         "manifest_filepath": "/train_manifest.json"}]}, "tarred and other data in one mixture"),
        ({"perturb_speed": True}, "not supported: true"),
        ({"shar_path": None, "manifest_filepath": [["/train_manifest.json", 0.8]]}, "weights of manifests beside tar"),
        ({"trim_silence": True}, "Lhotse reads audio as it is"),
        ({"shar_path": None, "manifest_filepath": ["/train_manifest.json"] * 2,
          "tarred_audio_filepaths": ["tarred/audio_0.tar"]}, "not as many manifests as sets of tar files"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(more: dict[str, Any], said: str, corpus: Path) -> None:
    with pytest.raises(UserError, match=said):
        loader_of(section_of("shar", corpus, **more))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_tar_file_is_one_line(workers: int, corpus: Path, tmp_path: Path) -> None:
    """Also where a worker of a stream meets it."""
    shutil.copytree(corpus / "plain_tarred", tmp_path / "tarred")
    whole = (tmp_path / "tarred" / "audio_1.tar").read_bytes()
    (tmp_path / "tarred" / "audio_1.tar").write_bytes(whole[: len(whole) // 2 + 100])
    keys = {"manifest_filepath": "tarred_audio_manifest.json", "tarred_audio_filepaths": "audio__OP_0..1_CL_.tar"}
    section = {**LHOTSE, **{key: str(tmp_path / "tarred" / name) for key, name in keys.items()}, "shuffle": True}
    loader = loader_of({**section, "sample_rate": RATE, "num_workers": workers})
    with pytest.raises(UserError, match=r"a tar file that cannot be read: .*audio_1\.tar: unexpected end"):
        list(epoch_of(loader, 0, 20))


@pytest.mark.parametrize(
    ("line", "said"),
    [({"audio_filepath": "a.wav"}, "no duration, which Lhotse asks for"),
     ({"audio_filepath": ["a.wav", "b.wav"], "duration": 1.0}, "several files for an utterance")],
)  # fmt: skip
def test_lines_at_which_lhotse_stops(line: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=rf"{said}.*a.json, line 1"):
        check_dataset(read(Dataset, {**LHOTSE, "manifest_filepath": str(tmp_path / "a.json")}), RATE)


def test_lines_of_no_use_are_left_out_and_other_transcripts_come_too(corpus: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (corpus / "plain" / "train_manifest.json").read_text().splitlines()[:3]]
    for line in lines:
        line["audio_filepath"] = str(corpus / "plain" / line["audio_filepath"])
    lines[0]["validation_status"], lines[1]["validation_status"] = "fail", "pass"
    lines[2]["alt_text"] = {"one": {"text": "a", "lang": "b"}}
    (tmp_path / "a.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    section = {**LHOTSE, "manifest_filepath": str(tmp_path / "a.json"), "batch_duration": 60.0, "sample_rate": RATE}
    (batch,) = epoch_of(loader_of({**section, "shuffle": False}), 0)
    assert batch.audio_len.tolist() == [round(RATE * lines[number]["duration"]) for number in (1, 2, 2)]


@pytest.fixture(scope="module")
def one_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four utterances in every kind, the second of which is no audio any more."""
    folder = tmp_path_factory.mktemp("bad")
    for number in range(4):
        soundfile.write(folder / f"u{number}.wav", np.full(RATE, 0.1 + 0.1 * number), RATE)
    lines = [json.dumps({"audio_filepath": f"u{number}.wav", "duration": 1.0}) + "\n" for number in range(4)]
    (folder / "m.json").write_text("".join(lines))
    convert(read_speech(str(folder / "m.json")), "shar", folder / "shar", 1)
    recordings = folder / "shar" / "recording.000000.tar"
    content, good = recordings.read_bytes(), (folder / "u1.wav").read_bytes()[44:]
    start = content.index(good)
    recordings.write_bytes(content[: start - 44] + bytes(44 + len(good)) + content[start + len(good) :])
    (folder / "u1.wav").write_bytes(b"no audio" * 100)
    convert(read_speech(str(folder / "m.json")), "tarred", folder / "tarred", 1)
    return folder


OF_TARS = {"manifest_filepath": "tarred/tarred_audio_manifest.json", "tarred_audio_filepaths": "tarred/audio_0.tar"}
WITH_ONE_BAD: dict[str, dict[str, Any]] = {
    "tarred": {"is_tarred": True, **OF_TARS},
    "buckets": {"is_tarred": True, **{key: [[path], [path]] for key, path in OF_TARS.items()},
                "bucketing_strategy": "fixed_order"},
    "concat": {"is_concat": True, "manifest_filepath": ["m.json", "m.json"]},
    "cuts": {"use_lhotse": True, "manifest_filepath": "m.json"},
    "tars of cuts": {"use_lhotse": True, "force_finite": True, **OF_TARS},
    "shar": {"use_lhotse": True, "force_finite": True, "shar_path": "shar"},
}  # fmt: skip


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in WITH_ONE_BAD), ("tarred", 1), ("concat", 1)])
def test_audio_that_cannot_be_read(kind: str, workers: int, one_bad: Path) -> None:
    """The run stops at it, or goes on without it, whatever kind of data it is in; Lhotse goes on by itself."""

    def located(value: Any) -> Any:
        if isinstance(value, list):
            return [located(part) for part in value]
        return (
            str(one_bad / value) if isinstance(value, str) and ("/" in value or value in ("m.json", "shar")) else value
        )

    keys = {"batch_size": 2, "shuffle": False, "sample_rate": RATE, "num_workers": workers}
    section = read(Dataset, {**keys, **{key: located(value) for key, value in WITH_ONE_BAD[kind].items()}})
    strict, skipped = build_dataloader(section, RATE), SkippedAudio()
    assert strict is not None
    if not section.use_lhotse or kind == "cuts":  # of which the header is read for each line
        with pytest.raises(UserError, match="u1.wav"):
            for _ in strict:
                pass
    if kind == "cuts":
        return
    loader = build_dataloader(section, RATE, skipped=skipped)
    assert loader is not None
    heard = sorted(round(float(row[0]), 1) for batch in loader for row in batch.audio)
    times = 1 if section.use_lhotse or kind == "tarred" else 2
    assert heard == sorted([0.1, 0.3, 0.4] * times)
    assert skipped.utterances == (0 if section.use_lhotse else times)


def test_lines_are_found_by_name_where_hashes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(path, 1.0, None, Place("m", number)) for number, path in enumerate(["b.wav", "x/a.flac", "b.mp3"])]
    for _ in range(2):
        lines = tarred.LinesByName(entries)
        assert [lines.get(name) for name in ("a", "b", "c")] == [[entries[1]], [entries[0], entries[2]], []]
        monkeypatch.setattr(tarred, "_hash_of_name", lambda name: 5)
    with pytest.raises(UserError, match="several files for an utterance of a tarred set"):
        tarred.LinesByName([Entry(["l.wav", "r.wav"], 1.0, None, Place("m", 1))])
