"""Write the practice corpus, `data/dummy_ssl`, or mend it. Needs Python only, so that it runs before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.home import ROOT, WORK
from nest_ssl.practice.corpus import read_checksums, write_corpus


def main(argv: Sequence[str] | None = None) -> int:
    """`nest-ssl data [--out FOLDER]`; returns the exit code.

    Raises:
        UserError: the folder cannot be written, or this machine makes other bytes than the committed checksums.
    """
    description = "Write the practice corpus (12 utterances, 4 noises, 3 manifests): the same bytes on every machine."
    epilog = "Does nothing where every file is there and right; writes again what is missing or damaged."
    parser = Parser(description=description, epilog=epilog)
    parser.add_argument("--out", type=Path, default=WORK / "data" / "dummy_ssl", help="default: data/dummy_ssl")
    out = parser.parse_args(argv).out
    checksums = read_checksums(ROOT / "data" / "dummy_ssl.sha256")
    written = write_corpus(out, checksums)
    if written:
        print(f"data: wrote {len(written)} of {len(checksums)} files to {out}; every SHA-256 is the committed one")
    else:
        print(f"data: all {len(checksums)} files are in {out} and right; nothing to do")
    return 0
