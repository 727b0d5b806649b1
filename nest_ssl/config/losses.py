"""Heads and losses: the sections of `model:` that say what is predicted, and how well it was.

Source: the constructors of NeMo 3.0.0, `nemo.collections.asr.modules` and `.losses`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from pydantic import model_validator

from nest_ssl.config.section import Number, Positive, Probability, Section, Unfit, Whole, silent

InitMode = (
    Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "tds_uniform", "tds_normal"] | None
)


class Decoder(Section):
    """Log-probabilities of every code of every codebook."""

    TARGETS = ("MultiSoftmaxDecoder",)

    feat_in: Positive
    num_classes: Positive
    num_decoders: Positive = 1
    init_mode: InitMode = "xavier_uniform"
    use_bias: bool = False
    squeeze_single: bool = False


class OneSoftmax(Section):
    """Log-probabilities of codes or characters, and of a blank."""

    TARGETS = ("ConvASRDecoder",)

    feat_in: Positive
    num_classes: int  # from 1 on; else as many as the vocabulary has
    init_mode: InitMode = "xavier_uniform"
    vocabulary: list[str] | None = None
    add_blank: bool = True

    @model_validator(mode="after")
    def _classes_fit(self) -> OneSoftmax:
        words = None if self.vocabulary is None else len(self.vocabulary)
        if not (words if self.num_classes <= 0 else words in (None, self.num_classes)):
            what = f"{self.num_classes} classes and a vocabulary of {words or 'none'}"
            raise Unfit(what, "num_classes", "Give as many classes as the vocabulary has.")
        return self

    @property
    def outputs(self) -> int:
        """Classes, the blank among them."""
        return (self.num_classes if self.num_classes > 0 else len(self.vocabulary or ())) + self.add_blank


class Reconstruction(Section):
    """Vectors to compare, by convolutions."""

    TARGETS = ("ConvASRDecoderReconstruction",)

    feat_in: Positive
    feat_out: Positive
    feat_hidden: Positive
    stride_layers: Whole = 0  # each doubles the rate, or halves it where stride_transpose is false
    non_stride_layers: Whole = 0
    kernel_size: Positive = 11
    init_mode: InitMode = "xavier_uniform"
    activation: Literal["identity", "hardtanh", "relu", "selu", "swish", "silu", "gelu"] = "relu"
    stride_transpose: bool = True
    apply_softmax: bool = False

    @model_validator(mode="after")
    def _kernel_fits(self) -> Reconstruction:
        if self.stride_layers + self.non_stride_layers and (self.kernel_size < 3 or self.kernel_size % 2 == 0):
            raise Unfit(
                "an even kernel, or one below 3", f"kernel_size={self.kernel_size}", "Give an odd one from 3 on."
            )
        return self


class PredictionNet(Section):
    """An LSTM that reads tokens."""

    pred_hidden: Positive
    pred_rnn_layers: Positive
    forget_gate_bias: Number | None = 1.0
    t_max: Annotated[int, Ge(2)] | None = None  # steps to remember: drawn biases, in place of forget_gate_bias
    weights_init_scale: Number = 1.0
    hidden_hidden_bias_scale: Number = 0.0
    dropout: Probability = 0.0
    rnn_hidden_size: int = -1  # above pred_hidden it is projected to that; below 1: pred_hidden

    @property
    def hidden(self) -> int:
        """Width of the states."""
        return self.rnn_hidden_size if self.rnn_hidden_size > 0 else self.pred_hidden


class RnntDecoder(Section):
    """The prediction network of a transducer."""

    TARGETS = ("RNNTDecoder",)

    prednet: PredictionNet
    vocab_size: Positive  # tokens without the blank
    normalization_mode: None = None
    random_state_sampling: bool = False  # first states are drawn in training
    blank_as_pad: bool = True


class JointNet(Section):
    """Sizes of a joint network."""

    encoder_hidden: Positive
    pred_hidden: Positive
    joint_hidden: Positive
    activation: Literal["relu", "sigmoid", "tanh"]
    dropout: Probability = 0.0


class RnntJoint(Section):
    """The joint network of a transducer."""

    TARGETS = ("RNNTJoint",)
    ACCEPTED = silent("vocabulary preserve_memory fused_batch_size")
    REFUSED: ClassVar = {
        "num_extra_outputs": "They are another loss's. Remove it.",
        "fuse_loss_wer": "NeMo stops at it, too: this model gives it no loss. Set it to false.",
        "experimental_fuse_loss_wer": "NeMo stops at it, too: this model gives it no loss. Set it to false.",
    }

    jointnet: JointNet
    num_classes: Positive  # tokens without the blank
    log_softmax: bool | None = None
    masking_prob: Number = -1.0  # of a token not to be seen in training


class Transducer(Section):
    """Log-probabilities of tokens and of a blank, behind the tokens so far."""

    TARGETS = ("RNNTDecoderJointSSL",)

    decoder: RnntDecoder
    joint: RnntJoint

    @model_validator(mode="after")
    def _networks_fit(self) -> Transducer:
        prediction, joint = self.decoder.prednet, self.joint
        for key, value, other, wanted in (
            ("joint.jointnet.pred_hidden", joint.jointnet.pred_hidden, "decoder.prednet",
             min(prediction.hidden, prediction.pred_hidden)),
            ("joint.num_classes", joint.num_classes, "decoder.vocab_size", self.decoder.vocab_size),
        ):  # fmt: skip
            if value != wanted:
                raise Unfit(f"it does not fit {other}={wanted}", f"{key}={value}", "Change one of the two.")
        if self.decoder.random_state_sampling and prediction.hidden != prediction.pred_hidden:
            what, key = "NeMo stops at it, too: it draws states of another width", "decoder.prednet.rnn_hidden_size"
            raise Unfit(what, key, "Leave it out, or set random_state_sampling=false.")
        if joint.masking_prob >= 1:
            raise Unfit("NeMo stops at it, too: no token is seen", "joint.masking_prob", "Give less than 1.")
        return self


class Mlm(Section):
    """Negative log-likelihood of the tokens of masked frames."""

    TARGETS = ("MLMLoss",)

    combine_time_steps: Positive = 1  # frames in a token
    mask_threshold: Number = 0.8  # a token counts if more than this part of its frames is masked


class Ctc(Section):
    """The loss of a sequence of tokens, of a quantizer or of the transcript."""

    TARGETS = ("CTCLossForSSL",)

    num_classes: Positive  # without the blank
    zero_infinity: bool = True
    reduction: Literal["none", "mean", "sum", "mean_batch", "mean_volume"] = "mean_batch"


class Rnnt(Section):
    """The loss of a transducer: of a sequence of tokens, of a quantizer or of the transcript."""

    TARGETS = ("RNNTLossForSSL",)

    num_classes: Positive  # without the blank


class Contrastive(Section):
    """Which of many vectors is behind the mask."""

    TARGETS = ("ContrastiveLoss",)

    in_dim: Positive  # mel bands
    proj_dim: Positive = 128  # of the vectors
    combine_time_steps: Positive = 1  # frames for one vector
    num_negatives: Positive = 100
    quantized_targets: bool = False  # vectors are codes, and not a projection
    codebook_size: Positive = 320  # codes of a group
    prob_ppl_weight: Number = 0.1  # of the loss for using few codes
    logit_temp: Number = 0.1
    reduce: Literal["sum", "mean"] = "sum"
    sample_from_same_utterance_only: bool = True
    sample_from_non_masked: bool = False
    sample_from_codebook: bool = False
    group_loss: bool = False  # all codes are negatives
    num_groups: Positive = 2
    quantizer_temp_start: Number = 2  # of the Gumbel softmax
    quantizer_temp_min: Number = 0.5
    quantizer_temp_decay: Number = 0.999995  # with each step
    mask_threshold: Number = 0.8  # a step counts if more than this part of its frames is masked
    store_ids: bool = True  # keep the codes' numbers for other losses
    reduce_ids: bool = False  # without those that are the one before's
    multiplier: Number = 16.0

    @model_validator(mode="after")
    def _codes_fit(self) -> Contrastive:
        of_codes = "group_loss" if self.group_loss else "sample_from_codebook"
        if getattr(self, of_codes) and not self.sample_from_same_utterance_only and not self.quantized_targets:
            raise Unfit("there are no codes", f"{of_codes}=true", "Set quantized_targets to true.")
        if self.quantized_targets and self.proj_dim % self.num_groups:
            what = f"proj_dim {self.proj_dim} is no multiple of num_groups {self.num_groups}"
            raise Unfit(what, "num_groups", "Change one of the two.")
        if self.group_loss and not self.sample_from_same_utterance_only and self.num_groups > 1:
            raise Unfit("NeMo stops at it, too: its groups share their codes", "group_loss=true", "Give num_groups=1.")
        return self


class ListedLoss(Section):
    """An entry of `loss_list`: a loss, and the head that it looks at."""

    is_active: bool = True
    decoder: Reconstruction | OneSoftmax | Transducer
    loss: Contrastive | Mlm | Ctc | Rnnt
    loss_alpha: Number = 1.0  # its factor in the sum
    output_from_layer: str | None = None  # `layers.N` of the encoder; null: what the encoder gives
    transpose_encoded: bool = False  # as such a layer's output needs it
    targets_from_loss: str | None = None  # whose codes are its targets; null: the transcript's characters
    start_step: Whole = 0  # from which it is summed

    @property
    def classes(self) -> int:
        """Numbers that the decoder gives for a step."""
        if isinstance(self.decoder, Transducer):
            return self.decoder.joint.num_classes + 1
        return self.decoder.outputs if isinstance(self.decoder, OneSoftmax) else self.decoder.feat_out

    @property
    def tokens(self) -> int:
        """How many different tokens the loss gives others to predict; 0: none."""
        loss = self.loss
        if not isinstance(loss, Contrastive) or not loss.quantized_targets or not loss.store_ids:
            return 0
        return int(loss.codebook_size**loss.num_groups)

    @property
    def layer(self) -> int | None:
        """The number of that layer."""
        return None if self.output_from_layer is None else int(self.output_from_layer.removeprefix("layers."))


class Loss(Mlm):
    """The mean of it over codebooks."""

    TARGETS = ("MultiMLMLoss",)

    num_decoders: Positive = 1
    squeeze_single: bool = False
