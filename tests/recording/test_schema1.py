"""A recording of schema 1 opens, and reads as the recorder would write it today."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nest_ssl.recording import layout as files
from nest_ssl.recording.reader import open_recording
from nest_ssl.recording.schema1 import upgrade_calls, upgrade_ledger

from .conftest import SCHEMA1, read_all, rewrite


def test_it_opens() -> None:
    recording = open_recording(SCHEMA1)
    assert recording.index.schema_name == files.SCHEMA_1 and recording.steps == [0, 1]
    assert recording.index.trainer.model_class == "Model" and recording.index.seed == 42
    assert recording.structure.modules[0].name == "" and recording.config["seed"] == 42


def test_what_is_read_is_what_it_would_be_today(tmp_path: Path) -> None:
    old, new = read_all(SCHEMA1), read_all(rewrite(SCHEMA1, tmp_path / "run"))

    later = ("generator_states", files.STEP_START, files.OPTIMIZER_START, files.APPLIED_GRADIENTS, files.FACTS)

    def kept(read: dict[str, object]) -> dict[str, object]:
        return {
            k: v
            for k, v in read.items()
            if not any(name in k for name in later) and not k.startswith(("index.files", "index.schema"))
        }

    assert kept(old) == kept(new) and len(kept(old)) > 500


def test_what_it_does_not_hold_is_unknown() -> None:
    recording = open_recording(SCHEMA1)
    first, second = recording.step(0), recording.step(1)
    initial, left = recording.initial_weights(), first.weights()
    for start, wanted in ((first.start_weights(), initial), (second.start_weights(), left)):
        assert start is not None and all(torch.equal(start[name], wanted[name]) for name in wanted)
    unknown = [second.start_optimizer_state(), second.start_groups(), second.applied_gradients(), second.facts()]
    unknown += [second.gradients_before(), second.changed(files.STEP_START), second.state_at("batch_ready")]
    assert unknown == [None] * 7


def test_draws_name_who_drew() -> None:
    recording = open_recording(SCHEMA1)
    assert recording.index.ledger is not None
    assert [(entry.phase, entry.module) for entry in recording.index.ledger] == [("model_construction", None)]
    (entry,) = recording.step(0).rng().ledger or []
    assert (entry.phase, entry.module, entry.call, entry.index) == ("forward", "masking", 0, 3)
    call = recording.step(0).calls()[3]
    assert call.name == "masking#0" and call.start < entry.event == call.end


def test_events_and_producers() -> None:
    calls = {call.name: call for call in open_recording(SCHEMA1).step(0).calls()}
    assert [(calls[n].start, calls[n].end) for n in ("#0", "preprocessor#0", "quantizer#0")] == [
        (0, 41),
        (1, 2),
        (3, 4),
    ]
    events = sorted(number for call in calls.values() for number in (call.start, call.end))
    assert events == list(range(2 * len(calls))), "each event is one start or one end"
    index = {name: call.index for name, call in calls.items()}
    assert calls["#0"].producers == {} and calls["preprocessor#0"].producers == {}
    assert calls["encoder#0"].producers == {
        "audio_signal": (index["masking#0"], "0"),
        "length": (index["preprocessor#0"], "1"),
    }
    assert calls["encoder.layers.1#0"].producers == {"x": (index["encoder.layers.0#0"], "")}, "not what is inside it"
    assert calls["loss#0"].producers["tokens"] == (0, "3"), "the model returned it after the quantizer"


def row(index: int, module: str, end: int | None, args: list[torch.Tensor], output: object) -> dict[str, object]:
    names = [f"a{i}" for i in range(len(args))]
    ends = {} if end is None else {"end_index": end}
    shared = {"call": 0, "training": True, "kwargs": {}, "output_grads": {}, "grad_index": None}
    return {"index": index, "module": module, "args": args, "arg_names": names, "output": output, **shared, **ends}


def test_a_container_that_hands_on_and_a_call_that_raised() -> None:
    x, y = torch.ones(1), torch.ones(1)
    outer, inner = row(0, "outer", 1, [x], y), row(1, "outer.inner", 0, [x], y)
    calls = upgrade_calls([outer, inner, row(2, "raised", None, [y], None), row(3, "last", 2, [y, x], x)])
    assert [(c.start, c.end, c.raised) for c in calls] == [(0, 3, False), (1, 2, False), (4, 7, True), (5, 6, False)]
    assert calls[3].producers == {"a0": (0, "")}, "the container returned it last; x came from outside"


@pytest.mark.parametrize(
    ("stage", "phase", "module", "call"),
    [
        ("backward", "backward", None, None),
        ("#0", "forward", "", 0),
        ("a.b#12", "forward", "a.b", 12),
        ("x#y#1", "forward", "x#y", 1),
    ],
)
def test_stages(stage: str, phase: str, module: str | None, call: int | None) -> None:
    (entry,) = upgrade_ledger([{"stage": stage, "event": 0}]) or []
    assert entry.pop("event") == 0 and entry == {"phase": phase} | (
        {} if module is None else {"module": module, "call": call}
    )
