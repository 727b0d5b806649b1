"""What a data section trains on: the manifests, each read and parsed once in a run, and what the limits leave of them.

`Corpora` is handed from the check before training to the loaders and to the record of the data, so that all three see
the same bytes, whatever happens to the manifests meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.data.files import where_to_look
from nest_ssl.data.lines import Entry, Joined, within
from nest_ssl.data.manifest import Manifest, NoiseClip, manifest_paths, read_noise, read_speech
from nest_ssl.data.sources.shards import buckets_of, expand, is_sharded, tars_of


@dataclass(frozen=True)
class Corpus:
    """Speech and noise of one section.

    Args:
        manifests: of speech, in order.
        noise_manifests: in order; None where the section names none.
        entries: the utterances that the limits leave.
        clips: all noise clips.
        shorter, longer: how many utterances lie outside the limits.
        shortest, longest: the limits in seconds, None for no limit.
        archives: files that hold the audio of all of them, in order; none where each lies in a file of its own.
    """

    manifests: Sequence[Manifest[Entry]]
    noise_manifests: Sequence[Manifest[NoiseClip]] | None
    entries: Sequence[Entry]
    clips: Sequence[NoiseClip]
    shorter: int = 0
    longer: int = 0
    shortest: float | None = None
    longest: float | None = None
    archives: Sequence[str] = ()

    def left_out(self) -> str | None:
        """A sentence about the utterances that lie outside the limits; None if there are none."""
        limits = [(self.shorter, f"shorter than min_duration={self.shortest}"),
                  (self.longer, f"longer than max_duration={self.longest}")]  # fmt: skip
        parts = [f"{count:,} {limit}" for count, limit in limits if count]
        if not parts:
            return None
        total = len(self.entries) + self.shorter + self.longer
        return f"{self.shorter + self.longer:,} of {total:,} utterances are left out: {', '.join(parts)}"


class Corpora:
    """The corpora of a run; a manifest that several sections or loaders name is read once.

    Args:
        transcripts: whether texts are kept, see `manifest.read_speech`.
    """

    def __init__(self, transcripts: bool = False) -> None:
        self._transcripts = transcripts
        self._speech: dict[str, Manifest[Entry]] = {}
        self._noise: dict[str, Manifest[NoiseClip]] = {}

    def read(self, dataset: Dataset) -> Corpus:
        """What a section trains on: the utterances within its limits (of unknown duration: all), and the noise.

        Raises:
            UserError: a manifest that is not there; a line that cannot be used (with file and number); nothing left.
        """
        parts = lhotse_parts(dataset.model_dump()) if dataset.use_lhotse else parts_of_set(dataset)
        manifests = [path for part in parts for path in part.manifests]
        noise_manifests = None if dataset.noise_manifest is None else manifest_paths(dataset.noise_manifest)
        shortest, longest = dataset.min_duration, dataset.max_duration
        speech = [self.speech(path) for path in manifests]
        for part in parts if dataset.use_lhotse else ():  # NeMo stops at such lines, too
            for entry in (line for path in part.manifests for line in self.speech(path).lines):
                if isinstance(entry.audio_file, list):
                    what = "several files for an utterance, which Lhotse does not read"
                    raise UserError(what, str(entry.place), "Join them to one file first.")
                if entry.duration is None and (entry.offset or not part.tars):
                    raise UserError("no duration, which Lhotse asks for", str(entry.place), "Give it in seconds.")
        noise = [self._noise.get(p) or self._noise.setdefault(p, read_noise(p)) for p in noise_manifests or ()]
        kept, shorter, longer = within_limits(speech, dataset)
        if not kept and not (dataset.use_lhotse and any(part.tars for part in parts)):
            where = ",".join(manifests) or "manifest_filepath=[]"
            if not shorter + longer:
                fix = 'Write lines like {"audio_filepath": "a.wav", "duration": 1.0}.'
                raise UserError("an empty manifest", where, fix)
            limits = f"min_duration={shortest}, max_duration={longest}"
            what = f"none of {shorter + longer} entries lasts as long as asked ({limits})"
            raise UserError(what, where, "Change the limits or the manifest.")
        clips = [clip for manifest in noise for clip in manifest.lines]
        noise_read = None if noise_manifests is None else noise
        archives = [tar for part in parts for tar in part.tars]
        return Corpus(speech, noise_read, kept, clips, shorter, longer, shortest, longest, archives)

    def in_an_epoch(self, dataset: Dataset) -> int:
        """The utterances in an epoch: a bucket may come several times, a mixture has as many as it is scaled to."""
        total = 0
        for parts in sets_of(dataset):
            weights = dataset.bucketing_weights if dataset.is_tarred and dataset.bucketing_weights else [1] * len(parts)
            for part, weight in zip(parts, weights, strict=True):
                total += weight * len(within_limits([self.speech(path) for path in part.manifests], dataset)[0])
        return int(total * dataset.concat_sampling_scale) if dataset.is_concat else total

    def speech(self, path: str) -> Manifest[Entry]:
        """A manifest of utterances.

        Raises:
            UserError: as `manifest.read_speech`.
        """
        return self._speech.get(path) or self._speech.setdefault(path, read_speech(path, self._transcripts))


@dataclass(frozen=True)
class Part:
    """A part of a section's data that is read as one: a bucket, a set of a mixture, or all there is.

    Args:
        manifests: in order.
        tars: the tar files with its audio; none where each utterance has a file of its own.
    """

    manifests: Sequence[str]
    tars: Sequence[str] = ()


def sets_of(dataset: Dataset) -> list[list[Part]]:
    """The sets that a section mixes (one, unless `is_concat`), and the parts of each, more than one where buckets are.

    Raises:
        UserError: manifests and tar files that do not belong together; a manifest in shards, which
            NeMo reads in a distributed run alone, and the port not at all.
    """
    given: Any = dataset.manifest_filepath
    if not dataset.is_tarred:
        if not dataset.is_concat:
            return [[Part(manifest_paths(given))]]
        nested = len(given) == 1 and not isinstance(given[0], str)
        return [[Part(manifest_paths(one))] for one in (given[0] if nested else given)]
    tars: Any = dataset.tarred_audio_filepaths
    pairs = list(zip(given, tars, strict=False)) if dataset.is_concat else [(given, tars)]
    sets = []
    for manifests, archives in pairs:
        buckets = buckets_of(manifests, "manifest_filepath"), buckets_of(archives, "tarred_audio_filepaths")
        if len(buckets[0]) != len(buckets[1]):
            where = f"manifest_filepath has {len(buckets[0])}, tarred_audio_filepaths {len(buckets[1])}"
            raise UserError("not as many manifests as sets of tar files", where, "Give a manifest for each bucket.")
        if sharded := next((path for bucket in buckets[0] for path in bucket if is_sharded(path)), None):
            fix = "Name the whole manifest (tarred_audio_manifest.json); with use_lhotse its shards can be read."
            raise UserError(
                "a manifest in shards is not offered here; NeMo reads one in a distributed run alone", sharded, fix
            )
        sets.append([Part(one, tars_of(other)) for one, other in zip(*buckets, strict=True)])
    return sets


def lhotse_parts(section: Mapping[str, Any]) -> list[Part]:
    """The files that a section with `use_lhotse`, or a member of its `input_cfg`, names.

    Raises:
        UserError: a folder of shar that is not there, or has no cuts.
    """
    if section.get("input_cfg"):
        return [part for member in section["input_cfg"] for part in lhotse_parts(member)]
    if given := section.get("shar_path"):
        if isinstance(given, dict):
            return [Part([], [path for value in given.values() for path in expand(value)])]
        folders = [given] if isinstance(given, str) else [one if isinstance(one, str) else one[0] for one in given]
        for folder in folders:
            if not next(Path(folder).glob("cuts.*.jsonl*"), None):
                fix = where_to_look("Check shar_path; nest-ssl data convert --to shar writes such a folder.")
                raise UserError("no folder with Lhotse's shar (cuts.000000.jsonl)", str(folder), fix)
        return [Part([], sorted(str(p) for p in Path(f).glob("*") if not p.name.startswith("."))) for f in folders]
    if section.get("cuts_path"):
        return [Part([], [section["cuts_path"]])]
    parts = []
    manifests, tars = section["manifest_filepath"], section.get("tarred_audio_filepaths")
    one = isinstance(manifests, str)
    given_tars = [tars] if one or tars is None else tars
    for number, manifest in enumerate([manifests] if one else manifests):
        tar = given_tars[0 if tars is None else number]
        patterns = [] if tar is None else [tar] if isinstance(tar, str) else tar
        archives = [path for pattern in patterns for path in expand(pattern)]
        parts.append(Part(expand(manifest if isinstance(manifest, str) else manifest[0]), archives))
    return parts


def is_stream(dataset: Dataset) -> bool:
    """Whether workers read a section's data one after another (tar files, Lhotse's shar), instead of by number."""
    if not dataset.use_lhotse:
        return dataset.is_tarred or dataset.is_concat
    first: Mapping[str, Any] = dataset.model_dump()
    while first.get("input_cfg"):
        first = first["input_cfg"][0]
    streams = first.get("shar_path") is not None or (
        first.get("cuts_path") is None and first.get("tarred_audio_filepaths") is not None
    )
    return (streams or dataset.force_iterable_dataset) and not dataset.force_map_dataset


def is_mixed(section: Mapping[str, Any]) -> bool:
    """Whether the `input_cfg` of a section or member draws from several sets; without end, unless `force_finite`."""
    members = section.get("input_cfg") or ()
    lists = [isinstance(member.get("manifest_filepath"), list) for member in members]
    return len(members) > 1 or any(lists) or any(is_mixed(member) for member in members)


def is_endless(dataset: Dataset) -> bool:
    """Whether an epoch of Lhotse's begins where the one before has ended: a stream, or sets that are mixed."""
    several = dataset.input_cfg is not None or isinstance(dataset.manifest_filepath, list)
    return dataset.use_lhotse and (is_stream(dataset) or several)


def parts_of_set(dataset: Dataset) -> list[Part]:
    """All parts of a section's data, in order."""
    return [part for parts in sets_of(dataset) for part in parts]


def within_limits(speech: Sequence[Manifest[Entry]], dataset: Dataset) -> tuple[Sequence[Entry], int, int]:
    """The utterances that the section's limits leave (of unknown duration: all); how many are shorter, and longer."""
    parts = [within(manifest.lines, dataset.min_duration, dataset.max_duration) for manifest in speech]
    kept = parts[0][0] if len(parts) == 1 else Joined([entries for entries, _, _ in parts])
    return kept, sum(shorter for _, shorter, _ in parts), sum(longer for _, _, longer in parts)
