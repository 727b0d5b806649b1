"""Numbers and names as a reader wants them: thousands separators, units, digests shortened."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Finding, Stage
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.report.document import Block, Code, Paragraph, Ref, Text, join
from nest_ssl.report.words import say, word

LONGEST = 120  # characters of a value that is text


def number(value: object) -> str:
    """A value as short as it stays exact to about float32; counts with separators; of a digest the first letters."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.9g}"
    text = str(value)
    if re.fullmatch("[0-9a-f]{16,}", text):
        return f"{text[:7]}..."
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def small(value: float | int | None) -> str:
    """A size of a difference, to two digits; whole numbers in full."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1e}"


def labels(comparison: Comparison) -> tuple[str, str]:
    """What to call the two sides; kept apart where the same trainer stands on both."""
    reference, candidate = comparison.reference.label, comparison.candidate.label
    if reference != candidate:
        return reference, candidate
    return f"{reference} ({word('side', 'reference')})", f"{candidate} ({word('side', 'candidate')})"


def steps_text(steps: Sequence[int]) -> Text:
    """``step 0``, ``steps 0 to 2``, ``steps 0, 9``."""
    if len(steps) <= 1:
        return say("steps.one", step=steps[0]) if steps else say("steps.none")
    if list(steps) == list(range(steps[0], steps[-1] + 1)):
        return say("steps.range", first=steps[0], last=steps[-1])
    return say("steps.list", steps=", ".join(map(str, steps)))


def own_name(finding: Finding) -> str:
    """What it is called within its module or step: ``output.0``, ``weight``, ``config.seed``, ``fetch.numpy``."""
    address, phase = finding.address, finding.moment.phase
    stage = phase.name.lower()
    if phase is Phase.FORWARD:  # the code around the model's forward draws before it or after it
        stage = "loss" if finding.moment.event else "training_step"
    prefix = {
        Kind.OPTIMIZER_SETTING: "param_groups.",
        Kind.SCHEDULE: "schedule.",
        Kind.GENERATOR_STATE: f"rng.{phase.name.lower()}.",
        Kind.DRAW: f"{stage}." if address.module is None else "",
    }
    return prefix.get(address.kind, "") + address.own_name


def name(finding: Finding) -> Text:
    """```encoder.layers.3`, call 1, `output```: as much of an address as there is."""
    address, own = finding.address, own_name(finding)
    parts: list[object] = [] if address.module is None else [Code(address.module or word("name", "root"))]
    parts += [say("call", call=address.call)] if address.call else []
    parts += [Code(own)] if own else []
    return (Ref(address, join(parts or [word("rung", finding.rung)])),)


def where(finding: Finding) -> Text:
    """``step 0, forward, `encoder.layers.3`, `output```."""
    rung = word("rung", finding.rung)
    parts = [] if finding.moment.step < 0 else [steps_text([finding.moment.step])]
    parts += [say("rank", rank=finding.address.rank)] if finding.address.rank else []
    named = name(finding)
    return join([*parts, rung, () if named == (Ref(finding.address, (rung,)),) else named])


def stage_name(stage: Stage, subject: bool = False) -> Text:
    """Who draws; as the subject of a sentence with the comma that closes what explains it."""
    said = Code(stage.module) if stage.module else word("stage", stage.phase if stage.module is None else "root")
    text = join([said, say("call", call=stage.call) if stage.call else ()])
    return (*text, ",") if subject and any(isinstance(part, str) and "," in part for part in text) else text


def cut(key: str, shown: int, found: Sequence[object]) -> list[Block]:
    """How many of all the table above it shows, where that is not all."""
    return [Paragraph(say(key, shown=number(shown), all=number(len(found))))] if len(found) > shown else []
