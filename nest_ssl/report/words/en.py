"""Every sentence of a report in English. Keys are what the sections ask for; a name in backticks is shown as code."""

from __future__ import annotations

SENTENCES = {
    # --- names ---
    "side.reference": "reference", "side.candidate": "candidate", "name.root": "(root)", "call": "call {call}",
    "rank": "rank {rank}", "name.none": "none", "within.True": "yes", "within.False": "no",
    "steps.none": "no step", "steps.one": "step {step}", "steps.range": "steps {first} to {last}",
    "steps.list": "steps {steps}", "several": "{count} x {what}",
    "rung.contract": "contract", "rung.structure": "structure", "rung.initial_weights": "initial weights",
    "rung.batch": "batch", "rung.draws": "random draws", "rung.forward": "forward", "rung.loss": "loss",
    "rung.gradients": "gradients", "rung.weights": "after the step", "rung.steps": "over steps",
    "status.identical": "identical", "status.equivalent": "equivalent", "status.not compared": "not compared",
    "status.missing": "missing", "status.diverged": "diverged", "status.inconclusive": "inconclusive",
    "status.not judged": "not judged",
    "stage.model_construction": "building the model", "stage.fit_start": "the start of fit",
    "stage.validation": "the validation before this step", "stage.fetch": "fetching the batch",
    "stage.training_step": "the training step, before the forward", "stage.loss": "the training step, after the forward",
    "stage.backward": "the backward", "stage.optimizer_step": "the optimizer step",
    "stage.root": "the model's own forward",
    "boundary.batch_ready": "when the batch is ready", "boundary.forward_done": "after the forward",
    "boundary.backward_done": "after the backward", "boundary.step_done": "after the step",
    "boundary.before_model": "before the model is built", "boundary.after_model": "after the model is built",
    "boundary.before_first_batch": "before the first batch",
    # --- title and verdict ---
    "title.contract": "{reference} and {candidate} did not run the same experiment: {name} differs",
    "title.identical": "{reference} and {candidate} train identically",
    "title.equivalent": "{reference} and {candidate} train equivalently",
    "title.diverged": "{candidate} parts from {reference} at {where}",
    "title.inconclusive": "Too little was recorded to compare {reference} with {candidate}",
    "same": "{same} of {all} tensors have the same bits, over {steps}",
    "verdict.identical": "{status}: {same}, from seed {seed}. Nothing missing on either side.",
    "verdict.equivalent": "{status}: {same}; the others are within {rule}. Nothing missing on either side.",
    "verdict.contract": "{status}: a setting that both sides must share differs{more}. "
                        "What follows is shown as information only.",
    "verdict.diverged": "{status}: {cause} ({same}.)",
    "verdict.unknown": "{status} ({same}.)",
    "verdict.inconclusive": "{status}: nothing that was compared differs, but {reasons}.",
    "more": " and {count} more", "more_reasons": "{count} more", "and": "and {what}", "no_shared_step": "no step was recorded by both",
    "hint.steps": "Both sides recorded {steps}: compare what both have with `--steps {option}`.",
    "hint.loss_nan": "The loss is NaN on both sides at {steps}: little is proved by that.",
    "rule.fixed": "a fixed tolerance (atol {atol}, rtol {rtol})", "rule.other": "the rule {name}{settings}",
    # --- the first difference ---
    "first.shape": " {shape} {dtype}", "first.index": ", at {index}",
    "first.sizes": "largest difference / relative / ulp", "first.elements": "elements that differ",
    "first.elements_of": "{differing} of {elements}", "first.nan": "NaN",
    "first.one_sided": "NaN or infinity on one side only",
    "first.bits": "Bits part earlier, within the rule, at {where}{size}.",
    "first.beyond": "This one is within the rule; the first one beyond it is at {where}{size}.", "by": " (by {size})",
    "follows": "Follows from it: {what}.", "name.no_consequence": "nothing that was recorded",
    "unexplained": "Not explained by it: {what}.", "name.nothing": "nothing",
    "at_step": "at {steps}: {what}", "later_steps": "differences at {steps}",
    "loss_by": "the loss by {size}", "loss_differs": "the loss",
    # --- how the headline was born ---
    "born.built otherwise": "The two models are not built alike.",
    "born.filled otherwise": "The models are built alike, but not filled alike: it differs before the first step.",
    "born.batch": "The batch differs before the model has seen it.",
    "born.draw": "Every value up to there has the same bits.",
    "born.state": "Every value up to there has the same bits. {generator} is in another state {boundary}: "
                  "one side drew other random numbers, or another count of them.",
    "born.never called": "The candidate never makes this call; everything compared before it has the same bits.",
    "born.before call": "Everything compared before this call has the same bits, its inputs do not: "
                        "born in {code}, between the last call before it and this one.",
    "born.own code": "Its inputs and all calls inside it have the same bits, its output does not: "
                     "born in its own code. {order}",
    "born.output": "Its inputs have the same bits, its output does not. {order}",
    "born.model output": "No call that was compared differs before it.",
    "born.loss": "Every call and every output of the forward has the same bits; the loss made from them does not.",
    "born.own backward": "The gradient that arrives at this module's output has the same bits: "
                         "born in its own backward.",
    "born.first gradient": "It is the first gradient of all: born in the backward of the loss.",
    "born.between backwards": "Gradients that backward reached before it have the same bits, the last of them at the "
                              "output of `{after}`: born between the two, in the backward of what used this output.",
    "born.gradient": "No gradient that backward reached before it differs.",
    "born.optimizer setting": "Loss and gradients have the same bits; the optimizer is set otherwise.",
    "born.update": "Loss and gradients have the same bits; what the step left behind does not.",
    "born.not grown": "Bits part before it, within the tolerance, but this cannot have grown from that.",
    "order": "It is the first such call in execution order ({order} of {calls}).",
    "code.none": "the training step's own code", "code.root": "the model's own forward",
    "code.module": "the own code of `{module}`",
    "batch_too": "The batch differs, too: other draws make another batch, but another clip also draws otherwise.",
    "draws_after": "Random draws differ after it: {draw}",
    "states_after": "This forward also left other random states ({generators}).",
    "unrecorded.one": "Step {first} was not recorded: it may have been born there.",
    "unrecorded.several": "Steps {first} to {last} were not recorded: it may have been born there.",
    # --- one draw ---
    "draw.came in": "{stage} drew as many numbers from {generator} ({count}), but started from another state: came in",
    "draw.left otherwise": "{stage} drew as many numbers from {generator} ({count}), but left it in another state",
    "draw.extra": "an extra draw in {place}: {numbers} from {generator}, in the candidate only",
    "draw.none": "{stage} drew {numbers} from {generator}, the candidate none",
    "draw.count": "{stage} drew {numbers} from {generator}, the candidate {other}",
    "draw.in": ", in {place}", "draw.other_state": " from another state: came in",
    "draw.also": "; from {generator} {count} against {other}", "to": "{first} to {last}",
    "name.uncounted": "more than could be counted", "name.uncounted_numbers": "more numbers than could be counted",
    # --- what the headline cannot explain ---
    "unexplained.classes": "modules are of another class: {names}",
    "unexplained.initial weights": "initial values in other modules differ, though the random streams do not say why: "
                                   "{names}",
    "unexplained.other fields": "other fields of the same batch differ: {names}",
    "unexplained.fields": "fields of a batch differ, which the model has no part in: {names}",
    "unexplained.draws": "random draws differ on their own at {steps}, in: {names}",
    "unexplained.calls": "calls in other modules differ though their inputs have the same bits: {names}",
    "unexplained.loss": "the loss differs though the model's outputs do not: {names}",
    "unexplained.gradients": "parameter gradients differ though what went into and came back to their module has the "
                             "same bits: {names}",
    "unexplained.optimizer": "the optimizer is set otherwise: {names}",
    "unexplained.updates": "values after the step differ though their gradients and their modules' calls do not: "
                           "{names}",
    # --- the table of rungs, and what was run ---
    "head.rung": "rung", "head.status": "status", "head.compared": "compared", "head.differing": "differing",
    "head.missing": "missing", "missing": "{reference} in reference, {candidate} in candidate",
    "compared.nothing": "nothing", "compared.losses": "{what} ({losses})",
    "model": "{size} ({parameters})", "against": "{reference} against {candidate}", "unknown": "unknown",
    "torch": "torch {version}", "overview.same": "{facts}, {torch} on both sides.", "overview": "{facts}, {torch}.",
    "reproduce": "Reproduce{commit}: {command}", "reproduce.several": "Reproduce{commit}:",
    "commit": " at commit {commit}", "commit.dirty": " with local changes",
    # --- sections ---
    "known": "Known to have changed between NeMo {reference} and {candidate}",
    "known.legend": "Differences between these generations that are known by name, in the order in which a step meets "
                    "them.",
    "head.name": "name", "head.where": "where", "head.what": "what", "head.step": "step", "head.loss": "loss of {label}",
    "steps": "Over steps",
    "draws": "Random draws",
    "draws.legend": "Numbers drawn (32-bit words; on a GPU, the generator's offset), by the module call or stage that "
                    "drew them; calls of like modules in one line. came in: as many numbers, from another state of the "
                    "generator.",
    "head.stage": "stage", "head.times": "times", "head.generator": "generator", "head.fate": "",
    "drawn.elsewhere": "same, drawn in `{place}`", "drawn.other count": "other count",
    "drawn.only": "only in the {side}", "drawn.left otherwise": "left otherwise", "drawn.came in": "came in",
    "drawn.uncounted": "uncounted", "drawn.same": "same", "draws.more": "{shown} of {all} lines; `report.json` has all draws.",
    "draws.others_same": "At the other {steps} compared, all draws are the same.",
    "draws.others_differ": "Draws differ at {count} of the other {steps}, too.",
    "rung": "{rung}: {counts}", "rung.differ": "{count} of {all} differ", "rung.missing": "{count} missing",
    "rung.places": "Listed by place, {places} in all: {unit}.",
    "places.forward": "every input and every output of a call that differs is one",
    "places.other": "each value that differs within one thing compared is one",
    "head.kind": "kind", "head.at": "at", "head.largest": "largest", "head.relative": "relative", "head.ulp": "ulp",
    "head.bound": "x bound", "head.within": "within the rule",
    "differences.order": "{shown} of {all}, in order of execution; all are in `report.json`.",
    "differences.worst": "{shown} of {all}, farthest beyond the rule first; all are in `report.json`.",
    "calls": "Calls that differ at {steps}",
    "calls.legend": "born here: same inputs, other output. born inside: a call inside it is to blame. came in: other "
                    "inputs.",
    "calls.more": "{shown} of {all} calls; all are in `report.json`.",
    "head.order": "order", "head.module": "module", "head.call": "call", "head.relation": "born here or came in",
    "head.largest_difference": "largest difference",
    "tolerance": "Tolerance",
    "tolerance.bits": "Bits first: `identical` needs no tolerance. `equivalent` is decided by {rule}.",
    "tolerance.fixed": "Every element of a differing floating-point tensor has `|candidate - reference| <= {atol} + {rtol} x |reference|`, and NaN and infinity agree. "
                       "It is the same for every tensor whatever its scale, so it says little about very small "
                       "gradients. Integers, booleans and settings must match exactly.",
    "declared": "Declared differences", "declared.none": "None.",
    "declared.legend": "Structural differences that carry no number (no parameter, no buffer, no call) and are meant.",
    "head.pattern": "pattern", "head.only_in": "only in", "head.modules": "modules", "head.reason": "reason",
    "provenance": "Provenance", "data": "{section}: {files} ({manifests})",
    "notes": "Notes", "belongs": "The findings, complete: `report.json` of the same comparison (its digest begins {digest}).",
    # --- notes by kind ---
    "note.file_missing": "step {step}: the {side} has no {file}",
    "note.no_call": "step {step}: no call was recorded",
    "note.no_gradient": "step {step}: neither side has any gradient",
    "note.no_tensor": "step {step}: no tensor to compare ({rung})",
    "note.no_shared_initial": "the recordings share no initial parameter",
    "note.no_shared_weights": "step {step}: the recordings share no parameter after the step",
    "note.step_not_compared": "step {step}: not every rung could be compared",
    "note.weights_part": "Weights part after step {step}.",
    "note.model_class": "The model's class is {reference} against {candidate}.",
    "note.no_data_hashes": "Neither recording has hashes of its data files.",
    "note.packages": "Packages of other versions: {versions}.", "package": "{name} {reference} against {candidate}",
    "note.python": "Python {reference} against {candidate}.",
    "note.cpu_capability": "Processor instructions {reference} against {candidate}.",
    "note.driver": "NVIDIA driver {reference} against {candidate}.",
    "note.container": "Container: {reference} against {candidate}.", "container.True": "a container",
    "container.False": "none",
    "note.image": "Image {path}: {reference} against {candidate}.",
    "note.environment": "Environment {path}: {reference} against {candidate}.",
    "note.setting": "Setting {path}: {reference} against {candidate}; it changes no number.",
    "note.by_keyword": "Step {step}: {count} calls pass by keyword what the other side passes by position, first "
                       "`{module}`.",
    "note.call_order": "Step {step}: modules are called in another order, first `{reference}` against `{candidate}`.",
    "note.input_names": "`{module}` names an input `{reference}` in the reference, `{candidate}` in the candidate.",
    "note.no_ledger": "The {side} has no ledger of random draws: only the states around them are compared.",
    "note.loader_workers": "Batches were fetched with {reference} and {candidate} loader workers: what those drew is in "
                           "no ledger, and shows in the batch.",
    "note.drawn_elsewhere": "{count} draws are the same numbers of the same stream, made in another call, first "
                            "`{reference}` against `{candidate}`.",
    "note.other": "{kind}: {values}",
}  # fmt: skip

# One, several.
_NOUNS = {
    "losses": ("loss", "losses"),
    "number": ("number", "numbers"), "thread": ("thread", "threads"), "parameter": ("parameter", "parameters"),
    "step": ("step", "steps"), "file": ("file", "files"), "place": ("place", "places"),
    "differing.structure": ("entry of the structure", "entries of the structure"),
    "differing.initial_weights": ("value before the first step", "values before the first step"),
    "differing.batch": ("field of the batch", "fields of the batch"),
    "differing.draws": ("stage of random draws or random state", "stages of random draws or random states"),
    "differing.forward": ("call or output of the forward", "calls and outputs of the forward"),
    "differing.gradients": ("gradient", "gradients"),
    "differing.weights": ("value after the step", "values after the step"),
}  # fmt: skip


def counted(count: int, noun: str) -> str:
    """``1 thread``, ``2 threads``; a noun that is not listed is the plain plural that the comparer counts by."""
    one, several = _NOUNS.get(noun, (noun.removesuffix("s"), noun))
    return f"{count:,} {one if count == 1 else several}"
