"""A program with a case of the catalogue planted in it: what a fault or a rewrite does on hardware of one's own.

    python -m nest_ssl.selftest.planted "a linear layer in two halves" scripts/train_nest.py size=tiny overwrite=true
    python -m nest_ssl.selftest.planted "a linear layer in two halves" -m nest_ssl.cli.main replay ...

`nest-ssl explain` takes all but the program as ``--candidate-python``.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from nest_ssl.base.errors import UserError, run_command
from nest_ssl.base.spelling import did_you_mean
from nest_ssl.selftest.cases import read_catalogue
from nest_ssl.selftest.planting import plant


def main(arguments: Sequence[str] | None = None) -> int:
    """Plants the case, then runs the program in this process; returns its exit code.

    Raises:
        UserError: no program, no such case, or one that cannot be planted.
    """
    name, *program = (sys.argv[1:] if arguments is None else arguments) or [""]
    cases = {case.name: case for case in read_catalogue()}
    if name not in cases:
        raise UserError("no such case", name, did_you_mean(name, cases))
    as_module = program[:1] == ["-m"]
    words = program[as_module:]
    if not words:
        raise UserError("no program", name, "Give a script or -m MODULE behind the case, with its arguments.")
    plant(cases[name].edits_at(None))
    sys.argv = words
    if as_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    run_command(main)
