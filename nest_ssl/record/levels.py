"""How much of a step is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.base.spelling import did_you_mean
from nest_ssl.recording import index

Record = Literal["digest", "operators", "boundaries", "modules"]


@dataclass(frozen=True)
class Level:
    """How much of a step is recorded.

    Args:
        record: ``modules``: the calls of all modules, whole. ``boundaries``: of the model, its parts and the blocks in
            its lists alone. ``digest``: of every tensor a hash, bounds, norm and count of NaN, and nothing whole.
            ``operators``: its ATen operators and draws alone.
        include: patterns of names (``encoder.layers.0*``): modules that are recorded, in place of the level's choice.
        exclude: patterns of names of modules that are not.

    Raises:
        UserError: there is no such level, or patterns are a text.
    """

    record: Record = "modules"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.record not in get_args(Record):
            known = get_args(Record)
            raise UserError("no such level", f"record={self.record}", did_you_mean(self.record, known, str(known)))
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            if isinstance(patterns, str):
                fix = f"Give a list: {option}=[{patterns!r}]."
                raise UserError("a text in place of a list of patterns", f"{option}={patterns!r}", fix)

    def refuse_what_fits_nothing(self, model: nn.Module) -> None:
        """A pattern without a module is a slip of the pen: what it was meant for would be missing, or be recorded.

        Raises:
            UserError: there is such a pattern.
        """
        names = [name for name, _ in model.named_modules()]
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    fix = "Give names of modules as the model has them, with * and ?: encoder.layers.0*."
                    where = f"{option}={pattern}"
                    raise UserError("a pattern that fits no module", where, did_you_mean(pattern, names, fix))

    def modules(self, model: nn.Module) -> frozenset[str] | None:
        """Names of the modules whose calls are recorded, besides the model's own; None: all."""
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        described = index.Level(record=self.record, include=[*self.include], exclude=[*self.exclude])
        return described.chosen([name for name, _ in model.named_modules()], lists)

    def described(self) -> dict[str, Any] | None:
        """For the index; None where all is recorded, as without a level."""
        if self == ALL:
            return None
        return {"record": self.record, "include": list(self.include), "exclude": list(self.exclude)}


ALL = Level()
