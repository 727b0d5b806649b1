from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nest_ssl.config.parts import Quantizer
from nest_ssl.model import quantizer
from nest_ssl.model.quantizer import RandomProjectionVectorQuantizer, best_scores, distances, nearest_codes


def make(**options: Any) -> RandomProjectionVectorQuantizer:
    torch.manual_seed(0)
    sizes = {"feat_in": 8, "code_dim": 4, "num_classes": 50, "num_books": 1, "combine_time_steps": 2}
    return RandomProjectionVectorQuantizer(Quantizer(**{**sizes, "dist_fn": "l2", **options}))


def unit_rows(count: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, dtype=dtype), dim=-1)


@pytest.mark.parametrize("codes", [2, 7, 128, 5000])
def test_the_nearest_code_is_that_of_least_distance(codes: int) -> None:
    torch.manual_seed(codes)
    x, book = unit_rows(500, 16), unit_rows(codes, 16, torch.float64)
    assert torch.equal(nearest_codes(x, book), distances(x, book).argmin(-1))


def test_many_rows_are_looked_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, book = unit_rows(100, 16), unit_rows(64, 16, torch.float64)
    whole = nearest_codes(x, book)
    monkeypatch.setattr(quantizer, "SCORES_AT_ONCE", {"cpu": 1})
    assert torch.equal(nearest_codes(x, book), whole)


def test_both_ways_find_the_same_best_score() -> None:
    torch.manual_seed(0)
    scores = torch.randn(200, 64, dtype=torch.float64)
    scores[0] = 0.0  # of equals, either leads by nothing
    scores[1, 5] = torch.nan
    (leads, codes), (other_leads, other_codes) = (
        best_scores(scores.clone(), by_sorting) for by_sorting in (True, False)
    )
    assert torch.equal(codes[1:], other_codes[1:])
    assert torch.equal(leads[2:], other_leads[2:]) and leads[0] == other_leads[0] == 0
    assert leads[1].isnan() and other_leads[1].isnan()


def test_a_tie_goes_to_the_first_code() -> None:
    torch.manual_seed(0)
    book = unit_rows(10, 16, torch.float64).repeat(3, 1)
    assert nearest_codes(unit_rows(200, 16), book).max() < 10


def test_silence_is_decided_as_by_distance() -> None:
    torch.manual_seed(0)
    x, book = torch.zeros(40, 16), unit_rows(8192, 16, torch.float64)
    expected = distances(torch.zeros(1, 16), book).argmin(-1).item()
    assert nearest_codes(x, book).tolist() == [expected] * 40


def test_not_a_number_is_the_first_code_and_no_error() -> None:
    assert nearest_codes(torch.full((3, 16), torch.nan), unit_rows(20, 16, torch.float64)).tolist() == [0, 0, 0]


def test_shapes_and_vectors() -> None:
    module, features = make(), torch.randn(3, 8, 10)
    vectors, tokens = module(features)
    assert (vectors.shape, tokens.shape) == ((3, 4, 5, 1), (3, 5, 1))
    assert torch.equal(vectors[..., 0].transpose(1, 2), module.codebooks[0][tokens[..., 0]])
    squeezed = make(squeeze_single=True)(features)
    assert torch.equal(squeezed[0], vectors[..., 0])
    assert torch.equal(squeezed[1], tokens[..., 0])
    ahead = make(time_ahead=True)(features.transpose(1, 2))
    assert torch.equal(ahead[0], vectors.transpose(1, 2))
    assert torch.equal(ahead[1], tokens)


def test_every_book_has_its_own_tokens() -> None:
    _, tokens = make(num_books=3)(torch.randn(2, 8, 20))
    assert tokens.shape == (2, 10, 3)
    assert not torch.equal(tokens[..., 0], tokens[..., 1])


def test_frozen_means_no_gradient_and_eval() -> None:
    frozen, free = make(), make(freeze=False)
    assert not frozen.training
    assert not frozen.proj.training
    assert not any(p.requires_grad for p in frozen.parameters())
    assert free.training
    assert all(p.requires_grad for p in free.parameters())


def test_codes_are_unit_vectors_in_float64() -> None:
    codes = make().codebooks
    assert codes.dtype == torch.float64
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(1, 50, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_first_of_the_nearest_is_taken(dtype: torch.dtype) -> None:
    """Rounding makes many codes equally near; scores of a rearranged formula would choose others among them."""
    torch.manual_seed(0)
    x, codes = (F.normalize(torch.randn(n, 16), dim=-1).to(dtype) for n in (300, 500))
    expected = (x.unsqueeze(-1) - codes.T.unsqueeze(0)).norm(dim=-2)
    assert int((expected == expected.min(1, keepdim=True).values).sum()) > len(x), "there are ties"
    assert torch.equal(nearest_codes(x, codes), expected.argmin(-1))
