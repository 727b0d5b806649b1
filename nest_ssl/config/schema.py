"""The whole configuration, once: every key of NeMo's that the port reads, accepts or refuses, and our own.

Read `Experiment` first; its sections are in `parts.py`, `data.py`, `optim.py` and `trainer.py`. Defaults are those of
NeMo 3.0.0, not of our conf/, which gives every key.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Field, model_validator

from nest_ssl.base.errors import UserError
from nest_ssl.base.steps import MOST, parse_steps
from nest_ssl.config.convolutional import ConvEncoder
from nest_ssl.config.data import Dataset
from nest_ssl.config.losses import (
    Contrastive,
    Ctc,
    Decoder,
    ListedLoss,
    Loss,
    Mlm,
    OneSoftmax,
    Reconstruction,
    Rnnt,
    Transducer,
)
from nest_ssl.config.optim import Optim
from nest_ssl.config.parts import (
    Cuts,
    Encoder,
    EncoderWithAdapters,
    Masking,
    Patches,
    Preprocessor,
    Quantizer,
    SpecAugment,
)
from nest_ssl.config.section import NEMO, Number, Positive, Probability, Section, Unfit, Whole, read, silent
from nest_ssl.config.trainer import ExpManager, Trainer

Seed = Annotated[int, Ge(0), Le(2**32 - 1)]  # NumPy's; outside of it Lightning trains with 0 and says so in a log only
# NeMo's classes, which `model.target` names: NEST, the same without noise, and their parent, with a list of losses.
NEST, BEST_RQ = "EncDecDenoiseMaskedTokenPredModel", "EncDecMaskedTokenPredModel"
WAV2VEC_BERT = "SpeechEncDecSelfSupervisedModel"
CLASSES = NEST, BEST_RQ, WAV2VEC_BERT
ANOTHER_MODEL = f"This file is for NeMo's {{}}, and not for a NEST model ({NEST})."


def class_of(target: str | None) -> str:
    """The class that `model.target` names; NEST where it names none.

    Raises:
        UserError: another class.
    """
    name = NEST if target is None else target.rsplit(".", 1)[-1]
    if name not in CLASSES or not (target or NEMO).startswith(NEMO):
        fix = f"Supported: {', '.join(f'{NEMO}models.{each}' for each in CLASSES)}."
        raise UserError(f"not supported: {target}", "model.target", fix)
    return name


class Architecture(Section):
    """What `model:` says of the model itself."""

    # NeMo itself fails in `post_conv`: it hands features to convolutions transposed.
    mask_position: Literal["pre_conv"] = "pre_conv"
    preprocessor: Preprocessor
    masking: Masking
    quantizer: Quantizer
    encoder: Encoder | EncoderWithAdapters | ConvEncoder
    decoder: Decoder
    loss: Loss


class Training(Section):
    """What `model:` says of data and optimizer."""

    ACCEPTED = silent("nemo_version")
    PARTS: ClassVar[tuple[str, ...]] = ()  # names of the modules, for `optim_param_groups`

    target: str | None = None  # the class, see `class_of`
    sample_rate: Positive  # Hz
    train_ds: Dataset
    validation_ds: Dataset | None = None
    optim: Optim
    optim_param_groups: dict[str, dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _data_and_groups_fit(self) -> Training:
        if class_of(self.target) != NEST:
            for section in ("train_ds", "validation_ds"):
                try:
                    (getattr(self, section) or self.train_ds).check_without_noise()
                except Unfit as error:
                    raise Unfit(error.what, f"{section}.{error.key}", error.fix) from error
        for key in self.optim_param_groups or {}:
            if key not in self.PARTS:
                what, fix = "no such part of the model", f"Choose one of: {', '.join(self.PARTS)}."
                raise Unfit(what, f"optim_param_groups.{key}", fix)
        return self


class Model(Architecture, Training):
    """`model:` of NEST and of BEST-RQ."""

    CLASSES = (NEST, BEST_RQ)
    PARTS = ("preprocessor", "encoder", "loss", "quantizer", "mask_processor", "decoder")
    REFUSED: ClassVar = {"test_ds": "NeMo's NEST model stops at it. Remove it: ~model.test_ds."} | {
        key: ANOTHER_MODEL.format(cls)
        for key, cls in {
            "loss_list": "SpeechEncDecSelfSupervisedModel", "decoder_out": "SpeechEncDecSelfSupervisedModel",
            "decoder_losses": "SpeechEncDecSelfSupervisedModel", "pretrained": "Wav2Vec", "tokenizer": "ASR models",
            "labels": "ASR models", "joint": "transducers",
        }.items()
    }  # fmt: skip

    num_classes: Positive | None = None
    num_books: Positive  # NeMo reads this one and the next beside those of the parts
    code_dim: Positive | None = None
    squeeze_single: bool
    spec_augment: SpecAugment

    @model_validator(mode="after")
    def _parts_fit(self) -> Model:
        factor = self.encoder.frames_in_vector
        vector = f"encoder.subsampling_factor{' times reduction_factor' if self.encoder.reduces else ''}"
        vector = "encoder.jasper's strides" if isinstance(self.encoder, ConvEncoder) else vector
        bands = self.preprocessor.features
        width = self.encoder.feat_out if self.encoder.feat_out > 0 else self.encoder.d_model
        equal = [
            ("masking.feat_in", self.masking.feat_in, "preprocessor.features", bands),
            ("quantizer.feat_in", self.quantizer.feat_in, "preprocessor.features", bands),
            ("encoder.feat_in", self.encoder.feat_in, "preprocessor.features", bands),
            ("decoder.feat_in", self.decoder.feat_in, "encoder.d_model or feat_out", width),
            ("quantizer.combine_time_steps", self.quantizer.combine_time_steps, vector, factor),
            ("loss.combine_time_steps", self.loss.combine_time_steps, vector, factor),
        ]
        for key, value, other, wanted in equal:
            if value != wanted:
                raise Unfit(f"it does not fit model.{other}={wanted}", f"{key}={value}", "Change one of the two.")
        if not self.preprocessor.pad_to or self.preprocessor.pad_to % factor:
            what, key = f"it does not fit model.{vector}={factor}", "preprocessor.pad_to"
            raise Unfit(what, f"{key}={self.preprocessor.pad_to}", f"Give a multiple of {factor}, frames in a token.")
        if self.quantizer.num_classes > self.decoder.num_classes:
            what = f"it does not fit model.quantizer.num_classes={self.quantizer.num_classes}"
            raise Unfit(what, f"decoder.num_classes={self.decoder.num_classes}", "Give as many classes as codes.")
        books = min(self.quantizer.num_books, self.decoder.num_decoders)
        if self.loss.num_decoders > books:
            what = f"it does not fit quantizer.num_books and decoder.num_decoders, of which the least is {books}"
            raise Unfit(what, f"loss.num_decoders={self.loss.num_decoders}", f"Give {books}.")
        return self


def _listed(value: Any) -> Any:
    """The entries of `loss_list`, read.

    Raises:
        Unfit: no list of them.
    """
    if not isinstance(value, dict) or not value:
        raise Unfit("no losses by name", "loss_list", "Give one, or remove the key: ~model.loss_list.")
    return {str(name): read(ListedLoss, each, f"model.loss_list.{name}") for name, each in value.items()}


class ListedArchitecture(Section):
    """What `model:` says of a model with losses of one's choice: a list of them, or one with its decoder."""

    preprocessor: Preprocessor
    spec_augment: Patches | Cuts
    encoder: Encoder | EncoderWithAdapters | ConvEncoder
    loss_list: Annotated[dict[str, ListedLoss] | None, BeforeValidator(_listed)] = None
    decoder: Reconstruction | OneSoftmax | Transducer | None = None
    loss: Contrastive | Mlm | Ctc | Rnnt | None = None
    dropout_features: Probability | None = None  # on the features that are masked and encoded
    dropout_features_q: Probability | None = None  # on those that the contrastive loss looks at
    feature_penalty: Number | None = None  # of the features' power, added to the loss

    @model_validator(mode="after")
    def _losses_fit(self) -> ListedArchitecture:
        if self.loss_list is None:
            if self.decoder is None or self.loss is None:
                what, key = "no loss and its decoder", "decoder" if self.decoder is None else "loss"
                raise Unfit(what, key, "Give model.decoder and model.loss, or model.loss_list.")
            self._fits(ListedLoss.model_construct(decoder=self.decoder, loss=self.loss), "")
            return self
        before: dict[str, ListedLoss] = {}
        for name, each in self.loss_list.items():
            if not each.is_active:
                continue
            self._fits(each, f"loss_list.{name}.")
            source = before.get(each.targets_from_loss or name)
            if each.targets_from_loss is not None and not (
                source and source.start_step <= each.start_step and source.tokens
            ):
                what, fix = "that loss has no tokens yet", "Name an active one before it, with quantized_targets=true."
                raise Unfit(what, f"loss_list.{name}.targets_from_loss={each.targets_from_loss}", fix)
            if source and each.classes < source.tokens:
                what = f"{each.classes} classes cannot name {source.tokens} tokens, codebook_size to the num_groups"
                raise Unfit(what, f"loss_list.{name}.decoder.num_classes", "Give as many classes.")
            before[name] = each
        if min((each.start_step for each in before.values()), default=1) > 0:
            what = "NeMo stops at it, too: no loss is left at the first step"
            raise Unfit(what, "loss_list", "Set is_active=true and start_step=0 in one of them.")
        return self

    def _fits(self, each: ListedLoss, where: str) -> None:
        """Raise `Unfit` where a decoder and its loss do not fit the encoder, or each other."""
        encoder, decoder, loss, layer = self.encoder, each.decoder, each.loss, each.output_from_layer
        if layer is not None and layer not in [f"layers.{number}" for number in range(encoder.n_layers)]:
            raise Unfit(f"no such layer: {layer}", f"{where}output_from_layer", "Give layers.0 and so on.")
        if (layer is not None) != each.transpose_encoded:
            output, fix = ("the encoder's", "false") if layer is None else ("a layer's", "true")
            what = f"NeMo stops at it, too: {output} output has its channels elsewhere"
            raise Unfit(what, f"{where}transpose_encoded", f"Set it to {fix}.")
        width = encoder.feat_out if encoder.feat_out > 0 and layer is None else encoder.d_model
        if isinstance(decoder, Transducer) or isinstance(loss, Rnnt):
            self._transducer_fits(decoder, loss, width, where)
            return
        probabilities = isinstance(decoder, OneSoftmax) or decoder.apply_softmax
        if probabilities == isinstance(loss, Contrastive):
            what = f"this loss takes {'vectors' if probabilities else 'log-probabilities'}; NeMo stops at it, too"
            name = "ConvASRDecoderReconstruction" if probabilities else "ConvASRDecoder"
            raise Unfit(what, f"{where}decoder", f"Take {name}.")
        equal = [("decoder.feat_in", decoder.feat_in, "encoder.d_model or feat_out", width)]
        steps = encoder.frames_in_vector
        if (
            each.layer is not None
            and encoder.reduces
            and (encoder.reduction_position or 0) % encoder.n_layers >= each.layer
        ):
            steps //= encoder.reduction_factor
        if isinstance(decoder, Reconstruction):
            rate = 2**decoder.stride_layers
            steps = steps // rate if decoder.stride_transpose else steps * rate
        if isinstance(loss, Contrastive):
            equal += [("loss.in_dim", loss.in_dim, "preprocessor.features", self.preprocessor.features)]
            equal += [("loss.proj_dim", loss.proj_dim, f"{where}decoder.feat_out", each.classes)]
        if not isinstance(loss, Ctc):
            equal += [("loss.combine_time_steps", loss.combine_time_steps, "frames for a vector of the decoder", steps)]
        elif loss.num_classes >= each.classes:
            what = f"its blank is none of the decoder's {each.classes} classes"
            raise Unfit(what, f"{where}loss.num_classes={loss.num_classes}", "Give one fewer.")
        for key, value, other, wanted in equal:
            if value != wanted:
                raise Unfit(f"it does not fit {other}={wanted}", f"{where}{key}={value}", "Change one of the two.")
        if isinstance(loss, Mlm) and (not self.preprocessor.pad_to or self.preprocessor.pad_to % steps):
            what, key = f"it does not fit {steps} frames in a token", "preprocessor.pad_to"
            raise Unfit(what, f"{key}={self.preprocessor.pad_to}", f"Give a multiple of {steps}.")

    @staticmethod
    def _transducer_fits(decoder: Section, loss: Section, width: int, where: str) -> None:
        """Raise `Unfit` where one of the two is no transducer's, or does not fit the other or encodings so wide."""
        if not isinstance(decoder, Transducer) or not isinstance(loss, Rnnt):
            what = "a transducer's networks go with its loss; NeMo stops at it, too"
            raise Unfit(what, f"{where}decoder", "Take RNNTDecoderJointSSL with RNNTLossForSSL, or neither.")
        joint, of_joint = decoder.joint, f"{where}decoder.joint"
        if joint.jointnet.encoder_hidden != width:
            what, key = f"it does not fit encoder.d_model or feat_out={width}", f"{of_joint}.jointnet.encoder_hidden"
            raise Unfit(what, f"{key}={joint.jointnet.encoder_hidden}", "Change one of the two.")
        if loss.num_classes != joint.num_classes:
            what = f"it does not fit {of_joint}.num_classes={joint.num_classes}"
            raise Unfit(what, f"{where}loss.num_classes={loss.num_classes}", "Change one of the two.")


class ListedModel(ListedArchitecture, Training):
    """`model:` of NeMo's SpeechEncDecSelfSupervisedModel. What only its children read may stand in it."""

    CLASSES = (WAV2VEC_BERT,)
    PARTS = ("preprocessor", "encoder", "decoder_losses", "decoder_ssl", "loss", "spec_augmentation")
    ACCEPTED = silent(
        "nemo_version decoder_out mask_position num_classes num_books code_dim squeeze_single masking quantizer"
    )
    REFUSED: ClassVar = {
        "test_ds": "Nothing is tested. Remove it: ~model.test_ds.",
        "access": "NeMo needs it for encoders on other devices. Remove it: ~model.access.",
    }


class InitFrom(Section):
    """One file of weights, and which of its entries to take."""

    path: str
    include: list[str] = Field([""])  # an entry is taken if its name contains one of these,
    exclude: list[str] = Field([])  # unless it contains one of these


class Experiment(Section):
    """The whole configuration: NeMo's sections, and what both training scripts take besides."""

    ACCEPTED = silent("size run kind recipe")  # groups, for the command line
    REFUSED: ClassVar = {
        "init_from_pretrained_model": "Nothing is fetched from a network: download it and use init_from_nemo_model."
    }

    name: str | None = None
    nemo: str = "3.0"  # the NeMo to be exact with: a generation, a release, or the folder of NeMo's recording
    seed: Seed = 42
    output_dir: str | None = None
    save_steps: str | int | list[int] | None = None
    record: Literal["modules", "boundaries", "operators", "digest"] = "modules"  # of each of them, see `record.levels`
    include: list[str] | None = None
    exclude: list[str] | None = None
    operators: bool | list[str] = False
    learning_rates: Annotated[int, Ge(0), Le(MOST)] = 0
    overwrite: bool = False
    stop_when_recorded: bool = False  # end training behind the last step to record
    noise_floor: Whole = 0  # how often each recorded step is repeated, to see what rounding alone does to it
    batches: Positive | None = None
    no_masked_token: Literal["nan", "zero"] = "nan"
    numerics: Literal["exact", "fast"] = "exact"  # of the port: NeMo's bits, or less time, see `train.fast`
    cuda_graphs: bool = False  # of the port on a GPU: replay the encoder's kernels, captured once for each shape
    bad_audio: Literal["stop", "skip"] = "stop"
    seeded_data: bool = True  # whether draws that NeMo seeds from the clock follow from the seed
    init_from_nemo_model: str | dict[str, Any] | None = None  # a path, or `InitFrom` sections by any names
    init_from_ptl_ckpt: str | dict[str, Any] | None = None
    init_strict: bool = True  # whether an archive must fit its own configuration

    model: Model | ListedModel
    trainer: Trainer
    exp_manager: ExpManager | None = None

    @model_validator(mode="after")
    def _of_one_run(self) -> Experiment:
        try:
            parse_steps(self.save_steps)
        except UserError as error:
            raise Unfit(error.what, f"save_steps={self.save_steps}", error.fix) from error
        asked = {"numerics=fast": self.numerics == "fast", "cuda_graphs=true": self.cuda_graphs}
        if any(asked.values()) and (isinstance(self.model, ListedModel) or isinstance(self.model.encoder, ConvEncoder)):
            where, *_ = (setting for setting, holds in asked.items() if holds)
            what = "it computes NEST and BEST-RQ with a Conformer alone"
            raise Unfit(what, where, "Give numerics=exact and cuda_graphs=false.")
        if self.cuda_graphs and self.trainer.accumulate_grad_batches > 1:  # a replay writes over the gradients
            where = f"accumulate_grad_batches={self.trainer.accumulate_grad_batches}"
            raise Unfit("not offered with cuda_graphs=true", f"trainer.{where}", "Give 1, or cuda_graphs=false.")
        given = sorted(self.model_fields_set & {"init_from_nemo_model", "init_from_ptl_ckpt"})
        if len(given) > 1:  # NeMo counts those that are null, too
            raise Unfit("only one source of weights is allowed", given[1], f"Remove it: ~{given[1]}.")
        for key in given:
            for name, entry in getattr(self, key).items() if isinstance(getattr(self, key), dict) else ():
                read(InitFrom, entry, f"{key}.{name}")
        return self
