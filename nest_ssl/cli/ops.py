"""The ATen operators of recorded steps: list them, or show where two sides run others.

    nest-ssl ops list outputs/nemo --module 'preprocessor*'
    nest-ssl ops diff --reference outputs/a/nemo --candidate outputs/b/nemo

Recordings have them if they were made with operators=true, for all their steps (make nemo ARGS=operators=true); a
file of evidence (operators/reference.json) will do too. Exit codes of diff: 0 the same operators, 1 others, 3 bad usage
or a damaged recording.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: see exit code 3.
    """
    parser = Parser(description=__doc__, prog="nest-ssl ops")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="list|diff")
    listing = verbs.add_parser("list", help="every operator of a step, in the order in which they ran")
    listing.add_argument("recording", type=Path, help="folder of a recording, or a file of evidence")
    listing.add_argument("--phase", choices=["forward", "backward", "optimizer"], help="only this one")
    comparing = verbs.add_parser("diff", help="where two sides run other operators, by call of a module")
    for option, default in (("--reference", "outputs/nemo"), ("--candidate", "outputs/nest")):
        what = f"a recording, or a file of evidence (default {default})"
        comparing.add_argument(option, type=Path, default=Path(default), help=what)
    for verb in (listing, comparing):
        verb.add_argument(
            "--module", action="append", help="only modules of this pattern: 'encoder.layers.0*'; may be repeated"
        )
        verb.add_argument("--step", type=int, help="default: the first that was traced; of diff: on both sides")
    options = parser.parse_args(argv)
    return _list(options) if options.verb == "list" else _diff(options)


def _list(options: argparse.Namespace) -> int:
    from nest_ssl.compare.operators import read_operators, refuse_unknown, select
    from nest_ssl.report.document import CodeBlock
    from nest_ssl.report.render.terminal import print_blocks
    from nest_ssl.report.sections.operators import operator_text

    lines, side = [], read_operators(options.recording, options.step)
    refuse_unknown(options.module, side)
    for operator in select(side, options.module):
        if options.phase in (None, operator.phase):
            call = "" if operator.call is None else f"#{operator.call}"
            where = "-" if operator.module is None else f"{operator.module or '(root)'}{call}"
            lines.append(f"{operator.phase:<9} {where}  {operator_text(operator)}  {operator.source}".rstrip())
    print_blocks([CodeBlock(tuple(lines))])
    return 0


def _diff(options: argparse.Namespace) -> int:
    from nest_ssl.compare.operators import diff, read_both, refuse_unknown
    from nest_ssl.report.document import Paragraph
    from nest_ssl.report.render.terminal import print_blocks
    from nest_ssl.report.sections.operators import operators
    from nest_ssl.report.words import counted, say

    reference, candidate = read_both(options.reference, options.candidate, options.step)
    refuse_unknown(options.module, reference, candidate)
    found = diff(reference, candidate, options.module)
    sizes = [counted(len(side.operators), "operators") for side in (reference, candidate)]
    count = counted(sum(1 for each in found if each.changes), "calls")
    total = say("operators.total", step=reference.step, reference=sizes[0], candidate=sizes[1], differing=count)
    print_blocks([*operators(found), Paragraph(total)])
    return int(any(each.changes for each in found))
