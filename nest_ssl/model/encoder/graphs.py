"""The encoder's kernels of one shape of batch, captured once as CUDA graphs and replayed: the launches of a step, which
take the host longer than most of them take a GPU, become two.

Source: torch's `torch.cuda.make_graphed_callables`. What is replayed are the kernels of the step as it is, on its
numbers, so it may stand for it in both modes (`cuda_graphs`):

- Parameters and batch norm's statistics are read and written where they lie. The table of positions is replaced where
  longer audio comes, made on another device then: what was captured before is captured again.
- At each replay torch hands the generator's seed and offset on to the graph, and moves the offset by what a step draws.
- Capturing runs the encoder some times; buffers and generators are put back, and gradients are not touched.
- Backward runs outside of autocast, as in training: inside, a bias would be summed in another type.
- Everything that torch chooses kernels by is part of the shape: type, strides, flags.

Shapes: B batch, F features, T frames, S vectors, D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

from nest_ssl.base.determinism import flags
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.model.encoder.encoder import ConformerEncoder

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SEEN = 2  # how often a shape must have come before it is captured: one that comes once is not worth it
MOST = 16  # shapes that are captured; each keeps a gradient of every parameter
DEVICE = "cuda"  # the kind whose kernels are captured
Encode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class GraphedEncoder:
    """`encoder`, replayed where that is possible and else as it is.

    Gradients lie in the graphs' own memory until the next replay: they must not be added up over several batches. No
    hook sees a replay: who looks has to call the encoder itself.

    Attributes:
        replayed: how many batches were.
        shapes: how many were captured.
    """

    def __init__(self, encoder: ConformerEncoder) -> None:
        self._encoder = encoder
        self._captured: dict[tuple[Any, ...], Encode] = {}
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._pool: Any = None
        self._positions: Tensor | None = None  # the table that was captured
        self.replayed = self.shapes = 0

    def __call__(
        self, audio_signal: Float[Tensor, "B F T"], length: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D S"], Int[Tensor, " B"]]:
        """Features (B, F, T) and lengths (B) to encodings (B, D, S) and lengths, which the next replay writes over."""
        encode: Encode = self._encoder
        if self._is_capturable(audio_signal):
            if self._positions is not self._encoder.pos_enc.pe:
                self._captured, self._pool, self._positions = {}, None, self._encoder.pos_enc.pe
            layout = audio_signal.shape, audio_signal.stride(), audio_signal.dtype, audio_signal.requires_grad
            key = *layout, _autocast_type(), *flags().values()
            if key not in self._captured and len(self._captured) < MOST:
                self._seen[key] += 1
                if self._seen[key] > SEEN:
                    self._captured[key] = self._capture(audio_signal, length)
                    self.shapes += 1
            self.replayed += key in self._captured
            encode = self._captured.get(key, self._encoder)
        return encode(audio_signal, length)

    def _is_capturable(self, x_BFT: Tensor) -> bool:
        """Whether a step of this encoder is the same kernels every time, draws nothing on the CPU and asks no rank.

        A batch that is convolved in parts reads weights several times, which autocast casts once; anomalies are asked
        of the device."""
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        training = self._encoder.training and torch.is_grad_enabled() and not torch.is_anomaly_enabled()
        alike = x_BFT.device.type == DEVICE and alone and training and is_alike(self._encoder)
        return alike and getattr(self._encoder.pre_encode, "part_size", len)(x_BFT.transpose(1, 2)) == len(x_BFT)

    def _capture(self, x_BFT: Tensor, length_B: Tensor) -> Any:
        """Capturing runs the encoder some times, which leaves its buffers and the generators as they were."""
        buffers, states = [(value, value.clone()) for value in self._encoder.buffers()], generator_states()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        sample = x_BFT.detach().clone().requires_grad_(x_BFT.requires_grad), length_B.clone()
        module = _Encode(self._encoder, _autocast_type())
        with torch.autocast(DEVICE, enabled=False), _other_threads_go_on():
            encode = torch.cuda.make_graphed_callables(module, sample, pool=self._pool)
        for value, before in buffers:
            value.copy_(before)
        restore_generators(states)
        return encode


def is_alike(encoder: ConformerEncoder) -> bool:
    """Whether an encoder's steps are the same kernels every time; without graphs it is left as it is else.

    Its last layer has to be a norm, which takes its gradient in the order of its output, as a replay does; a linear
    layer takes it as it lies."""
    alike = all(layer.is_of_the_paper for layer in encoder.layers) and encoder.reduction_position is None
    return alike and len(encoder.context.sizes) == 1 and encoder.out_proj is None


class _Encode(nn.Module):
    """Tensors to tensors, as capturing wants it, in the type that autocast has where it is captured."""

    def __init__(self, encoder: ConformerEncoder, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.encoder, self._dtype = encoder, dtype

    def forward(self, x_BFT: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        # Nothing is cached: what was cast before would be replayed as it was.
        with torch.autocast(DEVICE, dtype=self._dtype, enabled=self._dtype is not None, cache_enabled=False):
            return self.encoder(audio_signal=x_BFT, length=length_B)  # type: ignore[no-any-return]


def _autocast_type() -> torch.dtype | None:
    return torch.get_autocast_dtype(DEVICE) if torch.is_autocast_enabled(DEVICE) else None


@contextmanager
def _other_threads_go_on() -> Iterator[None]:
    """What loaders and a recorder ask of the device from their threads, as pinned memory, would end a capture; torch
    has an argument for it, which `make_graphed_callables` does not hand on."""
    graph = torch.cuda.graph
    torch.cuda.graph = partial(graph, capture_error_mode="thread_local")  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        torch.cuda.graph = graph  # type: ignore[misc]
