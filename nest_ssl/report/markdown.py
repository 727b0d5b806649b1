"""`report.md`: a first screen that decides, then a section a rung."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nest_ssl.compare.result import Comparison, Difference, Rung, Side
from nest_ssl.report.draws import draws_section
from nest_ssl.report.facts import at_commit, loss_line, overview, reproduce
from nest_ssl.report.headline import first_difference, title, tolerance, verdict
from nest_ssl.report.wording import RUNG_NAMES, code, labels, name, number, small, table, units

WORST = 10  # rows in a table of worst differences
CALLS = 40  # rows in the table of calls


def render_markdown(comparison: Comparison) -> str:
    """The whole report."""
    lines = [f"# {title(comparison)}", "", verdict(comparison), ""]
    lines += first_difference(comparison)
    lines += rung_table(comparison)
    lines += summary_lines(comparison)
    sections = (
        _known, _over_steps, draws_section, _rungs, _calls, _tolerance, _declared, _provenance, _notes,
    )  # fmt: skip
    for section in sections:
        lines += section(comparison)
    return "\n".join(lines).rstrip() + "\n"


def rung_table(comparison: Comparison) -> list[str]:
    rows = [
        [RUNG_NAMES[rung.name], rung.status, _compared(comparison, rung), f"{rung.differing:,}", _missing(rung)]
        for rung in comparison.rungs
    ]
    return table(["rung", "status", "compared", "differing", "missing"], rows, right=3)


def summary_lines(comparison: Comparison) -> list[str]:
    lines = [line for line in (overview(comparison), loss_line(comparison)) if line]
    commands = reproduce(comparison)
    if len(commands) == 1:
        return [*lines, f"Reproduce: `{commands[0]}`{at_commit(comparison)}.", ""]
    return [*lines, f"Reproduce{at_commit(comparison)}:", "", "```", *commands, "```", ""]


def _compared(comparison: Comparison, rung: Rung) -> str:
    losses = ", ".join(f"{account.reference:.7f}" for account in comparison.losses if account.reference is not None)
    return f"{units(rung)} ({losses})" if rung.name == "loss" and losses else units(rung)


def _missing(rung: Rung) -> str:
    if not rung.missing_reference and not rung.missing_candidate:
        return "0"
    return f"{rung.missing_reference:,} in reference, {rung.missing_candidate:,} in candidate"


# --- sections ---------------------------------------------------------------------------------------------------------


def _known(comparison: Comparison) -> list[str]:
    """What to expect between two generations of NeMo; nothing where both sides follow the same."""
    if not comparison.known:
        return []
    reference, candidate = labels(comparison)
    sides = (comparison.reference, comparison.candidate)
    names = [str((side.index.get("generation") or {}).get("name")) for side in sides]
    text = "Differences between these generations that are known by name, in the order in which a step meets them."
    rows = [[k.name, code(k.where), k.what, number(k.reference), number(k.candidate)] for k in comparison.known]
    head = ["name", "where", "what", reference, candidate]
    return [f"## Known to have changed between NeMo {names[0]} and {names[1]}", "", text, "", *table(head, rows)]


def _over_steps(comparison: Comparison) -> list[str]:
    names = ("batch", "draws", "forward", "loss", "gradients", "weights")
    rows = []
    for step in comparison.steps:
        account = next((a for a in comparison.losses if a.step == step), None)
        losses = [number(account.reference), number(account.candidate)] if account else ["-", "-"]
        statuses = [_status_at(comparison.rung(rung), step) for rung in names]
        rows.append([str(step), *statuses, *losses])
    if not rows:
        return []
    reference, candidate = labels(comparison)
    head = ["step", *(RUNG_NAMES[rung] for rung in names), f"loss of {reference}", f"loss of {candidate}"]
    return ["## Over steps", "", *table(head, rows, right=2)]


def _status_at(rung: Rung, step: int) -> str:
    statuses = [tally.status for tally in rung.tallies if tally.step == step]
    return ", ".join(dict.fromkeys(statuses))


def _rungs(comparison: Comparison) -> list[str]:
    lines = []
    for rung in comparison.rungs:
        found = _told_in_no_other_section(comparison, rung)
        if found:
            heading = f"## {RUNG_NAMES[rung.name].capitalize()}: {len(found):,} differences"
            lines += [heading, "", *_differences(comparison, found, rung.name)]
    return lines


def _told_in_no_other_section(comparison: Comparison, rung: Rung) -> list[Difference]:
    """Draws have a table; states at boundaries follow from them, unless nobody drew from that generator."""
    if rung.name == "steps":
        return []
    drawn = {(draw.step, draw.rank, draw.generator) for draw in comparison.draws if draw.difference}
    return [
        difference
        for difference in rung.differences
        if rung.name != "draws" or (difference.place.step, difference.place.rank, _generator(difference)) not in drawn
    ]


def _generator(difference: Difference) -> str:
    return (difference.place.tensor or "").rpartition(".")[2]


def _differences(comparison: Comparison, found: list[Difference], rung: str) -> list[str]:
    reference, candidate = labels(comparison)
    measured = sorted((d for d in found if d.metrics), key=_badness, reverse=True)
    others = [d for d in found if not d.metrics]
    lines = []
    if others:
        rows = [[_step(d), name(d.place), d.kind.replace("_", " "), *_values(d)] for d in others[:WORST]]
        lines += table(["step", "what", "kind", reference, candidate], rows) + _more(others, "in order of execution")
    if measured:
        head = ["step", "what", "at", reference, candidate, "largest", "relative", "cosine", "ulp", "within tolerance"]
        lines += table(head, [_measured_row(d) for d in measured[:WORST]], right=5) + _more(measured, "worst first")
    return lines


def _measured_row(difference: Difference) -> list[Any]:
    metrics = difference.metrics
    assert metrics is not None
    cosine = "-" if metrics.cosine is None else f"{metrics.cosine:.9f}"
    sizes = [small(metrics.max_abs), small(metrics.relative), cosine, small(metrics.max_ulp)]
    at = str(list(difference.index)) if difference.index else "-"
    within = "yes" if difference.within else "no"
    return [_step(difference), name(difference.place), at, *_values(difference), *sizes, within]


def _badness(difference: Difference) -> tuple[bool, int, float]:
    metrics = difference.metrics
    assert metrics is not None
    return not difference.within, metrics.nonfinite_disagree, float(metrics.relative or 0.0)


def _values(difference: Difference) -> list[str]:
    return [number(difference.reference), number(difference.candidate)]


def _step(difference: Difference) -> str:
    return "-" if difference.place.step is None else str(difference.place.step)


def _more(found: list[Difference], order: str) -> list[str]:
    return [f"{WORST} of {len(found):,}, {order}; all are in `report.json`.", ""] if len(found) > WORST else []


def _calls(comparison: Comparison) -> list[str]:
    """Of the first step with differing calls: where each was born, in execution order."""
    steps = [judgement.step for judgement in comparison.judgements]
    judged = [judgement for judgement in comparison.judgements if judgement.step == min(steps)] if steps else []
    if not judged:
        return []
    rows = [
        [
            f"{j.order:,}",
            code(j.module or "(root)"),
            str(j.call),
            j.relation,
            code(j.worst.place.tensor or ""),
            small(j.worst.metrics.max_abs if j.worst.metrics else None),
        ]
        for j in judged[:CALLS]
    ]
    head = ["order", "module", "call", "born here or came in", "where", "largest difference"]
    more = [f"{CALLS} of {len(judged):,} calls; all are in `report.json`.", ""] if len(judged) > CALLS else []
    legend = "born here: same inputs, other output. born inside: a call inside it is to blame. came in: other inputs."
    return [f"## Calls that differ at step {judged[0].step}", "", legend, "", *table(head, rows, right=1), *more]


def _tolerance(comparison: Comparison) -> list[str]:
    """Said also where it was not needed, so that a reader knows what `equivalent` would have meant."""
    rule = comparison.tolerance
    text = (
        f"Bits first: `identical` needs no tolerance. `equivalent` is decided by {tolerance(comparison)}: every "
        "element of a differing floating-point tensor has |candidate - reference| <= "
        f"{rule.get('atol')} + {rule.get('rtol')} x |reference|, and NaN and infinity agree. It is the same for every "
        "tensor whatever its scale, so it says little about very small gradients. Integers, booleans and settings must "
        "match exactly."
    )
    return ["## Tolerance", "", text, ""]


def _declared(comparison: Comparison) -> list[str]:
    entries = comparison.declared
    text = "Structural differences that carry no number (no parameter, no buffer, no call) and are meant."
    rows = [[code(e.pattern), e.side, ", ".join(e.modules) or "none", e.reason] for e in entries]
    if not rows:
        return ["## Declared differences", "", "None.", ""]
    return ["## Declared differences", "", text, "", *table(["pattern", "only in", "modules", "reason"], rows)]


_PROVENANCE: dict[str, Callable[[Side], Any]] = {
    "folder": lambda side: code(side.path),
    "trainer": lambda side: " ".join(str(side.index["trainer"].get(key, "")) for key in ("package", "version")),
    "model class": lambda side: code(str(side.index["trainer"].get("class", "-"))),
    "recorded": lambda side: side.index.get("created"),
    "command": lambda side: code(" ".join(map(str, side.index.get("command") or []))),
    "seed": lambda side: side.index.get("seed"),
    "Python": lambda side: side.index.get("python"),
    "torch": lambda side: (side.index.get("packages") or {}).get("torch"),
    "numpy": lambda side: (side.index.get("packages") or {}).get("numpy"),
    "librosa": lambda side: (side.index.get("packages") or {}).get("librosa"),
    "CUDA": lambda side: (side.index.get("cuda") or {}).get("runtime"),
    "cuDNN": lambda side: (side.index.get("cuda") or {}).get("cudnn"),
    "device": lambda side: (side.index.get("device") or {}).get("name"),
    "threads": lambda side: (side.index.get("threads") or {}).get("torch"),
    "system": lambda side: " ".join(str((side.index.get("host") or {}).get(key, "")) for key in ("system", "release")),
    "container": lambda side: (side.index.get("container") or {}).get("image"),
    "git": lambda side: _git(side),
    "data": lambda side: _data(side),
    "weights from": lambda side: ", ".join(f"{k} {str(v)[:12]}" for k, v in side.index.get("init_from", {}).items()),
}


def _provenance(comparison: Comparison) -> list[str]:
    sides = (comparison.reference, comparison.candidate)
    rows = [[what, *(_shown(read(side)) for side in sides)] for what, read in _PROVENANCE.items()]
    return ["## Provenance", "", *table(["", *labels(comparison)], rows)]


def _shown(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


def _git(side: Side) -> str:
    git = side.index.get("git") or {}
    commit = str(git.get("commit") or "")[:7]
    return commit + (" with local changes" if commit and git.get("dirty") else "")


def _data(side: Side) -> str:
    data = side.index.get("data") or {}
    parts = []
    for split, entry in data.items():
        names = ", ".join(str(manifest.get("name")) for manifest in entry.get("manifests") or [])
        parts.append(f"{split}: {len(entry.get('audio') or {}):,} files ({names})")
    return "; ".join(parts)


def _notes(comparison: Comparison) -> list[str]:
    notes = list(dict.fromkeys(comparison.notes))
    return ["## Notes", "", *(f"- {note}" for note in notes), ""] if notes else []
