"""The table of differences: complete, plain, and asked for by the code that behaves differently."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nest_ssl
from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.model.models import model_of
from nest_ssl.model.nest import NestModel
from nest_ssl.releases import (
    GENERATIONS,
    NEWEST,
    RELEASE_LINES,
    RELEASES,
    Generation,
    describe,
    generation,
    generation_of,
    unlisted,
)

NAMES = [f.name for f in fields(Generation)]


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("2.3.3", "2.4"), ("2.4.0", "2.4"), ("2.4.1", "2.4"), ("2.4", "2.4"), (2.4, "2.4"),
        ("2.5.3", "2.6"), ("2.6.2", "2.6"), ("2.7.3", "2.7"), ("2.7.0rc1", "2.7"), ("v2.7.3", "2.7"), (2.7, "2.7"),
        (2.5, "2.6"), ("3.0.0", "3.0"), ("3.0.0+cu130", "3.0"), (3.0, "3.0"), ("3.0", "3.0"),
    ],
)  # fmt: skip
def test_which_release_belongs_to_which_generation(release: str | float, name: str) -> None:
    assert generation_of(release) == name


@pytest.mark.parametrize(
    ("release", "name"),
    [("2.2.1", "2.4"), ("1.23", "2.4"), (2.8, "2.7"), ("3.1.0", "3.0"), ("3.1.0rc1", "3.0"), ("4.0.0+source", "3.0")],
)
def test_a_release_that_is_not_known_goes_under_the_nearest_and_is_said_to(release: str | float, name: str) -> None:
    assert generation_of(release) == name
    assert f"NeMo {release} is not among" in str(unlisted(release)) and f" {name}, and may" in str(unlisted(release))


def test_nothing_is_said_of_a_known_release() -> None:
    assert [unlisted(release) for release in ("3.0.0", "2.5.3", 2.7, "outputs/nemo")] == [None] * 4


@pytest.mark.parametrize("release", ["3", 3, "", None, "2.7x", "newest", "x2.7"])
def test_what_is_no_release_is_refused(release: Any) -> None:
    with pytest.raises(UserError, match=r"no such generation of NeMo: nemo=.*Known: 2\.4, 2\.6, 2\.7, 3\.0 \(2\.3\.x"):
        generation_of(release)


def test_a_generation_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"no such generation.*3\.0"):
        generation("1.0")


def test_every_line_of_releases_has_its_row_and_the_newest_is_the_default() -> None:
    assert set(RELEASE_LINES.values()) == set(GENERATIONS)
    assert NEWEST == list(GENERATIONS)[-1] == inspect.signature(NestModel).parameters["generation"].default
    assert {generation_of(release): release for release in RELEASES.values()} == RELEASES


@pytest.mark.parametrize("name", NAMES)
def test_every_difference_is_one(name: str) -> None:
    assert len({getattr(row, name) for row in GENERATIONS.values()}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_every_difference_is_asked_for(name: str) -> None:
    package = Path(nest_ssl.__file__).parent
    sources = [path.read_text() for room in ("model", "data", "run") for path in (package / room).rglob("*.py")]
    assert any(re.search(rf"\.{name}\b", source) for source in sources)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_a_difference_does_not_have(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='other' is none of"):
        replace(GENERATIONS[NEWEST], **{name: "other"})


def test_a_recording_tells_all_of_it_in_plain_json() -> None:
    for name, row in GENERATIONS.items():
        told = describe(name)
        assert json.loads(json.dumps(told)) == told
        assert told["name"] == name
        assert {entry["name"]: entry["value"] for entry in told["differences"]} == asdict(row)
        assert [entry["name"] for entry in told["differences"]] == NAMES
        assert all(0 < len(entry["what"]) < 100 and "\n" not in entry["what"] for entry in told["differences"])


def test_differences_take_effect_in_modules_that_are_there() -> None:
    built = [model_of(compose([*recipe, "size=tiny"]).model) for recipe in ([], ["recipe=wav2vec-bert"])]
    modules = {name for model in built for name, _ in model.named_modules()}
    assert {entry["where"] for entry in describe("3.0")["differences"]} - {"batch"} <= modules


# --- each difference of the model changes it -------------------------------------------------------------------------


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Generation], list[torch.Tensor]]:
    """What the tiny model makes of a batch, as a release with these differences."""
    tiny = compose(["size=tiny", "run=full"]).model
    tiny.preprocessor.dither, tiny.masking.mask_prob = 0.0, 0.05

    def run(row: Generation) -> list[torch.Tensor]:
        monkeypatch.setitem(GENERATIONS, "row", row)
        torch.manual_seed(0)
        model = NestModel(tiny, "row").eval()
        audio = torch.randn(2, 32000)
        length = torch.tensor([32000, 20000])
        return list(model(audio, length, noisy_input_signal=audio, noisy_input_signal_length=length, apply_mask=True))

    return run


def test_the_same_differences_give_the_same_bits(step: Any) -> None:
    first, second = step(GENERATIONS["2.7"]), step(GENERATIONS["2.7"])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["stft_padding", "mask_waveform", "extra_frames", "block_draw", "subsampling_mask"])
def test_each_of_these_alone_changes_the_numbers(step: Any, name: str) -> None:
    """Of those that a plain batch shows; the others have tests where they are at work."""
    newest, other = GENERATIONS["3.0"], GENERATIONS["2.4"]
    changed = {name: getattr(other, name)}
    if name == "block_draw":
        changed |= {"short_audio_rule": "float64", "short_audio_offset": "zero"}
    one, two = step(newest), step(replace(newest, **changed))
    assert not torch.equal(one[0], two[0])
