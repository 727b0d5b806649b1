"""Say what changed from one NeMo to another: what the table of generations names, and what has no name yet.

    make track FROM_VERSION=2.7.3 NEMO_VERSION=3.0.0         # trains all four, then this
    nest-ssl track outputs/track/before outputs/track/after --out outputs/track/report

Each folder has the recordings `nemo` (with operators=true) and `nest`, the port as exact with it. Where the port parts
from a NeMo, its modules are given what NeMo's were given, so that all places are found, not the first alone. Writes
track.md and track.json. Exit codes: 0 the table names all that changed in what was run, 1 something has no name, 2 too
little compared, 3 bad usage or a damaged recording, 4 not the same experiment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser

OWN = "nest-ssl"  # the package of what can be built here, and given another's inputs


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: see exit code 3.
    """
    parser = Parser(description=__doc__, prog="nest-ssl track")
    for side, what in (("before", "the earlier NeMo"), ("after", "the later one")):
        parser.add_argument(side, type=Path, help=f"folder of {what}: nemo/ and nest/")
    parser.add_argument("--out", type=Path, default=Path("outputs/track/report"), help="folder of the page")
    options = parser.parse_args(argv)

    # Only now what takes seconds to import: --help and bad usage answer at once.
    from nest_ssl.base.errors import write_errors
    from nest_ssl.base.files import write_atomically
    from nest_ssl.cli.replay import main as replay
    from nest_ssl.compare.findings import Status
    from nest_ssl.report.document import Paragraph
    from nest_ssl.report.render.json import strict
    from nest_ssl.report.render.markdown import render_markdown
    from nest_ssl.report.render.terminal import print_blocks
    from nest_ssl.report.words import say
    from nest_ssl.track.changes import NEMO, PORT, track
    from nest_ssl.track.page import head, page

    found = track(options.before, options.after)
    sides = {options.before: found.before, options.after: found.after}
    parted = [
        folder
        for folder, side in sides.items()
        if side.verdict is Status.DIVERGED and not side.contract_differs and side.candidate.index.trainer.package == OWN
    ]
    for folder in parted:
        replay(["--reference", str(folder / NEMO), "--candidate", str(folder / PORT), "--no-verify"])
    if parted:  # with what the replay shows
        found = track(options.before, options.after)
    with write_errors(str(options.out)):
        tree = json.dumps(strict(found.as_tree()), indent=1, allow_nan=False)
        write_atomically(options.out / "track.json", f"{tree}\n")
        write_atomically(options.out / "track.md", render_markdown(page(found)))
    print_blocks([*head(found), Paragraph(say("report", path=options.out / "track.md"))])
    return found.exit_code
