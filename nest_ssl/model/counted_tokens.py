"""Decoder and loss of the tokens that count, with the bits of all: what `heads.py` and `loss.py` compute, in half the
time where a third is masked. Why the bits are the same:

- Softmax and loss are taken of tokens one by one, and the gradient of a token that does not count is zero.
- A token's logits, and the gradient of its encoding, are sums over no other token, and a product's order of sums is a
  matter of its shape and not of its numbers. On one thread torch computes one product for each utterance. There the
  tokens that count are multiplied alone, some rows at a time, as they lie.
- The weight's gradient is a sum over tokens: a product adds some that follow on each other up, then adds that to the
  weight's. Among them zeros change nothing, so each such block is the product of its tokens that count.
- That rows have the sums of a convolution, and where blocks begin, is tried once for each shape.
- The bias's gradient adds tokens up by their places, so that zeros lie among them, some codes at a time.
- Elsewhere, on several threads or from 16 utterances on, a kernel chosen by the size of the batch computes it as one:
  there all is multiplied as it was, and the softmax alone is spared.

Shapes: B batch, F features, T frames, S tokens (T / 8), K tokens that count, R rows of a product, D model width,
C codes, H codebooks, X C x H.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.kernels.once import once_differentiable
from nest_ssl.model.encoder.fused.choice import Methods, are_operators_seen
from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.loss import MLMLoss, MultiMLMLoss

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SMALLEST = 1 << 19  # logits of a batch: of fewer, what is saved is little
LARGEST = 1e38  # logits: below, none overflows, and what a zero is multiplied by is a number
ALIGNED = 16  # numbers that a vector of the processor holds: each row begins where one does
ROWS = 96  # tokens that one product multiplies: of more the last one has more that do not count
CODES = 512  # of a weight, or of a bias, whose gradients are added up at a time: caches hold them
LARGE = 2.0**24  # and 1 are it, as float32 has it, where 2 more are not
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


def are_unchanged(decoder: MultiSoftmaxDecoder, loss: MultiMLMLoss) -> bool:
    """Whether decoder and loss are those that are here, of one layer, and none was changed in Python. Whether
    somebody looks at them is for the caller to know."""
    kinds = [type(each) for each in (decoder, decoder.decoder_layers, *decoder.decoder_layers, loss, loss.mlm_loss)]
    if kinds != [MultiSoftmaxDecoder, nn.Sequential, nn.Conv1d, MultiMLMLoss, MLMLoss]:
        return False
    linear: Any = decoder.decoder_layers[0]
    settings = linear.kernel_size, linear.stride, linear.padding, linear.dilation, linear.groups
    return settings == ((1,), (1,), (0,), (1,), 1) and METHODS.are_as_imported()


def is_plain(decoder: MultiSoftmaxDecoder, loss: MultiMLMLoss, encoded_BDS: Float[Tensor, "B D S"]) -> bool:
    """Whether this is training on a CPU in float32, by decoder and loss as they are here, of finite numbers."""
    if not are_unchanged(decoder, loss):
        return False
    if encoded_BDS.device.type != "cpu" or encoded_BDS.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if (
        encoded_BDS[:, 0].numel() * decoder.num_classes * decoder.num_decoders < SMALLEST
        or torch.compiler.is_compiling()
        or are_operators_seen()
    ):
        return False
    numbers = [encoded_BDS, *decoder.parameters()]
    if not (torch.is_grad_enabled() and all(each.requires_grad for each in numbers)):
        return False
    # Their largest, by what takes least time; where one is no number, no number.
    encoded, weight, *bias = (torch.stack(torch.aminmax(each.detach())).abs().max().item() for each in numbers)
    return encoded_BDS.size(1) * encoded * weight + sum(bias) < LARGEST


def is_packable(encoded_BDS: Float[Tensor, "B D S"], weight_XD1: Float[Tensor, "X D 1"]) -> bool:
    """Whether torch computes one product for each utterance, on one thread, and rows of tokens have its sums."""
    outputs, width, _ = weight_XD1.shape
    if torch.get_num_threads() > 1 or outputs % ALIGNED or width % ALIGNED:
        return False
    if torch.get_float32_matmul_precision() != "highest":  # a product may have another one then than a convolution
        return False
    backend = torch._C._select_conv_backend(encoded_BDS, weight_XD1, None, *SETTINGS)
    is_of_one = backend == torch._C._ConvBackend.Slow2d  # type: ignore[attr-defined]
    return is_of_one and bool(blocks_of_sums(outputs, width, encoded_BDS.size(2)))


@lru_cache(SHAPES)
def blocks_of_sums(outputs: int, width: int, steps: int) -> tuple[int, ...]:
    """The tokens of an utterance with which those blocks begin that a weight's gradient adds up; none if rows of tokens
    have other sums than an utterance's convolution."""
    draws = torch.Generator().manual_seed(0)  # its own: training's generator is left alone
    sizes = (outputs, width), (width,), (outputs,)
    with torch.no_grad(), torch.device("cpu"):  # whatever the default device is
        weight_XD, token_D, d_X = (torch.randn(size, generator=draws, dtype=torch.float32) for size in sizes)
        read_1DS, d_1XS = (one.view(1, -1, 1).repeat(1, 1, steps) for one in (token_D, d_X))
        logits_1XS = F.conv1d(read_1DS, weight_XD.unsqueeze(2), d_X)
        d_1DS, *_ = _conv_backward(d_1XS, read_1DS, weight_XD.unsqueeze(2), [True, False, False])
        assert d_1DS is not None
        by_rows = _by_rows(token_D.repeat(ROWS, 1), weight_XD.t(), d_X), _by_rows(d_X.repeat(ROWS, 1), weight_XD)
        for all_of_it, rows in zip((logits_1XS, d_1DS), by_rows, strict=True):
            if not all(torch.equal(each, rows[:1].expand_as(each)) for each in (all_of_it[0].t(), rows[:ROWS])):
                return ()
        begins = _begins(outputs, width, steps)
        shapes = (2, width, steps), (2, steps, outputs)
        read_2DS, d_2SX = (torch.randn(shape, generator=draws, dtype=torch.float32) for shape in shapes)
        counts_2S = torch.rand(2, steps, generator=draws) < 0.5
        counts_2S[0, -ALIGNED:] = True  # a kernel may add the last ones up otherwise
        d_2SX *= counts_2S.unsqueeze(2)
        expected: tuple[Any, ...] = _conv_backward(
            d_2SX.transpose(1, 2), read_2DS, weight_XD.unsqueeze(2), [False, True, True]
        )
        places_K = counts_2S.flatten().nonzero().squeeze(1)
        found: tuple[Any, ...] = linear_gradients(d_2SX.flatten(0, 1)[places_K], read_2DS, places_K, begins, True)
    return begins if all(torch.equal(*each) for each in zip(expected[1:], found, strict=True)) else ()


def _begins(outputs: int, width: int, steps: int) -> tuple[int, ...]:
    """Each output adds two ones that follow on each other to what it has of the utterance before, and keeps them if
    they are in one block; where there are fewer outputs than tokens, some tokens at a time."""
    begins = [0]
    for later in torch.split(torch.arange(1, steps), outputs):
        d_2XS, rows = torch.zeros(2, outputs, steps, dtype=torch.float32), torch.arange(len(later))
        d_2XS[0, :, 0] = LARGE
        d_2XS[1, rows, later - 1] = d_2XS[1, rows, later] = 1.0
        weight_XD1, ones_2DS = d_2XS.new_zeros(outputs, width, 1), d_2XS.new_ones(2, width, steps)
        _, sums_XD1, _ = _conv_backward(d_2XS, ones_2DS, weight_XD1, [False, True, False])
        assert sums_XD1 is not None
        begins += later[sums_XD1[rows, 0, 0] == LARGE].tolist()
    return tuple(begins)


class CountedLogits(torch.autograd.Function):
    """`apply(encodings (B, D, S), places among B x S in their order, weight, bias, packed)`: logits (K, X) of the
    tokens there."""

    @staticmethod
    def forward(
        ctx: Any, encoded_BDS: Tensor, places_K: Tensor, weight_XD1: Tensor, bias_X: Tensor | None, packed: bool
    ) -> Tensor:
        ctx.save_for_backward(encoded_BDS, places_K, weight_XD1)
        ctx.packed, ctx.has_bias = packed, bias_X is not None
        if not packed:
            return _tokens(F.conv1d(encoded_BDS, weight_XD1, bias_X), places_K)
        return _by_rows(_tokens(encoded_BDS, places_K), weight_XD1.squeeze(2).t(), bias_X)[: len(places_K)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_KX: Tensor) -> tuple[Tensor | None, ...]:
        encoded_BDS, places_K, weight_XD1 = ctx.saved_tensors
        batch, width, steps = encoded_BDS.shape
        if not (ctx.packed and torch.get_num_threads() == 1):  # there may be more than in forward
            d_all = d_KX.new_zeros(batch * steps, d_KX.size(1))
            d_all[places_K] = d_KX
            d_BXS = d_all.view(batch, steps, -1).transpose(1, 2)  # as autograd has it: a bias adds it up as it lies
            d_encoded, *d_linear = _conv_backward(d_BXS, encoded_BDS, weight_XD1, [True, True, ctx.has_bias])
            return d_encoded, None, *d_linear, None
        begins = blocks_of_sums(*weight_XD1.shape[:2], steps)
        d_weight, d_bias = linear_gradients(d_KX, encoded_BDS, places_K, begins, ctx.has_bias)
        d_rows = _by_rows(d_KX, weight_XD1.squeeze(2))
        d_all = d_rows[len(places_K)].repeat(batch * steps, 1)  # of a zero, as of all that do not count
        d_all[places_K] = d_rows[: len(places_K)]
        return d_all.view(batch, steps, width).transpose(1, 2).contiguous(), None, d_weight, d_bias, None


def linear_gradients(
    d_KX: Tensor, encoded_BDS: Tensor, places_K: Tensor, begins: tuple[int, ...], has_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of weight (X, D, 1) and bias (X), from those of the logits of the tokens that count."""
    (batch, width, steps), outputs = encoded_BDS.shape, d_KX.size(1)
    rows_KD = _tokens(encoded_BDS, places_K)
    ends = [utterance * steps + end for utterance in range(batch) for end in (*begins[1:], steps)]
    blocks = list(pairwise([0, *torch.searchsorted(places_K, places_K.new_tensor(ends)).tolist()]))
    d_weight_XD = d_KX.new_zeros(outputs, width)
    d_bias_X = d_KX.new_zeros(outputs) if has_bias else None
    at_places = d_KX.new_zeros(batch * steps, min(CODES, outputs))
    for code in range(0, outputs, CODES):
        d_KC, d_weight_CD = d_KX[:, code : code + CODES], d_weight_XD[code : code + CODES]
        for first, last in blocks:
            if first < last:
                d_weight_CD.addmm_(d_KC[first:last].t(), rows_KD[first:last])
        if d_bias_X is not None:
            at_places[places_K, : d_KC.size(1)] = d_KC
            torch.sum(at_places[:, : d_KC.size(1)], 0, out=d_bias_X[code : code + CODES])
    return d_weight_XD.unsqueeze(2), d_bias_X


def _tokens(x_BNS: Tensor, places_K: Tensor) -> Tensor:
    """Those at some places (K, N)."""
    steps = x_BNS.size(2)
    return x_BNS.transpose(1, 2)[places_K // steps, places_K % steps]


def _by_rows(rows_KN: Tensor, weight_NM: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """Rows times a weight, and plus a bias, with at least one of zeros behind them: `ROWS` at a time."""
    count = (len(rows_KN) // ROWS + 1) * ROWS
    padded = F.pad(rows_KN, (0, 0, 0, count - len(rows_KN)))
    out = rows_KN.new_empty(count, weight_NM.size(1))
    for into, rows in zip(torch.split(out, ROWS), torch.split(padded, ROWS), strict=True):
        if bias_M is None:
            torch.mm(rows, weight_NM, out=into)
        else:
            torch.addmm(bias_M, rows, weight_NM, out=into)
    return out


def _conv_backward(
    d_BXS: Tensor, read_BDS: Tensor, weight_XD1: Tensor, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of what was read, of weight and bias: those that are wanted."""
    grads: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        d_BXS, read_BDS, weight_XD1, [len(weight_XD1)], *SETTINGS, wanted
    )
    return grads
