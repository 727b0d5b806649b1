"""The keys of NeMo's `train_ds` and `validation_ds` sections: which we know, which we refuse, what they default to.

Source of the behaviour: NeMo 3.0.0 `EncDecDenoiseMaskedTokenPredModel._setup_dataloader_from_config` and
`ssl_dataset.get_audio_noise_dataset_from_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.data.audio import Decoding
from nest_ssl.data.augment import (
    MultiSpeakerNoiseAugmentation,
    SpeakerNoiseAugmentation,
    argument_names,
    build_augmentor,
)
from nest_ssl.data.corpus import Corpora, Corpus
from nest_ssl.data.manifest import manifest_paths

# fmt: off
READ = {"manifest_filepath", "noise_manifest", "sample_rate", "batch_size", "shuffle", "num_workers", "pin_memory",
        "drop_last", "min_duration", "max_duration", "trim_silence", "channel_selector", "int_values",
        "batch_augmentor"}
# NeMo has these too: other code reads them, or they describe a kind of data set that we refuse.
NOT_READ = {"labels", "parser", "use_start_end_token", "defer_setup", "name", "val_dl_idx", "seed",
            "is_tarred", "tarred_audio_filepaths", "tarred_shard_strategy", "shard_manifests", "shuffle_n",
            "bucketing_strategy", "bucketing_batch_size", "bucketing_weights", "is_concat",
            "concat_sampling_technique", "concat_sampling_temperature", "concat_sampling_scale",
            "concat_sampling_probabilities", "concat_sampling_seed", "concat_shuffle", "augmentor", "use_lhotse",
            "input_cfg", "cuts_path", "shar_path", "shard_seed", "batch_duration", "quadratic_duration",
            "use_bucketing", "num_buckets", "bucket_duration_bins", "bucket_buffer_size", "bucket_batch_size",
            "num_cuts_for_bins_estimate", "shuffle_buffer_size", "text_field", "lang_field",
            "skip_missing_manifest_entries", "tarred_random_access", "use_dali", "return_sample_id"}
REFUSED = {  # key -> what to do instead of switching it on
    "is_tarred": "Unpack the tar files and name the audio files in a manifest.",
    "use_lhotse": "Set use_lhotse=false and give manifest_filepath.",
    "is_concat": "Give manifest_filepath a list: the manifests are read one after another.",
    "augmentor": "Drop the section; batch_augmentor is supported.",
}
# fmt: on


def allowed_keys(part: str) -> set[str]:
    """The keys that may stand in a section.

    Args:
        part: ``"dataset"`` for `train_ds` and its like, ``"batch_augmentor"`` for that section in them; of any other
            part nothing is known, and the set is empty.
    """
    if part == "batch_augmentor":
        kinds = (SpeakerNoiseAugmentation, MultiSpeakerNoiseAugmentation)
        return {"_target_"}.union(*(argument_names(kind) for kind in kinds))
    return READ | NOT_READ if part == "dataset" else set()


@dataclass(frozen=True)
class Settings:
    """A section, checked."""

    manifests: list[str]
    noise_manifests: list[str] | None
    min_duration: float | None
    max_duration: float | None
    decoding: Decoding
    augmentor: SpeakerNoiseAugmentation | None
    batch_size: int
    shuffle: bool
    drop_last: bool
    num_workers: int
    pin_memory: bool

    def read(self, corpora: Corpora) -> Corpus:
        """What there is to train on, see `Corpora.read`."""
        return corpora.read(self.manifests, self.noise_manifests, self.min_duration, self.max_duration)


def plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section in builtins, references resolved."""
    if isinstance(section, DictConfig):
        return {str(k): v for k, v in OmegaConf.to_container(section, resolve=True).items()}  # type: ignore[union-attr]
    return {k: OmegaConf.to_container(v) if isinstance(v, (DictConfig, ListConfig)) else v for k, v in section.items()}


def read_settings(
    section: Mapping[str, Any], sample_rate: int = 16_000, shuffle: bool = False, augmentation_draws: str = "python"
) -> Settings:
    """Check a section.

    Args:
        section: NeMo's `train_ds` or `validation_ds`.
        sample_rate: the model's, Hz; used where the section gives none.
        shuffle: used where the section says nothing.
        augmentation_draws: a key of `draws.DRAWS`.

    Raises:
        UserError: a value that is missing or wrong, or an option that is not supported.
    """
    given = plain(section)
    for key, instead in REFUSED.items():
        if given.get(key):
            raise UserError("not supported", f"{key}={given[key]}", instead)
    return Settings(
        manifests=_manifests(given),
        noise_manifests=manifest_paths(given["noise_manifest"]) if given.get("noise_manifest") is not None else None,
        min_duration=_number(given, "min_duration"),
        max_duration=_number(given, "max_duration"),
        decoding=_decoding(given, sample_rate),
        augmentor=_augmentor(given, augmentation_draws),
        batch_size=_whole(given, "batch_size", None, lowest=1),
        shuffle=bool(given.get("shuffle", shuffle)),
        drop_last=bool(given.get("drop_last", False)),
        num_workers=_whole(given, "num_workers", 0, lowest=0),
        pin_memory=bool(given.get("pin_memory", False)),
    )


def _manifests(given: Mapping[str, Any]) -> list[str]:
    value = given.get("manifest_filepath")
    if value is None or value == "???":
        raise UserError("no manifest is given", "manifest_filepath", "Give its path, or set the whole section to null.")
    return manifest_paths(value)


def _decoding(given: Mapping[str, Any], sample_rate: int) -> Decoding:
    selector = given.get("channel_selector")
    if not (selector is None or selector == "average" or isinstance(selector, int) or _is_list_of_int(selector)):
        raise UserError("not a channel", f"channel_selector={selector}", "Give a number from 0, average, or null.")
    return Decoding(
        sample_rate=_whole(given, "sample_rate", sample_rate, lowest=1),
        int_values=bool(given.get("int_values", False)),
        trim=bool(given.get("trim_silence", False)),
        channel_selector=selector,
        strict=True,
    )


def _augmentor(given: Mapping[str, Any], draws: str) -> SpeakerNoiseAugmentation | None:
    if "batch_augmentor" not in given:
        return None
    if not given["batch_augmentor"]:
        raise UserError("no batch augmentor is named", f"batch_augmentor={given['batch_augmentor']}",
                        "Drop the section, or set batch_augmentor.prob=0.")  # fmt: skip
    return build_augmentor(given["batch_augmentor"], draws)


def _number(given: Mapping[str, Any], key: str) -> float | None:
    value = given.get(key)
    if value is None or isinstance(value, (int, float)):
        return value
    raise UserError("not a number of seconds", f"{key}={value}", "Give a number, or null for no limit.")


def _whole(given: Mapping[str, Any], key: str, default: int | None, lowest: int) -> int:
    value = given.get(key, default)
    value = default if value is None and key == "sample_rate" else value
    if isinstance(value, int) and not isinstance(value, bool) and value >= lowest:
        return value
    raise UserError("not a whole number", f"{key}={value}", f"Give {key} a whole number from {lowest}.")


def _is_list_of_int(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, int) for v in value)
