"""What stands around the findings: what was run and how to do it again, what was expected, which rule judged."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from nest_ssl.compare.comparison import Comparison, Side
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Heading, Paragraph, Text, join, table
from nest_ssl.report.sections.causes import note_text
from nest_ssl.report.sections.headline import rule_name
from nest_ssl.report.words import counted, heads, say, word
from nest_ssl.report.words.names import labels, number


def overview(comparison: Comparison) -> list[Block]:
    """``Large (113,106,000 parameters), 2 x 3.0 s, cpu, 1 thread, torch 2.13.0 on both sides.``, and the loss."""
    sides = (comparison.reference, comparison.candidate)
    size = next((given[5:].capitalize() for given in sides[0].index.command if given.startswith("size=")), "")
    count = comparison.facts.parameters
    model = counted(count, "parameters") if count is not None else ""
    parts = [say("model", size=size, parameters=model) if size and model else model, comparison.facts.batch]
    parts += [_against(*map(_device, sides)), _against(*map(_threads, sides))]
    torch = [side.index.packages.get("torch", "") for side in sides]
    key = "overview.same" if torch[0] == torch[1] else "overview"
    lines = [say(key, facts=join(parts), torch=say("torch", version=_against(*torch)))]
    lines += [(said.sentence,) for said in comparison.explanations[:1] if not said.weakens]  # else the verdict has it
    return [Paragraph(join(lines, " "))]


def _against(reference: str, candidate: str) -> Text:
    unknown = word("name", "unknown")
    both = {"reference": reference or unknown, "candidate": candidate or unknown}
    return (reference,) if reference == candidate else say("against", **both)


def _device(side: Side) -> str:
    device = side.index.device
    return device.type if device.type in ("", "cpu") else f"{device.type} ({device.name})"


def _threads(side: Side) -> str:
    return "" if side.index.threads.torch is None else counted(side.index.threads.torch, "threads")


def reproduce(comparison: Comparison) -> list[Block]:
    """The commands that make this comparison again."""
    reference, candidate = comparison.reference.index.git, comparison.candidate.index.git
    commit: Text = ()
    if reference.commit and reference.commit == candidate.commit:
        dirty = say("commit.dirty") if reference.dirty or candidate.dirty else ""
        commit = say("commit", commit=reference.commit[:7], dirty=dirty)
    commands = commands_of(comparison)
    if len(commands) == 1:
        return [Paragraph(say("reproduce", commit=commit, command=commands[0]))]
    return [Paragraph(say("reproduce.several", commit=commit)), CodeBlock(tuple(commands))]


def commands_of(comparison: Comparison) -> list[str]:
    """What make was called with, where it made both sides; else the command of each side, and the comparison's."""
    sides = (comparison.reference, comparison.candidate)
    made = [side.index.make_command or _script(side.index.command) for side in sides]
    if sides[0].index.make_command and made[0] == made[1]:
        return made[:1]
    compare = ["python", "scripts/compare_outputs.py", "--reference", sides[0].path, "--candidate", sides[1].path]
    return [command for command in [*made, shlex.join(compare)] if command]


def _script(command: list[str]) -> str:
    return shlex.join(["python", f"scripts/{command[0]}", *command[1:]]) if command else ""


def known(comparison: Comparison) -> list[Block]:
    """What to expect between two generations of NeMo; nothing where both sides follow the same."""
    generations = [s.index.generation for s in (comparison.reference, comparison.candidate)]
    names = [generation.name if generation else "" for generation in generations]
    rows = [[k.name, Code(k.where), k.what, number(k.reference), number(k.candidate)] for k in comparison.known]
    heading = Heading(say("known", reference=names[0], candidate=names[1]))
    head = [*heads("name", "where", "what"), *labels(comparison)]
    return [heading, Paragraph(say("known.legend")), table(head, rows)] if rows else []


def rule(comparison: Comparison) -> list[Block]:
    """Said also where it was not needed, so that a reader knows what `equivalent` would have meant."""
    settings = comparison.rule
    more = () if settings["kind"] != "fixed" else say("rule.fixed.means", atol=settings["atol"], rtol=settings["rtol"])
    text = join([say("rule.bits_first", rule=rule_name(comparison)), more], " ")
    return [Heading(say("heading.rule")), Paragraph(text)]


def declared(comparison: Comparison) -> list[Block]:
    rows = [
        [Code(entry.pattern), word("side", entry.side), join(entry.modules) or word("name", "none"), entry.reason]
        for entry in comparison.declared
    ]
    found = table(heads("pattern", "only_in", "modules", "reason"), rows)
    text = Paragraph(say("declared.legend" if rows else "declared.none"))
    return [Heading(say("heading.declared")), text, *([found] if rows else [])]


_PROVENANCE: dict[str, Callable[[Side], object]] = {
    "folder": lambda side: Code(side.path),
    "trainer": lambda side: f"{side.index.trainer.package} {side.index.trainer.version}",
    "model class": lambda side: Code(side.index.trainer.model_class),
    "recorded": lambda side: side.index.created,
    "command": lambda side: Code(shlex.join(side.index.command)) if side.index.command else None,
    "seed": lambda side: side.index.seed,
    "Python": lambda side: side.index.python,
    "torch": lambda side: side.index.packages.get("torch"),
    "numpy": lambda side: side.index.packages.get("numpy"),
    "librosa": lambda side: side.index.packages.get("librosa"),
    "CUDA": lambda side: side.index.cuda.runtime,
    "cuDNN": lambda side: side.index.cuda.cudnn,
    "device": lambda side: side.index.device.name,
    "threads": lambda side: side.index.threads.torch,
    "system": lambda side: f"{side.index.host.system} {side.index.host.release}".strip(),
    "container": lambda side: (side.index.container or {}).get("image"),
    "git": lambda side: _git(side),
    "data": lambda side: _data(side),
    "weights from": lambda side: ", ".join(f"{k} {str(v)[:12]}" for k, v in side.index.init_from.items()),
}


def provenance(comparison: Comparison) -> list[Block]:
    rows = []
    for what, read in _PROVENANCE.items():
        values = [read(side) for side in (comparison.reference, comparison.candidate)]
        rows.append([word("provenance", what), *("-" if value in (None, "", ()) else value for value in values)])
    return [Heading(say("heading.provenance")), table(["", *labels(comparison)], rows)]


def _git(side: Side) -> Text:
    git = side.index.git
    return (git.commit[:7], *(say("commit.dirty") if git.dirty else ())) if git.commit else ()


def _data(side: Side) -> Text:
    texts = []
    for name, section in (("train", side.index.data.train), ("validation", side.index.data.validation)):
        if section is not None:
            manifests = ", ".join(manifest.name for manifest in section.manifests)
            texts.append(say("data", section=name, files=counted(len(section.audio), "files"), manifests=manifests))
    return join(texts, "; ")


def notes(comparison: Comparison) -> list[Block]:
    texts = tuple(dict.fromkeys(map(note_text, comparison.notes)))
    return [Heading(say("heading.notes")), Bullets(texts)] if texts else []
