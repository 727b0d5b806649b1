"""Takes what the pictures show from a comparison, and the few tensors that they need from its recordings."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor, float64

from nest_ssl.base.errors import UserError
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import CallJudgement, Finding, Relation, RungName
from nest_ssl.compare.metrics import Metrics
from nest_ssl.compare.operators import OperatorDifference, diff, of_step
from nest_ssl.compare.rules.same_function import Function
from nest_ssl.compare.values import flatten
from nest_ssl.recording.address import Kind
from nest_ssl.recording.layout import CALLS
from nest_ssl.recording.reader import Recording
from nest_ssl.report.pictures.data import (
    SEVERITY,
    CallPoint,
    Curves,
    Gradients,
    LayerRatios,
    Neighbour,
    Node,
    Pictures,
    State,
    Strip,
    TensorView,
    Utterance,
)

ROWS, COLUMNS = 96, 192  # of a plane as it is shown
AROUND = 4  # neighbours to each side
BINS = 40
DEEPEST = 40  # modules within modules, as they are drawn: names from a stranger may go deeper
CURVES: tuple[RungName, ...] = ("batch", "forward", "loss", "gradients", "weights")
_TO_BLAME = (Relation.BORN, Relation.NUMBERS, Relation.WEIGHTS, Relation.UNKNOWN)
_OF_BEFORE = (Relation.WEIGHTS, Relation.UNKNOWN)  # to blame only where no earlier step differs
_WEIGHTS = {"initial_weights", "start", "weights"}


def gather(
    comparison: Comparison,
    reference: Recording,
    candidate: Recording,
    evidence: Evidence | None = None,
    utterances: Sequence[Utterance] = (),
) -> Pictures:
    """Everything that the pictures of a report show.

    Args:
        evidence: that the comparison was made with.
        utterances: what only those who know the model can show.

    Raises:
        UserError: a recording is damaged.
    """
    step = min((call.step for call in comparison.calls), default=min(comparison.steps, default=None))
    strip = None if step is None else strip_of(comparison, reference, evidence, step)
    return Pictures(
        tree_of(comparison, reference),
        strip,
        curves_of(comparison),
        tensor_of(comparison, reference, candidate),
        gradients_of(comparison, reference),
        list(utterances),
        operators_of(comparison, reference, candidate, evidence),
    )


def tree_of(comparison: Comparison, reference: Recording) -> Node | None:
    """The reference's modules, each with its own state and with the worst inside of it."""
    entries = reference.structure.modules
    nodes = {
        entry.name: Node(entry.name, entry.name.rpartition(".")[2], entry.module_class.rpartition(".")[2])
        for entry in entries
    }
    for module, state in _states(comparison):
        if module in nodes:
            nodes[module].state = max(nodes[module].state, state, key=SEVERITY.index)
    for judged in comparison.proof.modules:
        if judged.module in nodes:
            nodes[judged.module].function = judged.function.value
    for rung, kinds, field in (("forward", (Kind.OUTPUT,), "forward"), ("gradients", (Kind.GRADIENT,), "gradient")):
        for finding in comparison.rung(rung).findings:  # type: ignore[arg-type]
            node = nodes.get(finding.address.module or "")
            if node and finding.address.module is not None and finding.address.kind in kinds:
                setattr(node, field, max(getattr(node, field) or 0.0, relative_of(finding) or 0.0))
    root = nodes.setdefault("", Node("", "", ""))
    for name, node in sorted(nodes.items(), key=lambda item: -item[0].count(".")):  # the innermost first
        parent = _parent(name, nodes)
        node.worst = max(node.worst, node.state, key=SEVERITY.index)
        if node is not root:
            nodes[parent].worst = max(nodes[parent].worst, node.worst, key=SEVERITY.index)
    for name, node in nodes.items():  # in the structure's order
        parent = _parent(name, nodes)
        if node is not root:
            nodes[parent].children.append(node)
    return root if entries else None


def strip_of(comparison: Comparison, reference: Recording, evidence: Evidence | None, step: int) -> Strip | None:
    """The calls of one step of the first rank, by their end; None where none was recorded (record=operators).

    By their start a model's error would stand before the layer that it was born in.
    """
    recorded_step = reference.step(step)
    if not recorded_step.has(CALLS):
        return None
    judged = {(call.module, call.call): call for call in comparison.calls if (call.step, call.rank) == (step, 0)}
    errors: dict[tuple[str, int], float | None] = {}
    for finding in comparison.rung("forward").findings:
        address = finding.address
        if address.kind is Kind.OUTPUT and (finding.moment.step, address.rank) == (step, 0):
            key, size = (address.module or "", address.call or 0), relative_of(finding)
            errors[key] = None if size is None else max(errors.get(key) or 0.0, size)
    floors: dict[tuple[str, int], float] = {}
    found = evidence.floors.get((step, 0)) if evidence else None
    for address, entry in found.entries.items() if found else ():
        if address.kind is Kind.OUTPUT:
            key = address.module or "", address.call or 0
            floors[key] = max(floors.get(key, 0.0), entry.relative_largest)
    points = []
    for made in sorted(recorded_step.calls(), key=lambda call: call.end):
        call, key = judged.get((made.module, made.call)), (made.module, made.call)
        state = State.SAME if call is None else call_state(comparison, call)
        relation = call.relation.value if call else ""
        points.append(CallPoint(made.index, *key, state, errors.get(key, 0.0), floors.get(key), relation))
    return Strip(step, tuple(points))


def curves_of(comparison: Comparison) -> Curves:
    losses = {loss.step: (loss.reference, loss.candidate) for loss in comparison.losses}
    deviations: dict[RungName, tuple[float | None, ...]] = {}
    for name in CURVES:
        largest: dict[int, float | None] = dict.fromkeys(comparison.steps, 0.0)
        for finding in comparison.rung(name).findings if any(r.name == name for r in comparison.rungs) else ():
            size, known = relative_of(finding), largest.get(finding.moment.step)
            if finding.moment.step in largest:
                largest[finding.moment.step] = None if size is None or known is None else max(known, size)
        deviations[name] = tuple(largest.values())
    steps = tuple(comparison.steps)
    return Curves(steps, tuple(losses.get(step, (None, None)) for step in steps), deviations)


def gradients_of(comparison: Comparison, reference: Recording) -> Gradients | None:
    """Of the first step in which parameter gradients differ; None where none does."""
    found = [f for f in comparison.rung("gradients").findings if f.address.kind is Kind.GRADIENT and not f.address.rank]
    step = min((finding.moment.step for finding in found), default=None)
    if step is None:
        return None
    differing = {".".join(filter(None, (f.address.module, f.address.slot))): f for f in found if f.moment.step == step}
    layers: dict[str, list[Finding | None]] = defaultdict(list)
    for entry in reference.structure.parameters:
        if entry.requires_grad:
            layers[layer_of(entry.name)].append(differing.get(entry.name))
    rows = []
    for layer, each in layers.items():
        ratios = [1.0 if one is None else norm_ratio(one.metrics) for one in each]
        known = sorted(ratio for ratio in ratios if ratio is not None)
        sizes = [relative_of(one) for one in each if one]
        low, high = (known[0], known[-1]) if known else (None, None)
        middle = median(known) if known else None
        largest = None if None in sizes else max((size for size in sizes if size is not None), default=0.0)
        rows.append(LayerRatios(layer, len(each), len(sizes), low, middle, high, largest))
    return Gradients(step, tuple(rows))


def operators_of(
    comparison: Comparison, reference: Recording, candidate: Recording, evidence: Evidence | None
) -> list[OperatorDifference]:
    """Of the modules where a difference was born, else of the headline's; empty where operators were not traced."""
    modules = [born.module for born in comparison.proof.born if born.module is not None]
    cause = comparison.cause.module if comparison.cause else None
    modules = modules or ([] if cause is None else [cause])
    if not modules:
        return []
    try:
        sides = evidence.operators if evidence and evidence.operators else (of_step(reference), of_step(candidate))
    except UserError:  # not traced
        return []
    return [each for each in diff(*sides, modules) if each.changes and each.module in modules]


def tensor_of(comparison: Comparison, reference: Recording, candidate: Recording) -> TensorView | None:
    """The headline's tensor, or the first with numbers where the headline has none."""
    for finding in (comparison.first, comparison.first_bits, comparison.first_beyond):
        if finding is None or finding.metrics is None or not finding.shape or finding.metrics.elements < 2:
            continue
        sides = [recorded(side, finding) for side in (reference, candidate)]
        one, other = (side.detach() if isinstance(side, Tensor) else None for side in sides)
        if one is not None and other is not None and one.shape == other.shape and not one.is_complex():
            return view_of(finding, one, other)
    return None


def view_of(finding: Finding, reference: Tensor, candidate: Tensor) -> TensorView:
    """One tensor of both sides, cut to what is shown.

    Args:
        reference, candidate: of one shape.
    """
    shape = tuple(reference.shape)
    index = tuple(finding.index or (0,) * len(shape))
    planes = [side[index[:-2]] if len(shape) > 1 else side[None] for side in (reference, candidate)]
    one, other = (plane.to(float64).numpy() for plane in planes)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(other - one)
        whole = np.abs((candidate.to(float64) - reference.to(float64)).numpy()).ravel()
    row, column = index[-2] if len(shape) > 1 else 0, index[-1]
    down, across = (-(-size // most) for size, most in zip(one.shape, (ROWS, COLUMNS), strict=True))
    padded = np.full((-(-one.shape[0] // down) * down, -(-one.shape[1] // across) * across), 0.0)
    padded[: one.shape[0], : one.shape[1]] = np.where(np.isfinite(difference), difference, np.inf)
    blocks = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across).max(axis=(1, 3))
    places = [index]
    for axis in range(max(0, len(shape) - 2), len(shape)):
        for shift in (*range(-AROUND, 0), *range(1, AROUND + 1)):
            if 0 <= index[axis] + shift < shape[axis]:
                places.append((*index[:axis], index[axis] + shift, *index[axis + 1 :]))
    neighbours = [Neighbour(place, reference[place].item(), candidate[place].item()) for place in sorted(places)]
    apart = whole[np.isfinite(whole) & (whole > 0)]
    logs = np.log10(apart)
    span = (float(logs.min()), float(logs.max())) if len(logs) else (0.0, 0.0)
    edges = np.linspace(span[0], span[1] if span[1] > span[0] else span[0] + 1, BINS + 1)
    counts, _ = np.histogram(logs, edges)
    return TensorView(
        finding,
        one[::down, ::across],
        other[::down, ::across],
        blocks,
        (row // down, column // across),
        (one.shape[0], one.shape[1]),
        tuple(neighbours),
        tuple(map(float, edges)),
        tuple(map(int, counts)),
        int(whole.size - len(apart)),
    )


def recorded(recording: Recording, finding: Finding) -> Any:
    """What a recording holds at the address of a finding; None where it is of a kind that is not looked up."""
    address, moment = finding.address, finding.moment
    kind = address.kind
    full = ".".join(part for part in (address.module, address.slot) if part)
    if finding.rung == "initial_weights":
        return recording.initial_weights().get(full)
    if moment.step < 0 or moment.step not in recording.steps:
        return None
    step = recording.step(moment.step, address.rank)
    if kind in (Kind.INPUT, Kind.OUTPUT, Kind.OUTPUT_GRADIENT):
        call = next((c for c in step.calls() if (c.module, c.call) == (address.module, address.call)), None)
        if call is None or kind is Kind.OUTPUT_GRADIENT:
            return call and call.output_grads.get(address.path)
        return flatten(call.inputs.get(address.slot) if kind is Kind.INPUT else call.output).get(address.path)
    tables = {Kind.FIELD: step.batch, Kind.MODEL_OUTPUT: step.forward_output, Kind.GRADIENT: step.gradients}
    if kind in (Kind.PARAMETER, Kind.BUFFER) and finding.rung in _WEIGHTS:
        table: Any = step.start_weights() if finding.rung == "start" else step.weights()
        return table and table.get(full)
    if kind in tables:
        held: Any = tables[kind]()
        name = full if kind is Kind.GRADIENT else address.slot
        return flatten(held.get(name)).get(address.path) if isinstance(held, dict) else None
    if kind is Kind.UPDATE and full:
        before, after = step.start_weights(), step.weights()
        return after[full].to(float64) - before[full].to(float64) if before and {full} <= {*before} & {*after} else None
    applied = step.applied_gradients() if kind is Kind.APPLIED_GRADIENT else None
    return applied and applied.gradients.get(full)


def relative_of(finding: Finding) -> float | None:
    """How far apart, relative to the reference (Frobenius); None where that has no meaning."""
    metrics = finding.metrics
    if metrics is None or metrics.nonfinite_disagree or metrics.relative is None:
        return None
    return metrics.relative if np.isfinite(metrics.relative) else None


def layer_of(parameter: str) -> str:
    """The layer that a parameter is in: its name up to the first number, or the first two parts of it."""
    module = parameter.rpartition(".")[0]
    numbered = re.match(r"(?:.*?\.)?\d+(?=\.|$)", module)
    return numbered[0] if numbered else ".".join(module.split(".")[:2])


def _parent(name: str, nodes: Mapping[str, Node]) -> str:
    """The nearest module around it that is there."""
    parent = name.rpartition(".")[0]
    while parent and (parent not in nodes or parent.count(".") >= DEEPEST):
        parent = parent.rpartition(".")[0]
    return parent


def norm_ratio(metrics: Metrics | None) -> float | None:
    """|candidate| / |reference|, from how much of the one lies along the other."""
    if metrics is None or not metrics.factor or not metrics.cosine or metrics.nonfinite_disagree:
        return None
    return metrics.factor / metrics.cosine


def _states(comparison: Comparison) -> list[tuple[str, State]]:
    """What speaks for a state of a module, in any order."""
    found = [(call.module, call_state(comparison, call)) for call in comparison.calls]
    for rung in comparison.rungs:
        for finding in rung.findings:
            if finding.address.module is not None and rung.name != "steps":
                state = State.MISSING if finding.missing else State.ROUNDING if finding.within else State.CAME_IN
                found.append((finding.address.module, state))
    if comparison.contract_differs:
        return found
    found += [(born.module, State.BORN) for born in comparison.proof.born if born.module is not None]
    if comparison.cause and comparison.cause.module is not None and not comparison.proof.had:
        found.append((comparison.cause.module, State.BORN))
    return found


def call_state(comparison: Comparison, call: CallJudgement) -> State:
    """Of one call; where modules were replayed, that says which are to blame."""
    if call.worst.missing:
        return State.MISSING
    function = next((one.function for one in comparison.proof.modules if one.module == call.module), None)
    first = comparison.first_bits or comparison.first
    follows = call.relation in _OF_BEFORE and first is not None and call.step > max(0, first.moment.step)
    to_blame = call.relation in _TO_BLAME and not call.worst.within and not follows
    if function is not None:
        to_blame = function is Function.ANOTHER
    to_blame = to_blame and not comparison.contract_differs  # of two experiments no module is to blame
    return State.BORN if to_blame else State.ROUNDING if call.worst.within else State.CAME_IN
