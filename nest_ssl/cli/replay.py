"""Feed every recorded call of the reference to the candidate's own modules, and write what came out.

    nest-ssl replay --reference outputs/nemo --candidate outputs/nest --out outputs/evidence/replay.json

Run it in the candidate's environment; the recordings may have been made elsewhere. Exit codes: 0 replayed, whatever was
found; 3 bad usage, a damaged recording or a candidate that cannot be built here; 70 our own mistake.
"""

from __future__ import annotations

import argparse
import runpy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import EXIT_OK, UserError
from nest_ssl.base.home import ROOT
from nest_ssl.base.steps import parse_steps


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: see exit code 3.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reference", type=Path, default=Path("outputs/nemo"), help="recording whose calls are replayed"
    )
    parser.add_argument("--candidate", type=Path, default=Path("outputs/nest"), help="recording of what is judged")
    parser.add_argument("--out", type=Path, help="file to write (default: evidence/replay.json beside the reference)")
    parser.add_argument("--steps", default="all", help="only these recorded steps: 0, 0,1 or 0-9 (default: all)")
    precisions = ("recorded", "float64")
    parser.add_argument("--precision", choices=precisions, default="recorded", help="that the candidate is built in")
    what = "YAML map of the candidate's names of modules to the reference's, as nest-ssl compare takes it"
    parser.add_argument("--names", type=Path, metavar="FILE", help=what)
    parser.add_argument("--no-verify", dest="verify", action="store_false", help="trust the files: skip their SHA-256")
    options = parser.parse_args(argv)
    steps = parse_steps(options.steps)

    # Only now what takes seconds to import: --help and bad usage answer at once.
    from nest_ssl.compare.name_map import load_names
    from nest_ssl.compare.names import Renamed, uncompiled
    from nest_ssl.recording.evidence import REPLAY, folder_beside, write_evidence
    from nest_ssl.recording.reader import open_recordings
    from nest_ssl.run.candidate import replay_recording
    from nest_ssl.run.compared import refuse_ranks
    from nest_ssl.run.console import quiet

    refuse_ranks(options.reference, options.candidate)
    reference, candidate = open_recordings((options.reference, options.candidate), options.verify)
    rename = load_names(options.names) if options.names else uncompiled(reference, candidate)
    candidate = Renamed(candidate, rename) if rename else candidate
    missing = sorted((steps or set()) - set(reference.steps))
    if missing:
        raise UserError("a step that was not recorded", f"--steps {options.steps}: {missing[0]}", "See recording.json.")
    subject = subject_of(candidate.index.trainer.name, options.candidate)
    wanted = None if steps is None else sorted(steps)
    out = options.out or folder_beside(options.reference) / REPLAY
    with quiet(out.with_suffix(".log")):
        found = replay_recording(subject, reference, candidate, options.precision == "float64", wanted, rename)
    write_evidence(out, found)
    counts = Counter((unit.phase, unit.outcome) for unit in found.units)
    for phase in dict.fromkeys(unit.phase for unit in found.units):
        outcomes = ", ".join(f"{count:,} {outcome}" for (of, outcome), count in counts.items() if of == phase)
        print(f"replay: {phase}: {outcomes}")
    if found.unchecked:
        print(f"replay: {found.unchecked}")
    print(f"replay: {out} ({found.seconds:.1f} s)")
    return EXIT_OK


def subject_of(trainer: str, recording: Path) -> Any:
    """The trainer of that name, from the script that trains it: nothing in this package imports NeMo.

    Raises:
        UserError: no such script: another loop recorded it.
    """
    script = ROOT / "scripts" / f"train_{trainer}.py"
    if trainer not in ("nemo", "nest") or not script.is_file():
        fix = "Build the model in a script of your own and call nest_ssl.replay.replay."
        raise UserError("a recording of another trainer", f"{recording} is of {trainer!r}", fix)
    return runpy.run_path(str(script))[trainer.upper()]
