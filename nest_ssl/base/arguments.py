"""Command lines of all our programs."""

from __future__ import annotations

import argparse
from contextvars import ContextVar
from typing import Any, NoReturn

from nest_ssl.base.errors import UserError

# What the program was called by, for its help and errors, e.g. "nest-ssl data"; None: the name of its script.
PROGRAM: ContextVar[str | None] = ContextVar("PROGRAM", default=None)


class Parser(argparse.ArgumentParser):
    """argparse with errors as `UserError` (exit 3; its own 2 means inconclusive) and help as it is written."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        written = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **{"prog": PROGRAM.get(), **written, **settings})

    def error(self, message: str) -> NoReturn:
        raise UserError("bad usage", message, f"See {self.prog} --help.")
