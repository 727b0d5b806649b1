"""What chosen layers of a trained encoder make of every utterance of a manifest, a file each.

Utterances are encoded one by one, so that none depends on its neighbours in a batch. Layers are numbered from 0, and
from the end with a minus, as NeMo has it (3.0.0 `ConformerMultiLayerFeatureExtractor`); what it extracts of the same
batch of one has the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import replacing
from nest_ssl.config.schema import class_of
from nest_ssl.data.audio import Decoding
from nest_ssl.data.dataset import load_utterance
from nest_ssl.data.files import file_sha256
from nest_ssl.data.manifest import Entry, parts_of, read_speech
from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.model.speech import SpeechModel
from nest_ssl.train.checkpoint.lightning_checkpoint import load_checkpoint
from nest_ssl.train.checkpoint.nemo_archive import load_nemo
from nest_ssl.train.module import MODULES

SETTINGS = "features.json"  # in the folder: what all of its files were made with


def load_model(path: str) -> tuple[SpeechModel, int]:
    """The model of a `.nemo` archive or a Lightning checkpoint, ready to encode, and its sample rate in Hz.

    Raises:
        UserError: no such file, a damaged one, one that does not say which model it is of, or of another model.
    """
    config, weights = weights_of(path)
    model = MODULES[class_of(config.get("target"))](
        OmegaConf.create({**config, "train_ds": None, "validation_ds": None})
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()
        raise UserError("weights that do not fit this model", f"{path}: {what}", "Give another file.") from error
    if not isinstance(model.encoder, ConformerEncoder):
        raise UserError(
            "an encoder without layers", f"{path}: ConvASREncoder", "Give an archive with a ConformerEncoder."
        )
    return model.eval(), int(config["sample_rate"])


def weights_of(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings (NeMo's `model` section) and the weights in a `.nemo` archive or a Lightning checkpoint.

    Raises:
        UserError: no such file, a damaged one, or one that does not say which model it is of.
    """
    config, weights = load_nemo(path) if path.endswith(".nemo") else load_checkpoint(path)
    if config is None:
        raise UserError("a checkpoint without its settings", path, "Give the .nemo archive of the run.")
    return config, weights


def chosen(layers: str, count: int) -> list[int]:
    """`0,5,-1` as indices of `count` layers, in order.

    Raises:
        UserError: no numbers, or not of layers that there are.
    """
    fix = f"Give numbers from 0 to {count - 1}, or from -{count} to -1: --layers 0,{count - 1}."
    try:
        given = [int(number) for number in layers.split(",")]
    except ValueError as error:
        raise UserError("no numbers of layers", f"--layers {layers}", fix) from error
    if not all(-count <= number < count for number in given):
        raise UserError(f"the encoder has {count} layers", f"--layers {layers}", fix)
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


def extract(model_path: str, manifest_path: str, layers: str, folder: Path) -> tuple[int, int]:
    """Write `NNNNNNNN_name.npy`, float32 [L, D, S], for each line of a manifest; what is there already stays.

    Returns:
        how many were written, and how many were there.

    Raises:
        UserError: a model, manifest or audio file that cannot be used; a folder of other settings; a full disk.
    """
    (model, rate), manifest = load_model(model_path), read_speech(manifest_path)
    assert isinstance(model.encoder, ConformerEncoder)
    numbers = chosen(layers, len(model.encoder.layers))
    settings = {"model": file_sha256(model_path), "manifest": manifest.sha256, "layers": numbers}
    with write_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SETTINGS).exists():
            if any(folder.glob("*.npy")):
                raise UserError("files whose settings are not there", str(folder), "Choose an empty folder.")
            with replacing(folder / SETTINGS) as partial:
                partial.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        elif json.loads((folder / SETTINGS).read_text(encoding="utf-8")) != settings:
            what = "features of another model, manifest, or of other layers"
            raise UserError(what, str(folder / SETTINGS), "Choose another folder.")
        decoding = Decoding(rate)
        missing = [entry for entry in manifest.lines if not name_of(entry, folder).exists()]
        for entry in missing:
            features = encode(model, load_utterance(entry, decoding, shortest_seconds=0.0), numbers)
            with replacing(name_of(entry, folder)) as partial, partial.open("wb") as file:
                np.save(file, features.numpy())
    return len(missing), len(manifest.lines) - len(missing)


def name_of(entry: Entry, folder: Path) -> Path:
    """The file of a line: its number, and the name of its audio."""
    return folder / f"{entry.place.line:08d}_{Path(parts_of(entry)[0]).stem}.npy"
