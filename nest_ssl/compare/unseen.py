"""What a run could not see, whatever its verdict: what never happened in it cannot have differed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from nest_ssl.base.nested import leaves
from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import Finding, Note
from nest_ssl.compare.names import compiled_in
from nest_ssl.compare.proof import Float64
from nest_ssl.compare.rules.noise_floor import LOOK
from nest_ssl.compare.rules.same_function import AGREE
from nest_ssl.compare.values import flatten
from nest_ssl.recording import layout
from nest_ssl.recording.reader import Recording

MOST = 5  # names that are listed


def unseen_by(
    reference: Recording,
    candidate: Recording,
    steps: Sequence[int],
    evidence: Evidence | None = None,
    in64: Float64 | None = None,
) -> list[Note]:
    """What the recorded steps hold nothing of: by either side's level, and by what the reference never did.

    Padding is seen by lengths that differ within a batch, dropout by its draws, the warm-up by the schedule's settings.
    """
    notes = []
    levels = {"reference": reference.index.level, "candidate": candidate.index.level}
    alike = levels["reference"] == levels["candidate"]
    for side, level in list(levels.items())[: 1 if alike else None]:
        whose, values = ("", {}) if alike else ("_side", {"side": side})
        if level is not None and level.record == "digest":
            notes.append(Note(f"unseen_digest{whose}", values))
        elif level is not None:
            patterns = {key: " ".join(getattr(level, key)) or "-" for key in ("include", "exclude")}
            notes.append(Note(f"unseen_level{whose}", {**values, "record": level.record, **patterns}))
    if compiled := list(dict.fromkeys([*compiled_in(reference), *compiled_in(candidate)])):
        notes.append(Note("unseen_compiled", {"modules": ", ".join(name or "(root)" for name in compiled[:MOST])}))
    recorded = [reference.step(step) for step in steps]
    batches = [flatten(step.batch()) for step in recorded if step.has(layout.BATCH)]
    lengths = [
        value
        for batch in batches
        for name, value in batch.items()
        if isinstance(value, Tensor) and not value.is_floating_point() and value.numel() > 1 and "len" in name
    ]
    if lengths and all(bool((value == value.flatten()[0]).all()) for value in lengths):
        notes.append(Note("unseen_padding"))
    dropouts = {m.name for m in reference.structure.modules if "dropout" in m.module_class.rpartition(".")[2].lower()}
    ledgers = [step.rng().ledger for step in recorded if step.has(layout.RNG)]
    drew = {entry.module for ledger in ledgers for entry in ledger or ()}
    if dropouts and ledgers and None not in ledgers and not dropouts & drew:
        notes.append(Note("unseen_dropout"))
    for name, value in leaves(reference.config):
        last = max(steps, default=-1) + 1
        if name.endswith("warmup_steps") and isinstance(value, int) and value > last:
            notes.append(Note("unseen_warmup", {"steps": last, "warmup": value}))
    margins = [
        margin for floors in (evidence.floors.values() if evidence else ()) for margin in floors.margins.values()
    ]
    if margins and not any(margin.margin <= margin.floor for margin in margins):
        notes.append(Note("unseen_flips", {"margin": f"{min(margin.margin for margin in margins):.1e}"}))
    if at := in64 and in64.blind:
        values = {"size": f"{_allowed(at):.0e}", "place": at.address.module or at.address.own_name}
        notes.append(Note("unseen_evaluation", values))
    return notes


def widest_of(findings: Iterable[Finding]) -> Finding | None:
    """What may be furthest apart in a validation, and pass; None where all has the same bits, or to agree in float64.

    Validations are not repeated: what rounding did to the steps is their measure, and a fault of evaluation
    alone that is smaller is hidden by it.
    """
    found = (one for one in findings if one.rung == "validation" and _allowed(one) > AGREE)
    return max(found, key=_allowed, default=None)


def _allowed(finding: Finding) -> float:
    """How far apart, relative, it may be by evidence."""
    judgement = finding.judgement
    if judgement is None or not judgement.within or judgement.rule not in ("float64", "noise floor"):
        return 0.0
    return judgement.bound["relative"] * (LOOK if judgement.rule == "noise floor" else 1.0)
