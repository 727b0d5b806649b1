"""docs/benchmarks.md: a table of steps, one of the recorder and of start-up, and a plot for each curve."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import write_atomically
from nest_ssl.bench.cpu import FULL
from nest_ssl.bench.targets import judged
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Figure, Heading, Inline, Paragraph, Text, table
from nest_ssl.report.pictures.svg import Paper
from nest_ssl.report.render.markdown import render_markdown

Row = dict[str, Any]
PARTS = {
    "step_ms": "step",
    "user_ms": "step without the kernel",
    "forward_ms": "forward",
    "backward_ms": "backward",
    "optimizer_ms": "optimizer",
    "peak_bytes": "peak memory",
    "products_ms": "products alone",
}
RECORDED = {"a bare step": "bare_clock", "recorded": "seconds", "until written": "written", "bare, CPU": "bare",
            "its thread, CPU": "thread", "all threads, CPU": "cpu", "writing as many bytes": "bytes_alone"}  # fmt: skip
ABOUT_RECORDER = (
    "Seconds of one step by the clock: bare, and recorded by each level, until training goes on and until all of it is "
    "written and hashed; CPU time of a bare step, of the thread that trains while it is recorded, and with the threads "
    "that write and hash; what writing as many bytes to the disk takes alone; and the most memory of the process until "
    "then: what waits to be written may take a quarter of what is free, or 1 GB. A bare step takes the fast path "
    "through a layer, which calls no module; levels that record every module take the one that does. Boundaries are "
    "the batch, the calls of the model, its parts and blocks, loss and gradients, and of the state weights, the "
    "optimizer's and the gradients that the update uses, before the step and behind it. Those without state are "
    "measured here, and no level to record by: the comparer needs to see the update."
)
ABOUT_REASONS = (
    "Why those that are not met are not, and what was tried. These are people's words: what of them is in no table here"
    " was measured by hand, on other days."
)
ABOUT_COMPARER = (
    "Bytes of one side a CPU second, files mapped from the disk's cache; the most memory of the process's own."
)
LARGE_ENOUGH = 100e6  # bytes, for a disk's rate
DISK = (
    " Each is written alone once, as the disk is at that moment: 100 MB and more at {:.2g} to {:.2g} GB/s. What is "
    "judged by it is no better known than that."
)
ABOUT_PROFILE = (
    "Milliseconds of a step, medians of three, of each trainer in a process of its own: NeMo's is the profile before, "
    "the port's the one after. The CPU time of forward, backward and optimizer is shared out among operators as they "
    "took it by torch's profiler, each without those that it calls. Operators of features and of the search for the "
    "nearest codes are together, whatever they are, and all of the optimizer; views are among the copies. Compiled "
    "loops are no operators: dropout's, with their draws, are among the rest. A part's backward "
    "is what its forward's operators run there; where each branch of a layer of the port is one function, some of its "
    "forward is computed there again. Hooks mark the parts, so that here the port decodes all tokens. It is measured by"
)
PHASES = ("forward", "backward", "optimizer")
GAINS = 3  # of which the numbers before and after are said
CURVE = "benchmarks-curve.svg"
CURVES = {"layers": "layers of the large model", "s": "seconds of audio, medium", "utterances": "utterances, medium"}
ABOUT = (
    "Written by the command below. Both trainers train by turns, each time in a process of its own, "
    "with the same constant batch, everything random on, one thread, and the same settings and allocator, which "
    "keeps what is freed (nest_ssl/run/allocator.py), but where a row says otherwise. Times are the process's CPU "
    "time, so that others on the machine disturb little. What of it the kernel takes, to give out pages of memory, "
    "depends on the state that the machine's memory is in; so a column has the step without it, by which targets "
    "are judged. A ratio is the port's number divided by NeMo 3.0.0's of the same round: median (least to largest) "
    "of so many rounds, where it was noted; below 1 the port needs less. Products alone is what the matrix products "
    "and convolutions of a step that decodes all tokens would take at the rate of a large matrix product, measured "
    "behind each round, divided by NeMo's step without the kernel: no step that keeps these products, and with them "
    "the bits, can have a smaller ratio. The port spares those of the tokens that do not count, 0.2 s of a large step "
    "of 8 x 16 s."
)


def load(path: Path) -> dict[str, Any]:
    """What earlier runs found.

    Raises:
        UserError: the file holds something else.
    """
    if not path.exists():
        return {"schema": "nest-ssl-bench/1", "steps": [], "recorder": [], "start": []}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert found["schema"] == "nest-ssl-bench/1"
        list(page(found))  # nothing is measured behind what cannot be shown
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        raise UserError("not results of this command", str(path), "Name another folder, or delete it.") from error
    return dict(found)


def add(folder: Path, header: Row, part: str, found: Row | Sequence[Row]) -> None:
    """Add what was measured of a part to what lies in a folder by now, and write all of it again.

    Args:
        header: `day` and `machine` of it, or nothing.
        found: rows, which get both, or what a part has in place of rows.
    """
    results = load(folder / "benchmarks.json")
    if "machine" in results:
        for row in (row for rows in results.values() if isinstance(rows, list) for row in rows):
            row.setdefault("machine", results["machine"])
    results |= header
    if isinstance(found, Mapping):
        lost = "error" in found and "error" not in results.get(part, found)
        results[part] = results[part] if lost else found
    else:
        results[part] = merge(results.get(part, []), [{**row, **header} for row in found])
    save(results, folder)


def merge(earlier: Sequence[Row], found: Sequence[Row]) -> list[Row]:
    """Rows that were measured again take the place of the earlier ones, and those that could not be had do not."""
    measured = {_key(row) for row in earlier if "error" not in row}
    again = {_key(row): row for row in found if "error" not in row or _key(row) not in measured}
    return [again.pop(_key(row), row) for row in earlier] + list(again.values())


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["name"], str(list(row.get("batch", ())))


def save(results: dict[str, Any], folder: Path) -> None:
    """Write `benchmarks.json`, `benchmarks.md` and a picture for each curve that has points."""
    write_atomically(folder / "benchmarks.json", json.dumps(results, indent=1) + "\n")
    for unit in CURVES:
        points = _points(results["steps"], unit)
        if len(points) > 1:
            write_atomically(folder / f"benchmarks-{unit}.svg", plot(points, CURVES[unit]))
    if "losses" in results.get("curve", {}):
        write_atomically(folder / CURVE, plot_losses(results["curve"]["losses"]))
    write_atomically(folder / "benchmarks.md", render_markdown(list(page(results))))


def page(results: dict[str, Any]) -> Iterator[Block]:
    """The whole document."""
    yield Heading(("Speed and memory on a CPU",), 1)
    yield Paragraph((ABOUT,))
    yield CodeBlock(("make bench", "make bench ARGS=--targets", "make bench QUICK=1"))
    if machine := results.get("machine"):
        yield Paragraph(
            (f"{machine}; {results['day']}. Rows of another day, commit or machine say so; not loader and curve.",)
        )
    rows = [row for row in results["steps"] if "step_ms" in row]
    cells = [(_named(row, results), f"{row['batch'][0]} x {row['batch'][1]:g} s", str(row.get("rounds", "")),
              *map(_ratio, _parts(row))) for row in rows]  # fmt: skip
    yield table(("model", "batch", "rounds", *PARTS.values()), cells, right=1 + len(PARTS))
    yield from _missing(results["steps"])
    had = {_key(row) for row in results["steps"]}
    if left := [f"{case.name}, {case.batch[0]} x {case.batch[1]:g} s" for case in FULL if _key(vars(case)) not in had]:
        yield Paragraph((f"No row yet of what the first command measures besides: {'; '.join(left)}.",))
    yield from _against_targets(results)
    yield from said_of_profiles(results)
    for unit, title in CURVES.items():
        if len(_points(results["steps"], unit)) > 1:
            yield Figure(f"benchmarks-{unit}.svg", (f"CPU time and memory of the port by NeMo's, by {title}",))
    if "losses" in results.get("curve", {}):
        yield from _said_of_curve(results["curve"])
    if "stages" in results.get("loader", {}):
        yield from _said_of_loader(results["loader"])
    recorded = [row for row in results["recorder"] if "bytes_alone" in row]
    if recorded:
        yield Heading(("The recorder",))
        rates = [row["bytes"] / row["bytes_alone"] / 1e9 for row in recorded if row["bytes"] > LARGE_ENOUGH]
        yield Paragraph((ABOUT_RECORDER, DISK.format(min(rates), max(rates)) if rates else ""))
        cells = [
            (_named(row, results), f"{row['bytes'] / 1e6:,.1f}", *(f"{row[key]:.3g}" for key in RECORDED.values()),
             f"{row['peak'] / 1e6:,.0f}" if row.get("peak") else "") for row in recorded]  # fmt: skip
        yield table(("level", "MB", *RECORDED, "memory, MB"), cells, right=2 + len(RECORDED))
    for row in results["recorder"]:
        if row.get("each"):
            yield from _said_of_each(row, results)
    yield from _missing(results["recorder"])
    if results.get("comparer"):
        yield Heading(("The comparer",))
        yield Paragraph((ABOUT_COMPARER,))
        own = (f"{row['own_bytes'] / 1e6:.0f}" if row.get("own_bytes") else "" for row in results["comparer"])
        rates = [
            (_named(row, results), f"{row['gbs']:.2f}", most)
            for row, most in zip(results["comparer"], own, strict=True)
        ]
        yield table(("tensors", "GB/s", "MB"), rates, right=1)
    if results["start"]:
        yield Heading(("Start-up",))
        numbers = [
            [f"{row[key]:.2f}" if key in row and "error" not in row else "" for key in ("seconds", "clock")]
            for row in results["start"]
        ]
        shown = [(_named(row, results, Code), *both) for row, both in zip(results["start"], numbers, strict=True)]
        yield table(("command", "CPU seconds", "by the clock"), shown, right=2)
    yield from _missing([*results.get("profile", []), *results["start"]])
    yield from _missing([{"name": part, **results.get(part, {})} for part in ("loader", "curve")])


def _said_of_each(row: Row, results: dict[str, Any]) -> Iterator[Block]:
    """What the first, second, fourth ... of several recorded steps takes."""
    said = ": recorded with every module, one behind the other: seconds until written, and the process's most memory."
    yield Paragraph((*_named(row, results), said))
    shown = [(f"{n}", *row["each"][n - 1]) for n in (1, 2, 4, 8, 16, 32) if n <= len(row["each"])]
    yield table(
        ("recorded step", "MB", "until written", "memory, MB"),
        [(n, f"{size / 1e6:.1f}", f"{taken:.3g}", f"{peak / 1e6:,.0f}") for n, taken, size, peak in shown],
        right=3,
    )


def _against_targets(results: dict[str, Any]) -> Iterator[Block]:
    yield Heading(("Targets",))
    found = list(judged(results))
    yield table(("what", "at most", "measured", "met"), [
        (target.what, f"{target.most:g}", *(("not measured", "") if value is None else
         (f"{value:.2f}", "yes" if value <= target.most else "no"))) for target, value in found], right=2)  # fmt: skip
    missed: dict[str, list[str]] = {}
    for target, value in found:
        if value is not None and value > target.most:
            missed.setdefault(target.why(results), []).append(target.what)
    if missed:
        yield Paragraph((ABOUT_REASONS,))
        yield Bullets(tuple((f"{'; '.join(names)}: {reason}",) for reason, names in missed.items()))


def said_of_profiles(results: dict[str, Any]) -> Iterator[Block]:
    """By kind of operator and by part: a table each, and where most was gained."""
    rows = [row for row in results.get("profile", []) if "error" not in row]
    if rows:
        yield Heading(("Where a step takes its time",))
        yield Paragraph((ABOUT_PROFILE, " ", Code("nest-ssl bench --only profile"), "."))
    for row in rows:
        name = "".join(map(str, _named(row, results)))
        for of, what in (("kinds", "operators"), ("parts", "parts of the model")):
            sides = [row[side][of] for side in ("nemo", "exact", "fast")]
            took = {key: [sum(side.get(key, {}).values()) for side in sides] for key in {**sides[0], **sides[1]}}
            took = dict(sorted(took.items(), key=lambda item: -item[1][0]))
            took["all"] = [sum(column) for column in zip(*took.values(), strict=True)]
            cells = [
                (key, *(_milliseconds(side, key, phase) for phase in PHASES[:2] for side in sides[:2]),
                 *(f"{each:,.0f}" for each in whole), f"{whole[1] / whole[0]:.2f}" if whole[0] >= 1 else "",
                 f"{100 * whole[1] / took['all'][1]:.0f} %")
                for key, whole in took.items()
            ]  # fmt: skip
            batch = f"{row['batch'][0]} x {row['batch'][1]:g} s"
            of_all = took.pop("all")
            gained = sorted((after - before, key) for key, (before, after, _) in took.items() if after < before - 0.5)
            gains = "; ".join(
                f"{key}, {took[key][0]:,.0f} before and {took[key][1]:,.0f} after" for _, key in gained[:GAINS]
            )
            change = of_all[1] - of_all[0]
            said = f"in all {abs(change):,.0f} ms {'more' if change > 0 else 'less'} than NeMo's"
            yield Paragraph((f"{name}, {batch}, by {what}: {said}. Most is gained in: {gains or 'nothing'}.",))
            columns = ("NeMo's forward", "the port's", "NeMo's backward", "the port's", "NeMo", "exact", "fast")
            yield table((what, *columns, "exact by NeMo", "of exact's step"), cells, right=len(columns) + 2)


def _milliseconds(side: Row, key: str, phase: str) -> str:
    took = side.get(key, {}).get(phase, 0.0) if key != "all" else sum(each.get(phase, 0.0) for each in side.values())
    return f"{took:,.0f}" if took >= 0.5 else ""


def _said_of_loader(loader: Row) -> Iterator[Block]:
    same = "the same bits on both sides" if loader["same"] else "other bits on both sides"
    nemo, port = loader["item_ms"]
    yield Heading(("The loader",))
    yield Paragraph((
        f"CPU milliseconds of an item, an utterance of 16 s with a piece of a noise clip of 30 s (batches of 8, WAV in "
        f"the file system's cache), {same}: {1000 / nemo:,.0f} and {1000 / port:,.0f} items a second. Stages are "
        f"Python's profiler's, under which all of it takes longer.",
    ))  # fmt: skip
    rows = {**loader["stages"], "all": loader["item_ms"]}
    cells = [(stage, f"{nemo:.2f}", f"{port:.2f}", f"{port / nemo:.2f}") for stage, (nemo, port) in rows.items()]
    yield table(("stage", "NeMo", "port", "ratio"), cells, right=3)


def _said_of_curve(curve: Row) -> Iterator[Block]:
    losses = curve["losses"]
    nemo, exact, fast = (losses[name] for name in ("nemo", "exact", "fast"))
    parted = max(abs(one - other) / one for one, other in zip(nemo, fast, strict=True))
    same = f"{sum(one == other for one, other in zip(nemo, exact, strict=True))} of {len(nemo)}"
    yield Heading(("Learning",))
    text = (
        f"{len(nemo)} steps of the tiny model on the practice corpus ({' '.join(curve['settings'])}), everything "
        f"random on: of the losses in exact mode {same} are NeMo's to the last bit; in fast mode none is further from "
        f"NeMo's than {100 * parted:.2g} % of it. It is measured by "
    )
    yield Paragraph((text, Code("nest-ssl bench --only curve"), "."))
    yield Figure(CURVE, ("the loss of each step: NeMo and the port in fast mode",))


def plot_losses(losses: dict[str, list[float]]) -> str:
    """The losses of NeMo (solid) and of the fast mode (dashed) over steps."""
    width, height, left, low = 640.0, 300.0, 50.0, 250.0
    nemo, fast = losses["nemo"], losses["fast"]
    least, most = min(*nemo, *fast), max(*nemo, *fast)
    paper, right = Paper(width, height), width - 20

    def points(values: Sequence[float]) -> list[tuple[float, float] | None]:
        high = (low - 30) / ((most - least) or 1.0)
        step = (right - left) / max(1, len(values) - 1)
        return [(left + step * number, low - high * (value - least)) for number, value in enumerate(values)]

    for value, y in ((least, low), (most, 30.0)):
        paper.line("grid", left, y, right, y)
        paper.text(left - 8, y + 4, f"{value:.2f}", "muted", "end")
    for number in (0, len(nemo) - 1):
        paper.text(left + (right - left) * number / max(1, len(nemo) - 1), low + 18, str(number), "muted", "middle")
    paper.path("reference", points(nemo))
    paper.path("candidate", points(fast))
    paper.text(left, 16, "loss of NeMo (solid) and of the port in fast mode (dashed)")
    paper.text(right, low + 34, "step", "muted", "end")
    return paper.svg("Loss by step, NeMo and the port in fast mode", style=True) + "\n"


def _missing(rows: Sequence[Row]) -> Iterator[Block]:
    lost = [(f"{row['name']}: not had ({row['error']})",) for row in rows if "error" in row]
    if lost:
        yield Bullets(tuple(lost))


def _named(row: Row, results: dict[str, Any], style: Callable[[str], Inline] = str) -> Text:
    """A row's name, and its day, commit and machine, where they are others than of what was measured last."""
    day, machine = row.get("day", "an earlier commit"), row.get("machine", "")
    said = [] if day == results.get("day", day) else [day]
    if machine and _whose(machine) != _whose(str(results.get("machine", machine))):
        said.append(_whose(machine))
    return (style(row["name"]), *([f" ({', '.join(said)})"] if said else []))


def _whose(machine: str) -> str:
    """Of a machine its processor and cores: its rate is another in each run."""
    return ", ".join(machine.split(", ")[:-2])


def _parts(row: Row) -> list[list[float] | None]:
    return [row.get(part) for part in PARTS]


def _ratio(found: list[float] | None) -> str:
    return f"{found[1]:.2f} ({found[2]:.2f} to {found[3]:.2f})" if found else ""


def _points(rows: Sequence[Row], unit: str) -> list[tuple[float, float, float | None]]:
    """Of each row named `N unit`: N, and the ratios of step and of peak memory."""
    named = [(row["name"].split(), row) for row in rows if "step_ms" in row]
    curve = [(words, row) for words, row in named if len(words) == 2 and words[1] == unit]
    return sorted((float(words[0]), row["step_ms"][1], (row.get("peak_bytes") or [0, None])[1]) for words, row in curve)


def plot(points: Sequence[tuple[float, float, float | None]], name: str) -> str:
    """Both ratios over a quantity, from 0 to the largest, with the line at 1 where both trainers are equal."""
    width, height, left, low = 480.0, 260.0, 50.0, 220.0
    largest = max(1.0, *(value for point in points for value in point[1:] if value is not None))
    paper, right, most = Paper(width, height), width - 20, points[-1][0]

    def place(quantity: float, ratio: float) -> tuple[float, float]:
        return left + (right - left) * quantity / most, low - (low - 30) * ratio / largest

    for level in (0.0, 0.5, 1.0):
        _, y = place(0, level)
        paper.line("axis" if level != 0.5 else "grid", left, y, right, y)
        paper.text(left - 8, y + 4, f"{level:g}", "muted", "end")
    for quantity, *_ in points:
        paper.text(place(quantity, 0)[0], low + 18, f"{quantity:g}", "muted", "middle")
    paper.path("reference", [place(quantity, step) for quantity, step, _ in points])
    paper.path("candidate", [place(quantity, peak) if peak else None for quantity, _, peak in points])
    paper.text(left, 16, "CPU time (solid) and peak memory (dashed) of the port by NeMo's")
    paper.text(right, low + 34, name, "muted", "end")
    return paper.svg(f"CPU time and peak memory by {name}", style=True) + "\n"


def today(commit: str | None) -> str:
    """The day and the commit of a run."""
    return str(date.today()) + (f", commit {commit[:7]}" if commit else "")
