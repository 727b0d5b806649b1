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


LISTED, CONTRASTIVE, MLM = "recipe=wav2vec-bert", "model.loss_list.contrastive.", "model.loss_list.mlm."
CODES = "loss.quantized_targets=true loss.codebook_size=16"
MODULES, LOSSES = "nemo.collections.asr.modules.", "nemo.collections.asr.losses."


def _of_listed(group: str, prefix: str = "", **named: str) -> list[Variant]:
    """Variants of the model with a list of losses; an override that is no section's goes without the prefix.

    NeMo before 3.0 stops where fewer steps are masked than negatives are drawn: so few that all its releases train.
    """

    def key(override: str) -> str:
        is_whole = override.startswith(("model.", "~", "recipe="))
        return override if is_whole else f"{prefix}{override}"

    first = LISTED, f"{CONTRASTIVE}loss.num_negatives=8"
    return [Variant(group, name.replace("_", " "), (*first, *map(key, text.split()))) for name, text in named.items()]


def _with_codes(override: str = "", classes: int = 256) -> str:
    """Both losses of NeMo's recipe: the second predicts the first one's codes."""
    return f"{CODES} {MLM}is_active=true {MLM}decoder.num_classes={classes} {override}"


# The model with a list of losses (NeMo's SpeechEncDecSelfSupervisedModel).
OF_LISTED: tuple[Variant, ...] = (
    *_of_listed(
        "contrastive", CONTRASTIVE,
        projected_targets="", more_negatives_than_steps="loss.num_negatives=100",
        codes=CODES, codes_and_their_prediction=_with_codes(),
        negatives_from_all_steps="loss.sample_from_non_masked=true",
        negatives_from_the_batch="loss.sample_from_same_utterance_only=false",
        negatives_from_all_steps_of_the_batch="loss.sample_from_same_utterance_only=false"
        " loss.sample_from_non_masked=true",
        negatives_from_the_codebook=f"{CODES} loss.sample_from_same_utterance_only=false"
        " loss.sample_from_codebook=true",
        all_codes_as_negatives=f"{CODES} loss.sample_from_same_utterance_only=false loss.group_loss=true"
        " loss.num_groups=1",
        all_codes_of_two_groups_as_negatives=f"{CODES} loss.sample_from_same_utterance_only=false loss.group_loss=true",
        few_negatives="loss.num_negatives=10 loss.reduce=mean loss.multiplier=1 loss.logit_temp=0.2",
        decoder_that_doubles_the_rate="decoder.stride_layers=1 loss.combine_time_steps=4",
        decoder_that_halves_the_rate="decoder.stride_layers=1 decoder.stride_transpose=false"
        " loss.combine_time_steps=16",
        deep_decoder="decoder.non_stride_layers=2 decoder.kernel_size=5 decoder.activation=gelu",
        softmax_of_vectors="decoder.apply_softmax=true",
    ),
    *_of_listed(
        "prediction", CONTRASTIVE,
        of_a_layer=_with_codes(f"{MLM}output_from_layer=layers.0 {MLM}transpose_encoded=true"),
        without_tokens=_with_codes("loss.store_ids=false"),
        by_convolutions=_with_codes(f"~{MLM}decoder.num_classes {MLM}decoder.feat_out=256 {MLM}decoder.feat_hidden=32"
                                    f" {MLM}decoder._target_={MODULES}ConvASRDecoderReconstruction"
                                    f" {MLM}decoder.apply_softmax=true"),
        ctc_without_repeats=_with_codes("loss.reduce_ids=true"
                                        f" ~{MLM}loss {MLM}loss={{_target_:{LOSSES}CTCLossForSSL,num_classes:256}}"),
        alone="~model.loss_list"
        f" model.decoder={{_target_:{MODULES}ConvASRDecoderReconstruction,feat_in:64,feat_hidden:32,feat_out:128}}"
        f" model.loss={{_target_:{LOSSES}ContrastiveLoss,in_dim:80,combine_time_steps:8,num_negatives:8}}",
    ),
    *_of_listed(
        "patches", "model.spec_augment.",
        no_bands="freq_masks=0", three="mask_patches=3", small="mask_patches=0.33 patch_size=8",
        dropout_and_penalty="model.dropout_features=0.1 model.dropout_features_q=0.1 model.feature_penalty=10",
    ),
    *_of_listed(
        "patches", "model.spec_augment.",
        **{
            name: f"~model.spec_augment {CONTRASTIVE}loss.sample_from_same_utterance_only=false"
            f" model.spec_augment={{_target_:{MODULES}SpectrogramAugmentation,{keys}}}"
            for name, keys in {
                "stretches": "time_masks:5,time_width:0.2,freq_masks:2",
                "stretches_drawn_one_by_one": "time_masks:5,time_width:40,use_vectorized_spec_augment:false",
                "rectangles": "rect_masks:9,rect_time:120,rect_freq:60,time_masks:2,time_width:90",
            }.items()
        },
    ),
)  # fmt: skip


def _transducer(classes: int, read: str = "", first: str = "", joint: str = "activation:relu", seen: str = "") -> str:
    """A transducer's networks: more keys of the prediction network, of what is around it, of the joint network and of
    what is around that."""
    sizes = "encoder_hidden:64,pred_hidden:32,joint_hidden:48"
    network = f"{{_target_:{MODULES}RNNTDecoder,vocab_size:{classes},prednet:{{pred_hidden:32{read}}}{first}}}"
    both = f"{{_target_:{MODULES}RNNTJoint,num_classes:{classes},jointnet:{{{sizes},{joint}}}{seen}}}"
    return f"{{_target_:{MODULES}RNNTDecoderJointSSL,decoder:{network},joint:{both}}}"


def _reads_codes(decoder: str) -> str:
    """The recipe's second loss as a transducer of the first one's codes."""
    loss = f"{{_target_:{LOSSES}RNNTLossForSSL,num_classes:256}}"
    return _with_codes(f"loss.reduce_ids=true ~{MLM}decoder {MLM}decoder={decoder} ~{MLM}loss {MLM}loss={loss}")


# Transducers among the losses; and one alone, of the transcript, with everything drawn that can be.
TRANSDUCERS: tuple[Variant, ...] = (
    *_of_listed(
        "transducer", CONTRASTIVE,
        of_codes=_reads_codes(_transducer(256, ",pred_rnn_layers:1")),
        wide_states=_reads_codes(
            _transducer(256, ",pred_rnn_layers:2,rnn_hidden_size:40,forget_gate_bias:2,hidden_hidden_bias_scale:0.5",
                        ",blank_as_pad:false", "activation:sigmoid", ",log_softmax:false")
        ),
        alone_with_all_draws="~model.loss_list model.decoder="
        + _transducer(100, ",pred_rnn_layers:2,dropout:0.1,t_max:20,weights_init_scale:0.9",
                      ",random_state_sampling:true", "activation:tanh,dropout:0.2", ",masking_prob:0.3")
        + f" model.loss={{_target_:{LOSSES}RNNTLossForSSL,num_classes:100}}",
    ),
)  # fmt: skip

BLOCK = "filters:48,repeat:{repeat},kernel:[{kernel}],stride:[{stride}],dilation:[1],dropout:0.1,residual:{residual}"


def _convolutional(each: str = "", of_encoder: str = "", residual: str = "true", strides: int = 3) -> str:
    """Overrides that put a convolutional encoder in the Conformer's place: strided blocks, two, a last one."""
    first = BLOCK.format(repeat=1, kernel=5, stride=2, residual="false")
    strided = BLOCK.format(repeat=1, kernel=3, stride=2, residual="false")
    middle = BLOCK.format(repeat=2, kernel=5, stride=1, residual=residual)
    last = BLOCK.format(repeat=1, kernel=1, stride=1, residual="false").replace("48", "64")
    blocks = [first, *[strided] * (strides - 1), middle, middle, last]
    listed = ",".join(f"{{{block}{each if block == middle else ''}}}" for block in blocks)
    target = f"_target_:{MODULES}ConvASREncoder,feat_in:80,activation:relu{of_encoder}"
    sections = "model.quantizer.combine_time_steps=8 model.loss.combine_time_steps=8 model.optim.sched.d_model=64"
    return f"~model.encoder model.encoder={{{target},jasper:[{listed}]}} model.decoder.feat_in=64 {sections}"


# NeMo's ConvASREncoder.
CONVOLUTIONAL: tuple[Variant, ...] = tuple(
    Variant("convolutional", name, tuple(text.split()))
    for name, text in {
        "Jasper": _convolutional(),
        "QuartzNet": _convolutional(",separable:true", ",normalization_mode:batch"),
        "Citrinet": _convolutional(",separable:true,se:true,se_reduction_ratio:8,kernel_size_factor:1.5"),
        "squeezed over a stretch": _convolutional(",separable:true,se:true,se_context_size:16"),
        "dense residuals": _convolutional(",residual_dense:true"),
        "largest of both": _convolutional(",residual_mode:max", ",normalization_mode:layer"),
        "groups": _convolutional(",groups:4", ",normalization_mode:group,norm_groups:8,activation:swish"),
        "instance norm, no residuals": _convolutional("", ",normalization_mode:instance,init_mode:null", "false"),
        "little future": _convolutional(",separable:true,future_context:1"),
        "without masks": _convolutional(",separable:true", ",conv_mask:false"),
    }.items()
)

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
    *CONVOLUTIONAL,
    *OF_LISTED,
    *TRANSDUCERS,
)  # fmt: skip


# What NeMo 3.0.0 stops at (on a CPU); the matrix shows the reasons, and when a release changes that.
STOPPED = frozenset(
    """
subsampling: vggnet|subsampling: striding conv1d|subsampling: dw striding conv1d|subsampling: causal downsampling
subsampling: whole batch|subsampling: stacking of 6|attention: sdpa flash|attention: local unlimited
context: chunks that do not fill|context: probabilities that do not add up|norm: group norm of 7
convolution: dual mode|features: spliced|features: no window|masking: masking behind convolutions|quantizer: cosine
augmentation: none|contrastive: all codes of two groups as negatives|contrastive: softmax of vectors
prediction: without tokens
""".strip().replace("\n", "|").split("|")
)  # fmt: skip
OTHERS = {*CONVOLUTIONAL, *OF_LISTED, *TRANSDUCERS}
TRAINED = tuple(variant for variant in VARIANTS if variant.title not in STOPPED and variant not in OTHERS)


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


def pairs_of_listed(number: int = 12, seed: int = PAIRS_SEED) -> list[Variant]:
    """So many combinations of a variant of the model with a list of losses and one of its encoder or features."""
    draw, found = random.Random(seed), {}
    groups = {"attention", "context", "norm", "convolution", "depth", "dropout", "scale", "features"}
    shared = [variant for variant in TRAINED if variant.group in groups]
    losses = [variant for variant in OF_LISTED if variant.title not in STOPPED]
    for first, second in zip(draw.sample(losses, number), draw.sample(shared, number), strict=True):
        found[f"{first.title} + {second.title}"] = first.overrides + second.overrides
    return [Variant("pairs", name, overrides) for name, overrides in found.items()]
