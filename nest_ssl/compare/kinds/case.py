"""One place where a difference was born, with all that was measured there: what the rules on kinds look at."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from nest_ssl.base.nested import leaves
from nest_ssl.compare.born import Born
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Difference, Draw, Finding, Note
from nest_ssl.compare.kinds import Basis, FaultKind
from nest_ssl.compare.kinds.roles import Classes, role_of
from nest_ssl.compare.patterns import Pattern
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import BEFORE_STEPS, Phase
from nest_ssl.recording.layout import GRADIENTS, step_folder

Answer = tuple[FaultKind, Note] | tuple[FaultKind, Note, Basis] | None
# Bits of the significand, without the leading one; and what shows that values were rounded to these.
_WIDTHS = ((7, "bfloat16"), (10, "float16"), (23, "float32"))
ROUNDED_AWAY = 8  # bits more that are zero on one side than on the other
ENOUGH = 64  # elements: few may be round by chance
EXACT = 1e-6  # relative: as near as one product in float32 leaves a factor


@dataclass(frozen=True, slots=True)
class Case:
    """One place where something was born: all that was born there, and what it is to be judged by."""

    comparison: Comparison
    classes: tuple[Classes, Classes]
    births: Sequence[Born]

    @property
    def born(self) -> Born:
        """The first that is not in backward: what a function is says more than what comes of it there."""
        return next((each for each in self.births if each.phase != "backward"), self.births[0])

    @property
    def all_classes(self) -> Classes:
        return {**self.classes[1], **self.classes[0]}

    @property
    def findings(self) -> list[Finding]:
        """All that differs at its step, of its rank; before the steps where it has none."""
        step = BEFORE_STEPS if self.born.step is None else self.born.step
        found = [finding for rung in self.comparison.rungs if rung.name != "steps" for finding in rung.findings]
        return [one for one in found if (one.moment.step, one.address.rank) == (step, self.born.rank)]

    @property
    def pattern(self) -> Pattern | None:
        """What all tensors of a kind have in common at its step."""
        found = self.comparison.proof.patterns
        return next((one for one in found if (one.step, one.rank) == (self.born.step, self.born.rank)), None)

    @property
    def went_on_at(self) -> set[int]:
        """The steps at which a side went on from a checkpoint."""
        indexes = (self.comparison.reference.index, self.comparison.candidate.index)
        return {index.resumed_from.batches for index in indexes if index.resumed_from}

    @property
    def fields(self) -> set[str]:
        """Of the batch."""
        tables = self.comparison.reference.index.tensors
        own = [table for file, table in tables.items() if file.endswith(f"step_{self.born.step}/batch.pt")]
        return {name for table in own for name in table}

    def shares(self) -> int | None:
        """The number of batches that an update adds up, if the loss is that many times the reference's, or a part."""
        names = dict(leaves(self.comparison.reference.config))
        counts = {value for name, value in names.items() if "accumul" in name and type(value) is int and value > 1}
        own = next((one for one in self.comparison.losses if one.step == self.born.step), None)
        if own is None or not own.reference or not own.candidate:
            return None
        ratio = max(own.reference / own.candidate, own.candidate / own.reference)
        return next((count for count in counts if abs(ratio / count - 1) < EXACT), None)

    def dropped(self) -> str | None:
        """The module itself, or a dropout directly in it, if it draws other numbers than on the other side at any step,
        or is given numbers of another shape.
        """
        found = [one for one in self.comparison.draws if one.finding and not one.came_in and one.rank == self.born.rank]
        shaped = [one for one in self.findings if one.address.kind is Kind.INPUT and one.difference is Difference.SHAPE]
        for module in [*(one.stage.module for one in found), *(one.address.module for one in shaped)]:
            inside = bool(module) and module is not None and module.rpartition(".")[0] == self.born.module
            role = role_of(module, self.all_classes) if inside and module else None
            if module and (module == self.born.module or (role and role.kind is FaultKind.DROPOUT_AND_FLAGS)):
                return module
        return None

    def moved(self) -> str | None:
        """A dropout directly in the module that it calls at another place among its operators."""
        for name in (name for each in self.births for name in each.moved):
            role = role_of(name, self.all_classes) if name.rpartition(".")[0] == self.born.module else None
            if role and role.kind is FaultKind.DROPOUT_AND_FLAGS:
                return name
        return None

    def rates(self) -> set[float]:
        """Probabilities of dropout in the settings, if one stands directly in the module."""
        classes, config = self.all_classes, self.comparison.reference.config
        inside = [role_of(name, classes) for name in classes if name.rpartition(".")[0] == self.born.module]
        holds = any(role and role.kind is FaultKind.DROPOUT_AND_FLAGS for role in inside)
        named = {value for name, value in leaves(config) if "drop" in name and isinstance(value, float)}
        return {value for value in named if holds and 0 < value < 1}

    def exchanged(self) -> tuple[str, str] | None:
        """Two parameters of the module of which each has the gradient that the other has on the other side."""
        indexes = (self.comparison.reference.index, self.comparison.candidate.index)
        sides = [index.tensors.get(f"{step_folder(self.born.step or 0)}/{GRADIENTS}", {}) for index in indexes]
        names = [name for name in sides[0] if name in sides[1] and name.rpartition(".")[0] == self.born.module]
        for pair in combinations(names, 2):
            (one, other), (two, another) = ([side[name].digest for name in pair] for side in sides)
            if one != other and (one, other) == (another, two):
                return pair
        return None

    def fetched(self) -> list[Draw]:
        """Draws that made this step's batch another one."""
        found = [one for one in self.comparison.draws if one.finding and not one.came_in]
        own = [one for one in found if (one.step, one.rank) == (self.born.step, self.born.rank)]
        return [one for one in own if one.moment.phase == Phase.FETCH]

    def rounded(self) -> Note | None:
        """Where one side holds nothing but values of a narrower number format, no further away than rounding to it."""
        # Of what is worked out once: audio is of 16 bits by nature, an update may be zero, and weights are drawn.
        place = self.born.address if self.born.address and self.born.address.kind is Kind.BUFFER else None
        own = [one.metrics for one in self.findings if place and one.address == place and one.metrics]
        for metrics in (one for one in own if one.relative is not None and one.eps):
            significant = round(-math.log2(metrics.eps)) - max(metrics.unused)
            name = next((name for width, name in _WIDTHS if significant <= width), None)
            narrower = max(metrics.unused) - min(metrics.unused) >= ROUNDED_AWAY and metrics.elements >= ENOUGH
            if name and narrower and (metrics.relative or 0.0) <= 2.0**-significant:
                side = ("reference", "candidate")[metrics.unused[1] > metrics.unused[0]]
                return Note("kind_rounded", {"module": self.born.module or "", "side": side, "format": name})
        return None

    def owns(self, memory: Finding) -> bool:
        """Whether a name in shared memory is of the module itself, or shares it with one that is."""
        module = self.born.module
        names = re.findall(r"[\w.]+", f"{memory.reference} {memory.candidate}") if module is not None else []
        return memory.address.module == module or any(name.rpartition(".")[0] == module for name in names)
