"""One comparison as it was asked for: recordings, rule, steps, the user's lists, evidence; for every command alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nest_ssl.base.errors import UserError

if TYPE_CHECKING:
    from nest_ssl.compare.comparison import Comparison
    from nest_ssl.compare.declared import Entry
    from nest_ssl.compare.evidence import Evidence
    from nest_ssl.compare.rules.known import Known
    from nest_ssl.recording.reader import Recording
    from nest_ssl.report.pictures import Pictures


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides a comparison beside the two recordings.

    Args:
        atol, rtol: a tolerance of the user's own; None where none was given.
        steps: only these; all recorded ones when None.
        declared, names, known: files of the user: structural differences that are meant, names of modules, a ledger.
        evidence: folder; None: the one beside the reference.
        verify: compare every file's SHA-256.
    """

    atol: float | None = None
    rtol: float | None = None
    steps: tuple[int, ...] | None = None
    declared: Path | None = None
    names: Path | None = None
    known: Path | None = None
    evidence: Path | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Opened:
    """A comparison that can be made: recordings are open, the candidate under the reference's names, lists are read."""

    reference: Recording
    candidate: Recording
    asked: Asked
    declared: list[Entry]
    known: list[Known]

    def compare(self) -> Comparison:
        """The comparison.

        Raises:
            UserError: a recording or the evidence is damaged.
        """
        return self._judge()[0]

    def compare_and_picture(self) -> tuple[Comparison, Pictures]:
        """The comparison, and what the pictures of its report show.

        Raises:
            UserError: see `compare`.
        """
        comparison, evidence = self._judge()
        return comparison, self._picture(comparison, evidence)

    def picture(self, comparison: Comparison) -> Pictures:
        """What the pictures of the report of this `comparison`, made before, show."""
        from nest_ssl.compare.evidence import evidence_on

        return self._picture(comparison, evidence_on(self.reference, self.candidate, self.asked.evidence))

    def _picture(self, comparison: Comparison, evidence: Evidence | None) -> Pictures:
        from nest_ssl.report.pictures import gather
        from nest_ssl.run.nest_report import picture_nest

        sides = self.reference, self.candidate
        return gather(comparison, *sides, evidence, picture_nest(comparison, *sides))

    def _judge(self) -> tuple[Comparison, Evidence | None]:
        from nest_ssl.compare import FixedTolerance, compare_recordings
        from nest_ssl.compare.evidence import evidence_on
        from nest_ssl.run.nest_report import explain_nest

        one, other, asked = self.reference, self.candidate, self.asked
        given = (asked.atol, asked.rtol)
        rule = FixedTolerance(*(bound or 0.0 for bound in given)) if given != (None, None) else None
        evidence = evidence_on(one, other, asked.evidence)
        rest = self.declared, [explain_nest], evidence, self.known
        return compare_recordings(one, other, rule, asked.steps, *rest), evidence


def ranks_of(reference: Path, candidate: Path) -> list[tuple[Path, Path]] | None:
    """The recordings of each rank of both sides, as far as both have it; None where both are of one process.

    Raises:
        UserError: an index of ranks is damaged, a rank is missing, or one rank alone stands against several.
    """
    from nest_ssl.recording.ranks import read_ranks
    from nest_ssl.recording.reader import open_recording

    found = read_ranks(reference), read_ranks(candidate)
    if found == (None, None):
        return None
    for folder, ranks in zip((reference, candidate), found, strict=True):
        if ranks is None and open_recording(folder, verify=False).index.rank is not None:
            fix = "Give the folder with all its ranks, or the same rank of the other side."
            raise UserError("one rank is no recording of several", str(folder), fix)
    return list(zip(found[0] or [reference], found[1] or [candidate], strict=False))


def refuse_ranks(*recordings: Recording | Path) -> None:
    """Evidence comes from training again in this process; a rank alone would wait for the others.

    Args:
        recordings: of a folder it is asked whether it holds those of several processes, before anything else is.

    Raises:
        UserError: one of them is of one of several processes.
    """
    from nest_ssl.recording.ranks import read_ranks

    for one in recordings:
        if read_ranks(one) is not None if isinstance(one, Path) else one.index.rank is not None:
            fix = "Record both in one process (RANKS=1) to gather evidence; ranks are compared without it."
            where = str(one if isinstance(one, Path) else one.path)
            raise UserError("evidence is not gathered of several processes", where, fix)


def open_as_asked(reference: Path, candidate: Path, asked: Asked) -> Opened:
    """Open both recordings, and read the user's lists.

    Raises:
        UserError: one of them is missing or damaged, or a step is in neither recording.
    """
    from nest_ssl.compare.declared import load_declared
    from nest_ssl.compare.name_map import load_names
    from nest_ssl.compare.names import Renamed, uncompiled
    from nest_ssl.compare.rules.known import load_known
    from nest_ssl.recording.reader import open_recordings

    declared = [*load_declared(), *(load_declared(asked.declared) if asked.declared else [])]
    rename = load_names(asked.names) if asked.names else None
    known = load_known(asked.known) if asked.known else []
    one, other = open_recordings((reference, candidate), asked.verify)
    recorded = sorted({*one.steps, *other.steps})
    if missing := sorted({*(asked.steps or ())} - {*recorded}):
        have = ", ".join(map(str, recorded)) or "none"
        raise UserError("a step that neither recording has", f"--steps {missing[0]}", f"Recorded steps: {have}.")
    rename = rename or uncompiled(one, other)
    return Opened(one, Renamed(other, rename) if rename else other, asked, declared, known)


def compare_as_asked(reference: Path, candidate: Path, asked: Asked) -> Comparison:
    """Open both recordings and compare them.

    Raises:
        UserError: a recording, a list or the evidence is missing or damaged, or a step is in neither recording.
    """
    return open_as_asked(reference, candidate, asked).compare()
