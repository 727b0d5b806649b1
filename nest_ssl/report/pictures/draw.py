"""Pictures from what `data` holds. Each is drawn once, for the page and for the file that `report.md` links."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from nest_ssl.report.document import Text, join, plain
from nest_ssl.report.pictures.axes import (
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    legend,
    linear_axis,
    log_axis,
    mark,
    step_axis,
)
from nest_ssl.report.pictures.data import CallPoint, Curves, Gradients, Pictures, State, Strip, TensorView, Utterance
from nest_ssl.report.pictures.gather import layer_of
from nest_ssl.report.pictures.svg import Paper, round_ticks, wide
from nest_ssl.report.words import counted, say, word
from nest_ssl.report.words.names import number, small, where

PLANE = 330  # pixels across a heat map: three stand beside one another
NAMED = 3  # births whose names stand in the strip
CLASS = {State.SAME: "same", State.ROUNDING: "rounding", State.CAME_IN: "came", State.MISSING: "missing",
         State.BORN: "born"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture: what its file is called, what it shows, and the same in words."""

    name: str
    title: Text
    alt: Text
    paper: Paper

    def svg(self, style: bool = False) -> str:
        return self.paper.svg(plain(self.alt), style)


def drawings(pictures: Pictures) -> list[Drawing]:
    """Every picture that there is something to show in, in the order of the page."""
    found: list[Drawing | None] = [draw_strip(pictures.strip) if pictures.strip else None]
    if pictures.tensor:
        found += [*draw_planes(pictures.tensor), draw_histogram(pictures.tensor)]
    if pictures.curves:
        found += [draw_losses(pictures.curves), draw_deviations(pictures.curves)]
    found.append(draw_gradients(pictures.gradients) if pictures.gradients else None)
    found += [draw_utterance(utterance) for utterance in pictures.utterances]
    return [drawing for drawing in found if drawing]


def draw_strip(strip: Strip) -> Drawing | None:
    """A bar a call, as high as the logarithm of its error; the floor is a line across. None where nothing differs."""
    apart = [call for call in strip.calls if call.state is not State.SAME]
    if not apart:
        return None
    paper, bottom = Paper(WIDTH, 338), 270
    sizes = [value for call in strip.calls for value in (call.error, call.floor) if value]
    y = log_axis(paper, sizes, TOP + 14, bottom - 10, say("picture.relative"))
    each = (WIDTH - LEFT - RIGHT) / len(strip.calls)
    name_layers(paper, strip, each, bottom)
    paper.line("axis", LEFT, bottom, WIDTH - RIGHT, bottom)
    floors = [
        (LEFT + (place + 0.5) * each, y(call.floor)) if call.floor else None for place, call in enumerate(strip.calls)
    ]
    named = 0
    for place, call in enumerate(strip.calls):
        if call.state is State.SAME:
            continue
        x, top = LEFT + place * each, TOP + 14 if call.error is None else y(call.error) if call.error else bottom - 3
        title = plain(call_text(call, len(strip.calls)))
        bar: dict[str, Any] = {"x": x, "y": top, "width": max(0.9, each * 0.86), "height": bottom - top}
        paper.add("rect", f"call {CLASS[call.state]}", title=title, **bar, data_module=call.module)
        if call.state is State.BORN:
            middle = x + each / 2
            paper.add("path", "born", d=f"M{middle:.1f} {top - 9:.1f}l5 -7h-10z")
            if named < NAMED:
                named += 1
                anchor = "end" if middle > WIDTH * 0.6 else "start"
                paper.text(
                    middle + (8 if anchor == "start" else -8), TOP - 2 + 14 * (named - 1), call.module, "", anchor
                )
                paper.line("mark", middle, TOP - 6 + 14 * (named - 1), middle, top - 16)
    paper.path("floor", floors)
    legend(paper, [(CLASS[s], word("state", s.value)) for s in State if any(c.state is s for c in apart)], bottom + 54)
    if any(floors):
        paper.line("floor", WIDTH - 190, bottom + 50, WIDTH - 166, bottom + 50)
        paper.text(WIDTH - 160, bottom + 54, plain(say("picture.floor")))
    worst = max(apart, key=lambda call: math.inf if call.error is None else call.error)
    born = [call.module or word("name", "root") for call in apart if call.state is State.BORN]
    alt = say(
        "picture.strip.alt",
        calls=counted(len(strip.calls), "calls"),
        same=number(len(strip.calls) - len(apart)),
        born=join(born[:NAMED]) or word("name", "nowhere"),
        largest=small(worst.error),
        where=worst.module or word("name", "root"),
    )
    return Drawing("strip", say("picture.strip", steps=say("steps.one", step=strip.step)), alt, paper)


def name_layers(paper: Paper, strip: Strip, each: float, bottom: float) -> None:
    """Below the strip where a layer begins, in two lines, so that more of them have room for their whole names."""
    free, named, x = [0.0, 0.0], [], float(LEFT)
    for layer, calls in groupby(strip.calls, key=lambda call: layer_of(f"{call.module}.")):
        start, count = x, len(list(calls))
        x += count * each
        if layer in named[-1:] or (count == 1 and layer in named):  # a module of one layer that another one calls too
            continue
        shown = layer or word("name", "root")
        left = min(start + 2, WIDTH - 2 - wide(shown))
        line = next((line for line in (0, 1) if free[line] < left), None)
        if line is not None:
            paper.line("grid", start, TOP, start, bottom + 5 + 14 * line)
            paper.text(left, bottom + 16 + 14 * line, shown, "muted")
            free[line] = left + wide(shown) + 6
            named.append(layer)


def ending(name: str, room: float) -> str:
    """A dotted name, or as many of its last parts as there is room for."""
    parts = name.split(".")
    while len(parts) > 1 and wide(name) > room:
        parts = parts[1:]
        name = "\N{HORIZONTAL ELLIPSIS}." + ".".join(parts)
    return name


def call_text(call: CallPoint, calls: int) -> Text:
    """One call of the strip in words: place, name, error, floor, and how it came to differ."""
    parts: list[object] = [say("picture.place", place=number(call.order + 1), calls=number(calls))]
    parts.append(call.module or word("name", "root"))
    parts += [say("call", call=call.call)] if call.call else []
    parts.append(word("state", call.state.value))
    parts += [word("relation", call.relation)] if call.relation and call.state is not State.BORN else []
    parts.append(say("picture.error", error=word("name", "no size") if call.error is None else small(call.error)))
    parts += [say("picture.floor_of", floor=small(call.floor))] if call.floor else []
    return join(parts)


def draw_losses(curves: Curves) -> Drawing | None:
    """Both losses over steps; None for a single step."""
    known = [loss for pair in curves.losses for loss in pair if loss is not None and math.isfinite(loss)]
    if len(curves.steps) < 2 or not known:
        return None
    paper, bottom = Paper(WIDTH, 260), 200
    low, high = min(known), max(known)
    y = linear_axis(paper, low, high, TOP, bottom, plain(say("picture.loss")))
    x = step_axis(paper, curves.steps, bottom)
    for side, kind in enumerate(("reference", "candidate")):
        values = [pair[side] for pair in curves.losses]
        points = [
            (x(step), y(value)) if value is not None and math.isfinite(value) else None
            for step, value in zip(curves.steps, values, strict=True)
        ]
        paper.path(kind, points)
        paper.line(kind, LEFT + side * 160, bottom + 46, LEFT + 30 + side * 160, bottom + 46)
        paper.text(LEFT + 36 + side * 160, bottom + 50, word("side", kind))
    alt = say("picture.losses.alt", steps=counted(len(curves.steps), "steps"), low=f"{low:.7g}", high=f"{high:.7g}")
    return Drawing("losses", say("picture.losses"), alt, paper)


def draw_deviations(curves: Curves) -> Drawing | None:
    """The largest relative difference of each rung, over steps; None where nothing differs or there is one step."""
    shown = {rung: values for rung, values in curves.deviations.items() if any(v is None or v > 0 for v in values)}
    if len(curves.steps) < 2 or not shown:
        return None
    paper, bottom = Paper(WIDTH, 300), 230
    y = log_axis(paper, [v for values in shown.values() for v in values if v], TOP, bottom, say("picture.relative"))
    x = step_axis(paper, curves.steps, bottom)
    kinds = ("came", "missing", "born", "rounding", "same")
    texts = []
    for place, (rung, values) in enumerate(shown.items()):
        kind, at = kinds[place % len(kinds)], LEFT + place * 170
        points = [(x(step), y(v)) if v else None for step, v in zip(curves.steps, values, strict=True)]
        paper.path(f"curve c-{kind}", points)
        for point in filter(None, points):
            mark(paper, kind, place, *point)
        mark(paper, kind, place, at + 5, bottom + 52)
        paper.text(at + 14, bottom + 56, word("rung", rung))
        texts.append(say("picture.from_to", what=word("rung", rung), first=size(values[0]), last=size(values[-1])))
    return Drawing(
        "deviations", say("picture.deviations"), say("picture.deviations.alt", what=join(texts, "; ")), paper
    )


def draw_planes(view: TensorView) -> list[Drawing]:
    """The tensor on each side and their difference, the largest one marked."""
    finite = [side[np.isfinite(side)] for side in (view.reference, view.candidate)]
    low = min((float(side.min()) for side in finite if side.size), default=0.0)
    high = max((float(side.max()) for side in finite if side.size), default=1.0)
    apart = view.difference[np.isfinite(view.difference) & (view.difference > 0)]
    bounds = (float(apart.min()), float(apart.max())) if apart.size else (1.0, 1.0)
    span = math.log(bounds[1] / bounds[0]) or 1.0
    with np.errstate(divide="ignore"):
        logs = np.where(view.difference > 0, 0.12 + 0.88 * np.log(view.difference / bounds[0]) / span, 0.0)
    values = {
        "reference": (view.reference - low) / ((high - low) or 1.0),
        "candidate": (view.candidate - low) / ((high - low) or 1.0),
        "difference": logs,
    }
    rows, columns = view.reference.shape
    found = []
    for name, shown in values.items():
        height = min(180.0, max(24.0, PLANE * rows / columns)) if rows > 1 else 24.0
        paper = Paper(PLANE + 8, TOP + height + 26)
        paper.grid(4, TOP, PLANE, height, shown)
        paper.add("rect", "box", x=4, y=TOP, width=PLANE, height=height)
        at = 4 + PLANE * (view.at[1] + 0.5) / columns, TOP + height * (view.at[0] + 0.5) / rows
        paper.add("circle", "ring", cx=at[0], cy=at[1], r=7)
        paper.add("circle", "mark", cx=at[0], cy=at[1], r=7)
        span_of = (low, high) if name != "difference" else bounds
        scale = say("picture.scale", low=f"{span_of[0]:.3g}", high=f"{span_of[1]:.3g}")
        paper.text(4, TOP - 9, plain(say(f"picture.plane.{name}")))
        paper.text(4, TOP + height + 16, plain(scale), "muted")
        axes = say("picture.plane.axes", rows=number(view.plane[0]), columns=number(view.plane[1]))
        paper.text(PLANE + 4, TOP + height + 16, plain(axes), "muted", "end")
        index, where_ = str(list(view.finding.index or ())), where(view.finding)
        alt = say("picture.plane.alt", what=say(f"picture.plane.{name}"), where=where_, scale=scale, index=index)
        found.append(Drawing(f"tensor-{name}", say("picture.tensor", where=where_), alt, paper))
    return found


def draw_histogram(view: TensorView) -> Drawing | None:
    """How many elements differ by how much."""
    if not any(view.counts):
        return None
    paper, bottom = Paper(WIDTH, 250), 190
    most = max(view.counts)
    y = linear_axis(paper, 0, most, TOP, bottom, plain(say("picture.elements")))
    low, high = view.edges[0], view.edges[-1]

    def x(log: float) -> float:
        return LEFT + (log - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    for count, left, right in zip(view.counts, view.edges, view.edges[1:], strict=False):
        title = plain(say("picture.bin", count=number(count), low=f"{10**left:.1e}", high=f"{10**right:.1e}"))
        if count:
            bar: dict[str, Any] = {
                "x": x(left),
                "y": y(count),
                "width": max(1.0, x(right) - x(left) - 1),
                "height": bottom - y(count),
            }
            paper.add("rect", "came", title=title, **bar)
    for tick in round_ticks(low, high, 8):
        paper.line("grid", x(tick), bottom, x(tick), bottom + 5)
        paper.text(
            x(tick), bottom + 18, f"{10**tick:.0e}" if tick == round(tick) else f"{10**tick:.1e}", "muted", "middle"
        )
    paper.text(WIDTH - RIGHT, bottom + 38, plain(say("picture.absolute")), "muted", "end")
    peak = view.counts.index(most)
    alt = say(
        "picture.histogram.alt",
        differing=number(sum(view.counts)),
        same=number(view.same),
        low=f"{10**low:.1e}",
        high=f"{10**high:.1e}",
        peak=f"{10 ** view.edges[peak]:.1e}",
    )
    return Drawing("histogram", say("picture.histogram"), alt, paper)


def draw_gradients(gradients: Gradients) -> Drawing:
    """Of each layer the span of its parameters' ratios of norms, about 1."""
    ratios = [r for layer in gradients.layers for r in (layer.low, layer.high) if r and r > 0]
    far = max([abs(math.log(ratio)) for ratio in ratios] or [0.0]) or 1e-9
    paper, left, row = Paper(WIDTH, TOP + 22 * len(gradients.layers) + 46), 250, 22
    bottom = TOP + row * len(gradients.layers)

    def x(ratio: float) -> float:
        return left + (math.log(ratio) / far / 2.1 + 0.5) * (WIDTH - left - 90)

    for tick in [t for t in round_ticks(-far, far, 5) if abs(t) > far / 1e6] + [0.0]:
        label = f"{math.exp(tick):.3g}" if abs(tick) > 0.01 else f"1 {'+' if tick > 0 else '-'} {abs(tick):.0e}"
        paper.line("grid" if tick else "axis", x(math.exp(tick)), TOP - 8, x(math.exp(tick)), bottom)
        paper.text(x(math.exp(tick)), bottom + 16, label if tick else "1", "muted", "middle")
    for place, layer in enumerate(gradients.layers):
        y, kind = TOP + row * place + 8, "came" if layer.differing else "same"
        paper.text(left - 10, y + 4, ending(layer.layer, left - 14), "", "end")
        if layer.low is not None and layer.high is not None and layer.median is not None and layer.low > 0:
            span: dict[str, Any] = {
                "x": x(layer.low),
                "width": max(3.0, x(layer.high) - x(layer.low)),
                "y": y - 4,
                "height": 8,
            }
            paper.add("rect", kind, title=plain(ratio_text(layer.low, layer.median, layer.high)), **span)
            paper.add("circle", "dot", cx=x(layer.median), cy=y, r=3.5)
        paper.text(WIDTH - RIGHT, y + 4, small(layer.largest) if layer.differing else "=", "muted", "end")
    paper.text(4, bottom + 36, plain(say("picture.ratio")), "muted")
    worst = max(gradients.layers, key=lambda layer: math.inf if layer.largest is None else layer.largest)
    alt = say(
        "picture.gradients.alt",
        layers=counted(len(gradients.layers), "layers"),
        differing=number(sum(1 for layer in gradients.layers if layer.differing)),
        worst=worst.layer,
        largest=small(worst.largest),
    )
    return Drawing("gradients", say("picture.gradients", steps=say("steps.one", step=gradients.step)), alt, paper)


def ratio_text(low: float, middle: float, high: float) -> Text:
    return say("picture.ratios", low=f"{low:.9g}", median=f"{middle:.9g}", high=f"{high:.9g}")


def draw_utterance(utterance: Utterance) -> Drawing:
    """Log-mel features with what is masked, and below them the tokens of both sides; those that differ are framed."""
    finite = utterance.log_mel[np.isfinite(utterance.log_mel)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    paper, top, high_px, frames = Paper(WIDTH, 290), TOP, 160, utterance.log_mel.shape[1]
    frame = (WIDTH - LEFT - RIGHT) / max(1, frames)
    paper.grid(LEFT, top, WIDTH - LEFT - RIGHT, high_px, ((utterance.log_mel - low) / ((high - low) or 1.0))[::-1])
    changes = np.flatnonzero(np.diff(np.concatenate([[0], utterance.masked.astype(int), [0]])))
    runs = [(int(start), int(end)) for start, end in zip(changes[::2], changes[1::2], strict=True)]
    for start, end in runs:
        title = plain(say("picture.masked", first=start, last=end - 1))
        box: dict[str, Any] = {"x": LEFT + start * frame, "width": (end - start) * frame, "y": top, "height": high_px}
        paper.add("rect", "mask", title=title, **box)
    paper.text(LEFT - 8, top + 12, str(utterance.log_mel.shape[0]), "muted", "end")
    paper.text(LEFT - 8, top + high_px, "0", "muted", "end")
    tokens = utterance.tokens
    each = (WIDTH - LEFT - RIGHT) / max(1, len(tokens[0]), len(tokens[1]))
    differing = 0
    for side, kind in enumerate(("reference", "candidate")):
        y = top + high_px + 14 + side * 26
        paper.text(LEFT - 8, y + 14, word("side", kind), "muted", "end")
        for place, token in enumerate(tokens[side]):
            unlike = place >= len(tokens[1 - side]) or tokens[1 - side][place] != token
            differing += unlike and not side
            cell: dict[str, Any] = {"x": LEFT + place * each, "y": y, "width": max(1.0, each - 1), "height": 20}
            paper.add(
                "rect",
                "box other" if unlike else "box",
                title=plain(say("picture.token", place=place, token=token)),
                **cell,
            )
            if each > wide(str(token), 10):
                paper.text(LEFT + (place + 0.5) * each, y + 14, str(token), "token", "middle")
    legend(paper, [("mask", plain(say("picture.legend.mask")))], top + high_px + 88)
    paper.text(WIDTH - RIGHT, top + high_px + 88, plain(say("picture.frames", frames=number(frames))), "muted", "end")
    alt = say(
        "picture.utterance.alt",
        bands=number(utterance.log_mel.shape[0]),
        frames=number(frames),
        masked=number(int(utterance.masked.sum())),
        spans=number(len(runs)),
        tokens=counted(len(tokens[0]), "tokens"),
        differing=number(differing),
    )
    steps = say("steps.one", step=utterance.step)
    shown = say("picture.utterance", number=number(utterance.number), steps=steps)
    return Drawing(f"utterance-{utterance.number}", shown, alt, paper)


def size(value: float | None) -> str:
    return word("name", "no size") if value is None else small(value) if value else word("state", State.SAME.value)
