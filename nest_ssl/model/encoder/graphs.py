"""The encoder's kernels of one shape of batch, captured once as CUDA graphs and replayed: the launches of a step, which
take the host longer than most of them take a GPU, become two.

Source: torch's `torch.cuda.make_graphed_callables`. Forward and backward are captured, dropout draws other numbers at
each replay, and parameters are read where they lie. `numerics: fast` alone uses it, if asked (`cuda_graphs`).

Shapes: B batch, F features, T frames, S vectors, D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.model.encoder.encoder import ConformerEncoder

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SEEN = 2  # how often a shape must have come before it is captured: one that comes once is not worth it
MOST = 16  # shapes that are captured; each keeps a gradient of every parameter
Encode = Callable[[Tensor, Tensor], Tensor]


class GraphedEncoder:
    """`encoder`, replayed where that is possible and else as it is.

    Gradients lie in the graphs' own memory until the next replay: they must not be added up over several batches.
    """

    def __init__(self, encoder: ConformerEncoder) -> None:
        self._encoder = encoder
        self._captured: dict[tuple[Any, ...], tuple[Encode, Tensor]] = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._pool: Any = None

    def __call__(self, x_BFT: Float[Tensor, "B F T"], length_B: Int[Tensor, " B"]) -> Float[Tensor, "B D S"]:
        """Features (B, F, T) and lengths (B) to encodings (B, D, S)."""
        key = (x_BFT.shape, x_BFT.dtype, x_BFT.requires_grad, _autocast_type(), torch.backends.cuda.matmul.allow_tf32)
        if self._is_capturable(x_BFT) and key not in self._captured and len(self._captured) < MOST:
            self._seen[key] += 1
            if self._seen[key] > SEEN:
                self._captured[key] = self._capture(x_BFT, length_B), self._encoder.pos_enc.pe
        if self._encoder.training and torch.is_grad_enabled() and key in self._captured:
            encode, _ = self._captured[key]
            return encode(x_BFT, length_B)
        encoded_BDS: Tensor = self._encoder(audio_signal=x_BFT, length=length_B)[0]
        return encoded_BDS

    def _is_capturable(self, x_BFT: Tensor) -> bool:
        """Whether a step of this encoder is the same kernels every time, draws nothing on the CPU and asks no rank."""
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        once = x_BFT.is_cuda and self._encoder.training and torch.is_grad_enabled()
        return once and alone and is_alike(self._encoder)

    def _capture(self, x_BFT: Tensor, length_B: Tensor) -> Encode:
        """Capturing runs the encoder some times, which leaves its buffers and the generators as they were."""
        buffers, states = [(value, value.clone()) for value in self._encoder.buffers()], generator_states()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        sample = x_BFT.detach().clone().requires_grad_(x_BFT.requires_grad), length_B.clone()
        dtype = _autocast_type()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            encode: Any = torch.cuda.make_graphed_callables(_Encode(self._encoder), sample, pool=self._pool)
        for value, before in buffers:
            value.copy_(before)
        restore_generators(states)
        captured: Encode = encode
        return captured


def is_alike(encoder: ConformerEncoder) -> bool:
    """Whether an encoder's steps are the same kernels every time; without graphs it is left as it is else."""
    alike = all(layer.is_of_the_paper for layer in encoder.layers) and encoder.reduction_position is None
    return alike and len(encoder.context.sizes) == 1


class _Encode(nn.Module):
    """Tensors to a tensor, as capturing wants it."""

    def __init__(self, encoder: ConformerEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_BFT: Tensor, length_B: Tensor) -> Tensor:
        encoded_BDS: Tensor = self.encoder(audio_signal=x_BFT, length=length_B)[0]
        return encoded_BDS


def _autocast_type() -> torch.dtype | None:
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
