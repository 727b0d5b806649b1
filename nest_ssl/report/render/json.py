"""`report.json`: the findings, complete, as strict JSON (NaN and infinity are texts: "nan", "-inf")."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, is_dataclass
from enum import Enum

from nest_ssl.compare.comparison import Comparison, Side
from nest_ssl.compare.findings import CallJudgement, Draw, Finding, Rung, Stage, Tally
from nest_ssl.report.document import Text, plain
from nest_ssl.report.sections.causes import cause_text, consequence_texts, note_text, remainder_text
from nest_ssl.report.words.names import own_name

SCHEMA = "nest-ssl-report/1"
# Long lists that a reader of the report can look up in the recording itself.
_LEFT_OUT = {"tensors", "calls", "files"}
Tree = dict[str, object]


def render_json(comparison: Comparison) -> str:
    return json.dumps(strict(as_tree(comparison)), indent=1, allow_nan=False) + "\n"


def as_tree(comparison: Comparison) -> Tree:
    """Keys are only ever added to this schema. Sentences are without markup; what they say stands beside them."""
    first, cause = comparison.first, comparison.cause
    born_in = cause.module if cause else first.address.module if first else None
    counted = {explanation.step: explanation.values for explanation in reversed(comparison.explanations)}
    return {
        "schema": SCHEMA,
        "verdict": comparison.verdict,
        "exit_code": comparison.exit_code,
        "first_difference": first and {**_finding(first), "born_in": born_in},
        "first_bit_difference": comparison.first_bits,
        "first_beyond_tolerance": comparison.first_beyond,
        "origin": plain(cause_text(comparison)),
        "cause": cause,
        "follows": _plain(consequence_texts(comparison)),
        "consequences": comparison.follows,
        "not_explained": _plain(map(remainder_text, comparison.unexplained)),
        "unexplained": comparison.unexplained,
        "rungs": comparison.rungs,
        "tolerance": comparison.rule,
        "steps": comparison.steps,
        "losses": [{**counted.get(loss.step, {}), **asdict(loss)} for loss in comparison.losses],
        "explanations": comparison.explanations,
        "facts": comparison.facts,
        "declared": comparison.declared,
        "known_differences": comparison.known,
        "notes": _plain(dict.fromkeys(map(note_text, comparison.notes))),
        "notes_by_kind": comparison.notes,
        "differences": [found for rung in comparison.rungs if rung.name != "steps" for found in rung.findings],
        "draws": comparison.draws,
        "calls": comparison.calls,
        "reference": comparison.reference,
        "candidate": comparison.candidate,
    }


def strict(value: object) -> object:
    """The same tree in what JSON knows."""
    convert = _CONVERTED.get(type(value))
    if convert is not None:
        return strict(convert(value))
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: strict(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): strict(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(child) for child in value]
    known = math.isfinite(value) if isinstance(value, float) else value is None or isinstance(value, (bool, int, str))
    return value if known else str(value)


def _plain(texts: Iterable[Text]) -> list[str]:
    return [plain(text) for text in texts]


def _pick(source: object, names: str) -> Tree:
    return {name: getattr(source, name) for name in names.split()}


def _finding(finding: Finding) -> Tree:
    address, moment = finding.address, finding.moment
    metrics = asdict(finding.metrics) if finding.metrics else None
    for key in ("index", "reference", "candidate"):
        (metrics or {}).pop(key, None)
    return {
        "rung": finding.rung,
        "step": None if moment.step < 0 else moment.step,
        **_pick(address, "module call rank"),
        "tensor": own_name(finding),
        **_pick(finding, "index reference candidate shape dtype judgement"),
        "kind": finding.difference,
        "within_tolerance": finding.within,
        "metrics": metrics,
        "address": address,
        "phase": moment.phase.name.lower(),
        "event": moment.event,
    }


def _rung(rung: Rung) -> Tree:
    counts = _pick(rung, "name status compared differing missing_reference missing_candidate")
    return {**counts, "steps": rung.tallies}


def _tally(tally: Tally) -> Tree:
    counts = _pick(tally, "step rank status compared differing missing_reference missing_candidate")
    return {**counts, "not_compared": _plain(map(note_text, tally.absent))}


def _judgement(judgement: CallJudgement) -> Tree:
    worst, metrics = judgement.worst, judgement.worst.metrics
    sizes = _pick(metrics, "max_abs relative") if metrics else {"max_abs": None, "relative": None}
    return {**_pick(judgement, "step rank order module call relation"), "tensor": own_name(worst), **sizes}


def _draw(draw: Draw) -> Tree:
    found = {"relation": draw.fate, "differs": draw.finding is not None, "event": draw.moment.event}
    return {**_pick(draw, "step rank generator reference candidate draws came_in"), **found}


def _stage(stage: Stage) -> str:
    return stage.phase if stage.module is None else f"{stage.module}#{stage.call}"


def _side(side: Side) -> Tree:
    index = side.index.model_dump(mode="json", by_alias=True, exclude=_LEFT_OUT)
    return {**_pick(side, "label path config"), "recording": index}


_CONVERTED: dict[type, Callable[..., object]] = {
    Finding: _finding, Rung: _rung, Tally: _tally, CallJudgement: _judgement, Draw: _draw, Stage: _stage, Side: _side,
}  # fmt: skip
