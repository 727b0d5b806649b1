"""What a section trains on: limits, how many they leave out, and manifests that are read once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data import manifest as module
from nest_ssl.data.check import check_dataset
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.fingerprint import DataRecord
from nest_ssl.data.lines import Entry, Place
from nest_ssl.data.loader import build_dataloader
from nest_ssl.data.manifest import Manifest

Section = dict[str, Any]


def limited(shortest: float | None = None, longest: float | None = None, manifest: str = "m.json") -> Dataset:
    limits = {"min_duration": shortest, "max_duration": longest}
    return read(Dataset, {"manifest_filepath": manifest, "batch_size": 1, **limits})


def corpora_of(durations: list[float | None]) -> Corpora:
    """As if a manifest with these durations had been read."""
    corpora = Corpora()
    lines = [Entry("a.wav", duration, None, Place("m.json", n)) for n, duration in enumerate(durations, 1)]
    corpora._speech["m.json"] = Manifest("m.json", lines, "", ("m.json", None))
    return corpora


@given(
    durations=st.lists(st.none() | st.floats(0, 9), min_size=1),
    low=st.none() | st.floats(0, 9),
    high=st.none() | st.floats(0, 9),
)
def test_duration_limits(durations: list[float | None], low: float | None, high: float | None) -> None:
    wanted = [d for d in durations if d is None or ((low is None or d >= low) and (high is None or d <= high))]
    corpora = corpora_of(durations)
    if not wanted:
        with pytest.raises(UserError, match=f"none of {len(durations)} entries"):
            corpora.read(limited(low, high))
        return
    corpus = corpora.read(limited(low, high))
    assert [e.duration for e in corpus.entries] == wanted
    assert corpus.shorter + corpus.longer + len(wanted) == len(durations)
    assert (corpus.left_out() is None) == (len(wanted) == len(durations))


def test_limits_of_a_file(tmp_path: Path) -> None:
    lines = [{"audio_filepath": "a.wav", "duration": n} for n in (1, 2, 3, None)]
    (tmp_path / "m.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [e.duration for e in Corpora().read(limited(2, 2, str(tmp_path / "m.json"))).entries] == [2, None]


def test_how_many_are_left_out_is_said() -> None:
    corpora = corpora_of([0.5, 1, 2, 3, 4, 5, None])
    assert corpora.read(limited()).left_out() is None
    both = "3 of 7 utterances are left out: 1 shorter than min_duration=1, 2 longer than max_duration=3"
    assert corpora.read(limited(1, 3)).left_out() == both
    assert corpora.read(limited(longest=4.5)).left_out() == (
        "1 of 7 utterances are left out: 1 longer than max_duration=4.5"
    )


def test_a_manifest_is_read_once(
    section: Section, manifest: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the check, two loaders and the record of the data; after the check, nothing that happens to it is noticed."""
    section["noise_manifest"] = manifest({"audio_filepath": "a.wav"}, name="noise.json")
    opened: list[str] = []
    original = module._read_manifest

    def count(path: str, *rest: Any) -> Any:
        opened.append(path)
        return original(path, *rest)

    monkeypatch.setattr(module, "_read_manifest", count)
    corpora = Corpora()
    corpus = check_dataset(read(Dataset, section), 16_000, corpora=corpora)
    for path in (section["manifest_filepath"], section["noise_manifest"]):
        Path(path).write_text("no longer a manifest")
    loaders = [build_dataloader(read(Dataset, section), 16_000, corpora=corpora) for _ in range(2)]
    assert [len(loader.dataset.entries) for loader in loaders] == [3, 3]
    DataRecord({"train": corpus}).describe()
    assert opened == [section["manifest_filepath"], section["noise_manifest"]]
