"""Say what this environment, machine and settings come to, before anything is trained.

    nest-ssl doctor nest size=large save_steps=0-9 output_dir=outputs/nest
    nest-ssl doctor nemo model.train_ds.manifest_filepath=/data/train.json      # in NeMo's environment

Versions against the lock, GPU and driver, threads, disk and memory for this size, settings and data; each line is ok, a
note, or refused: a run would end with that line. Exit codes: 0 nothing is refused, 3 something is. `make doctor` asks
for both trainers, each in its environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import EXIT_BAD_INPUT, EXIT_OK, UserError, visible


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: no such trainer.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("trainer", metavar="nest|nemo", help="which trainer, in its own environment")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings, as of nest-ssl train")
    options = parser.parse_args(argv)
    trainer = options.trainer
    if trainer not in ("nemo", "nest"):
        raise UserError("no such trainer", repr(trainer), "Write: nest-ssl doctor nest (or nemo) key=value ...")
    from nest_ssl.cli.replay import subject_of
    from nest_ssl.run.doctor import examine

    refused = False
    for answer in examine(trainer, options.words, subject_of(trainer, Path())):
        refused |= answer.state == "refused"
        print(visible(f"doctor: {trainer}: {answer.state:<7} {answer.what:<8} {answer.text}"), flush=True)
    return EXIT_BAD_INPUT if refused else EXIT_OK
