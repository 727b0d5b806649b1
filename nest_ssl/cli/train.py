"""Train and record: `scripts/train_nemo.py`, `scripts/train_nest.py` and `nest-ssl train` end here."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from nest_ssl.base.arguments import PROGRAM
from nest_ssl.base.errors import EXIT_OK, UserError
from nest_ssl.base.home import ROOT
from nest_ssl.run.allocator import keep_freed_memory
from nest_ssl.run.importing import importing
from nest_ssl.run.subject import Subject

THEN = "--then"


def train(subject: Subject, argv: Sequence[str] | None = None) -> int:
    """Train and record what the command line asks for; returns the exit code.

    Several runs, with ``--then`` between their arguments, share a process; where one is refused, as by a full disk, the
    others are made all the same. torch and Lightning take seconds to import: `--help` and mistakes in the configuration
    do not wait for them.

    Raises:
        UserError: whatever the user can mend; of several runs the first that was refused, with what the others were.
    """
    runs: list[list[str]] = [[]]
    for word in sys.argv[1:] if argv is None else argv:
        if word == THEN:
            runs.append([])
        else:
            runs[-1].append(word)
    from nest_ssl.run.command_line import read_command_line

    configurations = [(read_command_line(subject.name, words), words) for words in runs]
    keep_freed_memory()
    with importing():
        from nest_ssl.run.experiment import record

    refused: list[UserError] = []
    for cfg, words in configurations:
        try:
            if code := record(subject, cfg, words):
                return code
        except UserError as error:
            refused.append(error)
    for first, *others in [refused] if refused else ():
        also = [f"Refused as well: {error.what}: {error.where}." for error in others]
        raise UserError(first.what, first.where, " ".join([first.fix, *also])) from first
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """`nest-ssl train nemo|nest key=value ...`: the script of that trainer, for nothing in this package imports NeMo.

    Without a trainer `--help` is the port's: both take the same words.

    Raises:
        UserError: no such trainer, or no repository around this package.
    """
    trainer, *rest = (sys.argv[1:] if argv is None else list(argv)) or [""]
    if trainer in ("-h", "--help"):
        trainer, rest = "nest", ["--help"]
    script = ROOT / "scripts" / f"train_{trainer}.py"
    if trainer not in ("nemo", "nest"):
        raise UserError("no such trainer", repr(trainer), "Write: nest-ssl train nest (or nemo) key=value ...")
    if not script.is_file():
        raise UserError("no such script", str(script), "Install the package again.")
    names = runpy.run_path(str(script))
    PROGRAM.set(f"nest-ssl train {trainer}")
    return train(names[trainer.upper()], rest)
