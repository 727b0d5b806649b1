"""What the table of generations says of two NeMos, held against what they did.

The port is the table in code: under the generation of a NeMo it has that NeMo's bits, or the table lacks something. So
each of the two NeMos is compared with the port as well as with the other, and where the port parts from one of them is
a difference without a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import EXIT_CONTRACT_DIFFERS, EXIT_DIVERGED, EXIT_INCONCLUSIVE, EXIT_OK
from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.born import PHASES, Born
from nest_ssl.compare.comparison import Comparison, KnownDifference
from nest_ssl.compare.findings import Status
from nest_ssl.compare.operators import OperatorDifference, diff, read_both
from nest_ssl.recording.reader import Recording
from nest_ssl.releases import BATCH, Generation
from nest_ssl.run.compared import Asked, open_as_asked

SCHEMA = "nest-ssl-track/1"
NEMO, PORT = "nemo", "nest"  # the recordings in the folder of each side
PLACES = tuple(dict.fromkeys(each.metadata["where"] for each in fields(Generation)))


@dataclass(frozen=True, slots=True)
class Unnamed:
    """One place where the port, under its generation, parts from a NeMo.

    Args:
        before, after: from which of the two; what shows in both is the port's, or this machine's.
        files: of the module's class, in both; empty where it is not known.
        names: differences of the table that take effect there: one may have another value than the table says.
        operators: of the two NeMos there, where they are not the same.
    """

    born: Born
    before: bool
    after: bool
    files: tuple[str, str]
    names: tuple[str, ...]
    operators: tuple[OperatorDifference, ...]


@dataclass(frozen=True, slots=True)
class Tracked:
    """All that is known of the way from one NeMo to another.

    Args:
        between: the earlier NeMo with the later one.
        before, after: each with the port under its generation.
        operators: of the two NeMos, where they are not the same; what only has tensors of another shape came in.
        files: by module the file of its class, in both NeMos.
    """

    between: Comparison
    before: Comparison
    after: Comparison
    operators: tuple[OperatorDifference, ...]
    files: Mapping[str, tuple[str, str]]

    @property
    def named(self) -> list[KnownDifference]:
        """What the table says has changed, in the order in which a step meets it."""
        return self.between.known

    @property
    def unnamed(self) -> list[Unnamed]:
        """What it does not say, in causal order."""
        before, after = (
            {(one.phase, one.module): one for one in side.proof.born} for side in (self.before, self.after)
        )
        found = []
        both = {**before, **after}
        for place, born in sorted(both.items(), key=lambda item: _causal(item[1])):
            at = BATCH if born.phase == BATCH else born.module
            names = tuple(each.name for each in fields(Generation) if each.metadata["where"] == at)
            there = tuple(one for one in self.operators if is_within(one.module, born.module))
            files = self.files.get(born.module or "", ("", ""))
            found.append(Unnamed(born, place in before, place in after, files, names, there))
        return found

    @property
    def exit_code(self) -> int:
        """0: the table has all that this run shows; 1: not all; 2: too little compared; 4: not the same experiment."""
        sides = self.before, self.after
        if any(one.contract_differs for one in (self.between, *sides)):
            return EXIT_CONTRACT_DIFFERS
        if any(one.verdict is Status.DIVERGED for one in sides):
            return EXIT_DIVERGED
        unsure = any(one.verdict is Status.INCONCLUSIVE for one in (self.between, *sides))
        return EXIT_INCONCLUSIVE if unsure else EXIT_OK

    def at(self, place: str) -> list[OperatorDifference]:
        """Operators that differ where a difference of the table takes effect."""
        return [one for one in self.operators if place_of(one.module) == place]

    def elsewhere(self) -> list[OperatorDifference]:
        """Operators that differ where neither the table nor the port's bits say that anything changed."""
        named, unnamed = {each.where for each in self.named}, [each.born.module for each in self.unnamed]
        return [
            one
            for one in self.operators
            if place_of(one.module) not in named and not any(is_within(one.module, each) for each in unnamed)
        ]

    def as_tree(self) -> dict[str, Any]:
        """For programs. Keys are only ever added to this schema."""
        unnamed = [
            {"phase": one.born.phase, "module": one.born.module, "step": one.born.step, "before": one.before,
             "after": one.after, "files": one.files, "names": one.names}
            for one in self.unnamed
        ]  # fmt: skip
        sides = {
            name: {"label": one.reference.label, "generation": generation_of(one), "verdict": one.verdict}
            for name, one in (("before", self.before), ("after", self.after))
        }
        other = sorted({one.module or "" for one in self.elsewhere()})
        return {"schema": SCHEMA, "exit_code": self.exit_code, **sides, "between": self.between.verdict,
                "named": [asdict(each) for each in self.named], "unnamed": unnamed,
                "other_operators": other}  # fmt: skip


def track(before: Path, after: Path) -> Tracked:
    """Compare two NeMos with each other, and each with the port.

    Args:
        before, after: folders with the recordings `nemo`, which has operators, and `nest`.

    Raises:
        UserError: a recording is missing, damaged, or without operators.
    """
    ends = ((before / NEMO, after / NEMO), (before / NEMO, before / PORT), (after / NEMO, after / PORT))
    opened = [open_as_asked(one, other, Asked()) for one, other in ends]
    found = [
        one
        for one in diff(*read_both(before / NEMO, after / NEMO))
        if one.reference_calls or one.candidate_calls or any(change.kind != "tensors" for change in one.changes)
    ]
    nemos = opened[0].reference, opened[0].candidate
    files = {module: (_known(one), _known(other)) for module, one, other in pairs(*map(_files, nemos))}
    between, *sides = (each.compare() for each in opened)
    return Tracked(between, sides[0], sides[1], tuple(found), files)


def _causal(born: Born) -> tuple[int, int, int]:
    return -1 if born.step is None else born.step, PHASES.index(born.phase), born.order


def generation_of(side: Comparison) -> str:
    """Of a NeMo that was compared with the port."""
    return side.reference.index.generation.name if side.reference.index.generation else ""


def is_within(module: str | None, around: str | None) -> bool:
    """Whether a module is another one or lies in it; what is no module's lies in none."""
    return module == around or (module is not None and bool(around) and module.startswith(f"{around}."))


def place_of(module: str | None) -> str | None:
    """The place in the table of a module; one in which others of the table lie stands for itself alone."""
    around = [place for place in PLACES if is_within(module, place)]
    inner = [place for place in around if not any(is_within(each, place) for each in PLACES if each != place)]
    return module if module in around else next(iter(inner), None)


def _files(nemo: Recording) -> dict[str, str]:
    sources = nemo.index.sources
    return {entry.name: sources[entry.module_class].file for entry in nemo.structure.modules
            if entry.module_class in sources}  # fmt: skip


def _known(file: Any) -> str:
    return "" if file is ABSENT else str(file)
