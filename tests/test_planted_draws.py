"""Faults in what is drawn, planted in the trainer with everything random on: stage, generator and count are named.

`test_planted_faults.py` holds the faults in everything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Fate
from nest_ssl.data.draws import DRAWS
from nest_ssl.releases import generation
from nest_ssl.train.module import NestModule
from tests.test_planted_faults import EXPECTED, Plant, compare, judged, named, patch_forward, record, recorded_once

LOADING = ("num_workers=0", "pin_memory=false")
EVERYTHING = ["run=full", *(f"model.{ds}.{how}" for ds in ("train_ds", "validation_ds") for how in LOADING)]
Draws = tuple[int, int]


@pytest.fixture(scope="module")
def random_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_once(tmp_path_factory, None, *EVERYTHING)


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
    """No fault: the same numbers, computed by a function in place of the dropout's module."""
    feed_forward = model.encoder.layers[0].feed_forward1
    patch_forward(
        feed_forward,
        lambda forward, x: feed_forward.linear2(
            F.dropout(feed_forward.activation(feed_forward.linear1(x)), feed_forward.dropout.p, feed_forward.training)
        ),
    )


RANDOM_FAULTS = [
    (number_before_the_mask, lambda draws: draws == (0, 1)),
    (dropout_twice, lambda draws: 0 < draws[0] < draws[1]),
    (dither_of_its_own, lambda draws: draws[0] > 0 == draws[1]),
    (mask_per_utterance, lambda draws: 0 < draws[0] != draws[1] > 0),
]


def counts(comparison: Comparison) -> Draws:
    """How many numbers were drawn where the headline is."""
    assert comparison.first is not None and comparison.cause is not None and comparison.cause.draw is not None
    assert comparison.cause.draw.finding is comparison.first
    return comparison.first.reference, comparison.first.candidate


@pytest.mark.parametrize(("plant", "right"), RANDOM_FAULTS, ids=[named(plant) for plant, _ in RANDOM_FAULTS])
def test_another_draw_is_found_and_named(
    random_reference: Path, tmp_path: Path, plant: Plant, right: Callable[[Draws], bool]
) -> None:
    record(tmp_path / "nest", plant, *EVERYTHING)
    comparison = compare(random_reference, tmp_path / "nest")
    assert judged(comparison) == EXPECTED[plant.__name__]
    assert right(counts(comparison)), counts(comparison)


def test_an_extra_draw_to_shuffle_is_found(
    random_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.utils.data.RandomSampler.__iter__

    def twice(self: Any) -> Any:
        torch.empty((), dtype=torch.int64).random_()
        yield from original(self)

    monkeypatch.setattr(torch.utils.data.RandomSampler, "__iter__", twice)
    record(tmp_path / "nest", None, *EVERYTHING)
    comparison = compare(random_reference, tmp_path / "nest")
    assert (judged(comparison), counts(comparison)) == (EXPECTED["shuffled_twice"], (2, 4))


def test_augmentation_from_another_generator_is_found(
    random_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(length: int, parts: int) -> list[int]:
        return [*Counter((np.random.uniform(size=length) * parts).astype(int).tolist()).values()]

    monkeypatch.setitem(DRAWS, "python", replace(DRAWS["python"], cut=cut))
    record(tmp_path / "nest", None, *EVERYTHING)
    comparison = compare(random_reference, tmp_path / "nest")
    assert judged(comparison) == EXPECTED["augmentation_from_numpy"]
    assert counts(comparison)[0] > counts(comparison)[1] > 0
    numpy = next(d for d in comparison.draws if d.generator == "numpy" and d.fate == Fate.OTHER_COUNT)
    assert numpy.draws[0] is not None and numpy.draws[1] is not None and numpy.draws[1] > numpy.draws[0]


def test_the_same_draws_by_a_function_are_no_other_draws(random_reference: Path, tmp_path: Path) -> None:
    record(tmp_path / "nest", dropout_as_a_function, *EVERYTHING)
    comparison = compare(random_reference, tmp_path / "nest")
    assert judged(comparison) == EXPECTED["dropout_as_a_function"]  # computed by another module
    assert comparison.rung("draws").status == "identical"
    elsewhere = next(draw for draw in comparison.draws if draw.fate == Fate.ELSEWHERE)
    assert elsewhere.reference[0].module == "encoder.layers.0.feed_forward1.dropout"
    assert elsewhere.candidate[0].module == "encoder.layers.0.feed_forward1"
