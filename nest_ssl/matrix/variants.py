"""The variants of NeMo's self-supervised models, as overrides of conf/ by name; and pairs of them drawn by a seed.

A variant is one change of the tiny model with everything random on. Options of one group exclude each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

BASE = ("size=tiny", "run=full", "model.masking.mask_prob=0.03")
PAIRS, PAIRS_SEED = 60, 14


@dataclass(frozen=True)
class Variant:
    """One row of the matrix.

    Args:
        group: what it is a choice of; two variants of one group cannot be combined.
        name: as the table shows it.
        overrides: of the configuration, on top of `BASE`.
    """

    group: str
    name: str
    overrides: tuple[str, ...]

    @property
    def title(self) -> str:
        """Group and name."""
        return f"{self.group}: {self.name}"

    @property
    def settings(self) -> list[str]:
        """All overrides."""
        return [*BASE, *self.overrides]


def _in(section: str, group: str, **named: str) -> list[Variant]:
    """Variants of one section of `model:`; the overrides of each divided by spaces."""
    return [
        Variant(group, name.replace("_", " "), tuple(f"{section}{override}" for override in text.split()))
        for name, text in named.items()
    ]


ENCODER, FEATURES = "model.encoder.", "model.preprocessor."
LOCAL = "self_attention_model=rel_pos_local_attn att_context_size="


def _tokens(frames: int, variants: list[Variant]) -> list[Variant]:
    """The same with so many frames in a token."""
    steps = tuple(f"model.{part}.combine_time_steps={frames}" for part in ("quantizer", "loss"))
    return [Variant(v.group, v.name, (*v.overrides, *steps)) for v in variants]


VARIANTS: tuple[Variant, ...] = (
    Variant("", "the recipe", ()),
    *_in(
        ENCODER, "subsampling",
        striding="subsampling=striding", stacking="subsampling=stacking", stacking_norm="subsampling=stacking_norm",
        vggnet="subsampling=vggnet", striding_conv1d="subsampling=striding_conv1d",
        dw_striding_conv1d="subsampling=dw_striding_conv1d", causal_downsampling="causal_downsampling=true",
        split_batch="subsampling_conv_chunking_factor=2", whole_batch="subsampling_conv_chunking_factor=-1",
    ),
    *_in(ENCODER, "subsampling", factor_4="subsampling_factor=4", factor_2="subsampling_factor=2"),
    *_tokens(1, _in(ENCODER, "subsampling", factor_1="subsampling_factor=1")),
    *_tokens(1, _in(ENCODER, "subsampling", no_subsampling="subsampling=null subsampling_factor=1")),
    *_tokens(6, _in(ENCODER, "subsampling", stacking_of_6="subsampling=stacking subsampling_factor=6")),
    *_tokens(
        16,
        _in(
            ENCODER, "reduction",
            pooling_behind_the_first_layer="reduction=pooling reduction_factor=2 reduction_position=0",
            pooling_behind_the_last_layer="reduction=pooling reduction_factor=2 reduction_position=1",
            pooling_behind_all="reduction=pooling reduction_factor=2 reduction_position=-1",
            striding_behind_the_first_layer="reduction=striding reduction_factor=2 reduction_position=0",
            striding_behind_all="reduction=striding reduction_factor=2 reduction_position=-1",
        ),
    ),
    *_in(
        ENCODER, "attention",
        absolute="self_attention_model=abs_pos", absolute_unscaled="self_attention_model=abs_pos xscaling=false",
        sdpa="use_pytorch_sdpa=true", absolute_sdpa="self_attention_model=abs_pos use_pytorch_sdpa=true",
        sdpa_math="use_pytorch_sdpa=true use_pytorch_sdpa_backends=[MATH]",
        sdpa_flash="use_pytorch_sdpa=true use_pytorch_sdpa_backends=[FLASH_ATTENTION]",
        sdpa_without_dropout="use_pytorch_sdpa=true dropout_att=0.0",
        local=f"{LOCAL}[8,8]", local_uneven=f"{LOCAL}[8,4]", local_left=f"{LOCAL}[6,0]", local_wide=f"{LOCAL}[64,64]",
        local_with_global_tokens=f"{LOCAL}[8,8] global_tokens=3",
        local_with_spaced_global_tokens=f"{LOCAL}[8,4] global_tokens=3 global_tokens_spacing=5",
        local_with_separate_global_tokens=f"{LOCAL}[8,8] global_tokens=2 global_attn_separate=true",
        local_sdpa=f"{LOCAL}[8,8] use_pytorch_sdpa=true",
        local_unlimited="self_attention_model=rel_pos_local_attn",
    ),
    *_in(
        ENCODER, "context",
        left_and_right="att_context_size=[8,4]", left="att_context_size=[8,-1]", right="att_context_size=[-1,3]",
        causal="att_context_size=[-1,0]", several="att_context_size=[[8,4],[4,0],[-1,-1]]",
        several_with_probabilities="att_context_size=[[8,4],[4,0]] att_context_probs=[0.25,0.75]",
        chunks="att_context_size=[8,3] att_context_style=chunked_limited",
        chunks_with_all_before="att_context_size=[-1,3] att_context_style=chunked_limited",
        chunks_of_one="att_context_size=[4,0] att_context_style=chunked_limited",
        several_chunks="att_context_size=[[8,3],[6,1],[-1,0]] att_context_style=chunked_limited",
        several_chunks_with_probabilities="att_context_size=[[8,3],[6,1]] att_context_probs=[0.5,0.5]"
        " att_context_style=chunked_limited",
        several_chunks_one_without_end="att_context_size=[[8,3],[-1,-1]] att_context_style=chunked_limited",
        chunks_with_right_context="att_context_style=chunked_limited_with_rc att_context_size=[8,4,2]",
        unified="att_context_style=chunked_limited_with_rc att_chunk_context_size=[[8],[2,4],[0,2]]",
        chunks_that_do_not_fill="att_context_size=[7,3] att_context_style=chunked_limited",
        probabilities_that_do_not_add_up="att_context_size=[[8,4],[4,0]] att_context_probs=[0.5,0.4]",
    ),
    *_in(
        ENCODER, "norm",
        layer_norm="conv_norm_type=layer_norm", instance_norm="conv_norm_type=instance_norm",
        group_norm_of_8="conv_norm_type=group_norm8", group_norm_of_1="conv_norm_type=group_norm1",
        fused_batch_norm="conv_norm_type=fused_batch_norm", group_norm_of_7="conv_norm_type=group_norm7",
    ),
    *_in(
        ENCODER, "convolution",
        causal_convolution="conv_context_size=causal", uneven_convolution="conv_context_size=[5,3]",
        dynamic_chunked_convolution="conv_context_style=dcc", kernel_of_31="conv_kernel_size=31",
        dual_mode="conv_dual_mode=true",
    ),
    *_in(
        ENCODER, "depth",
        stochastic_depth_linear="stochastic_depth_drop_prob=0.4",
        stochastic_depth_uniform="stochastic_depth_drop_prob=0.4 stochastic_depth_mode=uniform",
        stochastic_depth_from_the_second_layer="stochastic_depth_drop_prob=0.4 stochastic_depth_start_layer=2",
    ),
    *_in(
        ENCODER, "sizes",
        no_bias="use_bias=false", feed_forward_of_2="ff_expansion_factor=2", short_table="pos_emb_max_len=100",
        head_of_44="d_model=88 n_heads=2",
    ),
    *_in(ENCODER, "bias", shared_position_biases="untie_biases=false"),
    *_in(ENCODER, "scale", unscaled="xscaling=false"),
    *_in(ENCODER, "dropout", dropout_of_positions="dropout_emb=0.2", no_dropout="dropout=0.0 dropout_pre_encoder=0.0"),
    *_in(ENCODER, "class", adapters="_target_=nemo.collections.asr.modules.ConformerEncoderAdapter"),
    *_in(
        "model.", "output",
        output_layer="encoder.feat_out=48 decoder.feat_in=48", two_codebooks="num_books=2",
        squeezed="squeeze_single=true",
        three_codebooks_squeezed="num_books=3 squeeze_single=true",
        decoder_without_bias="decoder.use_bias=false",
    ),
    *_in(
        "model.decoder.", "initialisation",
        **{mode: f"init_mode={mode}" for mode in ("xavier_normal", "kaiming_uniform", "kaiming_normal", "tds_uniform")},
        null="init_mode=null",
    ),
    *_in(
        FEATURES, "features",
        all_features="normalize=all_features", not_normalised="normalize=null", NA="normalize=NA",
        exact_padding="exact_pad=true", hamming="window=hamming", clamped="log_zero_guard_type=clamp",
        no_logarithm="log=false normalize=null", no_pre_emphasis="preemph=null", magnitude="mag_power=1.0",
        narrow_band="nb_augmentation_prob=0.5", torchaudio="use_torchaudio=true", spliced="frame_splicing=2",
        window_in_samples="window_size=null n_window_size=480", no_window="window=none",
    ),
    *_in(
        "model.masking.", "masking",
        separate_blocks="allow_overlap=false mask_prob=0.4",
        mask_value="mask_value=0.5", mask_that_learns="freeze=false",
    ),
    *_in(
        "model.", "masking", masking_behind_convolutions="mask_position=post_conv",
        masking_before_convolutions="mask_position=pre_conv",
    ),
    *_in("model.quantizer.", "quantizer", cosine="dist_fn=cosine", quantizer_that_learns="freeze=false"),
    *_in("model.", "augmentation", none="spec_augment=null"),
    *_in("", "recipe", **{"128 bands": "recipe=nest-128", "without noise": "recipe=best-rq"}),
)  # fmt: skip


# What NeMo 3.0.0 stops at (on a CPU); the matrix shows the reasons, and when a release changes that.
STOPPED = frozenset(
    """
subsampling: vggnet|subsampling: striding conv1d|subsampling: dw striding conv1d|subsampling: causal downsampling
subsampling: whole batch|subsampling: stacking of 6|attention: sdpa flash|attention: local unlimited
context: chunks that do not fill|context: probabilities that do not add up|norm: group norm of 7
convolution: dual mode|features: spliced|features: no window|masking: masking behind convolutions|quantizer: cosine
augmentation: none
""".strip().replace("\n", "|").split("|")
)  # fmt: skip
TRAINED = tuple(variant for variant in VARIANTS if variant.title not in STOPPED)


def pairs(variants: tuple[Variant, ...] = TRAINED, number: int = PAIRS, seed: int = PAIRS_SEED) -> list[Variant]:
    """So many combinations of two variants that train, of different groups, drawn by a seed; each once."""
    draw = random.Random(seed)
    found: dict[frozenset[Variant], Variant] = {}
    while len(found) < number:
        first, second = draw.sample(variants[1:], 2)
        first_keys, second_keys = ({override.partition("=")[0] for override in v.overrides} for v in (first, second))
        if first.group == second.group or first_keys & second_keys:
            continue
        name = f"{first.title} + {second.title}"
        found[frozenset((first, second))] = Variant("pairs", name, first.overrides + second.overrides)
    return list(found.values())
