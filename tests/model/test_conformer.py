from __future__ import annotations

from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Encoder
from nest_ssl.config.section import read
from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.model.encoder.layer import CausalConv1D, ConformerConvolution


def make(**options: Any) -> ConformerEncoder:
    torch.manual_seed(0)
    sizes = {"feat_in": 16, "n_layers": 2, "d_model": 8, "n_heads": 2, "subsampling_factor": 4, "conv_kernel_size": 5}
    return ConformerEncoder(read(Encoder, {**sizes, "subsampling": "dw_striding", **options}))


def test_shape_and_lengths() -> None:
    encoded, lengths = make()(audio_signal=torch.randn(2, 16, 40), length=torch.tensor([40, 21]))
    assert encoded.shape == (2, 8, 10)
    assert lengths.tolist() == [10, 6]


def test_padding_changes_nothing_within_the_utterance() -> None:
    module, x = make().eval(), torch.randn(1, 16, 40)
    padded = torch.cat([x, torch.randn(1, 16, 24)], dim=2)
    alone, _ = module(audio_signal=x, length=torch.tensor([40]))
    longer, _ = module(audio_signal=padded, length=torch.tensor([40]))
    torch.testing.assert_close(longer[..., :10], alone, atol=1e-5, rtol=0)


def test_modules_are_shared_as_in_nemo() -> None:
    first, second = make().layers
    assert first.feed_forward1.activation is second.feed_forward2.activation
    assert first.conv.activation is not second.conv.activation
    assert first.conv.activation is not first.feed_forward1.activation


def test_position_biases_may_be_one_pair_for_all_layers() -> None:
    tied, untied = make(untie_biases=False).layers, make().layers
    assert tied[0].self_attn.pos_bias_u is tied[1].self_attn.pos_bias_u
    assert tied[0].self_attn.pos_bias_u is not tied[0].self_attn.pos_bias_v
    assert untied[0].self_attn.pos_bias_u is not untied[1].self_attn.pos_bias_u


def test_a_last_layer_changes_the_width() -> None:
    encoded, _ = make(feat_out=6)(audio_signal=torch.randn(1, 16, 40), length=torch.tensor([40]))
    assert encoded.shape == (1, 6, 10)
    assert make(feat_out=8).out_proj is None


def test_longer_audio_extends_the_positions() -> None:
    module = make(pos_emb_max_len=10)
    module(audio_signal=torch.randn(1, 16, 40), length=torch.tensor([40]))
    assert module.pos_enc.pe.size(1) == 79


@pytest.mark.parametrize(("context", "heard"), [((1, 1), [3, 4, 5]), ((2, 0), [4, 5, 6]), ((0, 2), [2, 3, 4])])
def test_the_convolution_sees_its_context(context: tuple[int, int], heard: list[int]) -> None:
    """One click at frame 4: it is heard at the frames whose context holds it."""
    conv = CausalConv1D(channels=1, kernel_size=3, context=context, bias=False)
    torch.nn.init.ones_(conv.weight)
    click = torch.zeros(1, 1, 9)
    click[..., 4] = 1
    assert conv(click)[0, 0].nonzero().flatten().tolist() == heard


def test_the_convolution_module_returns_a_transposed_view() -> None:
    out = ConformerConvolution(d_model=8, kernel_size=3, context=(1, 1))(torch.randn(2, 7, 8))
    assert out.shape == (2, 7, 8)
    assert out.stride() == (56, 1, 7)  # dropout draws in memory order


@pytest.mark.parametrize("context", [[1, 1], [4], [2, 3]])
def test_a_context_that_does_not_fit_the_kernel(context: Any) -> None:
    with pytest.raises(UserError, match="does not fit"):
        make(conv_context_size=context)


def test_an_even_kernel_has_no_middle() -> None:
    with pytest.raises(UserError, match="does not fit"):
        make(conv_kernel_size=4)


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(UserError, match="n_heads"):
        make(n_heads=3)
