"""Is this trainer numerically the same as that one, bit by bit, and if not, where do they part?

    import nest_ssl

    with nest_ssl.recording("outputs/run", model, steps=[0, 1]) as r:     # around any loop of torch, see its help
        ...
    found = nest_ssl.compare("outputs/reference", "outputs/run")          # what differs first, in causal order
    print(found)                                                           # the report's first screen
    nest_ssl.report(found, "outputs/report")                               # report.html, report.md, report.json

`nest_ssl.callback(out, steps=[0, 1])` is the same for Lightning's Trainer. The functions are in `nest_ssl.api`; with
`pip install nest_ssl[train]` there is also an independent NEST trainer, which trains as NVIDIA NeMo's does. Its three
wings are to be read in this order, each room from its own `__init__.py`. What stands higher may import what stands
lower, never the other way, and import-linter holds it (pyproject.toml):

    the proof     base, recording, record, compare, report: what a stranger must trust. A recorder for any torch model,
                  a comparer of any two recordings; they know neither the model nor the trainer nor the data
    the port      releases, data, practice, model: NeMo's batches and NeMo's model in own code
    the trainer   config, train, run, cli: what trains and records it, from the command line down
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nest_ssl.api import Compared, ComparedRanks, callback, compare, recording, report

__version__ = "0.1.0"
__all__ = ["Compared", "ComparedRanks", "callback", "compare", "recording", "report"]
_ROOMS = ("compare", "recording", "report")  # names of a room and of a function: the room is called


class _Package(ModuleType):
    """This package, whose rooms of `_ROOMS` become callable as they are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ROOMS and isinstance(value, ModuleType):
            value.__class__ = _Room
        super().__setattr__(name, value)


class _Room(ModuleType):
    """A room that is also the function of its name in `nest_ssl.api`."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        from nest_ssl import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **settings)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Only now what takes a second to import: torch and the comparer."""
    if name in _ROOMS:
        return importlib.import_module(f"nest_ssl.{name}")
    if name in __all__:
        return getattr(importlib.import_module("nest_ssl.api"), name)
    raise AttributeError(f"module 'nest_ssl' has no attribute {name!r}")
