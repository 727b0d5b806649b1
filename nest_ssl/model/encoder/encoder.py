"""The FastConformer encoder.

Source: Conformer (arXiv 2005.08100), FastConformer (arXiv 2305.05084); NeMo 3.0.0
`nemo.collections.asr.modules.conformer_encoder`.
Kinds of attention, positions and norm: `kinds.py`; limited context: `context.py`. Not here: streaming caches.

Shapes: B batch, T time (frames before subsampling, vectors after), F features, D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.convolutional import ConvEncoder
from nest_ssl.config.parts import Encoder, EncoderWithAdapters
from nest_ssl.model.encoder.context import AttentionContext
from nest_ssl.model.encoder.convolutional import ConvASREncoder
from nest_ssl.model.encoder.depth import drop_probabilities, left_out
from nest_ssl.model.encoder.kinds import positions_of, subsampling_of
from nest_ssl.model.encoder.layer import ConformerLayer, Swish
from nest_ssl.model.encoder.reduction import SubsamplingReductionModule
from nest_ssl.releases import DEFAULT_RELEASE, GENERATIONS, NEWEST, Generation

if TYPE_CHECKING:
    from jaxtyping import Float, Int

BEHIND_ALL = -1  # as a position of the reduction


class ConformerEncoder(nn.Module):
    """Subsampling, positions, and `n_layers` Conformer layers."""

    def __init__(self, settings: Encoder, differences: Generation = GENERATIONS[NEWEST]) -> None:
        super().__init__()
        d_model, n_heads = settings.d_model, settings.n_heads
        self.max_audio_length = settings.pos_emb_max_len
        self.sync_max_audio_length = settings.sync_max_audio_length
        self.context = AttentionContext(settings)
        self.pre_encode = subsampling_of(settings, differences)
        self.reduction_position = settings.reduction_position if settings.reduces else None
        self.reduction_subsampling = SubsamplingReductionModule(settings, differences) if settings.reduces else None
        self.pos_enc: Any = positions_of(settings)
        shared: tuple[nn.Parameter, ...] = ()
        if not settings.untie_biases and settings.self_attention_model == "rel_pos":  # one pair for all layers
            shared = tuple(nn.Parameter(torch.zeros(n_heads, d_model // n_heads)) for _ in range(2))
        activation = Swish()  # one module for all feed-forward modules, as in NeMo
        self.layers = nn.ModuleList(ConformerLayer(settings, activation, *shared) for _ in range(settings.n_layers))
        self.drop_probabilities = drop_probabilities(settings)
        self.kept: dict[int, Any] = {}  # see `keep`
        has_projection = settings.feat_out > 0 and settings.feat_out != d_model
        self.out_proj = nn.Linear(d_model, settings.feat_out) if has_projection else None

    def keep(self, numbers: Iterable[int]) -> None:
        """From now on, `kept` has the outputs (B, S, D) of these layers in the last call, by their numbers."""
        self.kept = dict.fromkeys(numbers)
        for number in self.kept:
            for behind in self.layers[number + 1 : number + 2]:
                assert isinstance(behind, ConformerLayer)
                behind.shares_its_input = True

    def forward(
        self, audio_signal: Float[Tensor, "B F T"], length: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D S"], Int[Tensor, " B"]]:
        """Features (B, F, T) and lengths (B) to encodings (B, D, S) and lengths."""
        self._extend_positions(audio_signal.size(2), audio_signal.device)
        context = self.context.draw(self.training)
        x_BTD, length = self.subsample(audio_signal.transpose(1, 2), length)
        x_BTD, pos_emb = self.pos_enc(x=x_BTD, cache_len=0)
        pad_mask, att_mask = self.context.masks(context, x_BTD, length)

        for number, layer in enumerate(self.layers):
            before_BTD = x_BTD
            x_BTD = layer(
                x=x_BTD,
                att_mask=att_mask,
                pos_emb=pos_emb,
                pad_mask=pad_mask,
                cache_last_channel=None,
                cache_last_time=None,
            )
            if number in self.kept:
                self.kept[number] = x_BTD
            if self.training and self.drop_probabilities[number] > 0:
                x_BTD = left_out(before_BTD, x_BTD, self.drop_probabilities[number])
            if number == self.reduction_position:
                x_BTD, length = self.reduce(x_BTD, length)
                _, pos_emb = self.pos_enc(x=x_BTD, cache_len=0)  # which scales and drops out its input for nothing
                pad_mask, att_mask = self.context.masks(context, x_BTD, length)
        if self.out_proj is not None:
            x_BTD = self.out_proj(x_BTD)
        if self.reduction_position == BEHIND_ALL:
            x_BTD, length = self.reduce(x_BTD, length)
        return x_BTD.transpose(1, 2), length

    def subsample(
        self, x_BTF: Float[Tensor, "B T F"], length: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"]]:
        """Features (B, T, F) to the vectors (B, S, D) that the layers see, and lengths."""
        if isinstance(self.pre_encode, nn.Linear):
            return self.pre_encode(x_BTF), length
        x_BTD, length = self.pre_encode(x=x_BTF, lengths=length)
        length = length.to(torch.int64)
        return x_BTD, length

    def reduce(
        self, x_BTD: Float[Tensor, "B T D"], length: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"]]:
        """Vectors (B, T, D) to fewer (B, S, D), and lengths."""
        assert self.reduction_subsampling is not None
        x_BTD, length = self.reduction_subsampling(x=x_BTD, lengths=length)
        return x_BTD, length.to(torch.int64)

    def _extend_positions(self, frames: int, device: torch.device) -> None:
        if self.sync_max_audio_length and torch.distributed.is_available() and torch.distributed.is_initialized():
            longest = torch.tensor([frames], device=device)
            torch.distributed.all_reduce(longest, op=torch.distributed.ReduceOp.MAX)
            frames = int(longest.item())
        if frames > self.max_audio_length:  # counted before subsampling, so rather early; as in NeMo
            self.max_audio_length = frames
            self.pos_enc.extend_pe(frames)


class ConformerEncoderAdapter(ConformerEncoder):
    """The same, ready to take adapters; pre-training has none."""


ENCODERS: dict[type[Encoder], type[ConformerEncoder]] = {
    Encoder: ConformerEncoder,
    EncoderWithAdapters: ConformerEncoderAdapter,
}


def encoder_of(
    settings: Encoder | ConvEncoder, differences: Generation = GENERATIONS[NEWEST]
) -> ConformerEncoder | ConvASREncoder:
    """The encoder that the settings name.

    Raises:
        UserError: they ask for what the generation of NeMo does not offer.
    """
    if settings.unified and differences.unified_contexts == "unknown":
        what, key = "NeMo before 3.0 has no such option", f"model.encoder.{settings.unified[0]}"
        raise UserError(what, key, f"Remove it, or give nemo={NEWEST} (NEMO_VERSION={DEFAULT_RELEASE}).")
    if isinstance(settings, ConvEncoder):
        return ConvASREncoder(settings)
    return ENCODERS[type(settings)](settings, differences)
