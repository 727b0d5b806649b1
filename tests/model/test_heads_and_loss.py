from __future__ import annotations

import pytest
import torch

from nest_ssl.config.losses import Decoder, Loss
from nest_ssl.model.heads import INITIALISATIONS, MultiSoftmaxDecoder
from nest_ssl.model.loss import MLMLoss, MultiMLMLoss


def test_probabilities_of_every_book_sum_to_one() -> None:
    decoder = MultiSoftmaxDecoder(Decoder(feat_in=8, num_classes=5, num_decoders=3))
    log_probs = decoder(torch.randn(2, 8, 7))
    assert log_probs.shape == (2, 7, 5, 3)
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(2, 7, 3))


def test_a_single_book_may_be_squeezed() -> None:
    for books, shape in ((1, (2, 7, 5)), (2, (2, 7, 5, 2))):
        settings = Decoder(feat_in=8, num_classes=5, num_decoders=books, squeeze_single=True)
        assert MultiSoftmaxDecoder(settings)(torch.randn(2, 8, 7)).shape == shape


@pytest.mark.parametrize("mode", INITIALISATIONS)
def test_initialisations_differ_in_scale_only(mode: str | None) -> None:
    torch.manual_seed(0)
    weight = MultiSoftmaxDecoder(Decoder(feat_in=8, num_classes=500, init_mode=mode)).decoder_layers[0].weight
    assert abs(weight.mean().item()) < 0.02
    assert 0.01 < weight.std().item() < 1


def masks_of(tokens: list[int], frames_in_token: int = 4) -> torch.Tensor:
    """Masks (1, 3, T) of tokens masked in so many of their frames."""
    frames = [torch.arange(frames_in_token) < n for n in tokens]
    return torch.cat(frames).float().expand(1, 3, -1)


def test_only_tokens_masked_beyond_the_threshold_count() -> None:
    log_probs, targets = torch.randn(1, 4, 6).log_softmax(2), torch.tensor([[1, 2, 3, 4]])
    loss = MLMLoss(Loss(combine_time_steps=4, mask_threshold=0.75))
    value = loss(log_probs, targets, spec_masks=masks_of([4, 3, 0, 4]))
    torch.testing.assert_close(value, -(log_probs[0, 0, 1] + log_probs[0, 3, 4]) / 2)


def test_no_token_gives_not_a_number() -> None:
    log_probs, targets = torch.randn(1, 4, 6).log_softmax(2), torch.tensor([[1, 2, 3, 4]])
    assert MLMLoss(Loss(combine_time_steps=4))(log_probs, targets, spec_masks=masks_of([3, 3, 0, 1])).isnan()


@pytest.mark.parametrize("books", [1, 2])
def test_no_token_may_give_zero_that_hangs_on_the_graph(books: int) -> None:
    scores = torch.randn(1, 4, 6, books, requires_grad=True)
    loss = MultiMLMLoss(Loss(combine_time_steps=4, num_decoders=books))
    loss.mlm_loss.no_masked_token = "zero"
    targets = torch.zeros(1, 4, books, dtype=torch.long)
    value = loss(masks=masks_of([3, 3, 0, 1]), decoder_outputs=scores.log_softmax(2), targets=targets)
    value.backward()
    assert value.item() == 0 and torch.equal(scores.grad, torch.zeros_like(scores))


def test_zero_without_tokens_leaves_other_batches_alone() -> None:
    log_probs, targets = torch.randn(1, 4, 6).log_softmax(2), torch.tensor([[1, 2, 3, 4]])
    plain, safe = MLMLoss(Loss(combine_time_steps=4)), MLMLoss(Loss(combine_time_steps=4))
    safe.no_masked_token = "zero"
    values = [loss(log_probs, targets, spec_masks=masks_of([4, 3, 0, 4])) for loss in (plain, safe)]
    assert torch.equal(*values) and plain.no_masked_token == "nan"


def test_missing_targets_are_code_zero() -> None:
    log_probs = torch.randn(1, 4, 6).log_softmax(2)
    value = MLMLoss(Loss(combine_time_steps=4))(log_probs, torch.tensor([[1, 2]]), spec_masks=masks_of([0, 0, 4, 0]))
    torch.testing.assert_close(value, -log_probs[0, 2, 0])


def test_the_loss_of_several_books_is_their_mean() -> None:
    torch.manual_seed(0)
    log_probs, targets = torch.randn(1, 4, 6, 2).log_softmax(2), torch.randint(0, 6, (1, 4, 2))
    masks = masks_of([4, 4, 0, 4])
    one = MultiMLMLoss(Loss(combine_time_steps=4, squeeze_single=True))
    each = [one(masks=masks, decoder_outputs=log_probs[..., h], targets=targets[..., h]) for h in range(2)]
    both = MultiMLMLoss(Loss(combine_time_steps=4, num_decoders=2))
    torch.testing.assert_close(both(masks=masks, decoder_outputs=log_probs, targets=targets), sum(each) / 2)
