"""A trained encoder as ONNX: features of any number of utterances, of any lengths, in; encodings out.

Names of inputs and outputs are those of NeMo's own export (`audio_signal`, `length` -> `outputs`, `encoded_lengths`).
onnxruntime computes with other operators than torch: the same function, to rounding. By how much it differs is measured
on each encoder that is written.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import replacing
from nest_ssl.config.parts import Encoder
from nest_ssl.config.section import read
from nest_ssl.export.trained import load_model, new_folder
from nest_ssl.model.encoder.encoder import ConformerEncoder

NAME = "encoder.onnx"
OPSET = 17
NEAR = 1e-3  # encodings are of the size of 1: beyond this it is no rounding any more
# Frames of each utterance in the batches that are compared; none is like the one that is traced.
TRACED, COMPARED = (160, 101), ((333,), (77, 40, 1, 60), (600, 599, 31))
LOCAL = "rel_pos_local_attn"


def write_onnx(model_path: str, folder: Path) -> tuple[float, int]:
    """Write `encoder.onnx` of the encoder in an archive or a checkpoint, and compute with it.

    It stops where all of a batch is subsampled to one vector, with relative positions: at 8 frames, say.

    Returns:
        the largest difference of onnxruntime's encodings from torch's; and how many frames an utterance may have: so
        many positions are written down.

    Raises:
        ModuleNotFoundError: onnx or onnxruntime is not installed.
        UserError: as `trained.load_model`; an encoder that cannot be written, or computes something else there; a
            folder that is not empty; a full disk.
    """
    import onnx
    import onnxruntime

    what, fix = "an encoder that cannot be written as ONNX", "Use the .nemo archive with NeMo."
    model, config = load_model(model_path)
    encoder = model.encoder.float()
    if not isinstance(encoder, ConformerEncoder):
        raise UserError(what, f"{model_path}: {type(encoder).__name__}", fix)
    settings = read(Encoder, config["encoder"], "encoder")
    if settings.self_attention_model == LOCAL:  # its windows are strides over memory, which ONNX does not have
        raise UserError(what, f"{model_path}: self_attention_model={LOCAL}", fix)
    names, axes = ("audio_signal", "length", "outputs", "encoded_lengths"), {0: "batch", 2: "time"}
    frames_of_a_vector = settings.subsampling_factor if settings.subsampling else 1
    longest = encoder.max_audio_length * frames_of_a_vector  # a table of so many positions
    if longest < min(map(max, COMPARED)):
        raise UserError(what, f"{model_path}: positions for {longest} frames, too few to be compared", fix)
    with new_folder(folder), replacing(folder / NAME) as partial:
        try:
            # With gradients, layers would be fused. Where it fails, the exporter prints its graph, from C++.
            with torch.no_grad(), warnings.catch_warnings(), no_stdout():
                warnings.simplefilter("ignore")  # of branches, which are the same for all that is compared below
                torch.onnx.export(
                    encoder, batch_of(TRACED, settings.feat_in), str(partial), dynamo=False, opset_version=OPSET,
                    input_names=names[:2], output_names=names[2:],
                    dynamic_axes={name: {0: "batch"} if "length" in name else axes for name in names},
                )  # fmt: skip
            onnx.checker.check_model(str(partial))
            session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
            batches = [frames for frames in COMPARED if max(frames) <= longest]
            worst = max(difference(encoder, session, batch_of(frames, settings.feat_in)) for frames in batches)
        except OSError:
            raise
        except Exception as error:  # exporters and onnxruntime raise anything
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(what, f"{model_path}: {reason}", fix) from error
        if not worst < NEAR:
            raise UserError(what, f"{model_path}: its encodings differ by {worst:.2g} there", fix)
    return worst, longest


@torch.no_grad()
def difference(encoder: ConformerEncoder, session: Any, batch: tuple[Tensor, Tensor]) -> float:
    """The largest of one batch's encodings, within the utterances; infinite where lengths differ, or one is NaN."""
    features_BFT, length_B = batch
    expected_BDS, expected_len_B = encoder(audio_signal=features_BFT, length=length_B)
    given = {"audio_signal": features_BFT.numpy(), "length": length_B.numpy()}
    got_BDS, got_len_B = (torch.from_numpy(each) for each in session.run(None, given))
    if not torch.equal(expected_len_B, got_len_B) or expected_BDS.shape != got_BDS.shape:
        return float("inf")
    rows = zip(expected_BDS, got_BDS, expected_len_B.tolist(), strict=True)
    largest = torch.stack([(one[:, :count] - other[:, :count]).abs().max() for one, other, count in rows if count])
    return float(largest.nan_to_num(nan=float("inf")).max())


def batch_of(frames: tuple[int, ...], features: int) -> tuple[Tensor, Tensor]:
    """Noise as normalised features, [B, F, T], zero beyond each utterance's frames; and these, [B]."""
    generator = torch.Generator().manual_seed(0)
    features_BFT = torch.randn(len(frames), features, max(frames), generator=generator)
    for row, count in zip(features_BFT, frames, strict=True):
        row[:, count:] = 0
    return features_BFT, torch.tensor(frames)


@contextlib.contextmanager
def no_stdout() -> Iterator[None]:
    """What is written to the process's standard output is lost, also by code that is not Python."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
