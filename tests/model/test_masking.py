from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nest_ssl.config.parts import Masking
from nest_ssl.model.masking.random_blocks import RandomBlockMasking
from nest_ssl.model.masking.whole_batch import overlapping_blocks, separate_blocks


def masked_by_hand(starts_BT: torch.Tensor, block_size: int) -> torch.Tensor:
    mask_BT = torch.zeros_like(starts_BT)
    for utterance, start in starts_BT.nonzero().tolist():
        mask_BT[utterance, start : start + block_size] = True
    return mask_BT


@given(seed=st.integers(0, 999), probability=st.floats(0, 1), block=st.integers(1, 50), frames=st.integers(1, 120))
@settings(deadline=None)
def test_overlapping_blocks_lie_where_the_draws_say(seed: int, probability: float, block: int, frames: int) -> None:
    lengths = torch.tensor([frames, frames // 2, 0])
    torch.manual_seed(seed)
    mask = overlapping_blocks(lengths, frames, block, probability)
    torch.manual_seed(seed)
    fits = torch.arange(frames) + block <= lengths.unsqueeze(1)
    assert torch.equal(mask, masked_by_hand((torch.rand(3, frames) < probability) & fits, block))


@given(seed=st.integers(0, 999), probability=st.floats(0.01, 1), block=st.integers(1, 50), length=st.integers(1, 300))
@settings(deadline=None)
def test_separate_blocks_stay_within_the_utterance(seed: int, probability: float, block: int, length: int) -> None:
    torch.manual_seed(seed)
    mask = separate_blocks(torch.tensor([length]), 300, block, probability)
    assert not mask[0, length:].any()
    assert mask.sum() <= block * math.ceil(length * probability / block)


def test_separate_blocks_mask_the_part_that_was_asked_for() -> None:
    torch.manual_seed(0)
    mask = separate_blocks(torch.tensor([1000, 1000]), 1000, 10, 0.4)
    assert mask.sum(1).tolist() == [400, 400]


def test_an_utterance_too_short_for_its_block_gets_a_smaller_one() -> None:
    torch.manual_seed(0)
    mask = separate_blocks(torch.tensor([30]), 100, 48, 0.5)
    assert mask.sum() == 15


@pytest.mark.parametrize("allow_overlap", [True, False])
def test_masked_frames_become_the_embedding_and_others_stay(allow_overlap: bool) -> None:
    torch.manual_seed(0)
    module = RandomBlockMasking(Masking(feat_in=8, mask_prob=0.1, block_size=5, allow_overlap=allow_overlap))
    features = torch.randn(2, 8, 200)
    masked, masks = module(features, torch.tensor([200, 90]))
    assert masks.shape == features.shape
    assert 0 < masks.mean() < 1
    assert torch.equal(masked, torch.where(masks.bool(), module.mask_embedding.view(1, -1, 1), features))


def test_what_is_put_in_place_and_whether_it_learns() -> None:
    torch.manual_seed(0)
    drawn = RandomBlockMasking(Masking(feat_in=1000))
    assert drawn.mask_embedding.std().item() == pytest.approx(0.1, rel=0.1)
    assert not drawn.mask_embedding.requires_grad
    assert not drawn.training
    assert RandomBlockMasking(Masking(feat_in=8, freeze=False)).mask_embedding.requires_grad
    given_value = RandomBlockMasking(Masking(feat_in=8, mask_value=0.25, freeze=False)).mask_embedding
    assert given_value.tolist() == [0.25] * 8
    assert not given_value.requires_grad
