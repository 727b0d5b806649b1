"""`report.json`: everything, with a stable schema, as strict JSON (NaN and infinity are texts: "nan", "-inf")."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from nest_ssl.compare.result import CallJudgement, Comparison, Difference, Draw, Rung, Side, Tally
from nest_ssl.report.draws import shown_draws

SCHEMA = "nest-ssl-report/1"
# Long lists that a reader of the report can look up in the recording itself.
_LEFT_OUT = ("tensors", "calls", "files")


def render_json(comparison: Comparison) -> str:
    return json.dumps(strict(as_tree(comparison)), indent=1, allow_nan=False) + "\n"


def as_tree(comparison: Comparison) -> dict[str, Any]:
    """The report as plain builtins; keys are only ever added to this schema."""
    return {
        "schema": SCHEMA,
        "verdict": comparison.verdict,
        "exit_code": comparison.exit_code,
        "first_difference": _first(comparison),
        "first_bit_difference": _difference(comparison.first_bits),
        "first_beyond_tolerance": _difference(comparison.first_beyond),
        "origin": comparison.origin,
        "follows": comparison.follows,
        "not_explained": comparison.unexplained,
        "rungs": [_rung(rung) for rung in comparison.rungs],
        "tolerance": comparison.tolerance,
        "steps": comparison.steps,
        "losses": [asdict(account) for account in comparison.losses],
        "facts": asdict(comparison.facts),
        "declared": [asdict(entry) for entry in comparison.declared],
        "known_differences": [asdict(entry) for entry in comparison.known],
        "notes": comparison.notes,
        "differences": [_difference(d) for rung in comparison.rungs if rung.name != "steps" for d in rung.differences],
        "draws": [_draw(draw) for draw in _telling(comparison.draws)],
        "calls": [_judgement(judgement) for judgement in comparison.judgements],
        "reference": _side(comparison.reference),
        "candidate": _side(comparison.candidate),
    }


def strict(value: Any) -> Any:
    """The same tree in what JSON knows."""
    if isinstance(value, dict):
        return {str(key): strict(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _first(comparison: Comparison) -> dict[str, Any] | None:
    first = _difference(comparison.first)
    return first and first | {"born_in": comparison.born_in}


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    place = difference.place
    named = {"rung": place.rung, "step": place.step, "module": place.module, "call": place.call, "tensor": place.tensor}
    metrics = asdict(difference.metrics) if difference.metrics else None
    for key in ("index", "reference", "candidate"):
        (metrics or {}).pop(key, None)
    return named | {
        "index": difference.index,
        "reference": difference.reference,
        "candidate": difference.candidate,
        "kind": difference.kind,
        "within_tolerance": difference.within,
        "rank": place.rank,
        "shape": difference.shape,
        "dtype": difference.dtype,
        "metrics": metrics,
    }


def _rung(rung: Rung) -> dict[str, Any]:
    return {
        "name": rung.name,
        "status": rung.status,
        "compared": rung.compared,
        "differing": rung.differing,
        "missing_reference": rung.missing_reference,
        "missing_candidate": rung.missing_candidate,
        "steps": [_tally(tally) for tally in rung.tallies],
    }


def _tally(tally: Tally) -> dict[str, Any]:
    return {
        "step": tally.step,
        "rank": tally.rank,
        "status": tally.status,
        "compared": dict(tally.compared),
        "differing": tally.differing,
        "missing_reference": tally.missing_reference,
        "missing_candidate": tally.missing_candidate,
        "not_compared": tally.absent,
    }


def _judgement(judgement: CallJudgement) -> dict[str, Any]:
    metrics = judgement.worst.metrics
    return {
        "step": judgement.step,
        "rank": judgement.rank,
        "order": judgement.order,
        "module": judgement.module,
        "call": judgement.call,
        "relation": judgement.relation,
        "tensor": judgement.worst.place.tensor,
        "max_abs": metrics.max_abs if metrics else None,
        "relative": metrics.relative if metrics else None,
    }


def _telling(draws: list[Draw]) -> list[Draw]:
    """The draws that the report shows, and all that differ."""
    shown = {draw.step for draw in shown_draws(draws)}
    return [draw for draw in draws if draw.step in shown or draw.difference]


def _draw(draw: Draw) -> dict[str, Any]:
    """`reference` and `candidate` are stages; `draws` counts 32-bit words on either side."""
    fields = ("step", "rank", "generator", "reference", "candidate", "draws", "relation", "came_in")
    return {name: getattr(draw, name) for name in fields}


def _side(side: Side) -> dict[str, Any]:
    index = {key: value for key, value in side.index.items() if key not in _LEFT_OUT}
    return {"label": side.label, "path": side.path, "recording": index, "config": side.config}
