"""Plant faults and correct rewrites in the port, one after the other, and write what the comparer made of each.

    nest-ssl selftest                                  # make selftest: all of them; writes docs/detection.md
    nest-ssl selftest --only 'features,*eps*' --jobs 2 # some, by kind or name; writes no page

Exit codes: 0 every fault was caught and placed and every rewrite spared; 1 not all; 3 bad usage. Interrupted, or out of
--minutes, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import EXIT_DIVERGED, EXIT_OK, UserError
from nest_ssl.base.home import WORK


def main(argv: Sequence[str] | None = None) -> int:
    """`nest-ssl selftest`; returns the exit code.

    Raises:
        UserError: no such case, or one that cannot be planted.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases by kind or name, with * and ?, divided by commas")
    parser.add_argument("--quick", action="store_true", help="the few of them that make test runs")
    parser.add_argument("--sample", type=int, default=0, help="with --quick: so many others as well")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once (default 1)")
    parser.add_argument("--no-limits", dest="limits", action="store_false", help="each fault at its own size alone")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no case after these")
    parser.add_argument("--out", type=Path, default=WORK / "outputs" / "selftest", help="for what is found meanwhile")
    options = parser.parse_args(argv)

    from nest_ssl.base.files import write_atomically
    from nest_ssl.record.provenance import describe_run
    from nest_ssl.report.detection import write_detection
    from nest_ssl.report.render.markdown import render_markdown
    from nest_ssl.selftest.cases import read_catalogue, sample, select
    from nest_ssl.selftest.page import page, summed
    from nest_ssl.selftest.runs import Runner
    from nest_ssl.selftest.score import verdict_of

    catalogue = read_catalogue()
    cases = list(select(catalogue, options.only))
    if options.quick:
        cases = [case for case in cases if case.quick] + sample(cases, options.sample)
    if not cases:
        raise UserError("no such case", f"--only {options.only}", "See nest_ssl/selftest/catalogue.")
    runner = Runner(options.out.absolute(), max(1, options.jobs))
    runner.run(cases, options.limits, 60 * options.minutes)
    scores = runner.scores(cases)
    right = [score for score in scores if score.caught and score.placed]
    for score in scores:
        if score not in right:
            named = score.outcome.error or ", ".join(f"{p.phase} {p.module or ''}".strip() for p in score.outcome.born)
            print(f"selftest: not right: {score.case.name}: {verdict_of(score.outcome)}: {named}")
    print(f"selftest: {len(right)} of {len(cases)} are right")
    if len(cases) == len(catalogue):
        total = summed(scores, describe_run()["git"]["commit"] or "")
        write_atomically(WORK / "docs" / "detection.md", render_markdown(page(scores, total, catalogue)))
        found = {"sum": asdict(total), "cases": [score.outcome.model_dump() for score in scores]}
        write_atomically(WORK / "docs" / "detection.json", json.dumps(found, indent=1) + "\n")
        write_detection(total)
    return EXIT_OK if len(right) == len(cases) else EXIT_DIVERGED
