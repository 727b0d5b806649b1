"""What may differ between two recordings of the same experiment and is worth a line: packages, machines, containers.

Also whether both sides are one recording, or a side's modules not its trainer's own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.recording.reader import Recording

# Named first among the packages, because they read the audio or make the features.
_NOTABLE = ("numpy", "librosa", "soundfile", "scipy", "lightning", "nemo_toolkit")
# What two images of different trainers have in common; the locks are of packages, and each has its own as well.
_IMAGE_FACTS = ("base", "base_id", "source_sha256")


def note_surroundings(sheet: Sheet, reference: Recording, candidate: Recording, compared: Collection[str]) -> None:
    """Note on `sheet` what differs; the packages in `compared` are settings, and no notes."""
    if reference.path.resolve() == candidate.path.resolve():
        sheet.note("same_recording", how="folder")
    elif reference.index == candidate.index:
        sheet.note("same_recording", how="files")
    elif reference.index.created and (reference.index.created, reference.index.host, reference.index.duration_s) == (
        candidate.index.created,
        candidate.index.host,
        candidate.index.duration_s,
    ):
        sheet.note("same_recording", how="moment")
    facts: dict[str, list[Any]] = {"python": [], "cpu_capability": [], "driver": [], "container": []}
    packages, images = [], []
    for side, recording in (("reference", reference), ("candidate", candidate)):
        index, foreign = recording.index, "nest_ssl" if recording.index.trainer.name == "nemo" else "nemo"
        if any(module.module_class.partition(".")[0] == foreign for module in recording.structure.modules):
            sheet.note("foreign_classes", side=side, label=index.trainer.package, package=foreign)
        if recording.structure.shared is None:
            sheet.note("older_recording", side=side)
        container = index.container or {}
        locks = container.get("locks")
        own = {f"locks.{name}": digest for name, digest in locks.items()} if isinstance(locks, dict) else {}
        images.append({**{fact: container.get(fact) for fact in _IMAGE_FACTS}, **own})
        packages.append({name.lower().replace("-", "_"): version for name, version in index.packages.items()})
        facts["python"].append(".".join(index.python.split(".")[:2]))
        facts["cpu_capability"].append(index.host.cpu_capability)
        facts["driver"].append(index.cuda.driver)
        facts["container"].append(bool(container))
    for kind, (one, other) in facts.items():
        if one != other:
            sheet.note(kind, reference=one, candidate=other)
    for path, one, other in pairs(*images) if all(facts["container"]) else ():
        if one != other and ABSENT not in (one, other):
            sheet.note("image", path=path, reference=one, candidate=other)
    for name, one, other in pairs(reference.index.environment, candidate.index.environment):
        if one != other:
            values = ["absent" if value is ABSENT else value for value in (one, other)]
            sheet.note("environment", path=name, reference=values[0], candidate=values[1])
    both = [(name, [one, other]) for name, one, other in pairs(*packages) if ABSENT not in (one, other)]
    differing = [(name, pair) for name, pair in both if pair[0] != pair[1] and name not in compared]
    if differing:
        sheet.note("packages", versions=dict(sorted(differing, key=lambda item: (item[0] not in _NOTABLE, item[0]))))
