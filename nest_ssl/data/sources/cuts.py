"""Lhotse's cuts from what a data section names: NeMo's manifests, tar files, shar, and mixtures of them by weight.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.common.data.lhotse.cutset` and `nemo_adapters`.
"""

from __future__ import annotations

import io
import random
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio.backend import LibsndfileBackend
from lhotse.audio.utils import AudioLoadingError
from lhotse.cut import Cut
from lhotse.dataset.dataloading import resolve_seed
from lhotse.lazy import LazyIteratorChain, LazyJsonlIterator
from lhotse.utils import compute_num_samples

from nest_ssl.base.errors import UserError
from nest_ssl.data.manifest import full_path
from nest_ssl.data.sources.shards import expand

SHARD = {"manifest": re.compile(r"manifest[^/]*_(\d+)[^/]*\.json"), "audio": re.compile(r"audio[^/]*_(\d+)[^/]*\.tar")}
PIECE = re.compile(r"^(?P<stem>.+)(?P<sub>-sub\d+)(?P<suffix>\.\w+)?$")  # NeMo's names of pieces of a tarred file
NEAR = 0.2  # seconds by which a file may differ from its line and still be taken whole
PASSED_ON = ("shuffle", "shard_seed", "force_finite", "max_open_streams")  # to the members of a mixture
TYPES = ("nemo", "nemo_tarred", "lhotse", "lhotse_shar", "group")


def cuts_of(section: Mapping[str, Any]) -> tuple[CutSet, bool]:
    """The cuts that a section, or a member of its `input_cfg`, names; and whether workers read them as streams.

    Raises:
        UserError: a member of a kind that is not offered, or without a weight beside others that have one.
    """
    kind = section.get("type")
    if kind is not None and kind not in TYPES:
        raise UserError(f"not supported: {kind}", "input_cfg.type", f"Supported: {', '.join(TYPES)}.")
    if section.get("input_cfg") is not None:
        return mixture_of(section)
    if section.get("shar_path") is not None:
        return shar_of(section), True
    if section.get("cuts_path") is not None:
        return CutSet.from_file(section["cuts_path"]).map(Located(section["cuts_path"])), False
    return nemo_of(section)


def mux(cuts: Sequence[CutSet], weights: Sequence[float] | None, section: Mapping[str, Any]) -> CutSet:
    """Endless: each next cut is of a set drawn by weight."""
    seed = section.get("shard_seed", "trng")
    if section.get("max_open_streams") is not None:
        return CutSet.infinite_mux(*cuts, weights=weights, seed=seed, max_open_streams=section["max_open_streams"])
    if not section.get("force_finite"):
        cuts = [each.repeat(preserve_id=True) for each in cuts]
    return cuts[0] if len(cuts) == 1 else CutSet.mux(*cuts, weights=weights, seed=seed)


def mixture_of(section: Mapping[str, Any]) -> tuple[CutSet, bool]:
    members = [{**{key: section[key] for key in PASSED_ON if key in section}, **member}
               for member in section["input_cfg"]]  # fmt: skip
    read = [cuts_of(member) for member in members]
    weights = [member["weight"] for member in members if member.get("weight") is not None]
    if len({streams for _, streams in read}) > 1:
        raise UserError("tarred and other data in one mixture", "input_cfg", "Mix sets of one kind.")
    if weights and len(weights) != len(members):
        raise UserError("a member of a mixture without a weight", "input_cfg", "Give each one, or none.")
    if len(read) == 1:
        return read[0]
    shares = [weight / sum(weights) for weight in weights] if weights else None
    return mux([cuts for cuts, _ in read], shares, section), read[0][1]


def shar_of(section: Mapping[str, Any]) -> CutSet:
    def shar(**where: Any) -> CutSet:
        return CutSet.from_shar(**where, shuffle_shards=True, seed=section.get("shard_seed", "trng"))

    path = section["shar_path"]
    if isinstance(path, list):
        sets = [shar(in_dir=part if isinstance(part, str) else part[0]) for part in path]
        weights = [len(cuts) if isinstance(part, str) else part[1] for cuts, part in zip(sets, path, strict=True)]
        return mux(sets, weights, section)
    cuts = shar(in_dir=path) if isinstance(path, str) else shar(fields={k: expand(v) for k, v in path.items()})
    return cuts if section.get("force_finite") else cuts.repeat(preserve_id=True)


def nemo_of(section: Mapping[str, Any]) -> tuple[CutSet, bool]:
    manifests, tars = section["manifest_filepath"], section.get("tarred_audio_filepaths")
    shuffle, seed = section.get("shuffle", False), section.get("shard_seed", "trng")
    if isinstance(manifests, str):
        if tars is None:
            return CutSet(NemoManifest(manifests, shuffle, seed)), False
        cuts = CutSet(NemoTars(manifests, tars, shuffle, seed))
        return cuts if section.get("force_finite") else cuts.repeat(preserve_id=True), True
    sets, weights = [], []
    for manifest, tar in zip(manifests, tars or [None] * len(manifests), strict=True):
        nested = not isinstance(manifest, str)
        path = manifest[0] if nested else manifest
        archives = tar[0] if isinstance(tar, list) else tar
        source: Any = NemoManifest(path, shuffle, seed) if tar is None else NemoTars(path, archives, shuffle, seed)
        weight = manifest[1] if nested and len(manifest) == 2 else len(source)
        shards = source.shards() if tar is not None and section.get("max_open_streams") is not None else [source]
        sets += [CutSet(shard) for shard in shards]
        weights += [weight] * len(shards)
    return mux(sets, weights, section), tars is not None


class NemoManifest:
    """The cuts of a NeMo manifest, or of several that a pattern names; each line's header is read for its rate."""

    def __init__(self, path: str, shuffle: bool, seed: Any) -> None:
        self.path, paths = path, expand(path)
        parts = [LazyJsonlIterator(each) for each in paths]
        self.source = parts[0] if len(parts) == 1 else LazyIteratorChain(*parts, shuffle_iters=shuffle, seed=seed)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Cut]:
        for line in self.source:
            if line.get("_skipme", False):
                continue
            audio, rate = full_path(str(line["audio_filepath"]), self.path), line.get("sampling_rate")
            rate = line.get("sample_rate") if rate is None else rate
            offset, duration = line.get("offset"), line["duration"]
            if rate is None:
                try:
                    recording = Recording.from_file(audio)
                except (AudioLoadingError, OSError) as error:
                    fix = "Copy it again, or remove its line; NeMo stops at it, too, whatever bad_audio says."
                    raise UserError("audio whose header cannot be read", f"{audio} ({self.path})", fix) from error
            else:
                samples = compute_num_samples(duration, rate)
                source = AudioSource(type="file", channels=[0], source=audio)
                recording = Recording(audio, [source], rate, samples, duration, channel_ids=[0])
            cut = recording.to_cut()
            if offset is not None:
                cut = cut.truncate(offset=offset, duration=duration, preserve_id=True)
                cut.id = f"{cut.id}-{round(offset * 1e2):06d}-{round(duration * 1e2):06d}"
            yield _described(cut, line, ("audio_filepath", "duration", "offset", "sampling_rate", "sample_rate"))


class NemoTars:
    """The cuts of NeMo's tar files, whose audio is read as they come; a file that is no audio is passed over."""

    def __init__(self, manifest: str, tars: str | list[str], shuffle: bool, seed: Any) -> None:
        self.paths = expand(manifest)
        self.tars = {_shard(path, "audio"): path for path in (expand(tars) if isinstance(tars, str) else tars)}
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        if len(self.paths) == 1:
            whole: dict[int, list[dict[str, Any]]] = {}
            for line in LazyJsonlIterator(self.paths[0]):
                whole.setdefault(line["shard_id"], []).append(line)
            self.lines: dict[int, Any] = whole
        else:
            self.lines = {_shard(path, "manifest"): LazyJsonlIterator(path) for path in self.paths}
        if set(self.lines) != set(self.tars):
            where = f"manifests of {sorted(self.lines)[:5]}, tar files of {sorted(self.tars)[:5]}"
            raise UserError("shards of the manifest without tar files, or the other way", where, "Name all of both.")

    def __len__(self) -> int:
        return sum(len(lines) for lines in self.lines.values())

    def shards(self) -> list[Any]:
        """One of these for each shard, where the manifest is in shards too."""
        if len(self.paths) == 1:
            return [self]
        return [NemoTars(path, tar, False, self.seed) for path, tar in zip(self.paths, self.tars.values(), strict=True)]

    def __iter__(self) -> Iterator[Cut]:
        numbers = sorted(self.lines)
        generator = random.Random(resolve_seed(self.seed) + self.epoch)
        if self.shuffle:
            generator.shuffle(numbers)
        for number in numbers:
            lines: dict[str, list[dict[str, Any]]] = {}
            for line in self.lines[number]:
                piece = PIECE.match(line["audio_filepath"])
                name = piece["stem"] + (piece["suffix"] or "") if piece else line["audio_filepath"]
                lines.setdefault(name, []).append(line)
            try:
                yield from self.cuts_in(self.tars[number], lines)
            except (tarfile.TarError, EOFError) as error:  # NeMo trains on what is left of it
                where = f"{self.tars[number]}: {error}"
                raise UserError("a tar file that cannot be read", where, "Copy it again.") from error
        self.epoch += 1

    def cuts_in(self, path: str, lines: Mapping[str, list[dict[str, Any]]]) -> Iterator[Cut]:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.name not in lines:
                    raise UserError("a tar file with audio that its manifest lacks", f"{path}: {member.name}",
                                    "Write the set again: nest-ssl data convert.")  # fmt: skip
                stream = archive.extractfile(member)
                content = stream.read() if stream else b""
                try:
                    header = soundfile.info(io.BytesIO(content))
                except (RuntimeError, TypeError):
                    continue  # no audio: NeMo leaves it out of its batches too
                source = AudioSource(type="memory", channels=list(range(header.channels)), source=content)
                rate, frames = int(header.samplerate), header.frames
                recording = Recording(member.path, [source], rate, frames, header.duration)
                for line in sorted(lines[member.name], key=lambda line: str(line["audio_filepath"])):
                    if not line.get("_skipme", False):
                        yield _described(piece_of(recording, line), line, ("duration", "audio_filepath"))


def piece_of(recording: Recording, line: Mapping[str, Any]) -> Cut:
    """What a line names of a recording that is in memory, with no more of it than that."""
    offset, duration = line.get("offset", 0.0), line.get("duration")
    cut = recording.to_cut()
    if (offset == 0.0 and duration is None) or abs(duration - recording.duration) < NEAR:
        return cut
    cut = cut.truncate(offset=offset, duration=duration, preserve_id=True)
    audio = io.BytesIO()
    LibsndfileBackend().save_audio(audio, cut.load_audio(), sampling_rate=cut.sampling_rate, format="wav")
    source = AudioSource(type="memory", channels=recording.channel_ids, source=audio.getvalue())
    return Recording(recording.id, [source], recording.sampling_rate, cut.num_samples, cut.duration).to_cut()


def _described(cut: Cut, line: Mapping[str, Any], without: Sequence[str]) -> Cut:
    supervision = SupervisionSegment(
        id=cut.id, recording_id=cut.recording_id, start=0, duration=cut.duration, text=line.get("text"),
        language=line.get("lang"),
    )  # fmt: skip
    cut.supervisions.append(supervision)
    cut.custom = {key: value for key, value in line.items() if key not in without}
    return cut


def _shard(path: str, what: str) -> int:
    found = SHARD[what].search(path)
    if found is None:
        raise UserError("a name without the number of its shard", path, "Name them manifest_0.json and audio_0.tar.")
    return int(found[1])


class Located:
    """A Lhotse manifest's cut, its file's path taken from the manifest's folder."""

    def __init__(self, manifest: str) -> None:
        self.manifest = manifest

    def __call__(self, cut: MonoCut) -> MonoCut:
        for source in cut.recording.sources:
            if source.type == "file":
                source.source = full_path(source.source, self.manifest)
        return cut
