"""What chosen layers of a trained encoder make of every utterance of a manifest: a file each, or Lhotse's shar.

Utterances are encoded one by one, so that none depends on its neighbours in a batch. Layers are numbered from 0, and
from the end with a minus, as NeMo has it (3.0.0 `ConformerMultiLayerFeatureExtractor`); what it extracts of the same
batch of one has the same bits, in whatever form it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import replacing, write_atomically
from nest_ssl.data.audio import Decoding
from nest_ssl.data.dataset import load_utterance
from nest_ssl.data.files import file_sha256
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import parts_of, read_speech
from nest_ssl.data.sources.making import source_of
from nest_ssl.export.safetensors import safetensors
from nest_ssl.export.trained import load_model, remove_unfinished
from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.model.speech import SpeechModel

# In the folder, by format: what all of its files were made with. Lhotse takes what is before the first dot of a name
# for a field of the cuts, unless it is `cuts`.
SETTINGS = {"npy": "features.json", "safetensors": "features.json", "shar": "cuts.settings.json"}
FORMATS = tuple(SETTINGS)
SHARD = 1000  # utterances in a file of shar
Encode = Callable[[Entry], Tensor]


def chosen(layers: str, count: int) -> list[int]:
    """`0,5,-1` as indices of `count` layers, in the encoder's order.

    Raises:
        UserError: no numbers, or not of layers that there are.
    """
    fix = f"Give numbers from 0 to {count - 1}, or from -{count} to -1: --layers 0,{count - 1}."
    try:
        given = [int(number) for number in layers.split(",")]
    except ValueError as error:
        raise UserError("no numbers of layers", f"--layers={layers!r}", fix) from error
    if not all(-count <= number < count for number in given):
        raise UserError(f"the encoder has {count} layers", f"--layers={layers!r}", fix)
    return sorted({number % count for number in given})


@torch.no_grad()
def encode(model: SpeechModel, audio_T: Tensor, layers: Sequence[int]) -> Tensor:
    """What these layers make of one utterance, [L, D, S]: a vector of D numbers for each of its S frames."""
    found: dict[int, Tensor] = {}
    assert isinstance(model.encoder, ConformerEncoder)

    def keep(number: int) -> Any:
        return lambda module, given, output: found.update({number: output[0].transpose(0, 1)})

    hooks = [model.encoder.layers[number].register_forward_hook(keep(number)) for number in layers]
    try:
        features_BFT, length_B = model.features(audio_T[None], torch.tensor([len(audio_T)]), None, None)
        model.encoder(audio_signal=features_BFT, length=length_B)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([found[number] for number in layers])


def extract(
    model_path: str, manifest_path: str, layers: str, folder: Path, form: str = "npy", channel: int | str | None = None
) -> tuple[int, int]:
    """Write float32 [L, D, S] for each line of a manifest; what is there already stays.

    Args:
        model_path: a `.nemo` archive or a checkpoint.
        manifest_path: of the utterances.
        layers: see `chosen`.
        folder: where to.
        form: one of `FORMATS`; `npy` and `safetensors` are a file each, `NNNNNNNN_name`, `shar` a tar file and a
            manifest of cuts for every `SHARD` lines, whose field `layers` it is: `CutSet.from_shar(in_dir=folder)`.
        channel: see `Decoding.channel_selector`.

    Returns:
        how many utterances were written, and how many were there.

    Raises:
        UserError: a model, manifest or audio file that cannot be used; a folder of other settings; a full disk.
    """
    (model, config), manifest = load_model(model_path), read_speech(manifest_path)
    assert isinstance(model.encoder, ConformerEncoder)
    if not manifest.lines:
        raise UserError("a manifest without utterances", manifest_path, "Write one JSON object a line.")
    numbers = chosen(layers, len(model.encoder.layers))
    decoding = Decoding(config["sample_rate"], channel_selector=channel, strict=True)
    settings = {"model": file_sha256(model_path), "manifest": manifest.sha256, "layers": numbers, "format": form,
                "channel_selector": channel}  # fmt: skip
    with write_errors(str(folder)):
        _settle(folder, settings)

        def encoded(entry: Entry) -> Tensor:
            return encode(model, load_utterance(entry, decoding, shortest_seconds=0.0), numbers)

        write = _write_shar if form == "shar" else _write_files
        written = sum(write(manifest.lines, encoded, folder, form))
    return written, len(manifest.lines) - written


def _settle(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or see to it that what is there was made with the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    there = [folder / name for name in {*SETTINGS.values()} if (folder / name).exists()]
    if not there:
        if any(folder.iterdir()):
            raise UserError("files whose settings are not there", str(folder), "Choose an empty folder.")
        write_atomically(folder / SETTINGS[settings["format"]], json.dumps(settings, indent=1) + "\n")
        return
    try:
        found = {"format": "npy", "channel_selector": None} | json.loads(there[0].read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise UserError("settings that are damaged", str(there[0]), "Choose another folder, or delete it.") from error
    if found != settings:
        what = "features of another model, manifest, of other layers, another channel, or in another format"
        raise UserError(what, str(there[0]), "Choose another folder.")


def _write_files(lines: Sequence[Entry], encoded: Encode, folder: Path, form: str) -> Iterator[int]:
    """1 for each line whose file was written."""
    for entry in lines:
        target = folder / f"{entry.place.line:08d}_{Path(parts_of(entry)[0]).stem}.{form}"
        if target.exists():
            continue
        features = encoded(entry)
        with replacing(target) as partial, partial.open("wb") as file:
            if form == "npy":
                np.save(file, features.numpy())
            else:
                file.write(safetensors({"layers": features}))
        yield 1


def _write_shar(lines: Sequence[Entry], encoded: Encode, folder: Path, form: str) -> Iterator[int]:
    """How many lines each shard has that was written; one is there when its cuts are, which are written last."""
    from lhotse import Recording
    from lhotse.array import Array
    from lhotse.shar.utils import to_shar_placeholder
    from lhotse.shar.writers.array import ArrayTarWriter

    for number, first in enumerate(range(0, len(lines), SHARD)):
        target, shard, cuts = folder / f"cuts.{number:06d}.jsonl", lines[first : first + SHARD], []
        if target.exists():
            continue
        tar_path = folder / f"layers.{number:06d}.tar"
        with replacing(tar_path) as partial, ArrayTarWriter(str(partial), shard_size=None) as tar:
            for entry in shard:
                features, cut = encoded(entry).numpy(), Recording.from_file(source_of(entry)).to_cut()
                if entry.offset or entry.duration:
                    cut = cut.truncate(offset=entry.offset or 0.0, duration=entry.duration, preserve_id=True)
                cut.id = f"{entry.place.line:08d}_{cut.id}"
                array = to_shar_placeholder(Array("shar", "", "", list(features.shape)))
                tar.write(cut.id, features, array)
                cut.custom = {"layers": array}
                cuts.append(json.dumps(cut.to_dict()) + "\n")
        write_atomically(target, "".join(cuts))
        yield len(shard)
