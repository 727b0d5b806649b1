"""`nest-ssl export MODEL --to parakeet|onnx --out FOLDER`: a trained encoder for other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; returns the exit code.

    Raises:
        UserError: as `export.parakeet.write_parakeet` and `export.onnx.write_onnx`.
    """
    parser = Parser(description="Write the encoder of a trained model as another library opens it.")
    parser.add_argument("model", help="a .nemo archive, or a checkpoint")
    kinds = "Hugging Face's ParakeetEncoder; or ONNX, which is compared with torch by onnxruntime"
    parser.add_argument("--to", choices=("parakeet", "onnx"), required=True, help=kinds)
    parser.add_argument("--out", type=Path, required=True, help="a folder, new or empty")
    given = parser.parse_args(argv)
    if given.to == "onnx":
        from nest_ssl.export.onnx import NAME, write_onnx

        worst, frames = write_onnx(given.model, given.out)
        print(f"export: wrote {given.out / NAME}, for up to {frames:,} frames of features an utterance; "
              f"onnxruntime's encodings differ by at most {worst:.1e} from torch's")  # fmt: skip
        return 0
    from nest_ssl.export.parakeet import write_parakeet

    print(f"export: wrote {write_parakeet(given.model, given.out)} tensors to {given.out}")
    return 0
