"""Compare two recordings and write the report.

    python scripts/compare_outputs.py --reference outputs/nemo --candidate outputs/nest --out outputs/report

Exit codes: 0 identical or equivalent, 1 diverged, 2 inconclusive (too little compared), 3 bad usage or a damaged
recording, 4 the contract differs (not the same experiment).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import yaml

from nest_ssl.base.errors import UserError, run_command


class _Parser(argparse.ArgumentParser):
    """argparse, with bad usage told like any other mistake (exit code 3; 2 means inconclusive here)."""

    def error(self, message: str) -> NoReturn:
        raise UserError("bad usage", message, "See --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the comparison's exit code.

    Raises:
        UserError: see exit code 3.
    """
    options = _parse(argv)
    # Only now what takes seconds to import: --help and bad usage answer at once.
    from nest_ssl.compare import FixedTolerance, compare_recordings
    from nest_ssl.recording.reader import open_recording
    from nest_ssl.report import print_summary, write_reports

    reference, candidate = (open_recording(path, options.verify) for path in (options.reference, options.candidate))
    tolerance = FixedTolerance(options.atol, options.rtol)
    with _damage_told(options.verify):
        comparison = compare_recordings(reference, candidate, tolerance, options.steps)
    print_summary(comparison, write_reports(comparison, options.out))
    return comparison.exit_code


@contextmanager
def _damage_told(verified: bool) -> Iterator[None]:
    """Files that nobody verified may hold anything; whatever that breaks is told as damage."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError) as error:
        if verified:
            raise  # our own mistake
        what = f"{type(error).__name__}: {error}"
        raise UserError("damaged recording", what, "Leave out --no-verify to see which file.") from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="folder of the recording to measure against")
    parser.add_argument("--candidate", type=Path, required=True, help="folder of the recording to judge")
    parser.add_argument("--out", type=Path, default=Path("outputs/report"), help="folder for report.md and report.json")
    parser.add_argument("--atol", type=_bound, default=1e-5, help="absolute tolerance of `equivalent` (default 1e-5)")
    parser.add_argument("--rtol", type=_bound, default=1e-5, help="relative tolerance of `equivalent` (default 1e-5)")
    parser.add_argument("--steps", type=_steps, help="compare only these steps: 0,1 or 0-9 (default: all recorded)")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="trust the files: skip their SHA-256")
    return parser.parse_args(argv)


def _bound(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def _steps(text: str) -> list[int]:
    ranges = [part.strip().partition("-") for part in text.split(",")]
    try:
        steps = [step for first, _, last in ranges for step in range(int(first), int(last or first) + 1)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of steps like 0,1 or 0-9") from None
    if not steps:
        raise argparse.ArgumentTypeError(f"{text!r} names no step")
    return sorted(set(steps))


if __name__ == "__main__":
    run_command(main)
