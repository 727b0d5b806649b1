"""One comparison as it was asked for: recordings, rule, steps, the user's lists, evidence; for every command alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nest_ssl.compare.comparison import Comparison
    from nest_ssl.compare.evidence import Evidence
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


def compare_as_asked(reference: Path, candidate: Path, asked: Asked) -> Comparison:
    """Open both recordings and compare them.

    Raises:
        UserError: a recording, a list or the evidence is missing or damaged, or a step is in neither recording.
    """
    return _compare(reference, candidate, asked)[0]


def compare_with_pictures(reference: Path, candidate: Path, asked: Asked) -> tuple[Comparison, Pictures]:
    """The same, and what the pictures of a report show.

    Raises:
        UserError: see `compare_as_asked`.
    """
    from nest_ssl.report.pictures import gather
    from nest_ssl.run.nest_report import picture_nest

    comparison, one, other, evidence = _compare(reference, candidate, asked)
    return comparison, gather(comparison, one, other, evidence, picture_nest(comparison, one, other))


def _compare(
    reference: Path, candidate: Path, asked: Asked
) -> tuple[Comparison, Recording, Recording, Evidence | None]:
    from nest_ssl.compare import FixedTolerance, compare_recordings
    from nest_ssl.compare.declared import load_declared
    from nest_ssl.compare.evidence import evidence_on
    from nest_ssl.compare.names import Renamed, load_names
    from nest_ssl.compare.rules.known import load_known
    from nest_ssl.recording.reader import open_recording
    from nest_ssl.run.nest_report import explain_nest

    declared = [*load_declared(), *(load_declared(asked.declared) if asked.declared else [])]
    one, other = (open_recording(path, asked.verify) for path in (reference, candidate))
    given = (asked.atol, asked.rtol)
    rule = FixedTolerance(*(bound or 0.0 for bound in given)) if given != (None, None) else None
    other = Renamed(other, load_names(asked.names)) if asked.names else other
    known = load_known(asked.known) if asked.known else []
    evidence = evidence_on(one, other, asked.evidence)
    comparison = compare_recordings(one, other, rule, asked.steps, declared, [explain_nest], evidence, known)
    return comparison, one, other, evidence
