"""`nest-ssl features MODEL MANIFEST --layers 6,12 --out FOLDER`: what an encoder's layers make of each utterance."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the features of each line of the manifest; returns the exit code.

    Raises:
        UserError: as `export.features.extract`.
    """
    description = "Write what layers of a trained encoder make of each utterance: float32 [layers, width, frames]."
    epilog = "Files that are there already stay: the same command again goes on where it stopped."
    parser = Parser(description=description, epilog=epilog)
    parser.add_argument("model", help="a .nemo archive, or a checkpoint")
    parser.add_argument("manifest", help="one JSON object a line, as NeMo has it")
    layers = "numbers from 0, or from the end: 0,5,-1 (default the last); they are written in the encoder's order"
    parser.add_argument("--layers", default="-1", help=layers)
    parser.add_argument("--channel-selector", type=_channel, help="of several: a number from 0, or average")
    form = "a file each; or shar: a thousand in a tar file, for CutSet.from_shar(in_dir=FOLDER) of Lhotse (default npy)"
    parser.add_argument("--format", choices=("npy", "safetensors", "shar"), default="npy", help=form)
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    given = parser.parse_args(_joined(sys.argv[1:] if argv is None else argv))
    from nest_ssl.export.features import extract

    written, there = extract(given.model, given.manifest, given.layers, given.out, given.format, given.channel_selector)
    print(f"features: wrote those of {written:,} utterances to {given.out}; {there:,} were there")
    return 0


def _joined(words: Sequence[str]) -> list[str]:
    """`--layers -1,0` as one word, for a word that begins with a minus and is no number is taken for an option."""
    joined = list(words)
    if "--layers" in joined[:-1]:
        at = joined.index("--layers")
        joined[at : at + 2] = [f"--layers={joined[at + 1]}"]
    return joined


def _channel(text: str) -> int | str:
    if text != "average" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is neither a channel's number nor average")
    return text if text == "average" else int(text)
