"""Command lines of all our programs."""

from __future__ import annotations

import argparse
from contextvars import ContextVar
from typing import Any, NoReturn

from nest_ssl.base.errors import UserError

# What the program was called by, for its help and errors, e.g. "nest-ssl data"; None: the name of its script.
PROGRAM: ContextVar[str | None] = ContextVar("PROGRAM", default=None)
# Collects options instead of parsing, for the completion of a shell.
LISTED: ContextVar[list[str] | None] = ContextVar("LISTED", default=None)


class Parser(argparse.ArgumentParser):
    """argparse with errors as `UserError` (exit 3; its own 2 means inconclusive) and help as it is written."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        written = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **{"prog": PROGRAM.get(), **written, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse; while options are listed, those of this parser and the verbs below it instead."""
        listed = LISTED.get()
        if listed is None:
            return super().parse_known_args(args, namespace)
        for action in self._actions:
            listed += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for name, parser in action.choices.items():
                    listed.append(name)
                    listed += [option for each in parser._actions for option in each.option_strings]
        raise SystemExit(0)

    def error(self, message: str) -> NoReturn:
        raise UserError("bad usage", message, f"See {self.prog} --help.")
