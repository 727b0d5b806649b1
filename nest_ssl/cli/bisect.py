"""Find the first of many steps at which two trainers part, and record that one in full.

    nest-ssl bisect --reference outputs/nemo --candidate outputs/nest --steps 500 --out outputs/bisect

Both train again, from the configurations in their recordings, and every tensor of every step is hashed. The first step
whose hashes differ is trained once more and recorded in full on both sides, compared, and reported in the folder
`report`. Where both recordings are hashes already (record=digest), as those of a loop of your own, these are compared.
Further options are those of `nest-ssl compare`, but for --names. Exit codes: 0 all steps have the same bits, 2 too
little compared (of a step there is one side alone, or what differed did not when it was trained once more), else the
comparison's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import EXIT_DIVERGED, EXIT_INCONCLUSIVE, EXIT_OK, UserError

if TYPE_CHECKING:
    from nest_ssl.compare.comparison import Comparison
    from nest_ssl.report.pictures import Pictures
    from nest_ssl.run.compared import Opened


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: bad usage, a recording that is missing or damaged, or a run that failed.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--reference", type=Path, default=Path("outputs/nemo"), help="recording (default outputs/nemo)")
    parser.add_argument("--candidate", type=Path, default=Path("outputs/nest"), help="recording (default outputs/nest)")
    parser.add_argument("--out", type=Path, default=Path("outputs/bisect"), help="folder (default outputs/bisect)")
    parser.add_argument("--steps", type=int, default=100, help="how many steps are trained (default 100)")
    for side in ("reference", "candidate"):
        what = f"command that starts the {side}'s Python (default: the environment of its release in .venv)"
        parser.add_argument(f"--{side}-python", metavar="COMMAND", help=what)
    options, further = parser.parse_known_args(argv)
    if options.steps < 1:
        raise UserError("nothing to train", f"--steps {options.steps}", "Give a whole number from 1.")
    from nest_ssl.cli.compare import asked_of, read_options
    from nest_ssl.cli.explain import JobRunner, command_of, sigterm_interrupts
    from nest_ssl.compare.digests import compare_digests
    from nest_ssl.recording.digests import digest_steps
    from nest_ssl.recording.reader import Recording, open_recording
    from nest_ssl.run.bisect import HASHES, WHOLE, described, forget, made, runs_of_hashes, runs_of_step
    from nest_ssl.run.compared import open_as_asked, refuse_ranks
    from nest_ssl.run.evidence import SCRIPTS, SIDES, Job, Side

    out = options.out
    given: dict[Side, Recording] = {side: open_recording(getattr(options, side), verify=False) for side in SIDES}
    sides = ["--reference", str(out / WHOLE / "reference"), "--candidate", str(out / WHOLE / "candidate")]
    comparing = read_options([*sides, "--out", str(out / "report"), *further])
    if comparing.names:
        raise UserError("hashes are found by one name on both sides", f"--names {comparing.names}", "Leave it out.")

    def run(jobs: list[Job], kind: str) -> None:
        refuse_ranks(*given.values())
        python: dict[str, list[str]] = {
            side: command_of(side, getattr(options, f"{side}_python"), one.index) for side, one in given.items()
        }
        forget(given, out / kind)
        out.mkdir(parents=True, exist_ok=True)
        with sigterm_interrupts():
            JobRunner(jobs, python, out, given["reference"].index, "bisect").run()

    hashed = given
    if not all(digest_steps(one) for one in given.values()):
        run(runs_of_hashes(given, out, options.steps), HASHES)
        hashed = made(out, HASHES)
    found = compare_digests(hashed["reference"], hashed["candidate"])
    print(*(f"bisect: {line}" for line in described(found)), sep="\n")
    if found.first is None and len({tuple(digest_steps(one)) for one in hashed.values()}) > 1:
        print("bisect: only one side has hashes of the other steps")
        return EXIT_INCONCLUSIVE
    if found.first is None:
        return EXIT_OK
    if any(one.index.trainer.package not in SCRIPTS for one in given.values()):
        print(f"bisect: record step {found.first.step} of both in full, and compare these: nest-ssl compare")
        return EXIT_DIVERGED
    run(runs_of_step(given, out, options.steps, found.first.step), WHOLE)
    paths = [one.path for one in made(out, WHOLE).values()]
    return _report_on_step(comparing, lambda: open_as_asked(paths[0], paths[1], asked_of(comparing)), found.first.step)


def _report_on_step(options: argparse.Namespace, opened: Callable[[], Opened], step: int) -> int:
    """Report on the step that was recorded in full; returns the exit code, no pass where it is the same after all."""
    from nest_ssl.cli.compare import report_on
    from nest_ssl.compare.findings import Status

    verdicts = []

    def compare() -> tuple[Comparison, Pictures]:
        comparison, pictures = opened().compare_and_picture()
        verdicts.append(comparison.verdict)
        return comparison, pictures

    code = report_on(options, compare)
    if verdicts == [Status.IDENTICAL]:
        print(f"bisect: step {step} has the same bits when trained again: a trainer does not repeat itself")
        return EXIT_INCONCLUSIVE
    return code
