"""What stands around the findings: what was run and how to do it again, what was expected, which rule judged."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from nest_ssl.compare.comparison import Comparison, Side
from nest_ssl.recording.index import Git
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Heading, Paragraph, Text, join, table
from nest_ssl.report.sections.causes import note_text
from nest_ssl.report.sections.headline import rule_name
from nest_ssl.report.words import counted, say, word
from nest_ssl.report.words.names import labels, number


def _sides(comparison: Comparison) -> tuple[Side, Side]:
    return comparison.reference, comparison.candidate


# --- what was run -----------------------------------------------------------------------------------------------------


def overview(comparison: Comparison) -> list[Block]:
    """``Large (113,106,000 parameters), 2 x 3.0 s, cpu, 1 thread, torch 2.13.0 on both sides.``, and the loss."""
    count = comparison.facts.parameters
    size = next((given[5:] for given in comparison.reference.index.command if given.startswith("size=")), "")
    model = counted(count, "parameters") if count is not None else ""
    parts = [say("model", size=size.capitalize(), parameters=model) if size and model else model]
    parts += [comparison.facts.batch, _both(comparison, _device), _both(comparison, _threads)]
    versions = [side.index.packages.get("torch", word("name", "unknown")) for side in _sides(comparison)]
    same = versions[0] == versions[1]
    torch = say("torch", version=versions[0] if same else say("against", reference=versions[0], candidate=versions[1]))
    lines = [say("overview.same" if same else "overview", facts=join(parts), torch=torch)]
    lines += [(said.sentence,) for said in comparison.explanations[:1] if said.sentence and not said.weakens]
    return [Paragraph(join(lines, " "))]


def _both(comparison: Comparison, read: Callable[[Side], str]) -> Text:
    reference, candidate = (read(side) for side in _sides(comparison))
    if reference == candidate:
        return (reference,)
    unknown = word("name", "unknown")
    return say("against", reference=reference or unknown, candidate=candidate or unknown)


def _device(side: Side) -> str:
    device = side.index.device
    return device.type if device.type in ("", "cpu") else f"{device.type} ({device.name})"


def _threads(side: Side) -> str:
    threads = side.index.threads.torch
    return "" if threads is None else counted(threads, "threads")


def reproduce(comparison: Comparison) -> list[Block]:
    """The commands that make this comparison again."""
    gits = [side.index.git for side in _sides(comparison)]
    at_commit: Text = ()
    if gits[0].commit and gits[0].commit == gits[1].commit:
        at_commit = say("commit", commit=gits[0].commit[:7])
        at_commit += say("commit.dirty") if any(git.dirty for git in gits) else ()
    commands = commands_of(comparison)
    if len(commands) == 1:
        return [Paragraph(say("reproduce", commit=at_commit, command=commands[0]))]
    return [Paragraph(say("reproduce.several", commit=at_commit)), CodeBlock(tuple(commands))]


def commands_of(comparison: Comparison) -> list[str]:
    """What make was called with, where it made both sides; else the command of each side, and the comparison's."""
    made = [side.index.make_command for side in _sides(comparison)]
    if made[0] and made[0] == made[1]:
        return [made[0]]
    paths = {"--reference": comparison.reference.path, "--candidate": comparison.candidate.path}
    compare = shlex.join(["python", "scripts/compare_outputs.py", *(word for pair in paths.items() for word in pair)])
    scripts = [side.index.make_command or _script(side.index.command) for side in _sides(comparison)]
    return [command for command in [*scripts, compare] if command]


def _script(command: list[str]) -> str:
    return shlex.join(["python", f"scripts/{command[0]}", *command[1:]]) if command else ""


# --- what was expected, and what judged -------------------------------------------------------------------------------


def known(comparison: Comparison) -> list[Block]:
    """What to expect between two generations of NeMo; nothing where both sides follow the same."""
    if not comparison.known:
        return []
    generations = [side.index.generation.name if side.index.generation else "-" for side in _sides(comparison)]
    heading = Heading(say("known", reference=generations[0], candidate=generations[1]))
    rows = [[k.name, Code(k.where), k.what, number(k.reference), number(k.candidate)] for k in comparison.known]
    head = [say("head.name"), say("head.where"), say("head.what"), *labels(comparison)]
    return [heading, Paragraph(say("known.legend")), table(head, rows)]


def rule(comparison: Comparison) -> list[Block]:
    """Said also where it was not needed, so that a reader knows what `equivalent` would have meant."""
    settings = comparison.rule
    sentences = [say("tolerance.bits", rule=rule_name(comparison))]
    if settings["kind"] == "fixed":
        sentences.append(say("tolerance.fixed", atol=settings["atol"], rtol=settings["rtol"]))
    return [Heading(say("tolerance")), Paragraph(join(sentences, " "))]


def declared(comparison: Comparison) -> list[Block]:
    if not comparison.declared:
        return [Heading(say("declared")), Paragraph(say("declared.none"))]
    none = word("name", "none")
    rows = [
        [Code(entry.pattern), word("side", entry.side), join(entry.modules) or none, entry.reason]
        for entry in comparison.declared
    ]
    head = [say(f"head.{column}") for column in ("pattern", "only_in", "modules", "reason")]
    return [Heading(say("declared")), Paragraph(say("declared.legend")), table(head, rows)]


_PROVENANCE: dict[str, Callable[[Side], object]] = {
    "folder": lambda side: Code(side.path),
    "trainer": lambda side: f"{side.index.trainer.package} {side.index.trainer.version}",
    "model class": lambda side: Code(side.index.trainer.model_class),
    "recorded": lambda side: side.index.created,
    "command": lambda side: Code(shlex.join(side.index.command)),
    "seed": lambda side: side.index.seed,
    "Python": lambda side: side.index.python,
    "torch": lambda side: side.index.packages.get("torch"),
    "numpy": lambda side: side.index.packages.get("numpy"),
    "librosa": lambda side: side.index.packages.get("librosa"),
    "CUDA": lambda side: side.index.cuda.runtime,
    "cuDNN": lambda side: side.index.cuda.cudnn,
    "device": lambda side: side.index.device.name,
    "threads": lambda side: side.index.threads.torch,
    "system": lambda side: f"{side.index.host.system} {side.index.host.release}",
    "container": lambda side: side.index.container.image if side.index.container else None,
    "git": lambda side: _git(side.index.git),
    "data": lambda side: _data(side),
    "weights from": lambda side: ", ".join(f"{k} {str(v)[:12]}" for k, v in side.index.init_from.items()),
}


def provenance(comparison: Comparison) -> list[Block]:
    rows = [
        [word("provenance", what), *("-" if value in (None, "", ()) else value for value in map(read, _sides(comparison)))]
        for what, read in _PROVENANCE.items()
    ]
    return [Heading(say("provenance")), table(["", *labels(comparison)], rows)]


def _git(git: Git) -> Text:
    return (git.commit[:7], *(say("commit.dirty") if git.dirty else ())) if git.commit else ()


def _data(side: Side) -> Text:
    parts = [
        say(
            "data",
            section=name,
            files=counted(len(section.audio), "files"),
            manifests=", ".join(manifest.name for manifest in section.manifests),
        )
        for name, section in side.index.data.items()
    ]
    return join(parts, "; ")


def notes(comparison: Comparison) -> list[Block]:
    texts = tuple(dict.fromkeys(map(note_text, comparison.notes)))
    return [Heading(say("notes")), Bullets(texts)] if texts else []
