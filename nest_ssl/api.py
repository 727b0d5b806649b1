"""What Python calls: record a loop, compare two recordings, write the report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nest_ssl.base.errors import UserError
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Finding, Status
from nest_ssl.compare.ranks import OverRanks, compare_over_ranks
from nest_ssl.record.loop import recording
from nest_ssl.recording.layout import rank_folder
from nest_ssl.report import write_reports
from nest_ssl.report.document import Block, Heading, Paragraph, plain
from nest_ssl.report.ranks import over_ranks, write_ranks_report
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.render.terminal import print_blocks
from nest_ssl.report.sections import summary
from nest_ssl.run.compared import Asked, Opened, open_as_asked, ranks_of

if TYPE_CHECKING:
    from nest_ssl.record.lightning import RecordingCallback

__all__ = ["Compared", "ComparedRanks", "callback", "compare", "recording", "report"]


def callback(out: Path | str, *, steps: Sequence[int] | None = None, **settings: Any) -> RecordingCallback:
    """A callback for Lightning's Trainer that records steps into folder `out`: ``Trainer(callbacks=[callback(out)])``.

    Args:
        steps: training batches to record, counted from 0; None records all.
        settings: `output_names`, `config`, `operators`, `overwrite` as of `recording`, and what else the recording
            should say, e.g. `seed`.

    Raises:
        UserError: Lightning is not installed, or the folder must not be replaced.
    """
    try:
        from nest_ssl.record.lightning import RecordingCallback
    except ModuleNotFoundError as error:
        raise UserError("Lightning is not installed", str(error), "pip install 'nest_ssl[train]'") from error
    return RecordingCallback(out, steps=steps, **settings)


def compare(
    reference: Path | str,
    candidate: Path | str,
    *,
    steps: Sequence[int] | None = None,
    names: Path | str | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    declared: Path | str | None = None,
    known: Path | str | None = None,
    evidence: Path | str | None = None,
    verify: bool = True,
) -> Compared | ComparedRanks:
    """Compare two recordings bit by bit, in the order in which a run meets what was recorded.

    Args:
        reference, candidate: folders of recordings, to measure against and to judge; of several ranks each is compared
            with its like, and what they share with each other.
        steps: only these; by default all that both recorded.
        names: YAML map from the candidate's names to the reference's (`nest_ssl.compare.name_map`).
        atol, rtol: a tolerance of your own; without one nothing but the same bits passes.
        declared, known: YAML lists of structural differences, and of differences of numbers, that are meant.
        evidence: folder of evidence; by default the one beside the reference.
        verify: compare every file's SHA-256 first.

    Raises:
        UserError: a recording or a list is missing or damaged, or a step is in neither recording.
    """
    files = {"declared": declared, "names": names, "known": known, "evidence": evidence}
    paths = {name: None if value is None else Path(value) for name, value in files.items()}
    asked = Asked(atol, rtol, None if steps is None else tuple(sorted(steps)), verify=verify, **paths)
    sides = Path(reference), Path(candidate)
    if (ranks := ranks_of(*sides)) is None:
        return _compared(open_as_asked(*sides, asked))
    each = tuple(_compared(open_as_asked(*pair, asked)) for pair in ranks)
    return ComparedRanks(compare_over_ranks([one.comparison for one in each]), each)


def _compared(opened: Opened) -> Compared:
    return Compared(opened.compare(), opened)


def report(compared: Compared | ComparedRanks, out: Path | str = "outputs/report") -> Path:
    """Write `report.html` with its pictures, `report.md` and `report.json` into folder `out`; ranks' in `rank_R`.

    Returns the path of `report.md`.

    Raises:
        UserError: the folder cannot be written, or lies within a recording.
    """
    folder = Path(out)
    if isinstance(compared, ComparedRanks):
        for rank, one in enumerate(compared.ranks):
            report(one, folder / rank_folder(rank))
        return write_ranks_report(compared.over, folder)
    for side in (compared.opened.reference, compared.opened.candidate):
        recorded = side.path if side.index.rank is None else side.path.parent  # all its ranks
        if recorded.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UserError("a report would be written into a recording", str(out), "Choose a folder outside.")
    return write_reports(compared.comparison, folder, compared.opened.picture(compared.comparison))


@dataclass(frozen=True, repr=False)
class Compared:
    """What `compare` found; `print` shows the report's first screen, a notebook its table too.

    Args:
        comparison: everything that was found, as plain data.
        opened: the two recordings.
    """

    comparison: Comparison
    opened: Opened

    @property
    def verdict(self) -> Status:
        """``identical``, ``equivalent``, ``diverged`` or ``inconclusive``: a text."""
        return self.comparison.verdict

    @property
    def exit_code(self) -> int:
        """As of the command: 0 identical or equivalent, 1 diverged, 2 inconclusive, 4 the contract differs."""
        return self.comparison.exit_code

    @property
    def first(self) -> Finding | None:
        """The difference that the headline names: when, at what address, which values; None where there is none."""
        return self.comparison.first

    @property
    def findings(self) -> list[Finding]:
        """Every difference, in causal order."""
        found = [one for rung in self.comparison.rungs for tally in rung.tallies for one in tally.findings]
        return sorted(found, key=lambda one: one.moment)

    def __repr__(self) -> str:
        return _said_in_a_line(self.verdict, summary(self.comparison))

    def __str__(self) -> str:
        return _shown(summary(self.comparison))

    def _repr_markdown_(self) -> str:
        return render_markdown(summary(self.comparison))


@dataclass(frozen=True, repr=False)
class ComparedRanks:
    """What `compare` found of several ranks; `print` shows the verdict over them, and a line for each.

    Args:
        over: all ranks of both sides.
        ranks: what was found of each.
    """

    over: OverRanks
    ranks: tuple[Compared, ...]

    @property
    def verdict(self) -> Status:
        """The worst of any rank; no pass where the ranks of a side part from each other."""
        return self.over.verdict

    @property
    def exit_code(self) -> int:
        """As of the command, see `Compared`."""
        return self.over.exit_code

    @property
    def first(self) -> Finding | None:
        """The difference that the headline of the worst rank names; None where there is none."""
        return next((one.first for one in self.ranks if one.exit_code == self.exit_code), None)

    @property
    def findings(self) -> list[Finding]:
        """Every difference, rank by rank, each in causal order."""
        return [found for one in self.ranks for found in one.findings]

    def __repr__(self) -> str:
        return _said_in_a_line(self.verdict, over_ranks(self.over))

    def __str__(self) -> str:
        return _shown(over_ranks(self.over))

    def _repr_markdown_(self) -> str:
        return render_markdown(over_ranks(self.over))


def _said_in_a_line(verdict: Status, blocks: Sequence[Block]) -> str:
    """``<identical: NeMo 3.0.0 and nest-ssl 0.1.0 train identically>``."""
    texts = [plain(block.text) for block in blocks if isinstance(block, (Heading, Paragraph))]
    return f"<{verdict.value}: {texts[0]}>"


def _shown(blocks: Sequence[Block]) -> str:
    shown = io.StringIO()
    print_blocks(blocks, shown)
    return shown.getvalue().rstrip()
