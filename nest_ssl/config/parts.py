"""The parts of the model: each section of `model:` that builds a module of NeMo's, under the name of its class.

Source: the constructors of NeMo 3.0.0, `nemo.collections.asr.modules` and `.losses`. What changed between releases is
no setting: see `releases.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from nest_ssl.config.section import Number, Positive, Probability, Section, Unfit, Whole, in_yaml, silent


class Preprocessor(Section):
    """Audio to log-mel features."""

    TARGETS = ("AudioToMelSpectrogramPreprocessor",)
    ACCEPTED = silent("rng nb_max_freq stft_exact_pad stft_conv")
    REFUSED: ClassVar = {
        "exact_pad": "Set it to false: the padding of NeMo's NEST recipe is not exact.",
        "nb_augmentation_prob": "Set it to 0: NeMo draws it from a generator that nothing can seed.",
    }

    sample_rate: Positive = 16000  # Hz
    window_size: Number | None = 0.02  # s; or `n_window_size` in samples, and this null
    window_stride: Number | None = 0.01
    n_window_size: Positive | None = None
    n_window_stride: Positive | None = None
    window: Literal["hann", "hamming", "blackman", "bartlett"] = "hann"
    normalize: Literal["per_feature", "all_features", False] | None = "per_feature"
    n_fft: Positive | None = None  # null: the next power of two
    preemph: Number | None = 0.97
    features: Positive = 64  # mel bands
    lowfreq: Number = 0  # Hz
    highfreq: Number | None = None  # null: half the sample rate
    log: bool = True
    log_zero_guard_type: Literal["add", "clamp"] = "add"  # something before the logarithm, or clamp to it
    log_zero_guard_value: Number | Literal["tiny", "eps"] = 2**-24
    dither: Number = 1e-5  # amplitude of the white noise that is added in training
    pad_to: Whole = 16  # the number of frames becomes a multiple of it; 0 leaves it alone
    pad_value: Number = 0
    mag_power: Number = 2.0
    mel_norm: Literal["slaney"] | None = "slaney"
    frame_splicing: Literal[1] = 1
    use_torchaudio: bool = False

    @model_validator(mode="after")
    def _one_unit(self) -> Preprocessor:
        for key in ("window_size", "window_stride"):
            if bool(getattr(self, key)) == bool(getattr(self, f"n_{key}")):
                raise Unfit(f"{key} needs one value", key, f"Give {key} or n_{key}, and null for the other.")
        return self

    @property
    def window_samples(self) -> int:
        """Length of the window."""
        return self.n_window_size or int((self.window_size or 0) * self.sample_rate)

    @property
    def hop_samples(self) -> int:
        """From one window to the next."""
        return self.n_window_stride or int((self.window_stride or 0) * self.sample_rate)


class SpecAugment(Section):
    """NeMo builds it and never calls it; it has no parameters and draws nothing, so the port does not build it."""

    TARGETS = ("SpectrogramAugmentation", "MaskedPatchAugmentation")
    ACCEPTED = silent(
        "freq_masks time_masks freq_width time_width rect_masks rect_time rect_freq rng mask_value"
        " use_vectorized_spec_augment use_numba_spec_augment patch_size mask_patches"
    )


class Masking(Section):
    """One random vector in place of every frame of randomly placed blocks."""

    TARGETS = ("RandomBlockMasking",)

    feat_in: Positive
    mask_prob: Number = 0.5  # with overlap, the chance that a block starts at a frame; else the part to mask
    block_size: Positive = 48  # frames
    mask_value: Number | None = None  # in place of features; null: a vector drawn from N(0, 0.1)
    freeze: bool = True  # leave that vector out of training
    allow_overlap: bool = False
    max_mask_ratio: Number = 0.8  # an utterance of which a block is so large a part gets one small block (not in 3.0)


class Quantizer(Section):
    """Features to tokens by a random projection and random codebooks."""

    TARGETS = ("RandomProjectionVectorQuantizer",)

    feat_in: Positive
    code_dim: Positive
    num_classes: Positive  # codes in a codebook
    num_books: Positive
    # NeMo's own `cosine`, its default, cannot run: it multiplies float32 by float64. The nearest code is the same.
    dist_fn: Literal["l2"]
    time_ahead: bool = False  # the input is (B, T, F) and not (B, F, T)
    freeze: bool = True  # leave projection and codebooks out of training
    squeeze_single: bool = False  # drop the codebook axis if there is but one
    combine_time_steps: Positive = 1  # frames stacked into a token


class Encoder(Section):
    """The FastConformer."""

    TARGETS = ("ConformerEncoder",)
    ACCEPTED = silent(
        "reduction_position reduction_factor stochastic_depth_mode stochastic_depth_start_layer global_tokens_spacing"
        " use_pytorch_sdpa_backends"
    )
    REFUSED = dict.fromkeys(
        ("causal_downsampling", "reduction", "att_chunk_context_size", "stochastic_depth_drop_prob", "global_tokens",
         "global_attn_separate", "use_pytorch_sdpa"),
        "The port does not have it: switch it off, or leave the key out.",
    )  # fmt: skip

    feat_in: Positive
    n_layers: Positive
    d_model: Positive
    feat_out: int = -1  # width of a last linear layer; -1 for none
    subsampling: Literal["dw_striding", "striding"] = "striding"
    subsampling_factor: Positive = 4  # frames for one output vector; a power of two
    subsampling_conv_chunking_factor: int = 1  # 1: split a batch only if it is too large; else into so many parts
    subsampling_conv_channels: int = -1  # -1: d_model
    ff_expansion_factor: Positive = 4
    self_attention_model: Literal["rel_pos"] = "rel_pos"
    n_heads: Positive = 4
    att_context_size: list[int] | list[list[int]] | None = None
    att_context_probs: list[Number] | None = None
    att_context_style: Literal["regular"] = "regular"
    xscaling: bool = True  # multiply the input of the layers by sqrt(d_model)
    untie_biases: bool = True  # attention's position biases for each layer, and not one pair for all
    pos_emb_max_len: Positive = 5000  # frames for which positions are computed in advance; longer audio extends it
    conv_kernel_size: Positive = 31
    conv_norm_type: Literal["batch_norm"] = "batch_norm"
    conv_context_size: list[int] | Literal["causal"] | None = None  # [left, right] frames; null: as many on both sides
    conv_context_style: Literal["regular"] = "regular"
    use_bias: bool = True
    dropout: Probability = 0.1  # on residual and feed-forward
    dropout_pre_encoder: Probability = 0.1  # on the input of the layers
    dropout_emb: Probability = 0.1  # on the positions
    dropout_att: Probability = 0.0  # on the attention probabilities
    sync_max_audio_length: bool = True  # extend the table of positions on all ranks alike

    @model_validator(mode="after")
    def _sizes_fit(self) -> Encoder:
        if self.att_context_size not in (None, [-1, -1], [[-1, -1]]):
            what = f"not supported: {self.att_context_size}"
            raise Unfit(what, "att_context_size", "Supported: null, [-1, -1], [[-1, -1]].")
        if self.att_context_probs not in (None, [1.0]):
            raise Unfit(f"not supported: {self.att_context_probs}", "att_context_probs", "Supported: null, [1.0].")
        if self.d_model % self.n_heads:
            what = f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}"
            raise Unfit(what, "n_heads", "Change one of the two.")
        for key, least in (("subsampling_factor", 2), ("subsampling_conv_chunking_factor", 1)):
            value = getattr(self, key)
            if value < least or value & (value - 1):
                raise Unfit(f"not a power of two: {value}", key, f"Give a power of two from {least} on.")
        self.conv_context  # noqa: B018  (it refuses what does not fit)
        return self

    @property
    def conv_channels(self) -> int:
        """Channels of the subsampling convolutions."""
        return self.d_model if self.subsampling_conv_channels == -1 else self.subsampling_conv_channels

    @property
    def conv_context(self) -> tuple[int, int]:
        """Frames that the convolution of a layer sees to the left and to the right of each."""
        context, kernel = self.conv_context_size, self.conv_kernel_size
        if context is None and kernel % 2:
            return kernel // 2, kernel // 2
        if context == "causal":
            return kernel - 1, 0
        if isinstance(context, list) and len(context) == 2 and sum(context) + 1 == kernel:
            return context[0], context[1]
        what = f"a kernel of {kernel} does not fit the context {in_yaml(context)}"
        fix = "Give null and an odd conv_kernel_size, causal, or [left, right], left + right + 1 = conv_kernel_size."
        raise Unfit(what, "conv_context_size", fix)


class Decoder(Section):
    """Log-probabilities of every code of every codebook."""

    TARGETS = ("MultiSoftmaxDecoder",)

    feat_in: Positive
    num_classes: Positive
    num_decoders: Positive = 1
    init_mode: Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"] | None = "xavier_uniform"
    use_bias: bool = False
    squeeze_single: bool = False


class Loss(Section):
    """Negative log-likelihood of the tokens of masked frames, the mean over codebooks."""

    TARGETS = ("MultiMLMLoss",)

    combine_time_steps: Positive = 1  # frames in a token
    mask_threshold: Number = 0.8  # a token counts if more than this part of its frames is masked
    num_decoders: Positive = 1
    squeeze_single: bool = False
