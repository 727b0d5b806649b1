"""Parts of the bench that record trainings and compare them: parity, generators, going on, one device with another.

Each takes a `Bench` and returns rows. They may run side by side.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nest_ssl.base.nested import leaves
from nest_ssl.bench.trainings import NO_WORKERS, Bench, Pair, Training, compare, train, train_pairs
from nest_ssl.train.checkpoint.checkpoint_io import AtomicCheckpointIO

Rows = list[dict[str, Any]]

TINY, LARGE = "size=tiny", "size={size}"  # the bench's size in place of large, in a dry run
QUICK, FULL, BF16 = ("run=quick",), ("run=full", *NO_WORKERS), ("trainer.precision=bf16-mixed",)
GRAPHS = "cuda_graphs=true"
# Batches of all ten utterances have one shape.
ONE_SHAPE = ("model.train_ds.batch_size=10", "batches=10", "save_steps=9", "trainer.check_val_every_n_epoch=100")
LONG = ("batches={long}", "save_steps=0,{last}", "trainer.check_val_every_n_epoch=100")
PARITY: dict[str, tuple[str, ...]] = {
    "{size}, quick, 2 steps": (LARGE, *QUICK, "batches=2", "save_steps=1"),
    "{size}, full, 2 steps": (LARGE, *FULL, "batches=2", "save_steps=1"),
    "{size}, full, bf16-mixed, 2 steps": (LARGE, *FULL, *BF16, "batches=2", "save_steps=1"),
    "tiny, quick, 3 steps": (TINY, *QUICK, "batches=3", "save_steps=0,1,2"),
    "tiny, full, {long} steps": (TINY, *FULL, *LONG),
    "tiny, full, bf16-mixed, {long} steps": (TINY, *FULL, *BF16, *LONG),
    # With the port's encoder replayed from the third batch of a shape on (NeMo takes no notice of the setting). The
    # last step is recorded, and so runs without graphs: its bits are NeMo's if those of all steps before it were.
    "{size}, full, 10 steps, graphs": (LARGE, *FULL, *ONE_SHAPE, "record=boundaries", GRAPHS),
    "{size}, full, bf16-mixed, 10 steps, graphs": (LARGE, *FULL, *BF16, *ONE_SHAPE, "record=boundaries", GRAPHS),
    "tiny, full, {long} steps, graphs": (TINY, *FULL, *LONG, GRAPHS),
}
AGAIN = "{size}, quick, 2 steps"  # the one that each trainer also does a second time


def parity(bench: Bench) -> Rows:
    """NeMo against the port, with graphs too, and each against itself in another process, deterministic kernels."""
    # In a few steps no shape comes often enough to be captured, but where all batches have one.
    wanted = {n: settings for n, settings in PARITY.items() if not (bench.quick and {*LONG, GRAPHS} <= {*settings})}
    pairs = [Pair(_filled(bench, name), *_both(bench, f"parity {name}", settings)) for name, settings in wanted.items()]
    if AGAIN in PARITY:
        again = _both(bench, "parity again", PARITY[AGAIN])
        name = _filled(bench, AGAIN)
        first = next(pair for pair in pairs if pair.name == name)
        for one, other in zip((first.reference, first.candidate), again, strict=True):
            pairs.append(Pair(f"{name}, {one.side} again", one, other))
    rows = train_pairs(bench, pairs, compare)
    for pair, row in zip(pairs, rows, strict=True):
        if GRAPHS in pair.candidate.overrides and "error" not in row:
            log = pair.candidate.folder(bench).with_name(f"{pair.candidate.side}.out")
            said = re.search(r"replayed (\d+) steps", log.read_text(errors="replace"))
            row["replayed"] = int(said[1]) if said else 0
    return rows


def generator(bench: Bench) -> Rows:
    """How many numbers each call draws from the device's generator, by both trainers' own account of one step."""
    rows: Rows = []
    for size in (TINY, LARGE):
        sides = _both(bench, f"generator {size[5:].strip('{}')}", (size, *FULL, "batches=1", "save_steps=0"))
        rows += train_pairs(bench, [Pair(sides[0].overrides[0], *sides)], _drawn)
    return rows


def _drawn(bench: Bench, pair: Pair, errors: list[str]) -> dict[str, Any]:
    found = {"error": "; ".join(errors)} if errors else ledgers(bench, pair.reference, pair.candidate)
    return {"name": pair.name, **found}


def ledgers(bench: Bench, reference: Training, candidate: Training) -> dict[str, Any]:
    """Draws from the device's generator in one step, compared one by one.

    Returns:
        `generator` (its kind), `calls` (of both sides), `same`, `parted` (the first that differs, or None), and
        `kinds`: calls and draws of the reference by the module's last name.
    """
    kind = "torch_cuda" if bench.accelerator == "gpu" else "torch_cpu"
    drawn: list[list[tuple[str, int | None]]] = []
    for training in (reference, candidate):
        path = training.folder(bench) / "step_0" / "rng.json"
        ledger = json.loads(path.read_text(encoding="utf-8"))["ledger"]
        entries = [entry for entry in ledger if entry["generator"].startswith(kind)]
        drawn.append([(entry["module"] or entry["phase"], entry["draws"]) for entry in entries])
    by_kind: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, count in drawn[0]:
        total = by_kind[name.rpartition(".")[2]]
        total[0], total[1] = total[0] + 1, total[1] + (count or 0)
    one, other = drawn
    differing = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    at = slice(differing, differing + 1)
    parted = None if one == other else f"draw {differing}: {one[at]} {other[at]}"
    found = {"generator": kind, "calls": [len(one), len(other)], "same": one == other}
    return {**found, "kinds": by_kind, "parted": parted}


# --- going on ------------------------------------------------------------------------------------------------------

# Everything random on, 6 batches an epoch; stopped within the second epoch.
RESUMED = ("size=tiny", "run=train", *NO_WORKERS, "model.train_ds.batch_size=2", "model.optim.sched.warmup_steps=5",
           "model.train_ds.batch_augmentor.prob=0.9", "exp_manager.create_tensorboard_logger=false",
           "exp_manager.checkpoint_callback_params.save_top_k=1", "exp_manager.name=x")  # fmt: skip
STOPPED, WHOLE = "trainer.max_steps=8", "trainer.max_steps=15"
LENGTH = "lr_schedulers.0.max_steps"  # the schedule stays the checkpoint's; Noam's rates do not depend on it


def resume(bench: Bench) -> Rows:
    """The port, stopped and going on, ends with the bits of a run that was not; then both go on from its checkpoint."""
    folders = [bench.folder / "resume" / name for name in ("whole", "parts")]
    stages = [(folders[0], WHOLE), (folders[1], STOPPED), (folders[1], WHOLE)]
    name = "the port stopped after 8 of 15 steps"
    for number, (folder, length) in enumerate(stages):
        settings = (*RESUMED, f"exp_manager.exp_dir={folder}", length)
        training = Training(f"resume {number}", "nest", settings)
        if error := train(bench, training):
            return [{"name": name, "error": error}]
    states, names = zip(*(_checkpoint(folder) for folder in folders), strict=True)
    keys = {key for key in states[0].keys() | states[1].keys() if key != LENGTH}
    differing = sorted(key for key in keys if not _same(states[0].get(key), states[1].get(key)))
    generators = sorted({key.split(".")[2] for key in keys if key.startswith("nest_ssl.generators.")})
    row = {"name": name, "values": len(keys), "differing": len(differing), "first": differing[:5]}
    row["generators"] = generators
    start = f"init_from_ptl_ckpt={names[1]}"
    sides = _both(bench, "resume from checkpoint", (TINY, *FULL, "batches=2", "save_steps=0,1", start))
    pair = Pair("both from the port's checkpoint", *sides)
    return [row, *train_pairs(bench, [pair], compare)]


def _checkpoint(folder: Path) -> tuple[dict[str, Any], Path]:
    """The leaves of the last checkpoint by path, and where it is."""
    (path,) = (folder / "x" / "checkpoints").glob("*-last.ckpt")
    state = AtomicCheckpointIO().load_checkpoint(path)
    # The paths of the best checkpoints are this folder's own.
    return {key: Path(leaf).name if isinstance(leaf, str) else leaf for key, leaf in leaves(_named(state))}, path


def _named(value: Any) -> Any:
    """The same, with the last part of keys that are paths."""
    if isinstance(value, dict):
        return {str(key).rpartition("/")[2]: _named(child) for key, child in value.items()}
    return [_named(child) for child in value] if isinstance(value, (list, tuple)) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and one.numpy().tobytes() == other.numpy().tobytes()
    return type(one) is type(other) and bool(one == other)


# --- one device with another -----------------------------------------------------------------------------------------

EVERYWHERE = "model.masking.mask_prob=1.0"
DEVICES: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "masked wherever a block fits": (EVERYWHERE,),
    "masked wherever a block fits, float64": (EVERYWHERE, "trainer.precision=64-true"),
}


def cpu_gpu(bench: Bench) -> Rows:
    """The port on the CPU against the port on the device; the mask is drawn on the device, and so is another.

    Where every block starts that fits, the numbers drawn do not matter, and the rest of the step can be compared.
    """
    pairs = []
    for name, settings in DEVICES.items():
        overrides = (TINY, *QUICK, "batches=2", "save_steps=0,1", *settings)
        on_cpu = Training(f"cpu-gpu {name} on the CPU", "nest", overrides, accelerator="cpu")
        pairs.append(Pair(name, on_cpu, Training(f"cpu-gpu {name}", "nest", overrides)))
    return train_pairs(bench, pairs, compare)


def _both(bench: Bench, name: str, settings: Sequence[str]) -> tuple[Training, Training]:
    """The same training by NeMo and by the port."""
    overrides = tuple(_filled(bench, setting) for setting in settings)
    nemo, nest = (Training(_filled(bench, name), side, overrides) for side in ("nemo", "nest"))
    return nemo, nest


def _filled(bench: Bench, text: str) -> str:
    """With the bench's size and lengths."""
    long = 6 if bench.quick else 200
    return text.format(size=bench.size, long=long, last=long - 1)
