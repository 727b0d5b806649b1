"""The first screen of a report: title, verdict, and the first difference."""

from __future__ import annotations

import math

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Birth, Note, Status
from nest_ssl.report.document import Block, Code, Heading, Paragraph, StatusWord, Text, initial, join, table
from nest_ssl.report.sections import proof
from nest_ssl.report.sections.causes import cause_text, consequence_texts, note_text, remainder_text
from nest_ssl.report.words import counted, say, word
from nest_ssl.report.words.names import labels, name, number, small, steps_text, where

REASONS = 3  # why too little was compared: shown in the verdict; the notes have all


def headline(comparison: Comparison) -> list[Block]:
    """The verdict; why equal numbers prove little here, and what to do where only the steps are not the same."""
    texts = [verdict(comparison)]
    weak = [explanation for explanation in comparison.explanations if explanation.weakens]
    texts += [(explanation.weakens,) for explanation in weak[:1]]
    texts += [say("hint.weak_too", steps=counted(len(weak) - 1, "steps"))] if len(weak) > 1 else []
    sides = [(loss.step, (loss.reference, loss.candidate)) for loss in comparison.losses]
    lost = [step for step, pair in sides if all(loss is not None and not math.isfinite(loss) for loss in pair)]
    lost = [step for step in lost if step not in {explanation.step for explanation in weak}]
    texts += [say("hint.loss_not_finite", steps=steps_text(lost))] if lost else []
    if comparison.steps and [found.address.slot for found in comparison.rung("contract").findings] == ["steps"]:
        option = ",".join(map(str, comparison.steps))
        texts.append(say("hint.steps", steps=steps_text(comparison.steps), option=option))
    texts += [proof.check_sentence(check) for check in comparison.proof.checks if check.differing or not check.compared]
    same = [note_text(note) for note in comparison.notes if note.kind == "same_recording"]
    blocks: list[Block] = [Heading(title(comparison), 1), Paragraph(join([*texts, *same], " "))]
    if (notes := unseen(comparison)) and comparison.verdict in (Status.IDENTICAL, Status.EQUIVALENT):
        blocks.append(Paragraph(say("unseen", what=join(map(note_text, notes)))))
    return blocks


def unseen(comparison: Comparison) -> list[Note]:
    """What this run could not see; of a large corpus also whether all of its audio is the same on both sides."""
    data = [side.index.data for side in (comparison.reference, comparison.candidate)]
    sections = [section for each in data for section in (each.train, each.validation) if section is not None]
    sections += [section.noise for section in sections if section.noise is not None]
    sampled = any(section.audio_hash == "sampled" for section in sections)
    return [*comparison.unseen, *([Note("unseen_audio")] if sampled else [])]


def title(comparison: Comparison) -> Text:
    first = comparison.first
    reference, candidate = labels(comparison)
    places = {"name": name(first), "where": where(first)} if first else {}
    key = _key(comparison)
    cause = comparison.cause
    if key == "diverged" and cause and cause.birth is Birth.BEFORE_CALL and cause.module:
        key = "before"  # the birthplace, and only then the neighbour that shows it first
        places["module"] = (Code(cause.module),)
        places["step"] = steps_text([first.moment.step]) if first else ()
    born = proof.places(comparison)
    if born:
        only, count = proof.place(born[0]), number(len(born) - 1)
        places["places"] = only if len(born) == 1 else say("more_places", first=only, count=count)
    places["why"] = _unsound(comparison)
    places["known"] = (counted(sum(used.count > 0 for used in comparison.ledger), "known differences"),)
    return say(f"title.{key}", reference=reference, candidate=candidate, **places)


def verdict(comparison: Comparison) -> Text:
    """``identical: 12,304 of 12,304 tensors have the same bits, over steps 0 to 2, from seed 42. ...``"""
    facts, found = comparison.facts, comparison.verdict
    tensors = {"same": number(facts.tensors_same), "all": number(facts.tensors)}
    cause = initial(cause_text(comparison), upper=False)
    others = comparison.rung("contract").differing - 1
    absent = [note for rung in comparison.rungs for tally in rung.tallies for note in tally.absent]
    reasons = list(dict.fromkeys(map(note_text, absent))) or [say("no_shared_step")]
    more_reasons = [say("more_reasons", count=number(len(reasons) - REASONS))] if len(reasons) > REASONS else []
    key = _key(comparison)
    if key == "born" and not any(had.had for had in comparison.proof.evidence if had.kind == "replay"):
        key = "born_unreplayed"  # only what differs first between the two runs was found
    left = sum(int(note.values["count"]) for note in comparison.proof.lacking if note.kind == "lacks_replay")
    key = "born_partly" if key == "born" and left else key
    return say(
        "verdict.unknown" if key == Status.DIVERGED.value and not cause else f"verdict.{key}",
        status=StatusWord(found, word("status", found.value), strong=True),
        same=say("same", **tensors, steps=steps_text(comparison.steps)),
        seed="" if (seed := comparison.reference.index.seed) is None else say("from_seed", seed=number(seed)),
        rule=rule_name(comparison),
        cause=cause,
        more=say("more", count=number(others)) if others > 0 else "",
        reasons=join([*reasons[:REASONS], *more_reasons], "; "),
        rounding=proof.rounding(comparison),
        count=counted(len(proof.places(comparison)), "places"),
        left=number(left),
        why=_unsound(comparison),
        known=counted(sum(used.count > 0 for used in comparison.ledger), "known differences"),
    )


def _unsound(comparison: Comparison) -> Text:
    """Why an agreement shows nothing: a run does not repeat itself, or was changed by being recorded."""
    checks = comparison.proof.unsound
    return join([say(f"check.unsound {one.what}", side=word("side", one.side)) for one in checks], "; ")


def _key(comparison: Comparison) -> str:
    """Of the words for a verdict: a pass by a tolerance of the user's own has others than one that was measured."""
    if comparison.contract_differs:
        return "contract"
    if comparison.verdict is Status.EQUIVALENT and any(used.count for used in comparison.ledger):
        return "known"
    if comparison.verdict is Status.EQUIVALENT and comparison.rule["kind"] == "fixed":
        return "within"
    agrees = all(rung.status in (Status.IDENTICAL, Status.EQUIVALENT) for rung in comparison.rungs)
    if comparison.verdict is Status.INCONCLUSIVE and comparison.proof.unsound and agrees:
        return "unsound"
    if comparison.verdict is not Status.DIVERGED or not proof.applies(comparison):
        return comparison.verdict.value
    if comparison.proof.born:
        return "born"
    unlike = {note.kind for note in comparison.proof.lacking} & {"beyond_floor", "lacks_float64"}
    return "beyond" if unlike else "unshown"


def rule_name(comparison: Comparison) -> Text:
    rule = comparison.rule
    if rule["kind"] == "fixed":
        return say("rule.fixed", atol=rule["atol"], rtol=rule["rtol"])
    if rule["kind"] == "bits":
        return say("rule.bits")
    settings = ", ".join(f"{key} {value}" for key, value in rule.items() if key != "kind")
    return say("rule.other", name=rule["kind"], settings=f" ({settings})" if settings else "")


def first_difference(comparison: Comparison) -> list[Block]:
    """The table of both values, and where else bits part; nothing where there is no difference."""
    first = comparison.first
    if first is None:
        return []
    values = (first.reference, first.candidate)
    what = name(first)
    what += () if first.shape is None else say("first.shape", shape=list(first.shape), dtype=first.dtype)
    what += say("first.index", index=list(first.index)) if first.index else ()
    rows: list[list[object]] = [[what, *(str(value) if first.missing else number(value) for value in values)]]
    metrics = first.metrics
    if metrics:
        sizes = (metrics.max_abs, metrics.relative, metrics.max_ulp)
        elements = say("first.elements_of", differing=number(metrics.differing), elements=number(metrics.elements))
        rows.append([say("first.sizes"), " / ".join(map(small, sizes)), ""])
        rows.append([say("first.elements"), elements, ""])
        if metrics.nan_reference or metrics.nan_candidate or metrics.nonfinite_disagree:
            rows.append([say("first.nan"), number(metrics.nan_reference), number(metrics.nan_candidate)])
            rows.append([say("first.one_sided"), number(metrics.nonfinite_disagree), ""])
    blocks: list[Block] = [table(["", *labels(comparison)], rows, sides=1)]
    if any(born.decided for born in comparison.proof.born):
        return blocks  # another function is one whatever a rule lets pass
    for key, other in (("first.bits", comparison.first_bits), ("first.beyond", comparison.first_beyond)):
        if other is not None and other is not first:
            size = say("by", size=small(other.metrics.max_abs)) if other.metrics else ""
            blocks.append(Paragraph(say(key, where=where(other), size=size)))
    return blocks


def consequences(comparison: Comparison) -> list[Block]:
    if comparison.first is None or comparison.contract_differs:
        return []
    follows = join(consequence_texts(comparison), "; ") or word("name", "no_consequence")
    unexplained = join(map(remainder_text, comparison.unexplained), "; ") or word("name", "nothing")
    return [Paragraph(say("follows", what=follows)), Paragraph(say("unexplained", what=unexplained))]


def next_step(comparison: Comparison) -> list[Block]:
    """Which evidence to gather, where two trainers differ and nothing yet says why."""
    open_question = comparison.verdict is Status.DIVERGED and not (comparison.contract_differs or comparison.proof.had)
    return [Paragraph(say("explain"))] if open_question else []
