"""Faults in what is drawn, planted in the trainer with everything random on: stage, generator and count are named.

`test_planted_faults.py` holds the faults in everything else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nest_ssl.data import draws as draws_of_data
from nest_ssl.releases import generation
from nest_ssl.train.module import NestModule
from tests.test_planted_faults import Plant, compare, patch_forward, record

LOADING = ("num_workers=0", "pin_memory=false")
EVERYTHING = ["run=full", *(f"model.{ds}.{how}" for ds in ("train_ds", "validation_ds") for how in LOADING)]
Draws = tuple[int | str, int | str]


@pytest.fixture(scope="module")
def random_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("random") / "nest"
    record(target, None, *EVERYTHING)
    return target


def number_before_the_mask(model: NestModule) -> None:
    model.mask_processor.register_forward_pre_hook(lambda *_: (torch.rand(1), None)[1])


def dropout_twice(model: NestModule) -> None:
    patch_forward(model.encoder.layers[1].feed_forward2.dropout, lambda forward, x: forward(forward(x)))


def dither_of_its_own(model: NestModule) -> None:
    """White noise from a generator of its own, as a careful rewrite might have it."""
    generator = torch.Generator().manual_seed(0)
    featurizer = model.preprocessor.featurizer
    amplitude, featurizer.dither = featurizer.dither, 0.0

    def dithered(forward: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if featurizer.training:
            x += amplitude * torch.randn(x.shape, generator=generator)
        return forward(x, *args, **kwargs)

    patch_forward(featurizer, dithered)


def mask_per_utterance(model: NestModule) -> None:
    """As NeMo drew it before 3.0: how many blocks, then where, utterance by utterance."""
    model.mask_processor.differences = generation("2.7")


def dropout_as_a_function(model: NestModule) -> None:
    """Not a fault in what is drawn, but in what is called: the dropout's module is left out."""
    feed_forward = model.encoder.layers[0].feed_forward1
    patch_forward(
        feed_forward,
        lambda forward, x: feed_forward.linear2(
            F.dropout(feed_forward.activation(feed_forward.linear1(x)), feed_forward.dropout.p, training=True)
        ),
    )


RANDOM_FAULTS = [
    (number_before_the_mask, "", "torch_cpu", lambda draws: draws == (0, 1)),
    (dropout_twice, "encoder.layers.1.feed_forward2.dropout", "torch_cpu", lambda draws: 0 < draws[0] < draws[1]),
    (dither_of_its_own, "preprocessor.featurizer", "torch_cpu", lambda draws: draws[0] > 0 == draws[1]),
    (mask_per_utterance, "mask_processor", "torch_cpu", lambda draws: 0 < draws[0] != draws[1] > 0),
]


def first_draw(reference: Path, candidate: Path) -> tuple[str | None, str, Draws]:
    """Module, generator (after its stage where no module drew), and both counts of the headline, a random draw."""
    code, report = compare(reference, candidate)
    first = report["first_difference"]
    assert (code, report["verdict"], first["rung"], first["kind"]) == (1, "diverged", "draws", "draws"), first
    return first["module"], first["tensor"], (first["reference"], first["candidate"])


@pytest.mark.parametrize(
    ("plant", "module", "generator", "right"), RANDOM_FAULTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_another_draw_is_found_and_named(
    random_reference: Path, tmp_path: Path, plant: Plant, module: str, generator: str, right: Callable[[Draws], bool]
) -> None:
    record(tmp_path / "nest", plant, *EVERYTHING)
    found = first_draw(random_reference, tmp_path / "nest")
    assert found[:2] == (module, generator) and right(found[2]), found


def test_an_extra_draw_to_shuffle_is_found(
    random_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.utils.data.RandomSampler.__iter__

    def twice(self: Any) -> Any:
        torch.empty((), dtype=torch.int64).random_()
        yield from original(self)

    monkeypatch.setattr(torch.utils.data.RandomSampler, "__iter__", twice)
    record(tmp_path / "nest", None, *EVERYTHING)
    assert first_draw(random_reference, tmp_path / "nest") == (None, "fetch.torch_cpu", (2, 4))


def test_augmentation_from_another_generator_is_found(
    random_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choices(population: range, k: int) -> list[int]:
        return (np.random.uniform(size=k) * len(population)).astype(int).tolist()

    monkeypatch.setattr(draws_of_data, "random", SimpleNamespace(**{**vars(random), "choices": choices}))
    record(tmp_path / "nest", None, *EVERYTHING)
    module, generator, draws = first_draw(random_reference, tmp_path / "nest")
    assert (module, generator) == (None, "fetch.python") and draws[0] > draws[1] > 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    numpy = next(d for d in report["draws"] if d["generator"] == "numpy" and d["relation"] == "other count")
    assert numpy["draws"][1] > numpy["draws"][0] and "from numpy" in report["origin"]


def test_the_same_draws_by_a_function_are_no_other_draws(random_reference: Path, tmp_path: Path) -> None:
    record(tmp_path / "nest", dropout_as_a_function, *EVERYTHING)
    _, report = compare(random_reference, tmp_path / "nest")
    assert {r["name"]: r["status"] for r in report["rungs"]}["draws"] == "identical"
    elsewhere = [d for d in report["draws"] if d["relation"] == "drawn elsewhere"]
    assert elsewhere[0]["reference"] == ["encoder.layers.0.feed_forward1.dropout#0"]
    assert elsewhere[0]["candidate"] == ["encoder.layers.0.feed_forward1#0"]
    assert report["first_difference"]["module"] == "encoder.layers.0.feed_forward1.dropout"  # never called
