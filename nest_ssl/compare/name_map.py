"""The grammar of maps of names: from what a candidate calls its modules and tensors to what the reference calls them.

    encoder.blocks.{i}: encoder.layers.{i}            # a module, and all below it; {i} and * stand for one part
    model: ""                                         # wrapped: the reference's root is the candidate's `model`
    blocks.{i}.attn.{q,k}_proj: layers.{i}.self_attn.linear_{q,k}      # alternatives on both sides: one to one
    blocks.{i}.attn.qkv.weight: layers.{i}.self_attn.linear_{q,k,v}.weight     # on one side: split or fused (`dim`)
    conv.weight: {to: subsampling.weight, permute: [0, 3, 1, 2]}       # a tensor in another layout

The left name is the candidate's; of those that fit, the one with the most parts counts. With settings, or with
alternatives on one side, it is the whole name of a parameter or buffer. Settings, in the order in which they are done:

    dim       along which tensors are fused before, and split after, all else (default 0); parts are as large as `sizes`
    slice     [from, to] of that dimension: the rest is padding
    reshape   to this shape
    permute   order of dimensions; `transpose: true` exchanges the last two
    negate    true: the other sign
    dtype     float32, float64, bfloat16, ...

A replay feeds the candidate's own modules, under their own layouts: with a map that only renames it is whole. What has
settings goes one way alone, so that a module with such a parameter is not replayed, nor is the clipping of gradients by
the norm of all of them; both are said. Comparison, float64 and operators take every map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.renaming import Rename
from nest_ssl.base.safe_load import lines_of, load_yaml
from nest_ssl.base.spelling import did_you_mean

SHIPPED = "nest_ssl.compare.maps"  # a map of this folder is given by its name alone
_HOLES = re.compile(r"\*|\{(\w+)\}")
_ALTERNATIVES = re.compile(r"\{(\w*(?:,\w*)+)\}")


class Settings(BaseModel):
    """What is done to a tensor, see the grammar."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    to: str
    dim: int = 0
    sizes: list[Annotated[int, Field(gt=0)]] | None = None
    slice: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    reshape: list[int] | None = None
    permute: list[int] | None = None
    transpose: bool = False
    negate: bool = False
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a map.

    Args:
        sources, targets: names with holes, the candidate's and the reference's; several of one of them are parts.
        settings: what is done to a tensor; None: it keeps its numbers, and names below follow.
        where: the file, its line and the name there, for what is wrong with it.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    settings: Settings | None = None
    where: str = field(default="", compare=False)
    patterns: tuple[re.Pattern[str], ...] = field(default=(), compare=False)

    def changed(self, parts: Sequence[Tensor], signed: bool = True) -> list[Tensor]:
        """The reference's tensors, from the candidate's; what is not `signed`, as squares are not, is not negated.

        Raises:
            ValueError: they do not have the shape for it.
        """
        s = self.settings
        assert s is not None
        try:
            widths = [part.shape[s.dim] for part in parts]
            if s.sizes and len(self.sources) > 1 and widths != s.sizes:
                raise ValueError(f"the parts are {widths} wide and not {s.sizes}")
            whole = torch.cat(list(parts), s.dim) if len(parts) > 1 else parts[0]
            whole = whole.narrow(s.dim, s.slice[0], s.slice[1] - s.slice[0]) if s.slice else whole
            whole = whole.reshape(s.reshape) if s.reshape is not None else whole
            whole = whole.permute(s.permute) if s.permute is not None else whole
            whole = whole.transpose(-1, -2) if s.transpose else whole
            whole = -whole if s.negate and signed else whole
            whole = whole.to(getattr(torch, s.dtype)) if s.dtype else whole
            if len(self.targets) == 1:
                return [whole.contiguous()]
            if s.sizes is None and whole.shape[s.dim] % len(self.targets):
                raise ValueError(f"{whole.shape[s.dim]} are not {len(self.targets)} equal parts; give sizes")
            sizes = s.sizes or [whole.shape[s.dim] // len(self.targets)] * len(self.targets)
            return [part.contiguous() for part in torch.split(whole, sizes, s.dim)]
        except (RuntimeError, IndexError, TypeError) as error:  # of torch; TypeError: a number beyond its integers
            raise ValueError(str(error).splitlines()[0]) from error


@dataclass(frozen=True, slots=True)
class Match:
    """A name that an entry fits: which of its sources, and what fills the holes."""

    entry: Entry
    source: int
    holes: tuple[str, ...]
    rest: str

    @property
    def key(self) -> tuple[str, ...]:
        """The same for all parts of what is fused."""
        return (*self.entry.sources, *self.holes)

    def names(self) -> list[str]:
        """The reference's names."""
        names = [filled(self.entry.sources[self.source], target, self.holes) for target in self.entry.targets]
        return [".".join(part for part in (name, self.rest) if part) for name in names]


class Names(Rename):
    """A map of names; called with the candidate's name of a module, it gives the reference's.

    Raises:
        UserError: an entry that is none; `where` says in which file, `lines` in which line of it.
    """

    def __init__(self, given: Mapping[str, Any], where: str = "names", lines: Mapping[str, int] | None = None) -> None:
        self.where, self.lines = where, lines or {}
        self.given = dict(given)
        entries = [entry for name, target in given.items() for entry in self._entries(name, target)]
        self.entries = sorted(entries, key=lambda entry: -len(entry.sources[0].split(".")))

    def __call__(self, name: str) -> str:
        match = self.match(name, leaf=False)
        return match.names()[0] if match else name

    def changes(self, name: str) -> bool:
        """Whether the parameter or buffer of this name is read as another tensor: transposed, split, fused, ..."""
        match = self.match(name)
        return match is not None and match.entry.settings is not None

    def in_float64(self) -> Names:
        """The same, for a run that had all its numbers in float64: the dtype of none is changed."""
        found = Names(self.given, self.where, self.lines)
        for place, entry in enumerate(found.entries):
            if entry.settings is not None:
                settings = entry.settings.model_copy(update={"dtype": None})
                found.entries[place] = replace(entry, settings=settings)
        return found

    def match(self, name: str, leaf: bool = True) -> Match | None:
        """The entry that counts for a name; `leaf`: of a parameter or buffer."""
        for entry in self.entries:
            for source, pattern in enumerate(entry.patterns):
                found = pattern.match(name)
                rest = name[found.end() :].lstrip(".") if found else ""
                if found and (entry.settings is None or (leaf and not rest)):
                    return Match(entry, source, found.groups(), rest)
        return None

    def _entries(self, name: str, target: Any) -> Iterator[Entry]:
        settings, to = None, target
        if isinstance(target, dict):
            try:
                settings = Settings.model_validate(target)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                wrong = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
                known = Settings.model_fields if first["type"] == "extra_forbidden" else ()
                raise self._wrong(name, did_you_mean(str(first["loc"][-1]), known, wrong)) from error
            to = settings.to
            if settings.dtype and not isinstance(getattr(torch, settings.dtype, None), torch.dtype):
                raise self._wrong(name, f"dtype: torch has no {settings.dtype}.")
        if not isinstance(name, str) or not name or not isinstance(to, str):
            raise self._wrong(name, "Give a name of the reference for each name of the candidate.")
        try:
            sources, targets = _alternatives(name), _alternatives(to)
        except ValueError as error:
            raise self._wrong(name, f"{error}") from error
        several = {len(side) for side in (sources, targets)} - {1}
        pairs = [(sources, targets)]
        if len(sources) == len(targets):
            pairs = [((source,), (goal,)) for source, goal in zip(sources, targets, strict=True)]
        elif len(several) == 2:
            raise self._wrong(name, "Give as many alternatives on the right as on the left, or on one side alone.")
        else:
            settings = settings or Settings(to=to)
        number = max(len(one) for one in pairs[0])
        if settings and settings.sizes and not 1 < number == len(settings.sizes):
            parts = f"{number} parts" if number > 1 else "nothing that is split or fused"
            raise self._wrong(name, f"sizes: they are {len(settings.sizes)}, for {parts}.")
        for one, other in pairs:
            for source in one:
                given = _holes(source)
                lacks = (goal for goal in other if {*_holes(goal)} - {*given} or goal.count("*") > given.count("*"))
                if bad := next(lacks, None):
                    raise self._wrong(name, f"Give each * and {{}} of {bad!r} on the left too.")
            if settings and any(_holes(source) != _holes(one[0]) for source in one):
                raise self._wrong(name, "Give all parts the same * and {}.")
            yield Entry(one, other, settings, self._place(name), tuple(map(pattern_of, one)))

    def _place(self, name: Any) -> str:
        line = f", line {self.lines[name]}" if name in self.lines else ""
        return f"{self.where}{line}: {name!r}"

    def _wrong(self, name: Any, fix: str) -> UserError:
        return UserError("no map of names", self._place(name), fix)


def load_names(path: Path) -> Names:
    """A map of names, from a file or, by its name, of those that are shipped (`nest_ssl/compare/maps`).

    Raises:
        UserError: the file cannot be read, or is no such map.
    """
    shipped = resources.files(SHIPPED).joinpath(f"{path}.yaml")
    try:
        content = shipped.read_bytes() if not path.suffix and shipped.is_file() else path.read_bytes()
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    found = load_yaml(content, str(path))
    if not isinstance(found, dict):
        raise UserError("no map of names", str(path), "Give a name of the reference for each name of the candidate.")
    return Names(found, str(path), lines_of(content))


def renaming(names: Mapping[str, Any]) -> Names:
    """A map given in place."""
    return Names(names)


def _alternatives(name: str) -> tuple[str, ...]:
    """``linear_{q,k,v}.weight`` as three names, all groups of one name by turns.

    Raises:
        ValueError: the groups do not have the same number of alternatives.
    """
    groups = [group.split(",") for group in _ALTERNATIVES.findall(name)]
    if len({len(group) for group in groups}) > 1:
        raise ValueError(f"Give all groups of {name!r} the same number of alternatives.")
    made = []
    for place in range(len(groups[0]) if groups else 1):
        turn = iter(groups)
        made.append(_ALTERNATIVES.sub(lambda _, turn=turn, place=place: next(turn)[place], name))  # type: ignore[misc]
    return tuple(made)


def _holes(name: str) -> list[str]:
    return [found[1] or "*" for found in _HOLES.finditer(name)]


def pattern_of(name: str) -> re.Pattern[str]:
    """What matches the name and all below it, a group for each hole; one with the label of another is the same text."""
    text, ends = "", 0
    first: dict[str, int] = {}
    for number, found in enumerate(_HOLES.finditer(name), start=1):
        label = found[1] or f"*{number}"
        text += re.escape(name[ends : found.start()]) + (rf"(\{first[label]})" if label in first else r"([^.]+)")
        first.setdefault(label, number)
        ends = found.end()
    return re.compile(text + re.escape(name[ends:]) + r"(?=\.|$)")


def filled(source: str, target: str, parts: Sequence[str]) -> str:
    stars = iter([part for label, part in zip(_holes(source), parts, strict=True) if label == "*"])
    named = dict(zip(_holes(source), parts, strict=True))
    return _HOLES.sub(lambda found: named[found[1]] if found[1] else next(stars), target)
