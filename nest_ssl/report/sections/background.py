"""What stands around the findings: what was run and how to do it again, what was expected, which rule judged."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from nest_ssl.compare.comparison import Comparison, Side
from nest_ssl.compare.rules.known import Used
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Heading, Paragraph, Text, join, table
from nest_ssl.report.sections.causes import note_text
from nest_ssl.report.sections.headline import rule_name
from nest_ssl.report.words import counted, heads, knows, say, word
from nest_ssl.report.words.names import labels, number, small


def overview(comparison: Comparison) -> list[Block]:
    """``Large (113,106,000 parameters), 2 x 3.0 s, cpu, 1 thread, torch 2.13.0 on both sides.``, and the loss."""
    indexes = (comparison.reference.index, comparison.candidate.index)
    size = next((given[5:].capitalize() for given in indexes[0].command if given.startswith("size=")), "")
    count = comparison.facts.parameters
    model = counted(count, "parameters") if count is not None else ""
    devices = [(index.device.type, index.device.name) for index in indexes]
    shown = [kind if kind in ("", "cpu") else f"{kind} ({name})" for kind, name in devices]
    threads = ["" if index.threads.torch is None else counted(index.threads.torch, "threads") for index in indexes]
    parts = [say("model", size=size, parameters=model) if size and model else model, comparison.facts.batch]
    versions = [index.packages.get("torch", "") for index in indexes]
    unknown = word("name", "unknown")
    device, thread, version = (
        (one,) if one == other else say("against", reference=one or unknown, candidate=other or unknown)
        for one, other in (shown, threads, versions)
    )
    key = "overview.same" if versions[0] == versions[1] else "overview"
    lines = [say(key, facts=join([*parts, device, thread]), torch=say("torch", version=version))]
    lines += [(said.sentence,) for said in comparison.explanations[:1]]
    return [Paragraph(join(lines, " "))]


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
    made = [side.index.make_command for side in sides]
    if made[0] and made[0] == made[1]:
        return [made[0]]
    given = [side.index.command for side in sides]
    scripts = [["python", f"scripts/{words[0]}", *words[1:]] if words else [] for words in given]
    compare = ["python", "scripts/compare_outputs.py", "--reference", sides[0].path, "--candidate", sides[1].path]
    commands = [words or shlex.join(script) for words, script in zip(made, scripts, strict=True)]
    return [command for command in [*commands, shlex.join(compare)] if command]


def known(comparison: Comparison) -> list[Block]:
    """What to expect between two generations of NeMo; nothing where both sides follow the same."""
    generations = [side.index.generation for side in (comparison.reference, comparison.candidate)]
    names = [generation.name if generation else "" for generation in generations]
    rows = [[k.name, Code(k.where), k.what, number(k.reference), number(k.candidate)] for k in comparison.known]
    heading = Heading(say("known", reference=names[0], candidate=names[1]))
    head = [*heads("name", "where", "what"), *labels(comparison)]
    return [heading, Paragraph(say("known.legend")), table(head, rows)] if rows else []


def rule(comparison: Comparison) -> list[Block]:
    """Said also where it was not needed, so that a reader knows what would have passed."""
    settings = {name: value for name, value in comparison.rule.items() if name != "kind"}
    key = f"rule.{comparison.rule['kind']}.means"
    text = say(key, **settings) if knows(key) else rule_name(comparison)
    return [Heading(say("heading.rule")), Paragraph(text)]


def declared(comparison: Comparison) -> list[Block]:
    rows = [
        [Code(entry.pattern), word("side", entry.side), join(entry.modules) or word("name", "none"), entry.reason]
        for entry in comparison.declared
    ]
    found = table(heads("pattern", "only_in", "modules", "reason"), rows)
    text = Paragraph(say("declared.legend" if rows else "declared.none"))
    return [Heading(say("heading.declared")), text, *([found] if rows else [])]


def ledger(comparison: Comparison) -> list[Block]:
    return known_differences(comparison.ledger)


def known_differences(entries: Sequence[Used]) -> list[Block]:
    """The user's: what each let pass, and which no longer applies."""
    rows = [
        [Code(used.entry.address), small(used.entry.within), used.entry.cause, used.entry.evidence,
         str(used.entry.expires), used.fault or counted(used.count + used.followed, "tensors")]
        for used in entries
    ]  # fmt: skip
    head = heads("address", "bound_given", "cause", "proof", "expires", "used")
    return [Heading(say("heading.ledger")), table(head, rows)] if rows else []


def provenance(comparison: Comparison) -> list[Block]:
    reference, candidate = _facts(comparison.reference), _facts(comparison.candidate)
    rows = [[word("provenance", what), value or "-", candidate[what] or "-"] for what, value in reference.items()]
    return [Heading(say("heading.provenance")), table(["", *labels(comparison)], rows, sides=1)]


def _facts(side: Side) -> dict[str, object]:
    """What a recording says of its making, by what it is; empty where it says nothing."""
    index, git = side.index, side.index.git
    data = []
    for name, section in (("train", index.data.train), ("validation", index.data.validation)):
        if section is not None:
            manifests = ", ".join(manifest.name for manifest in section.manifests)
            data.append(say("data", section=name, files=counted(len(section.audio), "files"), manifests=manifests))
    versions = {name: index.packages.get(name) for name in ("torch", "numpy", "librosa")}
    return {
        "folder": Code(side.path),
        "trainer": f"{index.trainer.package} {index.trainer.version}",
        "model class": Code(index.trainer.model_class),
        "recorded": index.created,
        "command": Code(shlex.join(index.command)) if index.command else "",
        "seed": str(index.seed),
        "Python": index.python,
        **versions,
        "CUDA": index.cuda.runtime,
        "cuDNN": index.cuda.cudnn,
        "device": index.device.name,
        "threads": index.threads.torch,
        "system": f"{index.host.system} {index.host.release}".strip(),
        "container": (index.container or {}).get("image"),
        "git": (git.commit[:7], *(say("commit.dirty") if git.dirty else ())) if git.commit else "",
        "data": join(data, "; "),
        "weights from": ", ".join(f"{name} {str(digest)[:12]}" for name, digest in index.init_from.items()),
    }


def notes(comparison: Comparison) -> list[Block]:
    texts = tuple(dict.fromkeys(map(note_text, comparison.notes)))
    return [Heading(say("heading.notes")), Bullets(texts)] if texts else []
