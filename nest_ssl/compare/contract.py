"""Rung 1: are these two recordings of the same experiment? Config, seeds, flags, versions, data, machine, steps.

Who trains (package, version, sources, git) may differ: that is what is being compared. So may the generation, between
two releases of NeMo; but a port must have been told to follow the generation of its reference.
"""

from __future__ import annotations

from typing import Any

from nest_ssl.compare.generations import generation_of, is_same_trainer
from nest_ssl.compare.result import SETTING, Difference, Place, Tally
from nest_ssl.compare.settings import count_leaves, typed_diff, without
from nest_ssl.recording.reader import Recording

# Where a run writes and what it saves changes no number. The steps saved are compared on their own ("steps").
IGNORED_CONFIG = frozenset({
    "output_dir",
    "overwrite",
    "nemo",  # the generation, compared on its own
    "save_steps",
    "exp_manager",  # checkpoints and loggers; what was resumed from is compared on its own
    "trainer.default_root_dir",
})  # fmt: skip

# Another version of one of these computes other numbers. Every other package that differs is a note.
NUMERIC_PACKAGES = ("torch",)
# Named first among the notes, because they read the audio or make the features.
NOTABLE_PACKAGES = ("numpy", "librosa", "soundfile", "scipy", "lightning", "nemo_toolkit")


def compare_contract(reference: Recording, candidate: Recording, steps: list[int] | None = None) -> Tally:
    """Settings that both sides must share; `steps` are those that the user asked for, or None for all recorded."""
    tally = Tally("contract")
    sides = [_contract(recording, steps) for recording in (reference, candidate)]
    resumed = [recording.index.get("resumed_from") for recording in (reference, candidate)]
    if any(resumed):
        for side, source in zip(sides, resumed, strict=True):
            side["resumed_from"] = f"after batch {source['batches']:,}" if source else "not resumed"
    generations = [generation_of(recording) for recording in (reference, candidate)]
    if None not in generations and not is_same_trainer(reference, candidate):
        for side, generation in zip(sides, generations, strict=True):
            side["generation"] = generation
    changes = typed_diff(*sides)
    tally.compared["settings"] = max(count_leaves(side) for side in sides)
    tally.differing = len(changes)
    for change in sorted(changes, key=lambda change: _ORDER.index(change.path.partition(".")[0])):
        place = Place("contract", tensor=change.path)
        tally.differences.append(Difference(place, SETTING, change.reference, change.candidate))
    if not any(recording.index.get("data") for recording in (reference, candidate)):
        tally.notes.append("Neither recording has hashes of its data files.")
    tally.notes += _package_notes(reference.index, candidate.index)
    tally.notes += _machine_notes(reference.index, candidate.index)
    return tally


# What makes the experiment, most telling first: the first difference in this order is the headline.
_ORDER = ("generation", "seed", "config", "data", "init_from", "resumed_from", "steps", "world_size", "flags",
          "threads", "device", "versions")  # fmt: skip


def _contract(recording: Recording, steps: list[int] | None) -> dict[str, Any]:
    index = recording.index
    device = index.get("device") or {}
    return {
        "steps": ", ".join(str(step) for step in recording.steps if steps is None or step in steps) or "none",
        "seed": index.get("seed"),
        "world_size": recording.world_size,
        "config": without(recording.config, IGNORED_CONFIG),
        "data": index.get("data") or {},
        "init_from": index.get("init_from") or {},
        "flags": index.get("flags") or {},
        "threads": index.get("threads") or {},
        "device": {"type": device.get("type"), "name": device.get("name")},
        "versions": _versions(index),
    }


def _versions(index: dict[str, Any]) -> dict[str, Any]:
    packages, cuda = index.get("packages") or {}, index.get("cuda") or {}
    numeric = {name: packages.get(name) for name in NUMERIC_PACKAGES}
    return numeric | {"cuda": cuda.get("runtime"), "cudnn": cuda.get("cudnn")}


def _package_notes(reference: dict[str, Any], candidate: dict[str, Any]) -> list[str]:
    ours, theirs = (_by_lower_name(index.get("packages") or {}) for index in (reference, candidate))
    shared = (ours.keys() & theirs.keys()) - set(NUMERIC_PACKAGES)
    differing = [name for name in shared if ours[name] != theirs[name]]
    differing.sort(key=lambda name: (name not in NOTABLE_PACKAGES, name))
    if not differing:
        return []
    shown = ", ".join(f"{name} {ours[name]} against {theirs[name]}" for name in differing[:8])
    more = f" and {len(differing) - 8:,} more" if len(differing) > 8 else ""
    return [f"Packages of other versions: {shown}{more}."]


def _by_lower_name(packages: dict[str, str]) -> dict[str, str]:
    return {name.lower().replace("-", "_"): version for name, version in packages.items()}


def _machine_notes(reference: dict[str, Any], candidate: dict[str, Any]) -> list[str]:
    notes = []
    if _minor(reference) != _minor(candidate):
        notes.append(f"Python {reference.get('python')} against {candidate.get('python')}.")
    names = [(index.get("host") or {}).get("cpu_capability") for index in (reference, candidate)]
    if names[0] != names[1]:
        notes.append(f"Processor instructions {names[0]} against {names[1]}.")
    drivers = [(index.get("cuda") or {}).get("driver") for index in (reference, candidate)]
    if drivers[0] != drivers[1]:
        notes.append(f"NVIDIA driver {drivers[0]} against {drivers[1]}.")
    notes += _image_notes(reference.get("container"), candidate.get("container"))
    environments = [index.get("environment") or {} for index in (reference, candidate)]
    changes = typed_diff(*environments)
    return notes + [f"Environment {c.path}: {c.reference} against {c.candidate}." for c in changes]


# What two images of different trainers have in common. Their torch, CUDA and cuDNN are compared with the versions.
_IMAGE_FACTS = ("base", "base_id", "locks", "source_sha256")


def _image_notes(reference: dict[str, Any] | None, candidate: dict[str, Any] | None) -> list[str]:
    """A container against none, or two images that are not of the same make, may well give the same bits: notes."""
    if not reference and not candidate:
        return []
    if not reference or not candidate:
        ours, theirs = ("a container" if side else "none" for side in (reference, candidate))
        return [f"Container: {ours} against {theirs}."]
    shared = (reference.get("locks") or {}).keys() & (candidate.get("locks") or {}).keys()
    sides = [{fact: side.get(fact) for fact in _IMAGE_FACTS} for side in (reference, candidate)]
    for side in sides:
        side["locks"] = {name: digest for name, digest in (side["locks"] or {}).items() if name in shared}
    return [f"Image {change.path}: {change.reference} against {change.candidate}." for change in typed_diff(*sides)]


def _minor(index: dict[str, Any]) -> list[str]:
    return str(index.get("python", "")).split(".")[:2]
