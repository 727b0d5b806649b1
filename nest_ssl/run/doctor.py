"""What this machine, this environment and these settings come to, before anything is trained."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nest_ssl.base.errors import UserError
from nest_ssl.base.home import ROOT

State = Literal["ok", "note", "refused"]
MODULES = {"nemo": "nemo", "nest": "nest_ssl"}  # by trainer: what has to be importable
# Measured with practice data: a recorded step holds weights, gradients and the optimizer's state, and the calls: 50 MB
# at tiny, 2.5 GB at large.
BYTES_OF_PARAMETER, BYTES_OF_CALLS, BYTES_OF_WIDTH = 16, 35e6, 76e3
# A process of NeMo, all modules recorded, which takes more than the port and other levels: 0.8 GB at tiny; at large 5.5
# with batches of 2 (RUN=quick), 7.1 of 8 x 6 s (RUN=full), 16.3 of 8 x 16 s. By parameter; by second of audio, layer
# and channel; and by layer, head and square of seconds, for attention.
MEMORY, MEMORY_OF_PARAMETER, MEMORY_OF_SECOND, MEMORY_OF_ATTENTION = 0.8e9, 36, 2e3, 32e3
KEPT = {"modules": 1.0, "boundaries": 0.25, "operators": 0.0, "digest": 0.0}  # of the calls, by level


@dataclass(frozen=True, slots=True)
class Answer:
    """One thing that was looked at: ``ok``, worth a ``note``, or something that a run would be ``refused`` for."""

    what: str
    state: State
    text: str


def examine(trainer: str, words: Sequence[str], subject: Any) -> Iterator[Answer]:
    """Everything that can be known beforehand, in the order in which a run would meet it.

    Args:
        trainer: `nemo` or `nest`.
        words: the run's settings, as of `nest-ssl train`.
        subject: the trainer, see `run.subject`; it is not loaded.
    """
    yield Answer("python", "ok", f"{platform.python_version()} in {sys.prefix}")
    if importlib.util.find_spec(MODULES[trainer]) is None:
        yield Answer("trainer", "refused", f"{MODULES[trainer]} is not installed here: make setup, or its own Python")
        return
    yield locked(trainer)
    yield from machine()
    yield from settings(subject, words)


def locked(trainer: str) -> Answer:
    """Installed versions against those of the lock of this environment."""
    import torch
    from packaging.requirements import Requirement

    build = "cuda" if torch.version.cuda else "cpu"
    name = "nest" if trainer == "nest" else f"nemo-{importlib.metadata.version('nemo_toolkit')}"
    paths = [ROOT / "docker" / "locks" / f"{lock}-{build}.lock" for lock in (name, "torch")]
    if not all(path.is_file() for path in paths):
        return Answer("versions", "note", f"no lock for {name} ({build}): what is installed is not checked")
    lines = [line for path in paths for line in path.read_text().splitlines() if re.match(r"[\w.-]+==", line)]
    pinned = [Requirement(line.rstrip("\\ ")) for line in lines]
    pinned = [pin for pin in pinned if pin.marker is None or pin.marker.evaluate()]
    others = []
    for package, version in ((pin.name, str(pin.specifier).removeprefix("==")) for pin in pinned):
        try:
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed = "not installed"
        if installed != version:
            others.append(f"{package} {installed}, locked {version}")
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return Answer("versions", "note", f"not those of {paths[0].name}: {'; '.join(others[:3])}{more}")
    return Answer("versions", "ok", f"all {len(pinned)} are those of {paths[0].name} and {paths[1].name}")


def machine() -> Iterator[Answer]:
    """GPU and driver, cores and threads."""
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
        text = f"{torch.cuda.device_count()} x {', '.join(sorted(names))}, CUDA {torch.version.cuda}"
        yield Answer("gpu", "ok", text)
    elif shutil.which("nvidia-smi"):
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        yield Answer("gpu", "note", f"a driver is there, but torch {torch.__version__} ({build}) finds no GPU")
    else:
        yield Answer("gpu", "ok", "none: both trainers run on the CPU")
    threads = os.environ.get("OMP_NUM_THREADS")
    cores = os.cpu_count() or 1
    if threads is None:
        yield Answer("threads", "note", f"OMP_NUM_THREADS is not set: torch takes {torch.get_num_threads()}, make 1")
    else:
        state: State = "note" if threads.isdecimal() and int(threads) > cores else "ok"
        yield Answer("threads", state, f"{threads} of {cores} cores; the same bits need the same number")


def settings(subject: Any, words: Sequence[str]) -> Iterator[Answer]:
    """The configuration, the data and the room that the run needs; where one is refused the rest is not known."""
    from nest_ssl.config.compose import data_paths
    from nest_ssl.recording.writer import check_target
    from nest_ssl.run.command_line import read_command_line
    from nest_ssl.run.preflight import check_data, check_settings, data_sections

    what = "settings"
    try:
        cfg = read_command_line(subject.name, words)
        notes = check_settings(subject, cfg)
        yield Answer("settings", "ok", f"for NeMo {cfg.nemo}, {cfg.trainer.accelerator}, seed {cfg.seed}")
        yield from (Answer("settings", "note", note) for note in notes)
        what = "output"
        check_target(Path(cfg.output_dir), cfg.overwrite)
        yield room(cfg)
        what = "data"
        inputs, _, length, more = check_data(subject, checked := data_paths(cfg))
        yield Answer("data", "ok", f"{length.epoch:,} batches in an epoch; {length.batches:,.0f} are trained")
        yield from (Answer("data", "note", note) for note in more)
        train = data_sections(checked)["train"]
        yield memory(cfg, train, inputs.corpora.read(train).entries if inputs.corpora else ())
    except UserError as error:
        yield Answer(what, "refused", str(error))


def room(cfg: Any) -> Answer:
    """On the disk, as far as can be said beforehand."""
    from nest_ssl.base.steps import parse_steps

    parameters = count_parameters(cfg)
    steps = frozenset({0, 1}) if cfg.save_steps is None else parse_steps(cfg.save_steps)
    width = cfg.model.encoder.n_layers * cfg.model.encoder.d_model
    whole = 1e6 if cfg.record in ("digest", "operators") else BYTES_OF_PARAMETER * parameters
    step = whole + KEPT[cfg.record] * (BYTES_OF_CALLS + BYTES_OF_WIDTH * width)
    target = Path(cfg.output_dir).absolute()
    place = next(path for path in (target, *target.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if steps is None:
        return Answer("disk", "note", f"about {size(step)} a step, on each side; {size(free)} are free at {place}")
    needed = step * len(steps) + 4 * parameters
    state: State = "ok" if 2 * needed < free else "note"
    text = f"about {size(needed)} for {len(steps)} recorded steps, on each side; {size(free)} are free at {place}"
    return Answer("disk", state, text)


def memory(cfg: Any, dataset: Any, entries: Sequence[Any]) -> Answer:
    """Of a process that trains with these settings, where its longest utterances come in one batch."""
    seconds = max((entry.duration for entry in entries if entry.duration is not None), default=0.0)
    several = min(dataset.batch_size or 1, len(entries))
    if dataset.use_lhotse and dataset.batch_duration and seconds:
        several = max(several, int(dataset.batch_duration / seconds))
    parameters, available = count_parameters(cfg), available_memory()
    needed = reckoned_memory(cfg, parameters, several, seconds)
    free = f"{size(available)} are available" if available else "what is available is not known"
    batch = f"batches of {several} x {seconds:.1f} s" if seconds else "without a batch, for no duration is known"
    text = f"about {size(needed)} for {parameters:,} parameters, {batch}; {free}"
    return Answer("memory", "note" if available and available < needed else "ok", text)


def reckoned_memory(cfg: Any, parameters: int, several: int, seconds: float) -> float:
    """Bytes, for batches of so many utterances of so many seconds."""
    encoder = cfg.model.encoder
    attention = MEMORY_OF_ATTENTION * encoder.get("n_heads", 8) * seconds
    batch = several * seconds * encoder.n_layers * (MEMORY_OF_SECOND * encoder.d_model + attention)
    width = 2 if "64" in str(cfg.trainer.precision) else 1
    return float((MEMORY_OF_PARAMETER * parameters + batch) * width + MEMORY)


def count_parameters(cfg: Any) -> int:
    import torch

    from nest_ssl.model.models import model_of

    with torch.device("meta"):
        return sum(one.numel() for one in model_of(cfg.model, cfg.nemo).parameters())


def available_memory() -> int:
    """In bytes; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 0


def size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
