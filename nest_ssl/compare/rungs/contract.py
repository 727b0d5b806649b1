"""Rung 1: are these two recordings of the same experiment? Config, seeds, flags, versions, data, machine, steps.

Who trains (package, version, sources, git) may differ: that is what is being compared. So may the generation, between
two releases of NeMo; but a port must follow the generation of its reference. Settings are sorted by what they can
change: numbers (another experiment), what is recorded or shown (a note), where a run writes (nothing). Hardware is no
setting: whether another processor or card gives the same is what a comparison is made for, and what it finds is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.findings import Difference, Status, Tally
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.rungs.surroundings import note_surroundings
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.digests import digest_steps
from nest_ssl.recording.index import of_another_kind
from nest_ssl.recording.reader import Recording

# By setting: no number changes with where a run writes and what it saves; the generation, the steps saved and what was
# resumed from are compared on their own.
_NOTHING = ("output_dir", "overwrite", "nemo", "save_steps", "record", "include", "exclude", "stop_when_recorded",
            "noise_floor", "operators", "learning_rates", "exp_manager*", "trainer.default_root_dir")  # fmt: skip
# Replayed kernels are the same ones on the same numbers, and a recorded step runs without: should bits differ all the
# same, they are found.
_SHOWN = ("name", "trainer.enable_*", "trainer.log_every_n_steps", "trainer.logger*", "trainer.accelerator",
          "trainer.stall_timeout", "cuda_graphs")  # fmt: skip
_LOADING = ("model.*_ds.num_workers", "model.*_ds.pin_memory")  # shown by the batches, if they change anything
_PATHS = ("model.*_ds.manifest_filepath", "model.*_ds.noise_manifest")  # the hashes of what lies there decide
_SINCE = {"numerics": "exact", "cuda_graphs": False}  # of the port; recordings from before they were there lack them
# May differ where one side is meant to be fast.
_ROUNDING = ("config.numerics", "flags.*tf32", "flags.matmul_precision")
_SPELLINGS = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # of trainer.precision

SIDES = ("reference", "candidate")
_NUMERIC_PACKAGES = ("torch",)  # another version computes other numbers; of every other package it is a note
Settings = dict[str, Any]  # by dotted path


def compare_contract(
    sheet: Sheet, reference: Recording, candidate: Recording, steps: Sequence[int] | None, batches: Sequence[Tally]
) -> None:
    """Settings that both sides must share.

    Args:
        steps: those that the user asked for, or None for all recorded.
        batches: what was found in every batch.
    """
    recordings, start = (reference, candidate), resumed_at(reference, candidate)
    if start is not None:
        steps = [step for step in {*reference.steps, *candidate.steps} if step >= start and step in (steps or [step])]
    sides = [_experiment(recording, steps) for recording in recordings]
    if start is not None:
        sheet.note(
            "resumed",
            step=start,
            **{who: side.pop("resumed_from") for who, side in zip(SIDES, sides, strict=True)},
        )
    if reference.index.trainer.name == candidate.index.trainer.name or "" in (s["generation"] for s in sides):
        sides = [{**side, "generation": ""} for side in sides]
    sheet.tally.compared["settings"] = max(map(len, sides))
    hashed = all(recording.index.data.train for recording in recordings)
    same_batches = bool(batches) and all(tally.status == Status.IDENTICAL for tally in batches)
    noted, hardware = _shown(sides, same_batches, hashed), ["device.*"]
    devices = [side["device.type"] for side in sides]
    if of_another_kind(*devices):  # a build for another kind of device, of the same version
        versions = [str(side["versions.torch"]).partition("+")[0] for side in sides]
        hardware += ["versions.cuda", "versions.cudnn", *(["versions.torch"] if versions[0] == versions[1] else [])]
        sheet.note("other_device", reference=devices[0], candidate=devices[1])
    rounding = _ROUNDING if any(side["config.numerics"] == "fast" for side in sides) else ()
    for path, one, other in pairs(*sides):
        values = ["absent" if value is ABSENT else value for value in (one, other)]
        if repr(values[0]) == repr(values[1]):  # typed: 1, 1.0, "1" and true are four different settings
            continue
        kinds = {"setting": noted, "hardware": hardware, "rounding": rounding}
        kind = next((k for k, ps in kinds.items() if any(fnmatchcase(path, pattern) for pattern in ps)), None)
        if kind:
            sheet.note(kind, path=path, reference=values[0], candidate=values[1])
        else:
            spot = sheet.spot(Address(Kind.SETTING, slot=path), Phase.CONTRACT)
            sheet.tally.findings.append(spot.finding(Difference.SETTING, *values))
    sheet.tally.differing = len(sheet.tally.findings)
    if not any(recording.index.data.train for recording in recordings):
        sheet.note("no_data_hashes")
    note_surroundings(sheet, reference, candidate, _NUMERIC_PACKAGES)


def resumed_at(reference: Recording, candidate: Recording) -> int | None:
    """The step at which one side went on from a checkpoint and which both recorded: they are compared from it on."""
    starts = went_on_at(reference, candidate)
    start = max(starts)
    return start if starts[0] != starts[1] and start in reference.steps and start in candidate.steps else None


def went_on_at(reference: Recording, candidate: Recording) -> list[int]:
    """The step at which each side went on from a checkpoint; 0 where it did not."""
    return [r.index.resumed_from.batches if r.index.resumed_from else 0 for r in (reference, candidate)]


def _experiment(recording: Recording, steps: Sequence[int] | None) -> Settings:
    """What makes the experiment; what stands first is the headline where several things differ."""
    index = recording.index
    resumed = f"after batch {index.resumed_from.batches:,}" if index.resumed_from else "not resumed"
    recorded = _SINCE | _flat(recording.config)
    config = {k: v for k, v in recorded.items() if not any(fnmatchcase(k, p) for p in _NOTHING)}
    precision = config.get("trainer.precision")
    config |= {"trainer.precision": _SPELLINGS.get(str(precision), precision)} if precision is not None else {}
    versions = {name: index.packages.get(name) for name in _NUMERIC_PACKAGES}
    trained = sorted({*recording.steps, *digest_steps(recording)})  # of some it may have hashes alone
    return {
        "generation": index.generation.name if index.generation else "",
        "seed": index.seed,
        **_flat(config, "config"),
        **{k: v for k, v in _flat(index.data.model_dump(), "data").items() if not fnmatchcase(k, "*.changed")},
        **_flat(index.init_from, "init_from"),
        "resumed_from": resumed,
        "steps": ", ".join(str(step) for step in trained if steps is None or step in steps) or "none",
        "world_size": index.world_size,
        **_flat(index.flags, "flags"),
        **_flat(index.threads.model_dump(), "threads"),
        **_flat(index.device.model_dump(include={"type", "name"}), "device"),
        **_flat({**versions, "cuda": index.cuda.runtime, "cudnn": index.cuda.cudnn}, "versions"),
    }


def _flat(tree: Mapping[str, Any], name: str = "") -> Settings:
    """A tree of settings by dotted path; a list is one setting, an empty section none."""
    found: Settings = {}
    for key, value in tree.items():
        path = f"{name}.{key}" if name else str(key)
        found |= _flat(value, path) if isinstance(value, dict) else {path: value}
    return found


def _shown(sides: Sequence[Settings], same_batches: bool, hashed: bool) -> list[str]:
    """Patterns of the settings that change no number in this pair of recordings."""
    noted = [f"config.{p}" for p in (*_SHOWN, *(_LOADING if same_batches else ()), *(_PATHS if hashed else ()))]
    ranks = [(side.get("config.trainer.devices"), side.get("config.trainer.num_nodes", 1)) for side in sides]
    if all(type(n) is int for side in ranks for n in side) and len({devices * nodes for devices, nodes in ranks}) == 1:
        noted += ["config.trainer.devices", "config.trainer.num_nodes"]  # as many, divided otherwise over nodes
    limits = [side.get("config.trainer.max_steps") for side in sides]
    if limits[0] == limits[1] and isinstance(limits[0], int) and limits[0] > 0:
        noted.append("config.trainer.max_epochs")  # both stop at the same batch
    for name in ("train", "train.noise", "validation", "validation.noise"):
        # One hash over all that is read, in order: where it is the same, other names are other folders.
        content = [side.get(f"data.{name}.content") for side in sides]
        if None in content:
            noted.append(f"data.{name}.content")  # recorded before there was one: the files' own hashes decide
        elif content[0] == content[1]:
            noted += [f"data.{name}.{what}" for what in ("manifests", "audio.*", "audio_hash", "changed")]
    return noted
