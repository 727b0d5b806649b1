"""`report.json`: the findings, complete, as strict JSON (NaN and infinity are texts: "nan", "-inf")."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import asdict, fields, is_dataclass
from enum import Enum

from nest_ssl.compare.born import Born
from nest_ssl.compare.comparison import Comparison, Side
from nest_ssl.compare.findings import CallJudgement, Draw, Finding, Rung, Stage, Tally
from nest_ssl.compare.kinds import Likely
from nest_ssl.compare.proof import Proof
from nest_ssl.report.document import plain
from nest_ssl.report.sections.causes import cause_text, consequence_texts, note_text, remainder_text
from nest_ssl.report.sections.headline import unseen
from nest_ssl.report.words import word
from nest_ssl.report.words.names import own_name

SCHEMA = "nest-ssl-report/1"
LEFT_OUT = {"tensors", "calls", "files"}  # long lists of the index, to be looked up in the recording itself
_COUNTS = "status compared differing missing_reference missing_candidate"
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
        **_pick(comparison, "verdict exit_code"),
        "first_difference": first and {**_record(first), "born_in": born_in},
        "first_bit_difference": comparison.first_bits,
        "first_beyond_tolerance": comparison.first_beyond,
        "origin": plain(cause_text(comparison)),
        "cause": cause,
        "follows": [plain(text) for text in consequence_texts(comparison)],
        "consequences": comparison.follows,
        "not_explained": [plain(remainder_text(remainder)) for remainder in comparison.unexplained],
        "unexplained": comparison.unexplained,
        "evidence": comparison.proof.evidence,
        "born": comparison.proof.born,
        "kinds": comparison.kinds,
        "proof": comparison.proof,
        "patterns": comparison.proof.patterns,
        "unseen": unseen(comparison),
        "known": comparison.ledger,
        "tolerance": comparison.rule,
        "losses": [{**counted.get(loss.step, {}), **asdict(loss)} for loss in comparison.losses],
        "known_differences": comparison.known,
        "notes": list(dict.fromkeys(plain(note_text(note)) for note in comparison.notes)),
        "notes_by_kind": comparison.notes,
        "differences": [found for rung in comparison.rungs if rung.name != "steps" for found in rung.findings],
        **_pick(comparison, "rungs steps explanations facts declared draws calls reference candidate"),
    }


def strict(value: object) -> object:
    """The same tree in what JSON knows."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Stage):
        return value.phase if value.module is None else f"{value.module}#{value.call}"
    if is_dataclass(value) and not isinstance(value, type):
        return strict(_record(value))
    if isinstance(value, dict):
        return {str(strict(key)): strict(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(child) for child in value]
    if isinstance(value, datetime.date):
        return value.isoformat()
    known = math.isfinite(value) if isinstance(value, float) else value is None or isinstance(value, (bool, int, str))
    return value if known else str(value)


def _pick(source: object, names: str) -> Tree:
    return {name: getattr(source, name) for name in names.split()}


def _record(value: object) -> Tree:
    """The keys of one record; those of `Finding`, `Draw` and the rungs are not their fields."""
    if isinstance(value, Finding):
        moment, metrics = value.moment, asdict(value.metrics) if value.metrics else None
        for key in ("index", "reference", "candidate", "unused"):
            (metrics or {}).pop(key, None)
        return {
            **_pick(value, "rung index reference candidate shape dtype judgement address"),
            **_pick(value.address, "module call rank"),
            "step": None if moment.step < 0 else moment.step,
            "tensor": own_name(value),
            "kind": value.difference,
            "within_tolerance": value.within,
            "metrics": metrics,
            "phase": moment.phase.name.lower(),
            "event": moment.event,
        }
    if isinstance(value, Born):
        own = _pick(value, "module call phase size floors in_float64 operators step rank times order by decided why")
        source = dict(zip(("reference", "candidate"), value.source, strict=True))
        return {**own, "source": source, "tensor": value.address.own_name if value.address else None}
    if isinstance(value, Likely):
        place = _pick(value.born, "module phase step rank") if value.born else {"setting": value.reason.values["path"]}
        because = {"reason": value.reason, "because": plain(note_text(value.reason))}
        return {**_pick(value, "kind basis"), **place, **because, "next": word("next", value.kind.value)}
    if isinstance(value, Proof):
        units = [{"function": f, "by": by, "units": count} for (f, by), count in value.units.items()]
        in64 = _pick(value.float64, "agreement largest first without")
        return {
            **_pick(value, "bands modules lacking"),
            "checks": [check.model_dump() for check in value.checks],
            "units": units,
            "float64": in64,
            "farthest": value.largest,
        }
    if isinstance(value, Rung):
        return {**_pick(value, f"name {_COUNTS}"), "steps": value.tallies}
    if isinstance(value, Tally):
        return {**_pick(value, f"step rank {_COUNTS}"), "not_compared": [plain(note_text(n)) for n in value.absent]}
    if isinstance(value, CallJudgement):
        sizes = _pick(value.worst.metrics, "max_abs relative") if value.worst.metrics else {}
        own = _pick(value, "step rank order module call relation")
        return {**own, "tensor": own_name(value.worst), "max_abs": None, "relative": None, **sizes}
    if isinstance(value, Draw):
        found = {"relation": value.fate, "differs": value.finding is not None, "event": value.moment.event}
        return {**_pick(value, "step rank generator reference candidate draws came_in"), **found}
    if isinstance(value, Side):
        index = value.index.model_dump(mode="json", by_alias=True, exclude=LEFT_OUT)
        return {**_pick(value, "label path config"), "recording": index}
    return {field.name: getattr(value, field.name) for field in fields(value)}  # type: ignore[arg-type]
