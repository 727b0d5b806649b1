"""The parts of the model but for heads and losses (`losses.py`): each section of `model:` that builds a module of
NeMo's, under the name of its class.

Source: the constructors of NeMo 3.0.0, `nemo.collections.asr.modules` and `.losses`. What changed between releases is
no setting: see `releases.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import model_validator

from nest_ssl.config.section import Number, Positive, Probability, Section, Unfit, Whole, in_yaml, silent

CONV_NORMS = ("batch_norm", "layer_norm", "instance_norm", "fused_batch_norm")


class Preprocessor(Section):
    """Audio to log-mel features."""

    TARGETS = ("AudioToMelSpectrogramPreprocessor",)
    ACCEPTED = silent("rng stft_exact_pad stft_conv")

    sample_rate: Positive = 16000  # Hz
    window_size: Number | None = 0.02  # s; or `n_window_size` in samples, and this null
    window_stride: Number | None = 0.01
    n_window_size: Positive | None = None
    n_window_stride: Positive | None = None
    window: Literal["hann", "hamming", "blackman", "bartlett"] = "hann"
    normalize: Literal["per_feature", "all_features", "NA", False] | None = "per_feature"  # NA: not at all
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
    exact_pad: bool = False  # pad so that there are as many frames as hops; the hop must be even
    # Of cutting an utterance's spectrum off above nb_max_freq (Hz), in training. NeMo draws it from a generator of its
    # own that the clock seeds; with `seeded_data` both training scripts have Python's do it.
    nb_augmentation_prob: Probability = 0.0
    nb_max_freq: Number = 4000
    use_torchaudio: bool = False

    @model_validator(mode="after")
    def _one_unit(self) -> Preprocessor:
        for key in ("window_size", "window_stride"):
            if bool(getattr(self, key)) == bool(getattr(self, f"n_{key}")):
                raise Unfit(f"{key} needs one value", key, f"Give {key} or n_{key}, and null for the other.")
        if self.exact_pad and self.hop_samples % 2:
            raise Unfit(f"a hop of {self.hop_samples} samples is odd", "exact_pad", "Give an even one.")
        if self.nb_augmentation_prob > 0 and self.n_fft is None:
            raise Unfit("cutting a spectrum off needs its size", "n_fft=null", "Give n_fft.")
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


class Cuts(Section):
    """Stretches of time, bands of frequency and rectangles of features set to zero, which are to be predicted."""

    TARGETS = ("SpectrogramAugmentation",)
    REFUSED: ClassVar = {
        "rng": "Leave it out: it is drawn from Python's generator, in both trainers.",
        "use_numba_spec_augment": "Leave it out: it runs on a GPU alone, and draws otherwise.",
    }

    freq_masks: Whole = 0  # how many
    time_masks: Whole = 0
    freq_width: Whole = 10  # bands of one at most
    time_width: Whole | Annotated[float, Ge(0), Le(1)] = 10  # frames of one at most, or a part of the utterance's
    rect_masks: Whole = 0
    rect_time: Whole = 5
    rect_freq: Whole = 20
    mask_value: Number = 0.0
    use_vectorized_spec_augment: bool = True  # drawn by torch, and not number by number


class Patches(Section):
    """Patches of features set to zero, in each utterance as many."""

    TARGETS = ("MaskedPatchAugmentation",)

    patch_size: Positive = 48  # frames
    mask_patches: Annotated[Number, Ge(0)] = 10.0  # how many; below 1 the part of the shortest utterance to mask
    freq_masks: Whole = 0  # bands of frequency, besides
    freq_width: Whole = 0


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
    REFUSED: ClassVar = {"causal_downsampling": "NeMo stops at it, too: its convolutions are given no lengths."}

    feat_in: Positive
    n_layers: Positive
    d_model: Positive
    feat_out: int = -1  # width of a last linear layer; -1 for none
    # The last three before NeMo 2.5 alone.
    subsampling: (
        Literal[
            "dw_striding", "striding", "stacking", "stacking_norm", "vggnet", "striding_conv1d", "dw_striding_conv1d"
        ]
        | None
    ) = "striding"
    subsampling_factor: Positive = 4  # frames for one output vector; a power of two
    # 1: split a batch only if it is too large; -1 (before NeMo 2.5): never; else into so many parts
    subsampling_conv_chunking_factor: int = 1
    subsampling_conv_channels: int = -1  # -1: d_model
    reduction: Literal["pooling", "striding"] | None = None  # a second subsampling,
    reduction_position: int | None = None  # behind the layer of this number; -1: behind all
    reduction_factor: Positive = 1  # vectors for one output vector; a power of two
    ff_expansion_factor: Positive = 4
    self_attention_model: Literal["rel_pos", "abs_pos", "rel_pos_local_attn"] = "rel_pos"
    n_heads: Positive = 4
    att_context_size: list[int] | list[list[int]] | None = None  # [left, right] frames, -1 for all; or several pairs
    att_context_probs: list[Number] | None = None  # of drawing each of several for a batch; null: the same for all
    att_context_style: Literal["regular", "chunked_limited", "chunked_limited_with_rc"] = "regular"
    # New in NeMo 3.0, and without effect in training there: nothing reads them.
    att_chunk_context_size: list[Any] | None = None
    conv_context_style: Literal["regular", "dcc"] = "regular"
    xscaling: bool = True  # multiply the input of the layers by sqrt(d_model)
    untie_biases: bool = True  # attention's position biases for each layer, and not one pair for all
    pos_emb_max_len: Positive = 5000  # frames for which positions are computed in advance; longer audio extends it
    conv_kernel_size: Positive = 31
    # batch_norm, layer_norm, instance_norm, fused_batch_norm, or group_normN with N groups
    conv_norm_type: str = "batch_norm"
    conv_context_size: list[int] | Literal["causal"] | None = None  # [left, right] frames; null: as many on both sides
    use_bias: bool = True
    dropout: Probability = 0.1  # on residual and feed-forward
    dropout_pre_encoder: Probability = 0.1  # on the input of the layers
    dropout_emb: Probability = 0.1  # on the positions
    dropout_att: Probability = 0.0  # on the attention probabilities
    stochastic_depth_drop_prob: Probability = 0.0  # of leaving out the last layer in training
    stochastic_depth_mode: Literal["linear", "uniform"] = "linear"  # growing up to the last layer, or the same for all
    stochastic_depth_start_layer: Positive = 1  # layers before it (counted from 0) are never left out
    global_tokens: Whole = 0  # of local attention: frames that see all and are seen by all,
    global_tokens_spacing: Positive = 1  # so many frames apart,
    global_attn_separate: bool = False  # with queries, keys and values of their own
    use_pytorch_sdpa: bool = False  # attention by torch's own function
    use_pytorch_sdpa_backends: (
        list[Literal["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"]] | None
    ) = None  # those that it may use; null: all
    sync_max_audio_length: bool = True  # extend the table of positions on all ranks alike

    @model_validator(mode="after")
    def _sizes_fit(self) -> Encoder:
        if self.d_model % self.n_heads:
            what = f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}"
            raise Unfit(what, "n_heads", "Change one of the two.")
        conv = self.subsampling not in (None, "stacking", "stacking_norm")
        powers = {"subsampling_factor": 1, "reduction_factor": 1} if conv else {"reduction_factor": 1}
        for key, least in (powers | {"subsampling_conv_chunking_factor": 1}).items():
            value = getattr(self, key)
            whole = key == "subsampling_conv_chunking_factor" and value == -1
            if not whole and (value < least or value & (value - 1)):
                raise Unfit(f"not a power of two: {value}", key, f"Give a power of two from {least} on.")
        if (
            self.reduces
            and not -1 <= (-2 if self.reduction_position is None else self.reduction_position) < self.n_layers
        ):
            what = f"no such layer: {in_yaml(self.reduction_position)}"
            raise Unfit(what, "reduction_position", f"Give 0 to {self.n_layers - 1}, or -1 for behind all.")
        if self.stochastic_depth_drop_prob == 1 or self.stochastic_depth_start_layer > self.n_layers:
            what = (
                "stochastic depth leaves no layer" if self.stochastic_depth_drop_prob == 1 else "it starts at no layer"
            )
            raise Unfit(what, "stochastic_depth_start_layer", "Give a probability below 1 and a layer up to n_layers.")
        self._norm_fits()
        self._contexts_fit()
        self.conv_context  # noqa: B018  (it refuses what does not fit)
        return self

    def _norm_fits(self) -> None:
        groups = self.conv_norm_type.removeprefix("group_norm")
        if groups != self.conv_norm_type and groups.isdigit() and int(groups) and self.d_model % int(groups) == 0:
            return
        if self.conv_norm_type not in CONV_NORMS:
            fix = f"Supported: {', '.join(CONV_NORMS)}, group_normN (N divides d_model)."
            raise Unfit(f"not supported: {self.conv_norm_type}", "conv_norm_type", fix)

    def _contexts_fit(self) -> None:
        style, key = self.att_context_style, "att_context_size"
        ranges = self.att_chunk_context_size
        if ranges is not None and (style != "chunked_limited_with_rc" or len(ranges) != 3):
            fix = "Give three lists, of frames to the left, in a chunk and to the right, with chunked_limited_with_rc."
            raise Unfit(f"not supported: {ranges}", "att_chunk_context_size", fix)
        for context in self.contexts:
            if len(context) != (3 if style == "chunked_limited_with_rc" else 2) or min(context) < -1:
                raise Unfit(f"not supported: {self.att_context_size}", key, "Give [left, right] frames, -1 for all.")
            if style == "chunked_limited" and context[1] == -1 and (len(self.contexts) == 1 or context[0] > 0):
                raise Unfit("a chunk without an end", f"{key}={context}", "Give the frames to the right.")
            if style == "chunked_limited" and context[0] > 0 and context[0] % (context[1] + 1):
                fix = "Give as many frames to the left as chunks of right + 1 frames fill."
                raise Unfit("chunks that do not fill the context", f"{key}={context}", fix)
        if self.att_context_probs and (
            len(self.att_context_probs) != len(self.contexts) or sum(self.att_context_probs) != 1
        ):
            what = f"{len(self.contexts)} contexts need as many probabilities, and their sum must be 1"
            raise Unfit(what, f"att_context_probs={self.att_context_probs}", "Correct them.")
        if self.self_attention_model == "rel_pos_local_attn":
            given = self.att_context_size or []
            if len(given) != 2 or any(not isinstance(side, int) or side < 0 for side in given) or max(given) == 0:  # type: ignore[operator]
                what = f"local attention within {in_yaml(self.att_context_size)}"
                raise Unfit(what, key, "Give one window, [left, right] frames, not both 0.")
            if style == "chunked_limited_with_rc":
                raise Unfit("local attention has no such style", f"att_context_style={style}", "Set it to regular.")

    @property
    def unified(self) -> list[str]:
        """What is given that NeMo offers since 3.0, for one model that streams and does not."""
        keys = [key for key in ("att_chunk_context_size", "conv_context_style") if key in self.model_fields_set]
        style = self.att_context_style
        return keys + ([f"att_context_style={style}"] if style == "chunked_limited_with_rc" else [])

    @property
    def contexts(self) -> list[list[int]]:
        """The contexts of attention; of the style with right context NeMo leaves nothing limited."""
        if self.att_context_style == "chunked_limited_with_rc":
            return [[-1, -1, -1]]
        given: list[Any] = self.att_context_size or [-1, -1]
        return [given] if isinstance(given[0], int) else given

    @property
    def context_weights(self) -> list[float]:
        """The probability of each."""
        return list(self.att_context_probs or [1.0 / len(self.contexts)] * len(self.contexts))

    @property
    def reduces(self) -> bool:
        """Whether there is a second subsampling."""
        return bool(self.reduction) and self.reduction_factor > 1

    @property
    def frames_in_vector(self) -> int:
        """Frames for one vector of the output."""
        first = self.subsampling_factor if self.subsampling else 1
        return first * (self.reduction_factor if self.reduces else 1)

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


class EncoderWithAdapters(Encoder):
    """The same, ready to take adapters."""

    TARGETS = ("ConformerEncoderAdapter",)
