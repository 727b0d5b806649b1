"""The page: what each part found, in tables, with card and versions. Every number in it comes from `gpu.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from nest_ssl.bench.results import Machine, Results
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Heading, Paragraph, Text, as_text, table

Row = dict[str, Any]
INTRODUCTION = (
    "Written by the command below from ",
    Code("gpu.json"),
    ", which it writes as well; only a remark, below a part's command, is a person's. Both trainers run the same data, "
    "configuration and seed; “identical” is every bit of every recorded tensor.",
)


def page(results: Results) -> list[Block]:
    """The whole document."""
    blocks: list[Block] = [Heading(("On the GPU",), 1), Paragraph(INTRODUCTION), CodeBlock(("make test-gpu",))]
    machines = list(dict.fromkeys(_machine(part.machine) for part in results.parts.values()))
    if len(machines) == 1:
        blocks.append(Paragraph((f"{machines[0]}.",)))
    for name, (title, about, body) in SECTIONS.items():
        part = results.parts.get(name)
        blocks.append(Heading((title,)))
        blocks.append(Paragraph(as_text(about)))
        if part is None:
            blocks.append(Paragraph(("Not run yet.",)))
            continue
        where = f"{_machine(part.machine)}; " if len(machines) > 1 else ""
        commit = f" at commit {part.machine.commit[:7]}" if part.machine.commit else ""
        blocks.append(Paragraph((f"{where}{part.day}{commit}, {part.seconds:.0f} s: ", Code(part.command))))
        if part.remark:
            blocks.append(Paragraph((part.remark,)))
        if part.tried:
            blocks.append(Paragraph((f"Tried again on {part.tried}. What stands here is of the run above.",)))
        blocks += body([row for row in part.rows if "error" not in row])
        for row in part.rows:
            if "error" in row:
                names = [row["name"], _batch(row["batch"]) if "batch" in row else "", row.get("side", "")]
                blocks.append(Bullets(((f"{', '.join(filter(None, names))}: not had ({row['error']})",),)))
    return blocks


def _machine(machine: Machine) -> str:
    versions = f"driver {machine.driver}, CUDA {machine.cuda}, cuDNN {machine.cudnn}" if machine.driver else "no GPU"
    return f"{machine.card} ({versions}), torch {machine.torch}, NumPy {machine.numpy}, Python {machine.python}"


def _batch(batch: Sequence[float]) -> str:
    return f"{batch[0]} x {batch[1]:g} s"


# --- the sections -----------------------------------------------------------------------------------------------------


def parity_section(rows: list[Row]) -> Iterator[Block]:
    yield table(
        ("run", "reference", "candidate", "verdict", "tensors", "of them the same bits"),
        [
            (r["name"], r["reference"], r["candidate"], r["verdict"], f"{r['tensors']:,}", f"{r['tensors_same']:,}")
            for r in rows
        ],
        right=2,
    )
    said = [(f"{row['name']}: first difference at {row['first']}",) for row in rows if row["first"]]
    said += [(f"{row['name']}: {row['replayed']} steps replayed",) for row in rows if "replayed" in row]
    if said:
        yield Bullets(tuple(said))
    yield Paragraph(("Each is both trainers with these settings and no loader workers, then the comparison:",))
    settings = {row["settings"]: row["name"] for row in reversed(rows)}
    yield CodeBlock(tuple(f"{text}    # {name}" for text, name in reversed(settings.items())))


def generator_section(rows: list[Row]) -> Iterator[Block]:
    for row in rows:
        said = "the same, draw by draw" if row["same"] else f"not the same: {row['parted']}"
        calls = " and ".join(f"{count:,}" for count in row["calls"])
        yield Paragraph((Code(row["name"]), f": {calls} draws from {row['generator']}, {said}."))
        kinds = [(Code(kind), f"{count:,}", f"{drawn:,}") for kind, (count, drawn) in row["kinds"].items()]
        yield table(("drawn by", "calls", "drawn"), kinds, right=2)


def resume_section(rows: list[Row]) -> Iterator[Block]:
    for row in rows:
        if "values" in row:
            first = f": {', '.join(row['first'])}" if row["differing"] else ""
            counted = f"{row['differing']:,} of {row['values']:,} values of the last checkpoint differ{first}"
            yield Paragraph((f"{row['name']}: {counted}. Generators in it: {', '.join(row['generators'])}.",))
    compared = [row for row in rows if "verdict" in row]
    if compared:
        yield from parity_section(compared)


def cpu_gpu_section(rows: list[Row]) -> Iterator[Block]:
    rungs = ("initial weights", "batch", "random draws", "forward", "loss", "gradients", "after the step")
    keys = {"initial weights": "initial_weights", "random draws": "draws", "after the step": "weights"}

    def cell(row: Row, rung: str) -> str:
        key = keys.get(rung, rung)
        _, differing = row["rungs"][key]
        largest = row["largest"].get(key)
        return "same" if not differing else f"{differing:,}" + (f", {largest:.0e}" if largest is not None else "")

    yield table(("run", *rungs), [(r["name"], *(cell(r, rung) for rung in rungs)) for r in rows], right=len(rungs))
    yield Paragraph(
        ("In a cell: how many values differ, and the largest difference of one relative to its tensor's size.",)
    )


def explain_section(rows: list[Row]) -> Iterator[Block]:
    def cells(row: Row) -> Iterable[object]:
        yield from (row["size"].removeprefix("size="), row["planted"] or row["name"], row["verdict"])
        yield Code(", ".join(row["born"])) if row["born"] else "nothing"
        yield f"{row['largest_floors']:.3g}" if row["born"] else ""
        kinds = row["gathered"].items()
        had = (f"{kind} {how:.0f} s" if isinstance(how, (int, float)) else f"no {kind}" for kind, how in kinds)
        yield from (f"{row['tensors_same']:,} of {row['tensors']:,}", ", ".join(had))

    if not rows:
        return
    columns = ("model", "candidate", "verdict", "another function in", "floors", "the same bits", "evidence")
    yield table(columns, [tuple(cells(row)) for row in rows])
    wrong = [row for row in rows if (row["verdict"], row["born"]) != (row["expected"], row["planted_in"])]
    said = tuple((f"{row['name']}: {row['expected']} was expected",) for row in wrong)
    yield Bullets(said) if wrong else Paragraph(("Each verdict and each place is the one expected.",))


def repeat_section(rows: list[Row]) -> Iterator[Block]:
    kinds = ("outputs", "output_gradients", "parameter_gradients")

    def cells(row: Row) -> Iterable[object]:
        yield from (row["name"], row["side"])
        yield from (f"{row[kind][1]:,} of {row[kind][0]:,}" for kind in kinds)
        yield f"{row['largest']:.0e}" if row["largest"] else "0"

    columns = ("kernels", "trainer", "outputs", "their gradients", "parameters' gradients", "largest")
    yield table(columns, [tuple(cells(row)) for row in rows], right=4)
    named = [
        (f"{row['name']}, {row['side']}, {kind.replace('_', ' ')}: ", Code(", ".join(row[kind][2])))
        for row in rows
        for kind in kinds
        if row[kind][1]
    ]
    if named:
        yield Paragraph(("The first ten that vary, in the order in which they are computed:",))
        yield Bullets(tuple(named))


def sync_section(rows: list[Row]) -> Iterator[Block]:
    counts = [(r["side"], *(str(sum(n for _, n in r[phase])) for phase in ("forward", "backward"))) for r in rows]
    yield table(("trainer", "forward", "backward"), counts, right=2)
    places = [
        (f"{row['side']}, {phase}, {count} times: ", Code(place))
        for row in rows
        for phase in ("forward", "backward")
        for place, count in row[phase]
    ]
    if places:
        yield Bullets(tuple(places))
    for row in rows:
        if row["not_repeatable"]:
            names = Code(", ".join(row["not_repeatable"]))
            yield Paragraph((f"{row['side']} uses operators that have no deterministic kernel, as torch says: ", names))


# Of the timed trainers, the columns' names.
NAMES = {"nemo": "NeMo", "nest": "exact", "replayed": "exact, graphs", "fast": "fast", "graphs": "fast, graphs"}


def speed_section(rows: list[Row]) -> Iterator[Block]:
    limits = next((row for row in rows if row["name"] == "limits"), None)
    flops = {(r["side"], *r["batch"]): r["flops"] for r in rows if r["name"] == "arithmetic"}
    yield from said_of_limits(limits)
    timed = [row for row in rows if "nemo" in row]
    lines = [(row["name"], _batch(row["batch"]), *_steps(row)) for row in timed]
    columns = ["NeMo ms", *(f"{name} {unit}" for name in list(NAMES.values())[1:] for unit in ("ms", "ratio"))]
    yield table(("run", "batch", *columns), lines, right=len(columns))
    shares = [(row["name"], _batch(row["batch"]), *shares_and_memory(row, flops, limits)) for row in timed]
    if shares:
        said = "Arithmetic of the step in its time, of the measured matrix rate in its type, and GB of memory at most:"
        yield Paragraph((said,))
        columns = [f"{name} {unit}" for name in NAMES.values() for unit in ("share", "GB")]
        yield table(("run", "batch", *columns), shares, right=len(columns))
    lost = [
        (f"{NAMES[side]}, {row['name']}, {_batch(row['batch'])}: not had ({row[side]['error']})",)
        for row in timed
        for side in NAMES
        if "error" in row.get(side, {})
    ]
    if lost:
        yield Bullets(tuple(lost))
    yield from parts_of_steps(timed)
    yield from cost_of_determinism(timed)
    yield from parts_of_forward(rows)


def _steps(row: Row) -> Iterator[str]:
    nemo = row["nemo"]["step_ms"]
    yield f"{nemo:.1f}"
    for side in list(NAMES)[1:]:
        step = row.get(side, {}).get("step_ms")
        yield from (f"{step:.1f}", f"{step / nemo:.2f}") if step else ("", "")


def said_of_limits(limits: Row | None) -> Iterator[Block]:
    if limits:
        rates = ", ".join(f"{limits[f'{kind}_tflops']:.1f} in {kind}" for kind in ("fp32", "tf32", "bf16"))
        copies = " and ".join(f"{limits[f'{kind}_gbs']:.1f} GB/s to {kind} memory" for kind in ("pageable", "pinned"))
        size = f"{limits['matrix']:,}"
        yield Paragraph((f"The card multiplies matrices of {size} x {size} at {rates} TFLOP/s, and copies {copies}.",))


def parts_of_steps(timed: list[Row]) -> Iterator[Block]:
    parts = ("forward_ms", "backward_ms", "optimizer_ms")
    lines = [
        (r["name"], _batch(r["batch"]), NAMES[side], *(f"{r[side][part]:.1f}" for part in parts))
        for r in timed
        for side in NAMES
        if "step_ms" in r.get(side, {})
    ]
    if lines:
        yield Paragraph(("The same steps, part by part, in ms:",))
        yield table(("run", "batch", "trainer", *(part[:-3] for part in parts)), lines, right=3)


def parts_of_forward(rows: list[Row]) -> Iterator[Block]:
    """NeMo's and the port's own parts beside each other."""
    found = {(r["run"], *r["batch"], r["side"]): r["parts"] for r in rows if r["name"] == "parts" and "parts" in r}
    lines = []
    for run, utterances, seconds, side in found:
        nemo, nest = (found.get((run, utterances, seconds, each), {}) for each in ("nemo", "nest"))
        for part in nest if side == "nest" else ():
            both = [each.get(part, ["", ""]) for each in (nemo, nest)]
            numbers = (f"{value:.1f}" if value != "" else "" for i in (0, 1) for value in (both[0][i], both[1][i]))
            lines.append((run, _batch([utterances, seconds]), part, *numbers))
    if lines:
        said = (
            "One forward, part by part, in ms: by the device's clock, and until the host has launched it. Both alike: "
        )
        yield Paragraph((f"{said}the host takes the time. The last four parts are inside the layers.",))
        columns = ("NeMo", "exact", "NeMo's host", "exact's host")
        yield table(("run", "batch", "part", *columns), lines, right=4)


def shares_and_memory(row: Row, flops: dict[tuple[Any, ...], float], limits: Row | None) -> Iterator[str]:
    for side in NAMES:
        found = row.get(side, {})
        yield share_of_limit(row, side, flops, limits) if "step_ms" in found else ""
        yield f"{found['peak_bytes'] / 2**30:.1f}" if found.get("peak_bytes") else ""


def share_of_limit(row: Row, side: str, flops: dict[tuple[Any, ...], float], limits: Row | None) -> str:
    done = flops.get(("nemo" if side == "nemo" else "nest", *row["batch"]))  # the fast mode leaves some of it out
    if not done or not limits:
        return ""
    tf32 = "TF32" in row["name"] or side in ("fast", "graphs")
    rate = limits["bf16_tflops" if "bf16" in row["name"] else "tf32_tflops" if tf32 else "fp32_tflops"]
    return f"{100 * done / (row[side]['step_ms'] / 1000) / 1e12 / rate:.0f} %"


def cost_of_determinism(timed: list[Row]) -> Iterator[Block]:
    steps = {(row["name"], tuple(row["batch"])): row for row in timed}
    said = []
    for (name, batch), row in steps.items():
        free = steps.get((f"{name}, any kernel", batch))
        if free:
            costs = [
                f"{side} {100 * (row[side]['step_ms'] / free[side]['step_ms'] - 1):+.1f} %" for side in ("nemo", "nest")
            ]
            said.append((f"{name}, {_batch(batch)}: {', '.join(costs)}",))
    if said:
        yield Paragraph(("What deterministic kernels cost, of a step with any kernel:",))
        yield Bullets(tuple(said))


def recorder_section(rows: list[Row]) -> Iterator[Block]:
    limits = next((row for row in rows if row["name"] == "limits"), {"pinned_gbs": None})
    rate = limits["pinned_gbs"]
    if rate:
        disk = f", and the disk takes {limits['write_gbs']:.1f} GB/s" if "write_gbs" in limits else ""
        copies = f"copies {limits['pageable_gbs']:.1f} GB/s to pageable and {rate:.1f} GB/s to pinned memory{disk}"
        yield Paragraph((f"The card {copies}.",))
    recorded = [row for row in rows if "written" in row]
    lines = [
        (
            f"{r['name']}, {_batch(r['batch'])}", f"{r['bytes'] / 1e9:.2f}", f"{r['bare']:.3f}", f"{r['first']:.2f}",
            f"{r['seconds']:.3f}", f"{r['seconds'] / r['bare']:.2f}", f"{r['bytes'] / 1e9 / rate:.3f}" if rate else "",
            f"{r['written']:.1f}", f"{r['cpu']:.1f}", f"{r['peak'] / 2**30:.1f}" if r["peak"] else "",
        )
        for r in recorded
    ]  # fmt: skip
    columns = ("level", "GB", "bare s", "first s", "step s", "ratio", "bytes pinned s", "written s", "CPU s", "peak GB")
    yield table(columns, lines, right=9)
    waits = [(f"{row['name']}, {count} times: ", Code(place)) for row in recorded for place, count in row["waits"]]
    if waits:
        yield Paragraph(("Where the host waits for the device while a step is recorded:",))
        yield Bullets(tuple(waits))


Section = tuple[str, "str | Text", Callable[[list[Row]], Iterator[Block]]]
SECTIONS: dict[str, Section] = {
    "parity": (
        "The same bits",
        "NeMo against the port, and each against itself in another process, all with deterministic kernels and without "
        "TF32. Where a run's name ends in “graphs”, the port replays its encoder (cuda_graphs=true) until the last "
        "step, which is recorded and so runs as it is: its bits are NeMo's if those of all steps before it were.",
        parity_section,
    ),
    "repeat": (
        "What does not repeat",
        "Forward and backward of the same batch five times from the same weights, buffers and generators, in one "
        "process, in float32 without TF32; “free” leaves the choice of kernels to torch. A value that varies makes all "
        "vary that is computed from it.",
        repeat_section,
    ),
    "generator": (
        "The device's generator",
        "What each call of one step draws from the device's generator (Philox), by both recordings. A draw is how far "
        "the generator's offset moves: numbers a thread, in fours.",
        generator_section,
    ),
    "resume": (
        "Going on",
        "The port, everything random on, stopped and going on from its checkpoint, against a run that was not stopped; "
        "then NeMo and the port, both from that checkpoint.",
        resume_section,
    ),
    "cpu-gpu": (
        "One device with another",
        "The port on the CPU against the port on the device. The two are not the same experiment: NeMo 3.0 draws the "
        "mask from the generator of the device that holds the features, and the two generators (Mersenne Twister, "
        "Philox) give other numbers for the same seed. From there on all differs. With mask_prob=1 a block starts "
        "wherever one fits, whatever is drawn, and what remains is rounding: in float32, and in float64 but for the "
        "features, which are float32 in NeMo too.",
        cpu_gpu_section,
    ),
    "explain": (
        "Bug or rounding, on the device",
        "What explain says where both trainers, the replay, the noise floor, float64 and the operators ran on the "
        "device; faults and rewrites are planted in the port (see docs/detection.md). “devices” is the port on the "
        "CPU against the port on the device, masked wherever a block fits.",
        explain_section,
    ),
    "sync": (
        "Where the host waits",
        "Synchronisations of host and device in one step, as torch.cuda.set_sync_debug_mode reports them. Backward "
        "runs in C++: its line is where backward was called.",
        sync_section,
    ),
    "speed": (
        "Speed and memory",
        "NeMo, the port, the port with numerics=fast (TF32 in all its runs), and both of these with cuda_graphs=true "
        "(graphs), by turns (twice each, once with any kernel; 6 steps after some to warm up, medians) in Lightning's "
        "loop, everything random on, timed by the device's events. The batch is constant and lies on the device: "
        "utterances of the practice corpus, repeated to the length. No loader, no logger, no progress bar. A ratio is "
        "the port's time divided by NeMo's.",
        speed_section,
    ),
    "recorder": (
        "The recorder",
        "A step of the port recorded by each level, by the clock: first the bare step before it; the first that is "
        "recorded, and one behind it, until training goes on; what its bytes take through pinned memory; until all of "
        "it is written and hashed; the CPU time of that, and the most memory held on the device.",
        recorder_section,
    ),
}
