"""Write the practice corpus, `data/dummy_ssl`: 12 utterances, 4 noises, 3 manifests; the same bytes on every machine.

    python scripts/make_data.py --out data/dummy_ssl

Needs Python only. Does nothing when every file is there and right; mends what is missing or damaged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs before anything is installed

from nest_ssl.base.errors import UserError, run_command  # noqa: E402
from nest_ssl.practice.corpus import read_checksums, write_corpus  # noqa: E402


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError("bad usage", message, f"See {self.prog} --help.")


def main() -> None:
    """Read the command line, write the corpus, say what was done."""
    parser = _Parser(prog="make_data.py", description="Write the practice corpus.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "dummy_ssl", help="default: data/dummy_ssl")
    out = parser.parse_args().out
    checksums = read_checksums(ROOT / "data" / "dummy_ssl.sha256")
    written = write_corpus(out, checksums)
    if written:
        print(f"data: wrote {len(written)} of {len(checksums)} files to {out}; every SHA-256 is the committed one")
    else:
        print(f"data: all {len(checksums)} files are in {out} and right; nothing to do")


if __name__ == "__main__":
    run_command(main)
