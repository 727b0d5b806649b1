"""`nest-ssl features MODEL MANIFEST --layers 6,12 --out FOLDER`: what an encoder's layers make of each utterance."""

from __future__ import annotations

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
    parser.add_argument("--layers", default="-1", help="numbers from 0, or from the end: 0,5,-1 (default the last)")
    form = "a file each; or shar: a thousand in a tar file, with Lhotse's cuts (default npy)"
    parser.add_argument("--format", choices=("npy", "safetensors", "shar"), default="npy", help=form)
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    given = parser.parse_args(argv)
    from nest_ssl.export.features import extract

    written, there = extract(given.model, given.manifest, given.layers, given.out, given.format)
    print(f"features: wrote those of {written:,} utterances to {given.out}; {there:,} were there")
    return 0
