"""Recordings of schema 1, read as schema 2: what the recorder did not keep then is worked out from what it kept."""

from __future__ import annotations

from typing import Any, get_args

from nest_ssl.base.nested import tensors
from nest_ssl.recording.calls import Call, Producer
from nest_ssl.recording.index import Boundary

_KEPT = ("index", "module", "call", "training", "args", "arg_names", "kwargs", "output", "output_grads")


def upgrade_index(index: dict[str, Any]) -> dict[str, Any]:
    """`recording.json`: the class of the model stood beside the trainer."""
    upgraded = {**index, "ledger": upgrade_ledger(index.get("ledger"))}
    model_class = upgraded.pop("model_class", "")
    if isinstance(index.get("trainer"), dict):
        upgraded["trainer"] = {"class": model_class, **index["trainer"]}
    return upgraded


def upgrade_ledger(ledger: Any) -> Any:
    """Stages, ``name#call`` or a phase, to phase, module and call. What is no ledger stays, to be refused as one."""
    if not isinstance(ledger, list) or not all(isinstance(entry, dict) and "stage" in entry for entry in ledger):
        return ledger
    rows = []
    for entry in ledger:
        module, is_call, number = str(entry["stage"]).rpartition("#")
        stage = {"phase": "forward", "module": module, "call": int(number)} if is_call else {"phase": number}
        rows.append({key: value for key, value in entry.items() if key != "stage"} | stage)
    return rows


def upgrade_rng(rng: dict[str, Any]) -> dict[str, Any]:
    """`rng.json`: the boundaries stood among the rest."""
    states = {name: rng[name] for name in get_args(Boundary) if name in rng}
    rest = {key: value for key, value in rng.items() if key not in states and key != "ledger"}
    return {"states": states, "ledger": upgrade_ledger(rng.get("ledger")), **rest}


def upgrade_calls(rows: list[dict[str, Any]]) -> list[Call]:
    """Calls with the event numbers of their starts and ends, and the producers of their inputs.

    The order of the ends was kept, and calls nest: the next one to end does so before another starts if it is the
    innermost that is open. A tensor that was handed on unedited was kept once, and is one object.
    """
    calls = [Call(**{name: row[name] for name in _KEPT}, start=0, grad_event=row["grad_index"]) for row in rows]
    ends = [
        row["index"] for row in sorted((r for r in rows if "end_index" in r), key=lambda row: int(row["end_index"]))
    ]
    returned: dict[int, Producer] = {}  # by the identity of the tensor: the call that returned it last
    waiting, open_calls, event = iter(ends), list[Call](), 0
    next_end = next(waiting, None)

    def end_what_can() -> None:
        nonlocal event, next_end
        while next_end is not None and any(call.index == next_end for call in open_calls):
            while (call := open_calls.pop()).index != next_end:  # ended by an exception that the next one caught
                call.end, call.raised = event, True
            call.end = event
            event += 1
            returned.update({id(tensor): (call.index, path) for path, tensor in tensors(call.output)})
            next_end = next(waiting, None)

    for call in calls:
        end_what_can()
        call.start = event
        event += 1
        inputs = tensors(call.inputs)
        call.producers = {path: returned[id(tensor)] for path, tensor in inputs if id(tensor) in returned}
        open_calls.append(call)
    end_what_can()
    for call in open_calls:
        call.end, call.raised = event, True
    return calls
