from __future__ import annotations

import math

import pytest
import torch

from nest_ssl.model.encoder.attention import (
    RelPositionalEncoding,
    RelPositionMultiHeadAttention,
    by_pair,
    masked_softmax,
    sinusoids,
)


@pytest.mark.parametrize("frames", [1, 2, 3, 17])
def test_scores_by_distance_become_scores_by_pair(frames: int) -> None:
    scores = torch.randn(2, 3, frames, 2 * frames - 1)
    pairs = by_pair(scores)
    assert pairs.shape == (2, 3, frames, frames)
    for i in range(frames):
        for j in range(frames):
            assert torch.equal(pairs[..., i, j], scores[..., i, frames - 1 - i + j])


def test_probabilities_are_zero_where_masked_and_one_in_all() -> None:
    mask = torch.tensor([[[False, True, False], [True, True, True], [False, False, False]]])
    attention = masked_softmax(torch.randn(1, 2, 3, 3), mask)
    assert (attention[mask.unsqueeze(1).expand_as(attention)] == 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.tensor([1.0, 0.0, 1.0]).expand(1, 2, 3))


def test_sinusoids_run_from_the_farthest_past_to_the_farthest_future() -> None:
    table = sinusoids(4, 6, torch.device("cpu"))
    assert table.shape == (1, 7, 6)
    assert table[0, 3].tolist() == [0, 1, 0, 1, 0, 1]
    assert table[0, 0, 0].item() == pytest.approx(math.sin(3))
    assert table[0, 6, 1].item() == pytest.approx(math.cos(-3))


def test_a_longer_table_says_the_same_of_the_same_distances() -> None:
    encoding = RelPositionalEncoding(d_model=8, dropout_rate=0.0, max_len=5, xscale=2.0, dropout_rate_emb=0.0)
    x = torch.randn(2, 4, 8)
    scaled, before = encoding(x)
    encoding.extend_pe(3)
    assert encoding.pe.size(1) == 9
    encoding.extend_pe(50)
    assert encoding.pe.size(1) == 99
    assert torch.equal(encoding(x)[1], before)
    assert torch.equal(scaled, 2 * x)
    assert "pe" not in encoding.state_dict()


def test_what_is_masked_is_not_seen() -> None:
    torch.manual_seed(0)
    module = RelPositionMultiHeadAttention(n_head=2, n_feat=8, dropout_rate=0.0).eval()
    x, pos_emb = torch.randn(1, 5, 8), sinusoids(5, 8, torch.device("cpu"))
    valid = torch.arange(5) < 3
    mask = ~(valid.unsqueeze(1) & valid).unsqueeze(0)
    other = x.clone()
    other[:, 3:] = 9.0
    first, second = (module(query=y, key=y, value=y, mask=mask, pos_emb=pos_emb) for y in (x, other))
    assert torch.equal(first[:, :3], second[:, :3])


def test_position_biases_are_zero_at_first_or_shared() -> None:
    own = RelPositionMultiHeadAttention(n_head=2, n_feat=8, dropout_rate=0.0)
    assert own.pos_bias_u.shape == (2, 4)
    assert not own.pos_bias_u.any()
    shared = RelPositionMultiHeadAttention(2, 8, 0.0, pos_bias_u=own.pos_bias_u, pos_bias_v=own.pos_bias_v)
    assert shared.pos_bias_v is own.pos_bias_v
