"""Train every variant of NeMo's model on both sides, compare all bits, and write which are the same.

    nest-ssl matrix --nemo-python .venv/nemo-3.0.0/bin/python     # make matrix: all; writes docs/parity-matrix.md
    nest-ssl matrix --only 'attention: *' --jobs 2                # some, by choice and name; writes no page
    nest-ssl matrix --amend                                       # those that the page lacks; with --only: those

Exit codes: 0 every variant trains with the same bits, or is one that NeMo stops at; 1 not every one; 3 bad usage.
Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import EXIT_DIVERGED, EXIT_OK, UserError
from nest_ssl.base.home import WORK
from nest_ssl.base.spelling import did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """`nest-ssl matrix`; returns the exit code.

    Raises:
        UserError: no such variant or Python, or a side that ends.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="variants, as 'choice: name', with * and ?")
    parser.add_argument("--amend", action="store_true", help="put those of --only, or those it lacks, into the page")
    parser.add_argument("--nemo", default="3.0.0", help="NeMo's release (default 3.0.0)")
    parser.add_argument("--nemo-python", default=sys.executable, help="that of NeMo's environment (default: this one)")
    parser.add_argument("--nest-python", default=sys.executable, help="that of the port's (default: this one)")
    parser.add_argument("--jobs", type=int, default=1, help="pairs of processes at once (default 1)")
    parser.add_argument("--out", type=Path, default=WORK / "outputs" / "matrix", help="for what is found meanwhile")
    parser.add_argument("--page", type=Path, default=WORK / "docs" / "parity-matrix.md", help="the document")
    options = parser.parse_args(argv)

    from nest_ssl.base.files import write_atomically
    from nest_ssl.matrix.page import amended, cells_of, page, parts_of, summary, title_of
    from nest_ssl.matrix.runs import run_matrix
    from nest_ssl.matrix.variants import STOPPED, VARIANTS, pairs, pairs_of_listed
    from nest_ssl.record.provenance import describe_run

    pythons = {}
    for name in ("nemo", "nest"):
        pythons[name] = shutil.which(getattr(options, f"{name}_python")) or ""
        if not pythons[name]:
            raise UserError("no such Python", getattr(options, f"{name}_python"), "Make them with make setup.")
    known = {each.title: each for each in (*VARIANTS, *pairs(), *pairs_of_listed())}
    before = options.page.read_text("utf-8") if options.page.exists() else ""
    if options.amend and options.nemo not in parts_of(before):
        where = f"{options.page}, NeMo {options.nemo}"
        raise UserError("nothing of this release is there", where, "Leave out --amend.")
    shown = {title_of(cell) for cell in cells_of(parts_of(before)[options.nemo])} if options.amend else set()
    asked = [title for title in known if (fnmatch(title, options.only) if options.only else title not in shown)]
    variants = [known[title] for title in asked]
    if not variants and not options.only:
        print(f"matrix: NeMo {options.nemo}: the page has every variant")
        return EXIT_OK
    if not variants:
        names = [*known, *(f"{each.group}: *" for each in known.values())]
        fix = did_you_mean(options.only, names, "See docs/parity-matrix.md.")
        raise UserError("no such variant", f"--only '{options.only}'", fix)
    if options.jobs < 1:
        raise UserError("not a number of pairs", f"--jobs {options.jobs}", "Give a whole number from 1.")
    cells = run_matrix(variants, pythons, options.nemo, options.out.absolute(), options.jobs)
    print(f"matrix: {summary(options.nemo, cells)}")
    # What stops both may be a mistake in the settings of a variant: of this release it is known what NeMo stops at.
    refused = [cell for cell in cells if cell.verdict == "refused" and options.nemo == "3.0.0"]
    unforeseen = [cell for cell in refused if f"{cell.group}: {cell.name}" not in STOPPED]
    for cell in cells:
        if not cell.is_right or cell in unforeseen:
            why = cell.difference or cell.candidate or cell.reference
            print(f"matrix: {cell.group}: {cell.name}: {cell.verdict}: {why}")
    commit = describe_run()["git"]["commit"] or ""
    if options.amend:
        write_atomically(options.page, amended(options.nemo, cells, [*known], commit, before))
    elif not options.only:
        write_atomically(options.page, page(options.nemo, cells, commit, before))
    return EXIT_OK if all(cell.is_right for cell in cells) and not unforeseen else EXIT_DIVERGED
