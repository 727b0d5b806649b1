"""Blocks drawn utterance by utterance, as before NeMo 3.0. (That the draws are NeMo's: tests/against_nemo.)"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Masking
from nest_ssl.model.masking.per_utterance import Blocks, mask_of, overlapping_by_utterance, separate_by_utterance
from nest_ssl.model.masking.random_blocks import RandomBlockMasking
from nest_ssl.releases import GENERATIONS

OLD = GENERATIONS["2.7"]
lengths_of_a_batch = st.lists(st.integers(0, 300), min_size=1, max_size=5)


def lists(blocks: Blocks) -> list[list[int]]:
    return [part.tolist() for part in blocks]


def draw(block_size: int, mask_prob: float, **options: Any) -> Masking:
    return Masking(feat_in=4, block_size=block_size, mask_prob=mask_prob, **options)


def masking(generation: str, **options: Any) -> RandomBlockMasking:
    torch.manual_seed(0)
    return RandomBlockMasking(Masking(feat_in=4, **options), GENERATIONS[generation])


@given(lengths=lengths_of_a_batch, block=st.integers(1, 60), probability=st.floats(0, 1), seed=st.integers(0, 99))
@settings(deadline=None)
def test_overlapping_blocks_lie_within_their_utterance(
    lengths: list[int], block: int, probability: float, seed: int
) -> None:
    torch.manual_seed(seed)
    given = draw(block, probability)
    utterances, starts, ends = lists(overlapping_by_utterance(torch.tensor(lengths), given, OLD))
    for i, start, end in zip(utterances, starts, ends, strict=True):
        assert 0 <= start <= end <= lengths[i]
        short = block >= lengths[i] * 0.8
        assert end - start == min(8, lengths[i]) if short else block
    assert len(set(zip(utterances, starts, strict=True))) == len(starts), "no two blocks start at one frame"


@given(lengths=lengths_of_a_batch, block=st.integers(2, 60), probability=st.floats(0.01, 0.9), seed=st.integers(0, 99))
@settings(deadline=None)
def test_separate_blocks_do_not_overlap(lengths: list[int], block: int, probability: float, seed: int) -> None:
    torch.manual_seed(seed)
    blocks = separate_by_utterance(torch.tensor(lengths), draw(block, probability), OLD)
    mask = mask_of(blocks, len(lengths), 1000)
    assert int(mask.sum()) == int((blocks.ends - blocks.starts).sum())


@given(seed=st.integers(0, 999), frames=st.integers(1, 60))
@settings(deadline=None)
def test_the_mask_is_what_the_blocks_cover(seed: int, frames: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    utterances, starts = (torch.randint(0, high, (7,), generator=draws) for high in (3, 80))
    blocks = Blocks(utterances, starts, starts + torch.randint(0, 30, (7,), generator=draws))
    expected = torch.zeros(3, frames, dtype=torch.bool)
    for i, start, end in zip(*lists(blocks), strict=True):
        expected[i, start:end] = True
    assert torch.equal(mask_of(blocks, 3, frames), expected)


def test_the_count_comes_from_the_generator_of_the_release() -> None:
    lengths, seen = torch.tensor([300, 300]), {}
    for name in ("torch", "numpy"):
        counts = []
        for numpy_seed, torch_seed in ((1, 1), (2, 1), (1, 2)):
            np.random.seed(numpy_seed)
            torch.manual_seed(torch_seed)
            drawn = overlapping_by_utterance(lengths, draw(40, 0.2), replace(OLD, block_count=name))
            counts.append(torch.bincount(drawn.utterances).tolist())
        seen[name] = [counts[0] == counts[1], counts[0] == counts[2]]
    assert seen == {"torch": [True, False], "numpy": [False, True]}


def test_rounding_decides_which_audio_is_short() -> None:
    """0.3 of 50 is 15 in double precision, and a little more in single precision."""
    for rule, blocks in (("float64", 1), ("float32", 35)):
        row = replace(OLD, short_audio_rule=rule)
        drawn = overlapping_by_utterance(torch.tensor([50]), draw(15, 1.0, max_mask_ratio=0.3), row)
        assert len(drawn.starts) == blocks


def test_where_a_short_utterance_is_masked() -> None:
    lengths = torch.tensor([300, 30])
    torch.manual_seed(3)
    first = separate_by_utterance(lengths, draw(40, 0.1), GENERATIONS["2.4"])
    torch.manual_seed(3)
    second = separate_by_utterance(lengths, draw(40, 0.1), OLD)
    torch.manual_seed(3)
    offset = int(torch.randint(0, 40, (1,)))
    assert [first.starts[-1], second.starts[-1]] == [offset, 0]
    with pytest.raises(UserError, match=r"NeMo 2\.4 fails on such a batch"):
        separate_by_utterance(lengths.flip(0), draw(40, 0.1), GENERATIONS["2.4"])


def test_a_block_beyond_the_last_frame_is_cut_or_refused() -> None:
    x, lengths = torch.randn(2, 4, 112), torch.tensor([100, 112])
    options = {"allow_overlap": False, "mask_prob": 0.5, "block_size": 48}
    old, newer, refused = masking("2.4", **options), masking("2.7", **options), 0
    for seed in range(20):
        torch.manual_seed(seed)
        assert old(x, lengths)[1].any()
        torch.manual_seed(seed)
        try:
            newer(x, lengths)
        except UserError as error:
            assert "NeMo 2.7 fails on such a batch" in str(error)  # noqa: PT017
            refused += 1
    assert 0 < refused < 20


@pytest.mark.parametrize("generation", ["2.4", "2.7"])
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.05])
def test_masked_frames_become_the_embedding_and_others_stay(generation: str, freeze: bool, probability: float) -> None:
    module = masking(generation, freeze=freeze, mask_prob=probability, block_size=20, allow_overlap=True)
    features = torch.randn(2, 4, 200)
    masked, masks = module(features, torch.tensor([200, 90]))
    assert bool(masks.any()) == (probability > 0)
    assert masks.is_contiguous() and masked.is_contiguous()
    assert torch.equal(masked, torch.where(masks.bool(), module.mask_embedding.view(1, -1, 1), features))
    if not freeze and probability:
        masked.sum().backward()
        torch.testing.assert_close(module.mask_embedding.grad, masks.sum((0, 2)))
