"""Rung 1: are these two recordings of the same experiment? Config, seeds, flags, versions, data, machine, steps.

Who trains (package, version, sources, git) may differ: that is what is being compared. So may the generation, between
two releases of NeMo; but a port must follow the generation of its reference. Settings are sorted by what they can
change: numbers (another experiment), what is recorded or shown (a note), where a run writes (nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.findings import Difference
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.settings import count_leaves, split, typed_diff
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.index import Index
from nest_ssl.recording.reader import Recording

# Where a run writes and what it saves changes no number. The generation, the steps saved and what was resumed from are
# compared on their own.
_NOTHING = ("output_dir", "overwrite", "nemo", "save_steps", "exp_manager", "trainer.default_root_dir")
_SHOWN = ("name", "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps",
          "trainer.logger", "trainer.enable_checkpointing", "trainer.accelerator")  # fmt: skip
_LOADING = ("model.*_ds.num_workers", "model.*_ds.pin_memory")  # nothing, where the batches have the same bits
_PATHS = ("model.*_ds.manifest_filepath", "model.*_ds.noise_manifest")  # the hashes of what lies there decide
_PRECISIONS = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}

# Another version of one of these computes other numbers. Every other package that differs is a note.
_NUMERIC_PACKAGES = ("torch",)
# Named first among the notes, because they read the audio or make the features.
_NOTABLE_PACKAGES = ("numpy", "librosa", "soundfile", "scipy", "lightning", "nemo_toolkit")
# What two images of different trainers have in common. Their torch, CUDA and cuDNN are compared with the versions.
_IMAGE_FACTS = ("base", "base_id", "locks", "source_sha256")


def compare_contract(
    sheet: Sheet, reference: Recording, candidate: Recording, steps: Sequence[int] | None, same_batches: bool
) -> None:
    """Settings that both sides must share.

    Args:
        steps: those that the user asked for, or None for all recorded.
        same_batches: whether every field of every batch had the same bits.
    """
    sides = [_experiment(recording, steps) for recording in (reference, candidate)]
    _sort_settings(sheet, sides, same_batches)
    if reference.index.generation is None or candidate.index.generation is None or same_trainer(reference, candidate):
        for side in sides:
            side["generation"] = None
    changes = typed_diff(*sides)
    sheet.tally.compared["settings"] = max(count_leaves({k: v for k, v in side.items() if v}) for side in sides)
    sheet.tally.differing = len(changes)
    order = list(sides[0])  # most telling first
    for change in sorted(changes, key=lambda change: order.index(change.path.partition(".")[0])):
        spot = sheet.spot(Address(Kind.SETTING, slot=change.path), Phase.CONTRACT)
        sheet.tally.findings.append(spot.finding(Difference.SETTING, change.reference, change.candidate))
    if not reference.index.data and not candidate.index.data:
        sheet.note("no_data_hashes")
    _note_packages(sheet, reference.index, candidate.index)
    _note_machines(sheet, reference.index, candidate.index)


def same_trainer(reference: Recording, candidate: Recording) -> bool:
    """Whether both sides are releases of one trainer: then the generation is what is compared, not what is shared."""
    return reference.index.trainer.name == candidate.index.trainer.name


def note_sameness(sheet: Sheet, reference: Recording, candidate: Recording) -> None:
    """Say when both sides are one recording, or when a side's modules are not its trainer's own."""
    files = [{name: entry.sha256 for name, entry in side.index.files.items()} for side in (reference, candidate)]
    if reference.path.resolve() == candidate.path.resolve():
        sheet.note("same_recording", how="folder")
    elif files[0] == files[1]:
        sheet.note("same_recording", how="files")
    for side, recording in (("reference", reference), ("candidate", candidate)):
        trainer = recording.index.trainer
        packages = {str(module.module_class).partition(".")[0] for module in recording.structure.modules}
        foreign = "nest_ssl" if trainer.name == "nemo" else "nemo"
        if foreign in packages and (trainer.name != "nemo" or "nemo" not in packages):
            sheet.note("foreign_classes", side=side, label=trainer.package, package=foreign)


def _experiment(recording: Recording, steps: Sequence[int] | None) -> dict[str, Any]:
    """What makes the experiment; what stands first is the headline where several things differ."""
    index = recording.index
    resumed = index.resumed_from
    return {
        "generation": index.generation.name if index.generation else None,
        "seed": index.seed,
        "config": recording.config,
        "data": {name: section.model_dump(exclude={"changed"}) for name, section in index.data.items()},
        "init_from": index.init_from,
        "resumed_from": f"after batch {resumed.batches:,}" if resumed else "not resumed",
        "steps": ", ".join(str(step) for step in recording.steps if steps is None or step in steps) or "none",
        "world_size": recording.world_size,
        "flags": index.flags,
        "threads": index.threads.model_dump(),
        "device": index.device.model_dump(include={"type", "name"}),
        "versions": {
            **{name: index.packages.get(name) for name in _NUMERIC_PACKAGES},
            "cuda": index.cuda.runtime,
            "cudnn": index.cuda.cudnn,
        },
    }


def _sort_settings(sheet: Sheet, sides: list[dict[str, Any]], same_batches: bool) -> None:
    """Take out of both sides what cannot change a number; what is worth a line becomes a note."""
    noted = [*_SHOWN, *(_LOADING if same_batches else ()), *(_PATHS if all(side["data"] for side in sides) else ())]
    limits = [side["config"].get("trainer", {}).get("max_steps") for side in sides]
    if limits[0] == limits[1] and (limits[0] or 0) > 0:
        noted.append("trainer.max_epochs")  # the number of batches is what both are limited by
    notes = []
    for side in sides:
        config, _ = split(side["config"], _NOTHING)
        side["config"], note = split(config, noted)
        trainer = side["config"].get("trainer", {})
        if "precision" in trainer:
            trainer["precision"] = _PRECISIONS.get(str(trainer["precision"]), trainer["precision"])
        notes.append(note)
    for name, one, other in pairs(sides[0]["data"], sides[1]["data"]):
        if one is not ABSENT and other is not ABSENT:
            _set_paths_aside(notes, name, (one, other), same_batches)
    for change in typed_diff(*notes):
        sheet.note("setting", path=change.path, reference=change.reference, candidate=change.candidate)


def _set_paths_aside(
    notes: list[dict[str, Any]], name: str, sections: tuple[dict[str, Any], dict[str, Any]], same_batches: bool
) -> None:
    """The same audio under other names, say at another absolute path, is the same data; so is then its manifest."""
    for key in ("audio", "noise"):
        files = [section.get(key) or {} for section in sections]
        hashes = [sorted(map(str, side.values())) for side in files]
        if files[0].keys() != files[1].keys() and hashes[0] == hashes[1] and same_batches:
            for note, section, side in zip(notes, sections, files, strict=True):
                note[f"data.{name}.{key}"] = next(iter(side))
                note[f"data.{name}.manifests"] = section.pop("manifests")
                section[key] = len(side)


def _note_packages(sheet: Sheet, reference: Index, candidate: Index) -> None:
    sides = (
        {name.lower().replace("-", "_"): version for name, version in index.packages.items()}
        for index in (reference, candidate)
    )
    differing = {
        name: [one, other]
        for name, one, other in pairs(*sides)
        if ABSENT not in (one, other) and one != other and name not in _NUMERIC_PACKAGES
    }
    if differing:
        names = sorted(differing, key=lambda name: (name not in _NOTABLE_PACKAGES, name))
        sheet.note("packages", versions={name: differing[name] for name in names})


def _note_machines(sheet: Sheet, reference: Index, candidate: Index) -> None:
    indexes = (reference, candidate)
    facts = {
        "python": [".".join(index.python.split(".")[:2]) for index in indexes],
        "cpu_capability": [index.host.cpu_capability for index in indexes],
        "driver": [index.cuda.driver for index in indexes],
        "container": [index.container is not None for index in indexes],
    }
    for kind, (one, other) in facts.items():
        if one != other:
            sheet.note(kind, reference=one, candidate=other)
    images = [{fact: (index.container or {}).get(fact) for fact in _IMAGE_FACTS} for index in indexes]
    shared = set(images[0]["locks"] or {}) & set(images[1]["locks"] or {})
    for image in images:
        image["locks"] = {name: digest for name, digest in (image["locks"] or {}).items() if name in shared}
    for change in typed_diff(*images) if all(facts["container"]) else []:
        sheet.note("image", path=change.path, reference=change.reference, candidate=change.candidate)
    for change in typed_diff(reference.environment, candidate.environment):
        sheet.note("environment", path=change.path, reference=change.reference, candidate=change.candidate)
