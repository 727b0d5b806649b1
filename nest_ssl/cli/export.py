"""`nest-ssl export MODEL --to parakeet --out FOLDER`: a trained encoder for other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; returns the exit code.

    Raises:
        UserError: as `export.parakeet.write_parakeet`.
    """
    parser = Parser(description="Write the encoder of a trained model as another library opens it.")
    parser.add_argument("model", help="a .nemo archive, or a checkpoint")
    parser.add_argument("--to", choices=("parakeet",), required=True, help="Hugging Face's ParakeetEncoder")
    parser.add_argument("--out", type=Path, required=True, help="a folder, new or empty")
    given = parser.parse_args(argv)
    from nest_ssl.export.parakeet import write_parakeet

    print(f"export: wrote {write_parakeet(given.model, given.out)} tensors to {given.out}")
    return 0
