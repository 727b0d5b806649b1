"""Names the likely kind of each difference, from all that was measured about it.

A rule looks at one place where something was born, and answers with a kind and its reason, or not at all; the first
answer counts, and rules on what was measured come before what names say. What no rule answers for is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from nest_ssl.compare.born import Born
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Difference, Finding, Note, Status
from nest_ssl.compare.kinds import Basis, FaultKind, Likely
from nest_ssl.compare.kinds.case import Answer, Case
from nest_ssl.compare.kinds.operators import casts_in, edits_in, kept_in, purpose_of
from nest_ssl.compare.kinds.roles import Classes, joins_branches, kind_of_words, role_of
from nest_ssl.compare.patterns import Shape
from nest_ssl.compare.roots import SCHEDULED
from nest_ssl.compare.rules.same_function import By, Function
from nest_ssl.recording.address import Kind

LAYERS = (  # parts in which nothing but a dropout draws
    FaultKind.ATTENTION, FaultKind.CONVOLUTION_AND_NORMS, FaultKind.FEED_FORWARD_AND_RESIDUAL, FaultKind.SUBSAMPLING,
)  # fmt: skip
_COMPUTED = (FaultKind.FEATURES, FaultKind.QUANTIZER)  # parts of their own that only their mode makes draw
SEVERAL = 3  # modules that no fault of one module's own reaches
_ADDED = frozenset("noise noisy mix mixed mixture augmented aug perturbed corrupted".split())


def kinds_of(comparison: Comparison, classes: tuple[Classes, Classes]) -> list[Likely]:
    """The likely kind of each difference, in causal order: of settings, if these differ, else of each place of birth.

    Args:
        classes: of the modules of the reference and the candidate.
    """
    if comparison.contract_differs:
        return [_of_setting(finding) for finding in comparison.rung("contract").findings]
    if comparison.verdict is not Status.DIVERGED:
        return []
    births = comparison.proof.born or [_seen_first(comparison.first)] if comparison.first else comparison.proof.born
    by_place: dict[str, list[Born]] = {}
    for born in [one for one in births if not _follows(one, comparison)] or births:
        by_place.setdefault(born.phase if born.module is None else f"module {born.module}", []).append(born)
    found = []
    for group in by_place.values():
        answer = answer_for(case := Case(comparison, classes, group))
        kind, reason, *basis = answer or (FaultKind.UNKNOWN, Note("kind_unknown"))
        found.append(Likely(kind, reason, next(iter(basis), Basis.MEASURED), born=case.born))
    return found


def answer_for(case: Case) -> Answer:
    """Of the first rule that has one."""
    return next((answer for rule in RULES if (answer := rule(case))), None)


def _follows(born: Born, comparison: Comparison) -> bool:
    """What comes of another place: draws that a module makes the same when it is replayed, for what it was given had
    another shape; the backward of a module that the one around it, which is another function, computes or leaves out by
    itself; and what a validation makes in a part that is another function in training as well.
    """
    if born.module is None:
        return False
    forward = {one.module or "" for one in comparison.proof.born if one.phase == "forward"}
    if born.phase == "validation":  # before the first step: a part that is another function in every mode
        return any(one == born.module or one.startswith(f"{born.module}.") for one in forward)
    if born.phase == "draws" and born.by is None:
        cleared = (Function.SAME, Function.CAME_IN)
        return any(one.module == born.module and one.function in cleared for one in comparison.proof.modules)
    parts = born.module.split(".")
    around = {".".join(parts[:end]) for end in range(1, len(parts))}
    return born.phase == "backward" and born.module not in forward and bool(around & forward)


_SETTINGS = (  # the first pattern that a setting of the contract matches
    (r"(config\.)?seed", FaultKind.SEED_AND_DRAWS),
    (r"data\..*|config\.(.*\.)?\w*manifest\w*", FaultKind.MANIFEST_AND_AUDIO),
    (r"init_from\..*|resumed_from|config\.(.*\.)?(init_from|resume)\w*", FaultKind.CHECKPOINT_AND_RESUME),
    (r"world_size", FaultKind.RANKS),
    (r"flags\..*(tf32|precision|reduced).*", FaultKind.PRECISION_AND_CASTS),
)


def _of_setting(finding: Finding) -> Likely:
    name = finding.address.slot
    kind = next((kind for form, kind in _SETTINGS if re.fullmatch(form, name)), FaultKind.CONFIGURATION)
    values = {"path": name, "reference": finding.reference, "candidate": finding.candidate}
    return Likely(kind, Note("kind_setting", values), finding=finding)


_PHASES = {
    "initial_weights": "initial weights", "start": "between steps", "gradients": "backward",
    "optimizer_input": "optimizer", "weights": "optimizer", "steps": "optimizer",
}  # fmt: skip


def _seen_first(first: Finding) -> Born:
    """Where nothing was born that could be placed: the headline in its stead."""
    phase = _PHASES.get(first.rung, first.rung)
    step = None if first.moment.step < 0 else first.moment.step
    address = first.address
    return Born(phase, address.module, address.call, step, address.rank, address=address)


# --- what was measured ------------------------------------------------------------------------------------------------


def of_ranks(case: Case) -> Answer:
    """Only one process of several, or the sum over all of them."""
    comparison, born = case.comparison, case.born
    names = {classes.get(born.module or "", "").rpartition(".")[2] for classes in case.classes}
    if len({name.startswith("Sync") for name in names}) > 1:
        return FaultKind.RANKS, Note("kind_synchronised", {"module": born.module})
    if min(comparison.reference.index.world_size, comparison.candidate.index.world_size) < 2:
        return None
    here = [one for rung in comparison.rungs for one in rung.findings if one.moment.step == born.step]
    whole = comparison.reference.index.rank is None  # else one rank is all that is compared here; see `ranks`
    if here and whole and all(one.address.rank == born.rank for one in here):
        return FaultKind.RANKS, Note("kind_one_rank", {"rank": born.rank, "step": born.step})
    kinds = {one.address.kind for one in here if one.rung in ("forward", "loss", "gradients")}
    if born.phase == "backward" and kinds == {Kind.GRADIENT}:
        return FaultKind.RANKS, Note("kind_reduced", {"step": born.step})
    return None


def of_resumed(case: Case) -> Answer:
    """What a checkpoint has to bring back, at the first step behind it."""
    born, starts = case.born, case.went_on_at
    if not starts or (born.step not in starts and born.step is not None):
        return None
    state = born.address is not None and born.address.kind in (Kind.OPTIMIZER_STATE, Kind.OPTIMIZER_SETTING)
    restored = ("initial weights", "between steps", "batch", "schedule")
    outside = born.phase == "draws" and born.module is None
    if born.phase in restored or outside or (born.phase == "optimizer" and state):
        return FaultKind.CHECKPOINT_AND_RESUME, Note("kind_resumed", {"step": min(starts), "phase": born.phase})
    return None


def of_precision(case: Case) -> Answer:
    """Another number format, or the same function in float64 alone."""
    born = case.born
    if any(each.by is By.FLOAT32 for each in case.births):
        return FaultKind.PRECISION_AND_CASTS, Note("kind_float32", {"module": born.module or ""})
    types = re.fullmatch(r"(.*) (\w+) against (.*) (\w+)", born.why)
    sides = types.group(2, 4) if types and types.group(1) == types.group(3) else ("", "")
    built = born.address is not None and born.address.path == "dtype"
    for one in case.findings:
        other_type = one.difference is Difference.DTYPE or (built and one.address == born.address)
        if other_type and (one.address == born.address or (one.address.module == born.module is not None)):
            sides = str(one.reference), str(one.candidate)
            break
    if sides[0] != sides[1]:
        return FaultKind.PRECISION_AND_CASTS, Note("kind_dtype", {"reference": sides[0], "candidate": sides[1]})
    cast = casts_in([change for each in case.births for change in each.changes]) or case.rounded()
    return (FaultKind.PRECISION_AND_CASTS, cast) if cast else None


def of_flags(case: Case) -> Answer:
    """Training mode, and what is frozen."""
    address = case.born.address
    modes = [one for one in case.findings if one.address.slot == "training" and one.address.module == case.born.module]
    if address and address.path == "requires_grad":
        return FaultKind.DROPOUT_AND_FLAGS, Note("kind_frozen", {"name": f"{address.module}.{address.slot}"})
    if modes or (address and address.kind is Kind.MODULE and address.slot == "training"):
        values = {"module": case.born.module, "step": case.born.step or 0}
        return FaultKind.DROPOUT_AND_FLAGS, Note("kind_mode", values)
    return None


def of_memory(case: Case) -> Answer:
    """Two names for one memory, and what is edited behind another's back."""
    born, address = case.born, case.born.address
    apart = [one for one in case.findings if one.address.path == "memory"]
    shared = next((one for one in apart if case.owns(one)), None)
    if shared and born.phase in ("batch", "structure", "initial weights"):
        values = {"name": shared.address.slot, "reference": shared.reference, "candidate": shared.candidate}
        return FaultKind.ALIASING_AND_IN_PLACE, Note("kind_memory", values)
    cleared = {Function.SAME, Function.CAME_IN}
    same = any(one.module == born.module and one.function in cleared for one in case.comparison.proof.modules)
    flows = address is not None and address.kind in (Kind.INPUT, Kind.OUTPUT)
    placed = any(one is born for one in case.comparison.proof.born)  # else it is only what is seen first
    if placed and born.phase == "forward" and born.by is None and same and flows:
        return FaultKind.ALIASING_AND_IN_PLACE, Note("kind_edited", {"module": born.module or ""})
    edited = edits_in([change for each in case.births for change in each.changes])
    return (FaultKind.ALIASING_AND_IN_PLACE, edited) if edited else None


def of_draws(case: Case) -> Answer:
    """Who draws other numbers: a part of the model, the making of a batch, or anything else."""
    born = case.born
    if born.phase != "draws":
        return None
    generator = born.address.slot if born.address else ""
    if born.module:
        role = role_of(born.module, case.all_classes)
        values = {"module": born.module, "generator": generator}
        kind = role.kind if role else FaultKind.SEED_AND_DRAWS
        return (FaultKind.DROPOUT_AND_FLAGS if kind in LAYERS else kind), Note("kind_draws_in", values)
    fetched = any(one.finding and one.finding.address == born.address for one in case.fetched())
    if fetched and any(one.rung == "batch" for one in case.findings):
        return of_batch(case)
    return FaultKind.SEED_AND_DRAWS, Note("kind_draws", {"generator": generator})


def of_batch(case: Case) -> Answer:
    """What is read, or what is made of it: by the draws of fetching it, and by which fields differ."""
    if case.born.phase not in ("batch", "draws"):
        return None
    found = {one.address.slot for one in case.findings if one.rung == "batch"}
    names = sorted(found) or ([case.born.address.slot] if case.born.address else [])
    read = [name for name in names if not _ADDED & set(re.split(r"\W|_", name.lower()))]
    drawn = [one.generator for one in case.fetched()]
    if read and any(generator.startswith("torch") for generator in drawn):  # the order comes before all that is read
        return FaultKind.SEED_AND_DRAWS, Note("kind_order", {"names": ", ".join(names)})
    made = {own: [f"{prefix}_{own}" for prefix in _ADDED if f"{prefix}_{own}" in case.fields] for own in read}
    behind = [own for own in read if made[own] and not found & set(made[own]) and "len" not in own]
    if behind and len(behind) == len(read) and not drawn:
        values = {"name": behind[0], "made": made[behind[0]][0]}
        return FaultKind.ALIASING_AND_IN_PLACE, Note("kind_edited_field", values)
    if read:
        return FaultKind.MANIFEST_AND_AUDIO, Note("kind_read", {"names": ", ".join(read)}), Basis.NAMES
    if drawn:
        return FaultKind.AUGMENTATION, Note("kind_added_drawn", {"names": ", ".join(names), "generator": drawn[0]})
    return FaultKind.AUGMENTATION, Note("kind_added", {"names": ", ".join(names)}), Basis.NAMES


def of_beside_the_flow(case: Case) -> Answer:
    """What neither a call nor the backward of one makes: each phase has its own kind."""
    born, address = case.born, case.born.address
    kind = address.kind if address else None
    built = [one for one in case.comparison.rung("structure").findings if one.address.kind is Kind.PARAMETER]
    if built and born.module is None and born.phase in ("clipping", "optimizer"):
        others = [one for one in case.comparison.proof.born if one.phase == "structure"]
        answer = answer_for(Case(case.comparison, case.classes, others[:1])) if others else None
        return answer and (answer[0], Note("kind_trained", {"name": built[0].address.own_name}))
    values = {"module": born.module or "", "name": address.own_name if address else "", "step": born.step or 0}
    if born.phase == "clipping" or (born.phase == "optimizer" and kind is Kind.APPLIED_GRADIENT):
        return FaultKind.CLIPPING_AND_ACCUMULATION, Note("kind_clipped")
    settings = [one.address.path for one in case.findings if one.address.kind is Kind.OPTIMIZER_SETTING]
    if born.phase == "schedule" and any(path.startswith("params") for path in settings):
        return FaultKind.OPTIMIZER, Note("kind_groups")
    if born.phase == "schedule" or kind is Kind.SCHEDULE:
        return FaultKind.SCHEDULE, Note("kind_schedule")
    if born.phase == "optimizer" and kind is Kind.UPDATE and address and not address.slot:
        return FaultKind.CLIPPING_AND_ACCUMULATION, Note("kind_no_step", values)
    if born.phase == "optimizer" and kind is Kind.OPTIMIZER_SETTING and address:
        scheduled = address.path in SCHEDULED
        return (FaultKind.SCHEDULE if scheduled else FaultKind.OPTIMIZER), Note("kind_optimizer_setting", values)
    if born.phase == "optimizer":
        own = case.pattern if case.pattern and case.pattern.kind is Kind.UPDATE else None
        return FaultKind.OPTIMIZER, Note(f"kind_update_{own.shape.value}" if own and own.whole else "kind_update")
    if born.phase == "between steps" and kind is Kind.BUFFER:
        tallies = [tally for rung in case.comparison.rungs if rung.name == "validation" for tally in rung.tallies]
        if any(tally.step == born.step for tally in tallies):
            return FaultKind.DROPOUT_AND_FLAGS, Note("kind_validation_left", values)
    return (FaultKind.OPTIMIZER, Note("kind_between", values)) if born.phase == "between steps" else None


def of_initial_weights(case: Case) -> Answer:
    """Drawn from other streams, loaded, or filled otherwise from the same ones."""
    born, sides = case.born, (case.comparison.reference.index, case.comparison.candidate.index)
    if born.phase != "initial weights":
        return None
    if any(one.rung == "draws" for one in case.findings):
        return FaultKind.SEED_AND_DRAWS, Note("kind_initial_drawn")
    if any(side.init_from for side in sides):
        return FaultKind.CHECKPOINT_AND_RESUME, Note("kind_loaded", {"module": born.module or ""})
    if born.address and born.address.kind is Kind.BUFFER and (role := role_of(born.module or "", case.all_classes)):
        return role.kind, Note("kind_computed", {"module": born.module, "name": born.address.slot}), role.basis
    return FaultKind.SEED_AND_DRAWS, Note("kind_filled", {"module": born.module or ""})


def of_validation(case: Case) -> Answer:
    """What only a validation shows, while the training steps agree."""
    born, address = case.born, case.born.address
    if born.phase != "validation" or address is None:
        return None
    if address.kind is Kind.FIELD:
        added = _ADDED & set(re.split(r"\W|_", address.slot.lower()))
        kind = FaultKind.AUGMENTATION if added else FaultKind.MANIFEST_AND_AUDIO
        return kind, Note("kind_read", {"names": address.slot}), Basis.NAMES
    found = [one for one in case.findings if one.address == address]
    role = role_of(address.module or "", case.all_classes)
    role = None if role and role.kind in (*LAYERS, FaultKind.DROPOUT_AND_FLAGS) else role
    # Steps call it too, and agree: what only computes makes other values here in another mode alone. What draws may
    # have drawn otherwise, and other shapes may be of what is longer here.
    calls = {name.rpartition("#")[0] for names in case.comparison.reference.index.calls.values() for name in names}
    mode = role and role.kind in _COMPUTED and address.module in calls and all(one.metrics for one in found)
    if address.kind is Kind.OUTPUT and role and not mode:
        values = {"module": address.module, "part": role.part, "word": role.word}
        return role.kind, Note(f"kind_{role.basis.value}", values), role.basis
    if address.kind is Kind.OUTPUT and not any(one.missing for one in found):
        return FaultKind.DROPOUT_AND_FLAGS, Note("kind_validation_mode", {"module": address.module or ""})
    rungs = [tally for tally in case.comparison.rung("validation").tallies if tally.step == born.step]
    if address.slot != "validation" and any(tally.compared["calls"] for tally in rungs):
        return FaultKind.DECODER_AND_LOSS, Note("kind_metric", {"name": address.slot})
    return None


def of_backward(case: Case) -> Answer:
    """What differs in the backward alone."""
    born, pattern = case.born, case.pattern
    arriving = born.address is not None and born.address.kind is Kind.OUTPUT_GRADIENT
    of_loss = born.phase == "loss" and arriving and not any(one.rung == "loss" for one in case.findings)
    if any(each.phase != "backward" for each in case.births) and not of_loss:
        return None
    held = [one for one in case.comparison.rung("gradients").findings if one.address.kind is Kind.GRADIENT_BEFORE]
    if any(one.moment.step <= (born.step or 0) for one in held):
        return FaultKind.CLIPPING_AND_ACCUMULATION, Note("kind_not_cleared")
    frozen = next(
        (one for one in case.comparison.rung("structure").findings if one.address.path == "requires_grad"), None
    )
    if frozen and born.by is By.SHAPE:  # a gradient that one side alone computes
        values = {"name": f"{frozen.address.module}.{frozen.address.slot}"}
        return FaultKind.DROPOUT_AND_FLAGS, Note("kind_frozen", values)
    changes = [change for each in case.births for change in each.changes]
    purpose = purpose_of(changes) if born.by is By.SHAPE and all(one.kind == "arguments" for one in changes) else None
    if purpose and born.address:  # the same operator without a parameter of it, which was zero or one
        return purpose[0], Note("kind_left_out", {"name": born.address.own_name, "operator": purpose[1]})
    places = {one.module for one in case.comparison.proof.born if one.phase == "backward"}
    if pattern and pattern.shape is Shape.FACTOR and pattern.kind in (Kind.OUTPUT_GRADIENT, Kind.GRADIENT):
        whole = pattern.whole and (pattern.kind is Kind.GRADIENT or not born.module)
        if whole or (pattern.kind is Kind.GRADIENT and len(places) >= SEVERAL):
            scaled = {"factor": float(f"{pattern.factor:.6g}"), "count": pattern.count}
            return FaultKind.CLIPPING_AND_ACCUMULATION, Note("kind_scaled", scaled)
    pair, role = case.exchanged(), role_of(born.module or "", case.all_classes)
    if pair and role:  # they were the same numbers: the forward of this step could not show it
        return role.kind, Note("kind_exchanged", {"name": pair[0], "other": pair[1]})
    return FaultKind.BACKWARD_ONLY, Note("kind_backward", {"module": born.module or ""})


# --- which part of the model ------------------------------------------------------------------------------------------


def of_part(case: Case) -> Answer:
    """By the module in whose own code it was born, or by what that hands on, and to whom."""
    born, address, classes = case.born, case.born.address, case.all_classes
    if born.phase not in ("structure", "forward", "loss"):
        return None
    own, module = born.module or "", "" if address is None else address.module or ""
    handed = address is not None and address.kind is Kind.INPUT and module != own
    role = role_of(own, classes)
    dropped = case.dropped() if born.phase == "forward" and (not role or role.kind in LAYERS) else None
    if dropped:
        return FaultKind.DROPOUT_AND_FLAGS, Note("kind_dropped", {"module": own, "draws": dropped})
    if moved := case.moved() if not role or role.kind in LAYERS else None:
        return FaultKind.DROPOUT_AND_FLAGS, Note("kind_moved", {"module": own, "dropout": moved})
    kept = kept_in([change for each in case.births for change in each.changes], case.rates())
    if kept and (not role or role.kind in LAYERS):
        return FaultKind.DROPOUT_AND_FLAGS, kept
    if role:
        return (
            role.kind,
            Note(f"kind_{role.basis.value}", {"module": own, "part": role.part, "word": role.word}),
            role.basis,
        )
    purpose = purpose_of([change for each in case.births for change in each.changes])
    if joins_branches(own, classes):
        if purpose and purpose[0] is FaultKind.DROPOUT_AND_FLAGS:
            return purpose[0], Note("kind_around_dropout", {"module": own})
        return FaultKind.FEED_FORWARD_AND_RESIDUAL, Note("kind_joins", {"module": own})
    if purpose:
        return purpose[0], Note("kind_operator", {"module": own, "operator": purpose[1]})
    shared = case.shares() if born.phase == "loss" else None
    if shared:
        return FaultKind.CLIPPING_AND_ACCUMULATION, Note("kind_shares", {"count": shared})
    to = role_of(module, classes) if handed else None
    if born.phase == "loss" and not (handed and not to):
        return FaultKind.DECODER_AND_LOSS, Note("kind_loss")
    if handed and address:
        named = kind_of_words(address.slot)
        if named and not set(re.split(r"\W|_", address.slot)) & {"pad", "padding", "key"}:
            return named, Note("kind_hands", {"module": own, "to": module, "name": address.slot}), Basis.NAMES
        if to:
            return to.kind, Note("kind_hands", {"module": own, "to": module, "name": address.slot}), Basis.NAMES
    return None


RULES: tuple[Callable[[Case], Answer], ...] = (
    of_ranks, of_resumed, of_flags, of_draws, of_precision, of_memory, of_batch, of_beside_the_flow,
    of_initial_weights, of_validation, of_backward, of_part,
)  # fmt: skip
