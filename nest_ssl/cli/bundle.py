"""Put a comparison into one file that others can check: report, both indexes, evidence, locks and a signed statement.

    nest-ssl bundle comparison.tar --reference outputs/nemo --candidate outputs/nest --report outputs/report

Compares again and refuses a report that is of other recordings or options: give the options that the report was made
with. With --tensors the recordings go in whole, and nest-ssl verify compares them once more wherever it runs; without
them it checks hashes and digests. A signing key: openssl genpkey -algorithm ed25519 -out KEY.pem. The same inputs give
the same bytes. Exit codes: 0 written, whatever the verdict; 3 bad usage, a damaged recording, or parts that do not
belong together; 70 our own mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import EXIT_OK, UserError
from nest_ssl.cli.compare import add_what_decides, asked_of


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: see exit code 3.
    """
    parser = Parser(prog="nest-ssl bundle", description=__doc__)
    parser.add_argument("target", metavar="OUT.tar", type=Path, help="file to write")
    folders = {
        "--reference": ("outputs/nemo", "folder of the recording that was measured against"),
        "--candidate": ("outputs/nest", "folder of the recording that was judged"),
        "--report": ("outputs/report", "folder of their report"),
    }
    for option, (default, what) in folders.items():
        parser.add_argument(option, type=Path, default=Path(default), help=f"{what} (default {default})")
    parser.add_argument("--tensors", action="store_true", help="put both recordings in whole (gigabytes)")
    parser.add_argument("--sign", metavar="KEY", type=Path, help="private Ed25519 key in PEM (needs nest_ssl[sign])")
    add_what_decides(parser)
    options = parser.parse_args(argv)
    asked = asked_of(options)
    target = options.target.resolve()
    for folder in (options.reference, options.candidate, options.report):
        if folder.resolve() in target.parents:
            fix = "Choose a place outside of what goes into it."
            raise UserError("a bundle would be written into its own parts", str(options.target), fix)

    from nest_ssl.bundle.contents import write_bundle

    parts = (options.reference, options.candidate, options.report)
    claim = write_bundle(target, *parts, asked, options.tensors, options.sign)
    size = target.stat().st_size
    print(f"bundle: {claim.verdict}: {claim.candidate.label} against {claim.reference.label}")
    print(f"bundle: {options.target} ({size:,} bytes, {'with' if claim.tensors else 'without'} tensors)")
    return EXIT_OK
