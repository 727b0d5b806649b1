"""Make a folder of tensors, of a trainer that is no torch, a recording.

    nest-ssl import made/ --out outputs/made
    nest-ssl compare --reference outputs/nemo --candidate outputs/made --names names.yaml

{layout}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: a file of the folder is missing, damaged or has another name.
    """
    from nest_ssl.recording import importing

    layout = (importing.__doc__ or "").partition("\n\n")[2].rstrip()
    parser = Parser(description=(__doc__ or "").format(layout=layout))
    parser.add_argument("folder", type=Path, help="with step_0/activations.npz and its like")
    parser.add_argument("--out", type=Path, required=True, help="folder of the recording")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier recording there")
    options = parser.parse_args(argv)
    lacking = importing.import_folder(options.folder, options.out, options.overwrite)
    for line in lacking:
        print(f"import: {line}")
    print(f"import: {options.out}")
    return 0
