"""The shapes in the model's annotations are held at every call of these tests, see `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import pytest
import torch

from nest_ssl.config.losses import Decoder
from nest_ssl.model.encoder import attention
from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.nest import NestModel


def test_a_shape_that_is_not_the_annotated_one_is_found() -> None:
    decoder = MultiSoftmaxDecoder(Decoder(feat_in=8, num_classes=5))
    with pytest.raises(jaxtyping.TypeCheckError):
        decoder.forward(torch.randn(8, 7))


def test_one_letter_is_one_size_within_a_call() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        attention.masked_softmax(torch.randn(2, 4, 7, 7), torch.zeros(2, 7, 6, dtype=torch.bool))


def test_a_mask_is_of_booleans(build: Callable[..., NestModel]) -> None:
    layer = build().encoder.layers[0]
    with pytest.raises(jaxtyping.TypeCheckError):
        layer.conv(torch.randn(2, 7, 64), pad_mask=torch.zeros(2, 7))
