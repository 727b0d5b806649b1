"""Decoder and loss of the tokens that count, with the bits of all: what `heads.py` and `loss.py` compute, in half the
time where a third is masked. Why the bits are the same:

- Softmax and loss are taken of tokens one by one, and the gradient of a token that does not count is zero.
- The gradients of weight and bias are autograd's own calls on the same numbers, those zeros among them.
- A token's logits, and the gradient of its encoding, are sums over no other token, and a product's order of sums is a
  matter of its shape and not of its numbers. On one thread torch computes one product for each utterance. There the
  tokens that count are packed into as few utterances of the same length as hold them, and the products are what they
  were, only fewer. That every place in one has the same order of sums is tried once for each shape.
- Elsewhere, on several threads or from 16 utterances on, a kernel chosen by the size of the batch computes it as one:
  there all is multiplied as it was, and the softmax alone is spared.

Shapes: B batch, F features, T frames, S tokens (T / 8), K tokens that count, P utterances of packed tokens, D model
width, C codes, H codebooks, X C x H.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nest_ssl.model.encoder.fused.choice import Methods
from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.loss import MLMLoss, MultiMLMLoss

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SMALLEST = 1 << 19  # logits of a batch: of fewer, what is saved is little
LARGEST = 1e38  # logits: below, none overflows, and what a zero is multiplied by is a number
ALIGNED = 16  # numbers that a vector of the processor holds: each utterance begins where one does
SETTINGS = [1], [0], [1], False, [0], 1  # of a convolution over one frame
SHAPES = 4096  # for which it is known whether every place sums alike
METHODS = Methods(MultiSoftmaxDecoder, nn.Sequential, nn.Conv1d, MultiMLMLoss, MLMLoss)


def loss_of_counted(
    decoder: MultiSoftmaxDecoder,
    loss: MultiMLMLoss,
    encoded_BDS: Float[Tensor, "B D S"],
    tokens_BSH: Int[Tensor, "B _ *H"],
    masks_BFT: Float[Tensor, "B F T"],
) -> Float[Tensor, ""]:
    """The loss of `decoder` and `loss` from encodings (B, D, S), tokens (B, S, H) and masks (B, F, T)."""
    places_K = None
    if is_plain(decoder, loss, encoded_BDS):
        counts_BS = loss.mlm_loss.counts(masks_BFT)
        if counts_BS.shape == encoded_BDS[:, 0].shape and 0 < counts_BS.sum() < counts_BS.numel():
            places_K = counts_BS.flatten().nonzero().squeeze(1)
    if places_K is None:
        return loss_of_all(decoder, loss, encoded_BDS, tokens_BSH, masks_BFT)
    linear: Any = decoder.decoder_layers[0]
    packed = is_packable(encoded_BDS, linear.weight)
    logits_KX = CountedLogits.apply(encoded_BDS, places_K, linear.weight, linear.bias, packed)  # type: ignore[no-untyped-call]
    missing = encoded_BDS.size(2) - tokens_BSH.size(1)  # clean and noisy audio may differ in length
    targets_BSH = F.pad(tokens_BSH, (*[0, 0] * (tokens_BSH.dim() - 2), 0, missing))
    targets_KH = targets_BSH.flatten(0, 1)[places_K]
    return loss.over_books(loss.mlm_loss.of_counted, decoder.log_probs(logits_KX), targets_KH)


def loss_of_all(
    decoder: MultiSoftmaxDecoder, loss: MultiMLMLoss, encoded_BDS: Tensor, tokens_BSH: Tensor, masks_BFT: Tensor
) -> Tensor:
    """The same by calls of both."""
    of_all: Tensor = loss(masks=masks_BFT, decoder_outputs=decoder(encoder_output=encoded_BDS), targets=tokens_BSH)
    return of_all


def is_plain(decoder: MultiSoftmaxDecoder, loss: MultiMLMLoss, encoded_BDS: Float[Tensor, "B D S"]) -> bool:
    """Whether this is training on a CPU in float32, by decoder and loss as they are here, of finite numbers. Whether
    somebody looks at these two modules is for the caller to know."""
    linear: Any = decoder.decoder_layers[0]
    kinds = [type(each) for each in (decoder, decoder.decoder_layers, *decoder.decoder_layers, loss, loss.mlm_loss)]
    if kinds != [MultiSoftmaxDecoder, nn.Sequential, nn.Conv1d, MultiMLMLoss, MLMLoss]:
        return False
    if not METHODS.are_as_imported():
        return False
    if (linear.kernel_size, linear.stride, linear.padding, linear.groups) != ((1,), (1,), (0,), 1):
        return False
    if encoded_BDS.device.type != "cpu" or encoded_BDS.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if (
        encoded_BDS[:, 0].numel() * decoder.num_classes * decoder.num_decoders < SMALLEST
        or torch.compiler.is_compiling()
    ):
        return False
    numbers = [encoded_BDS, *linear.parameters()]
    if not (torch.is_grad_enabled() and all(each.requires_grad for each in numbers)):
        return False
    # Their largest, by what takes least time; where one is no number, no number.
    encoded, weight, *bias = (torch.stack(torch.aminmax(each.detach())).abs().max().item() for each in numbers)
    return encoded_BDS.size(1) * encoded * weight + sum(bias) < LARGEST


def is_packable(encoded_BDS: Float[Tensor, "B D S"], weight_XD1: Float[Tensor, "X D 1"]) -> bool:
    """Whether torch computes one product for each utterance, on one thread, and a token's place in it is no matter."""
    outputs, width, _ = weight_XD1.shape
    if torch.get_num_threads() > 1 or outputs % ALIGNED or width % ALIGNED:
        return False
    backend = torch._C._select_conv_backend(encoded_BDS, weight_XD1, None, *SETTINGS)
    is_of_one = backend == torch._C._ConvBackend.Slow2d  # type: ignore[attr-defined]
    return is_of_one and every_place_sums_alike(outputs, width, encoded_BDS.size(2))


@lru_cache(SHAPES)
def every_place_sums_alike(outputs: int, width: int, steps: int) -> bool:
    """Whether logits, and gradients of encodings, of an utterance whose tokens are all the same are all the same."""
    draws = torch.Generator().manual_seed(0)  # its own: training's generator is left alone
    weight_XD1 = torch.randn(outputs, width, 1, generator=draws)
    read_1DS, d_1XS = (torch.randn(1, size, 1, generator=draws).repeat(1, 1, steps) for size in (width, outputs))
    with torch.no_grad():
        logits_1XS = F.conv1d(read_1DS, weight_XD1, weight_XD1[:, 0, 0])
        d_1DS, *_ = _conv_backward(d_1XS, read_1DS, weight_XD1, [True, False, False])
    assert d_1DS is not None
    return all(torch.equal(each, each[..., :1].expand_as(each)) for each in (logits_1XS, d_1DS))


class CountedLogits(torch.autograd.Function):
    """`apply(encodings (B, D, S), places among B x S, weight, bias, packed)`: logits (K, X) of the tokens there."""

    @staticmethod
    def forward(
        ctx: Any, encoded_BDS: Tensor, places_K: Tensor, weight_XD1: Tensor, bias_X: Tensor | None, packed: bool
    ) -> Tensor:
        ctx.save_for_backward(encoded_BDS, places_K, weight_XD1)
        ctx.packed, ctx.has_bias = packed, bias_X is not None
        width, steps = encoded_BDS.shape[1:]
        if not packed:
            return F.conv1d(encoded_BDS, weight_XD1, bias_X).transpose(1, 2)[places_K // steps, places_K % steps]
        rows_KD = encoded_BDS.transpose(1, 2).reshape(-1, width)[places_K]
        logits_PXS = F.conv1d(_packed(rows_KD, steps), weight_XD1, bias_X)
        return logits_PXS.transpose(1, 2).reshape(-1, len(weight_XD1))[: len(places_K)]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_KX: Tensor) -> tuple[Tensor | None, ...]:
        encoded_BDS, places_K, weight_XD1 = ctx.saved_tensors
        batch, width, steps = encoded_BDS.shape
        d_all = d_KX.new_zeros(batch * steps, d_KX.size(1))
        d_all[places_K] = d_KX
        d_BXS = d_all.view(batch, steps, -1).transpose(1, 2)  # as autograd has it: a bias adds it up as it lies
        packed = ctx.packed and torch.get_num_threads() == 1  # there may be more than in forward
        d_encoded, *d_linear = _conv_backward(d_BXS, encoded_BDS, weight_XD1, [not packed, True, ctx.has_bias])
        if packed:
            d_PXS = _packed(d_KX, steps)
            d_PDS, *_ = _conv_backward(d_PXS, encoded_BDS[: len(d_PXS)], weight_XD1, [True, False, False])
            assert d_PDS is not None
            d_rows = d_PDS.transpose(1, 2).reshape(-1, width)
            d_all = d_rows[len(places_K)].repeat(batch * steps, 1)  # of a zero, as of all that do not count
            d_all[places_K] = d_rows[: len(places_K)]
            d_encoded = d_all.view(batch, steps, width).transpose(1, 2).contiguous()
        return d_encoded, None, *d_linear, None


def _packed(rows: Tensor, steps: int) -> Tensor:
    """Rows (K, N) as utterances (P, N, S), at least one zero behind them."""
    packed = rows.new_zeros((len(rows) // steps + 1) * steps, rows.size(1))
    packed[: len(rows)] = rows
    return packed.view(-1, steps, rows.size(1)).transpose(1, 2)


def _conv_backward(
    d_BXS: Tensor, read_BDS: Tensor, weight_XD1: Tensor, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of what was read, of weight and bias: those that are wanted."""
    grads: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        d_BXS, read_BDS, weight_XD1, [len(weight_XD1)], *SETTINGS, wanted
    )
    return grads
