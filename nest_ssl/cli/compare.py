"""Compare two recordings and write the report.

    nest-ssl compare --reference outputs/nemo --candidate outputs/nest --out outputs/report

Exit codes: 0 identical or equivalent, 1 diverged, 2 inconclusive (too little compared), 3 bad usage or a damaged
recording, 4 the contract differs (not the same experiment), 70 our own mistake.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError
from nest_ssl.base.steps import parse_steps
from nest_ssl.recording.layout import rank_folder
from nest_ssl.run.compared import Asked, open_as_asked, ranks_of

if TYPE_CHECKING:
    from nest_ssl.compare.comparison import Comparison
    from nest_ssl.report.pictures import Pictures

FORMATS = ("junit", "github")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the comparison's exit code.

    Raises:
        UserError: see exit code 3.
    """
    options = read_options(argv)
    asked = asked_of(options)
    sides = options.reference, options.candidate
    with refusals_written(options):
        ranks = ranks_of(*sides)
    if ranks is not None:
        return _report_on_ranks(options, asked, ranks)
    return report_on(options, lambda: open_as_asked(*sides, asked).compare_and_picture())


def read_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, of which none is wrong by itself.

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
    add_what_decides(parser)
    what = "write more: junit (report.junit.xml), github (the page of the job, GITHUB_STEP_SUMMARY); may be repeated"
    parser.add_argument("--format", action="append", default=[], choices=FORMATS, dest="formats", help=what)
    options = parser.parse_args(argv)
    out = options.out.resolve()
    for folder in (options.reference.resolve(), options.candidate.resolve()):
        if folder in (out, *out.parents):
            raise UserError(
                "a report would be written into a recording", f"--out {options.out}", "Choose a folder outside."
            )

    if "github" in options.formats and not os.environ.get("GITHUB_STEP_SUMMARY"):
        raise UserError("no page to write to", "--format github", "It is for GitHub Actions: GITHUB_STEP_SUMMARY.")
    return options


def report_on(options: argparse.Namespace, compare: Callable[[], tuple[Comparison, Pictures]]) -> int:
    """Compare, write what is asked for and print the head of it; returns the exit code.

    Raises:
        UserError: what `compare` raises, or a report cannot be written.
    """
    from nest_ssl.report import print_summary

    comparison, report = _write(options, compare)
    print_summary(comparison, report)
    levels = [side.index.level for side in (comparison.reference, comparison.candidate)]
    if all(level is not None and level.record == "digest" for level in levels):
        sides = f"--reference {quote(str(options.reference))} --candidate {quote(str(options.candidate))}"
        print(f"note: of their steps both have hashes alone, which are compared by nest-ssl bisect {sides}")
    return comparison.exit_code


def _report_on_ranks(options: argparse.Namespace, asked: Asked, ranks: Sequence[tuple[Path, Path]]) -> int:
    """A report for every rank, and one over all of them; returns the exit code of the whole.

    Raises:
        UserError: a recording or the evidence is damaged, or a report cannot be written.
    """
    from nest_ssl.compare.ranks import compare_over_ranks
    from nest_ssl.report.ranks import append_ranks_summary, print_ranks_summary, write_ranks_junit, write_ranks_report

    compared = []
    for rank, sides in enumerate(ranks):
        own = argparse.Namespace(**{**vars(options), "out": options.out / rank_folder(rank)})
        compare = partial(open_as_asked, *sides, asked)
        with refusals_written(options):
            compared.append(_write(own, lambda compare=compare: compare().compare_and_picture())[0])  # type: ignore[misc]
    over = compare_over_ranks(compared)
    report = write_ranks_report(over, options.out)
    if "junit" in options.formats:
        write_ranks_junit(over, options.out)
    if "github" in options.formats:
        append_ranks_summary(over, Path(os.environ["GITHUB_STEP_SUMMARY"]))
    print_ranks_summary(over, report)
    return over.exit_code


@contextmanager
def refusals_written(options: argparse.Namespace) -> Iterator[None]:
    """Where JUnit is asked for, what is refused stands in its file, too: whoever reads it alone sees no pass."""
    try:
        yield
    except UserError as error:
        if "junit" in options.formats:
            from nest_ssl.report import write_junit

            write_junit(str(error), options.out)
        raise


def _write(options: argparse.Namespace, compare: Callable[[], tuple[Comparison, Pictures]]) -> tuple[Comparison, Path]:
    """Compare and write what is asked for; the comparison and the path of its `report.md`."""
    # Only now what takes seconds to import: --help and bad usage answer at once.
    from nest_ssl.report import append_step_summary, write_junit, write_reports

    with refusals_written(options):
        comparison, pictures = compare()
    report = write_reports(comparison, options.out, pictures)
    if "junit" in options.formats:
        write_junit(comparison, options.out)
    if "github" in options.formats:
        append_step_summary(comparison, Path(os.environ["GITHUB_STEP_SUMMARY"]))
    return comparison, report


def add_what_decides(parser: argparse.ArgumentParser) -> None:
    """The options of a comparison beside its two recordings; see `Asked`."""
    for option, kind in (("--atol", "absolute"), ("--rtol", "relative")):
        parser.add_argument(option, type=_bound, help=f"{kind} tolerance, a rule of your own (default: same bits)")
    parser.add_argument("--steps", default="all", help="compare only these: 0, 0,1 or 0-9 (default: all recorded)")
    parser.add_argument("--declared", type=Path, help="YAML list of more structural differences that are meant")
    parser.add_argument("--names", type=Path, help="YAML map of the candidate's names of modules to the reference's")
    parser.add_argument("--known", type=Path, help="YAML ledger of differences that are known and meant")
    parser.add_argument("--evidence", type=Path, help="folder of evidence (default: `evidence` beside the reference)")
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="trust the files: skip their SHA-256")


def asked_of(options: argparse.Namespace) -> Asked:
    """What those options say.

    Raises:
        UserError: they name no step, or evidence that is not there.
    """
    steps = parse_steps(options.steps)
    if steps is not None and not steps:
        raise UserError("no step to compare", f"--steps {options.steps}", "Leave it out to compare all recorded steps.")
    if options.evidence and not options.evidence.is_dir():
        raise UserError("no such evidence", f"--evidence {options.evidence}", "Gather it with make explain.")
    files = {name: getattr(options, name) for name in ("declared", "names", "known", "evidence")}
    numbers = None if steps is None else tuple(sorted(steps))
    return Asked(options.atol, options.rtol, numbers, verify=options.verify, **files)


def _bound(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value
