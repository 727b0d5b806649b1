"""Compare two recordings and write the report.

    python scripts/compare_outputs.py --reference outputs/nemo --candidate outputs/nest --out outputs/report

Exit codes: 0 identical or equivalent, 1 diverged, 2 inconclusive (too little compared), 3 bad usage or a damaged
recording, 4 the contract differs (not the same experiment), 70 our own mistake.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError
from nest_ssl.base.steps import parse_steps


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the comparison's exit code.

    Raises:
        UserError: see exit code 3.
    """
    options = _parse(argv)
    # Only now what takes seconds to import: --help and bad usage answer at once.
    from nest_ssl.compare import FixedTolerance, compare_recordings
    from nest_ssl.compare.declared import load_declared
    from nest_ssl.recording.reader import open_recording
    from nest_ssl.report import print_summary, write_reports
    from nest_ssl.run.nest_report import explain_nest

    declared = [*load_declared(), *(load_declared(options.declared) if options.declared else [])]
    reference, candidate = (open_recording(path, options.verify) for path in (options.reference, options.candidate))
    rule = FixedTolerance(options.atol, options.rtol)
    comparison = compare_recordings(reference, candidate, rule, options.steps, declared, [explain_nest])
    print_summary(comparison, write_reports(comparison, options.out))
    return comparison.exit_code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    folders = {
        "--reference": ("outputs/nemo", "folder of the recording to measure against"),
        "--candidate": ("outputs/nest", "folder of the recording to judge"),
        "--out": ("outputs/report", "folder for report.md and report.json"),
    }
    for option, (default, what) in folders.items():
        parser.add_argument(option, type=Path, default=Path(default), help=f"{what} (default {default})")
    parser.add_argument("--atol", type=_bound, default=1e-5, help="absolute tolerance of `equivalent` (default 1e-5)")
    parser.add_argument("--rtol", type=_bound, default=1e-5, help="relative tolerance of `equivalent` (default 1e-5)")
    parser.add_argument("--steps", type=_steps, help="compare only these steps: 0, 0,1 or 0-9 (default: all recorded)")
    parser.add_argument("--declared", type=Path, help="YAML list of structural differences that are meant, beside ours")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="trust the files: skip their SHA-256")
    return parser.parse_args(argv)


def _bound(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def _steps(text: str) -> list[int] | None:
    steps = parse_steps(text)
    if steps is not None and not steps:
        raise UserError("no step to compare", f"--steps {text}", "Leave it out to compare all that were recorded.")
    return None if steps is None else sorted(steps)
