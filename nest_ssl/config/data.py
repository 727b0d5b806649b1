"""The data sections of the configuration: `train_ds`, `validation_ds`, and the batch augmentor in them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from annotated_types import Gt, MinLen
from pydantic import BeforeValidator, ValidationInfo, model_validator

from nest_ssl.base.home import ROOT
from nest_ssl.config.perturbations import Augmentor
from nest_ssl.config.section import Number, Positive, Probability, Section, Unfit, Whole, read, silent


class BatchAugmentor(Section):
    """Noise or one other speaker mixed into utterances. Source: NeMo 3.0.0 `asr.modules.ssl_modules.augmentation`."""

    TARGETS = ("SpeakerNoiseAugmentation",)

    prob: Probability = 0.0  # of augmenting an utterance
    noise_ratio: Probability = 0.0  # of noise; another speaker otherwise
    min_r_speech: Number = -5.0  # energy of the utterance over that of another speaker, dB
    max_r_speech: Number = 5.0
    min_r_noise: Number = -5.0  # the same over noise, dB
    max_r_noise: Number = 20.0
    min_mix_rate: Number = 0.0  # length of the stretch that is mixed in, a part of the utterance's
    max_mix_rate: Number = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> BatchAugmentor:
        for low, high in (("min_r_speech", "max_r_speech"), ("min_r_noise", "max_r_noise")):
            if getattr(self, low) > getattr(self, high):
                raise Unfit(f"{getattr(self, low)} is above {high} {getattr(self, high)}", low, "Correct the value.")
        if not 0 <= self.min_mix_rate <= self.max_mix_rate <= 1:
            raise Unfit("0 <= min_mix_rate <= max_mix_rate <= 1 does not hold", "min_mix_rate", "Correct the value.")
        return self


class MultiBatchAugmentor(BatchAugmentor):
    """Several segments, of noise or of other speakers (the NEST recipe's, with one segment)."""

    TARGETS = ("MultiSpeakerNoiseAugmentation",)

    min_num_segments: int = 1  # how many pieces the stretch is cut into
    max_num_segments: int = 5
    min_num_speakers: int = 1  # how many other utterances they come from
    max_num_speakers: int = 4

    @model_validator(mode="after")
    def _counts_in_order(self) -> MultiBatchAugmentor:
        for name, least in (("segments", 1), ("speakers", 0)):
            low, high = getattr(self, f"min_num_{name}"), getattr(self, f"max_num_{name}")
            if self.prob > 0 and not least <= low <= high:
                what = f"{least} <= min_num_{name} <= max_num_{name} does not hold"
                raise Unfit(what, f"min_num_{name}", "Correct the value.")
        return self


def _not_empty(value: Any, info: ValidationInfo) -> Any:
    """A value of `Dataset`, unless it is one that names nothing and NeMo would stop at."""
    if info.field_name == "noise_manifest" and value == "":
        raise Unfit("an empty path", "noise_manifest", "For no noise write noise_manifest=null.")
    if info.field_name == "batch_augmentor" and value is None:
        fix = "Remove the key, or set batch_augmentor.prob=0."
        raise Unfit("no batch augmentor is named", "batch_augmentor=null", fix)
    return value


def _members(value: Any) -> Any:
    """The members of a mixture, also where the path of a YAML file with them is given, as NeMo has it.

    Raises:
        Unfit: no such file, or one that is no list.
    """
    if isinstance(value, str):
        try:
            path = Path(value).expanduser()
            text = (path if path.exists() else ROOT / path).read_text(encoding="utf-8")
            value = yaml.load(text, Loader=yaml.CSafeLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise Unfit(f"a file that cannot be read ({error})", f"input_cfg={value}", "Check the path.") from error
    if isinstance(value, list):
        for number, member in enumerate(value):
            read(Member, member, f"input_cfg[{number}]")
    return value


InputCfg = Annotated[list[dict[str, Any]] | None, BeforeValidator(_members)]
ShardSeed = int | Literal["trng", "randomized"]


def _check_lists(section: Any) -> None:
    """NeMo looks for weights in `manifest_filepath` only beside tar files, of which each manifest has a set."""
    manifests, tars = section.manifest_filepath, section.tarred_audio_filepaths
    if isinstance(manifests, list) and tars is not None and (isinstance(tars, str) or len(tars) != len(manifests)):
        what, fix = "not as many manifests as sets of tar files", "Give a set, or a pattern, for each manifest."
        raise Unfit(what, "tarred_audio_filepaths", fix)
    nested = isinstance(section.manifest_filepath, list) and not all(
        isinstance(path, str) for path in section.manifest_filepath
    )
    if nested and section.tarred_audio_filepaths is None:
        what, fix = "Lhotse reads weights of manifests beside tar files alone", "Mix by weight in input_cfg."
        raise Unfit(what, "manifest_filepath", fix)


class Member(Section):
    """A set in a mixture of Lhotse's (`input_cfg`), or a group of them; what it does not say, the section says."""

    ACCEPTED = silent("tags corpus text_field lang_field")

    type: Literal["nemo", "nemo_tarred", "lhotse", "lhotse_shar", "group"]
    weight: Number | None = None
    manifest_filepath: str | list[str | list[str | Number]] | None = None
    tarred_audio_filepaths: str | list[str | list[str]] | None = None
    shar_path: str | list[Any] | dict[str, Any] | None = None
    cuts_path: str | None = None
    input_cfg: InputCfg = None
    shuffle: bool | None = None
    shard_seed: ShardSeed | None = None
    max_open_streams: Positive | None = None
    force_finite: bool | None = None

    @model_validator(mode="after")
    def _names_data(self) -> Member:
        if not any((self.input_cfg, self.shar_path, self.cuts_path, self.manifest_filepath)):
            raise Unfit("a member of a mixture names no data", "type", "Give manifest_filepath, shar_path, cuts_path.")
        _check_lists(self)
        return self


class Dataset(Section):
    """`train_ds` or `validation_ds`. Source: NeMo 3.0.0 `ssl_dataset.get_audio_noise_dataset_from_config`."""

    # Other code of NeMo reads these.
    ACCEPTED = silent(
        "parser use_start_end_token defer_setup shard_manifests use_dali text_field"
        " lang_field pretokenize cuda_expandable_segments metadata_only"
    )
    REFUSED: ClassVar = {
        "multi_config": "Name the sets in input_cfg.",
        **dict.fromkeys(
            "noise_path perturb_speed concatenate_samples truncate_duration cut_into_windows_duration rir_enabled"
            " pad_min_duration lowpass_enabled compression_enabled clipping_enabled slice_length"
            " reweight_temperature skip_missing_manifest_entries tarred_random_access".split(),
            "Leave it out; of what changes audio, noise_manifest, augmentor and batch_augmentor are supported.",
        ),
    }

    # A path, several joined by commas, or a list; of buckets and mixtures, lists of these.
    manifest_filepath: str | list[str | list[str | Number]] | None = None
    noise_manifest: Annotated[str | list[str] | None, BeforeValidator(_not_empty)] = None
    sample_rate: Positive | None = None  # Hz; the model's if null
    batch_size: Positive | None = None
    shuffle: bool | None = None  # not given: true for training, false for validation
    num_workers: Whole = 0
    pin_memory: bool = False
    drop_last: bool = False
    min_duration: Number | None = None  # s
    max_duration: Number | None = None
    trim_silence: bool = False
    channel_selector: Literal["average"] | int | Annotated[list[int], MinLen(1)] | None = None
    int_values: bool = False
    augmentor: Augmentor = None  # what happens to each utterance as it is read
    batch_augmentor: Annotated[MultiBatchAugmentor | BatchAugmentor | None, BeforeValidator(_not_empty)] = None
    # Of data with transcripts; a model with noise has none.
    labels: Any = None
    normalize_transcripts: bool = False
    return_sample_id: bool = False
    val_dl_idx: int = 0  # of validation: which of several losses is `val_loss`
    name: str | list[str] | None = None  # of validation: what the losses are called

    # Audio in tar files.
    is_tarred: bool = False
    tarred_audio_filepaths: str | list[str | list[str]] | None = (
        None  # a pattern, or a list; of buckets, a list of lists
    )
    tarred_shard_strategy: Literal["scatter", "replicate"] = "scatter"
    shuffle_n: Whole | None = None  # tar files gathered before one is drawn; not given: 4 x batch_size
    bucketing_strategy: Literal["fixed_order", "synced_randomized", "fully_randomized"] = "synced_randomized"
    bucketing_weights: list[Positive] | None = None  # how often each bucket comes in an epoch
    bucketing_batch_size: Any = None

    # A mixture of several sets.
    is_concat: bool = False
    concat_sampling_technique: Literal["temperature", "random", "round-robin"] | None = None  # null: round-robin
    concat_sampling_temperature: Annotated[Number, Gt(0)] = 5
    concat_sampling_scale: Annotated[Number, Gt(0)] = 1
    concat_sampling_probabilities: list[Probability] | None = None
    concat_sampling_seed: Whole | None = None
    concat_shuffle: bool = True

    # Lhotse. Where no limit or size is given, there is none.
    use_lhotse: bool = False
    input_cfg: InputCfg = None  # sets to mix, see `Member`; or the path of a file with them
    shar_path: str | list[Any] | dict[str, Any] | None = None  # a folder; or several, each alone or with a weight
    cuts_path: str | None = None  # Lhotse's own manifest
    seed: int = 0  # of all generators, when the loader is built
    shard_seed: ShardSeed = "trng"  # of orders and mixtures
    batch_duration: Number | None = None  # s in a batch
    quadratic_duration: Number | None = None  # s from which longer utterances count for more
    use_bucketing: bool = False
    num_buckets: Annotated[int, Gt(1)] = 30
    bucket_duration_bins: list[Number] | None = None  # s
    bucket_batch_size: list[Positive] | None = None  # utterances in a batch of each bucket
    bucket_buffer_size: Positive = 10_000
    num_cuts_for_bins_estimate: Positive = 10_000
    concurrent_bucketing: bool = True
    shuffle_buffer_size: Positive = 10_000
    max_open_streams: Positive | None = None
    force_finite: bool = False
    force_map_dataset: bool = False
    force_iterable_dataset: bool = False

    def check_without_noise(self) -> None:
        """Raise `Unfit` for what a model without noise does not use, or what the port's batches for it lack."""
        mixing = self.batch_augmentor is not None and self.batch_augmentor.prob > 0
        for key, given in {"noise_manifest": self.noise_manifest, "batch_augmentor.prob": mixing}.items():
            if given:
                off = "0" if mixing else "null"
                raise Unfit("this model of NeMo's is given no noise", key, f"Set it to {off}, or take the NEST model.")
        for key in ("is_concat", "use_lhotse", "labels", "normalize_transcripts", "return_sample_id"):
            if getattr(self, key):
                raise Unfit("not supported in a model without noise", key, f"Remove it: ~model.train_ds.{key}.")

    @model_validator(mode="after")
    def _of_one_kind(self) -> Dataset:
        if self.use_lhotse:
            if not any((self.input_cfg, self.shar_path, self.cuts_path, self.manifest_filepath)):
                fix = "Give manifest_filepath, shar_path, cuts_path or input_cfg."
                raise Unfit("no data is named", "use_lhotse=true", fix)
            sizes, ends_of_bins = self.bucket_batch_size, self.bucket_duration_bins or []
            if ends_of_bins != sorted(ends_of_bins):
                fix = "Sort them, and bucket_batch_size with them; NeMo stops at it, too."
                raise Unfit("not from the shortest to the longest", "bucket_duration_bins", fix)
            if self.batch_size is None and self.batch_duration is None and not (sizes and self.bucket_duration_bins):
                raise Unfit("no size of a batch is given", "batch_duration", "Give it, or batch_size.")
            _check_lists(self)
            if sizes is not None and self.bucket_duration_bins is None and self.max_duration is None:
                fix = "Give bucket_duration_bins, or max_duration; NeMo stops at it, too."
                raise Unfit("sizes of batches without the buckets that they are of", "bucket_batch_size", fix)
            ends = self.num_buckets - 1 if self.bucket_duration_bins is None else len(self.bucket_duration_bins)
            if sizes is not None and len(sizes) < ends:
                raise Unfit(f"fewer sizes than buckets ({ends})", "bucket_batch_size", "Give a size for each.")
            if self.force_map_dataset and self.force_iterable_dataset:
                fix = "Give one of them."
                raise Unfit("force_map_dataset and force_iterable_dataset", "force_map_dataset=true", fix)
            if self.augmentor:
                raise Unfit(
                    "NeMo does not use it on Lhotse's data", "augmentor", "Remove it: ~model.train_ds.augmentor."
                )
            if self.trim_silence or self.int_values or not isinstance(self.channel_selector, int | None):
                what, fix = "Lhotse reads audio as it is", "Leave out trim_silence, int_values, channel_selector."
                raise Unfit(what, "use_lhotse=true", fix)
            return self
        if self.bucket_batch_size is not None:
            fix = "Set use_lhotse=true, or remove it."
            raise Unfit("only Lhotse's sampler has buckets of so many utterances", "bucket_batch_size", fix)
        if self.manifest_filepath in (None, "", "???"):
            what, fix = "no manifest is given", "Give its path, or set the whole section to null."
            raise Unfit(what, "manifest_filepath", fix)
        if self.batch_size is None:
            raise Unfit("a key is missing", "batch_size", "Give it a value.")
        if self.is_tarred:
            if self.tarred_audio_filepaths in (None, "", []):
                raise Unfit("no tar files are given", "tarred_audio_filepaths", "Give a pattern, or is_tarred=false.")
            if self.bucketing_batch_size is not None and not isinstance(self.tarred_audio_filepaths, str):
                fix = "Set it to null and give batch_size; for batches by length take use_lhotse with batch_duration."
                raise Unfit("NeMo's NEST model stops at batches of a size for each bucket", "bucketing_batch_size", fix)
        if self.is_concat and not (isinstance(self.manifest_filepath, list) and self.manifest_filepath):
            raise Unfit("not a list of sets to mix", "manifest_filepath", "Give one, or is_concat=false.")
        shares = self.concat_sampling_probabilities
        if self.is_concat and shares is not None and not 1 - 1e-6 <= sum(shares) <= 1 + 1e-6:
            raise Unfit("they do not add up to 1", "concat_sampling_probabilities", "Correct them.")
        return self
