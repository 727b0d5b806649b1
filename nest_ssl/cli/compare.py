"""Compare two recordings and write the report.

    nest-ssl compare --reference outputs/nemo --candidate outputs/nest --out outputs/report

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
    parser = Parser(description=__doc__)
    folders = {
        "--reference": ("outputs/nemo", "folder of the recording to measure against"),
        "--candidate": ("outputs/nest", "folder of the recording to judge"),
        "--out": ("outputs/report", "folder for report.md, report.html and report.json"),
    }
    for option, (default, what) in folders.items():
        parser.add_argument(option, type=Path, default=Path(default), help=f"{what} (default {default})")
    for option, kind in (("--atol", "absolute"), ("--rtol", "relative")):
        parser.add_argument(option, type=_bound, help=f"{kind} tolerance, a rule of your own (default: same bits)")
    parser.add_argument("--steps", default="all", help="compare only these: 0, 0,1 or 0-9 (default: all recorded)")
    parser.add_argument("--declared", type=Path, help="YAML list of more structural differences that are meant")
    parser.add_argument("--names", type=Path, help="YAML map of the candidate's names of modules to the reference's")
    parser.add_argument("--known", type=Path, help="YAML ledger of differences that are known and meant")
    parser.add_argument("--evidence", type=Path, help="folder of evidence (default: `evidence` beside the reference)")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="trust the files: skip their SHA-256")
    options = parser.parse_args(argv)
    steps = parse_steps(options.steps)
    if steps is not None and not steps:
        raise UserError("no step to compare", f"--steps {options.steps}", "Leave it out to compare all recorded steps.")
    out = options.out.resolve()
    for folder in (options.reference.resolve(), options.candidate.resolve()):
        if folder in (out, *out.parents):
            raise UserError(
                "a report would be written into a recording", f"--out {options.out}", "Choose a folder outside."
            )

    if options.evidence and not options.evidence.is_dir():
        raise UserError("no such evidence", f"--evidence {options.evidence}", "Gather it with make explain.")

    # Only now what takes seconds to import: --help and bad usage answer at once.
    from nest_ssl.compare import FixedTolerance, compare_recordings
    from nest_ssl.compare.declared import load_declared
    from nest_ssl.compare.evidence import evidence_on
    from nest_ssl.compare.names import Renamed, load_names
    from nest_ssl.compare.rules.known import load_known
    from nest_ssl.recording.reader import open_recording
    from nest_ssl.report import print_summary, write_reports
    from nest_ssl.report.pictures import gather
    from nest_ssl.run.nest_report import explain_nest, picture_nest

    declared = [*load_declared(), *(load_declared(options.declared) if options.declared else [])]
    reference, candidate = (open_recording(path, options.verify) for path in (options.reference, options.candidate))
    given = (options.atol, options.rtol)
    rule = FixedTolerance(*(bound or 0.0 for bound in given)) if given != (None, None) else None
    wanted = None if steps is None else sorted(steps)
    candidate = Renamed(candidate, load_names(options.names)) if options.names else candidate
    known = load_known(options.known) if options.known else []
    evidence = evidence_on(reference, candidate, options.evidence)
    comparison = compare_recordings(reference, candidate, rule, wanted, declared, [explain_nest], evidence, known)
    pictures = gather(comparison, reference, candidate, evidence, picture_nest(comparison, reference, candidate))
    print_summary(comparison, write_reports(comparison, options.out, pictures))
    return comparison.exit_code


def _bound(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value
