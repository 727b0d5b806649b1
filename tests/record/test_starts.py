"""What a step starts from and what its update uses: recorded whole, though only what changed is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.base.rng import read_states, set_state, state_bytes
from nest_ssl.record.loop import recording
from nest_ssl.record.observers.memory import shared_memory
from nest_ssl.record.observers.parameters import optimizer_state, weights
from nest_ssl.recording import layout as files
from nest_ssl.recording.reader import Recording, StepFiles, open_recording
from tests.record.test_session import Net, batches, prepare

Seen = dict[int, dict[str, Any]]  # of each step what the loop itself saw


def train(
    out: Path,
    steps: list[int] | None = None,
    accumulate: int = 1,
    between: Callable[[int, Net], None] = lambda step, model: None,
    clip: Callable[[Net], Any] = lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    closure: bool = False,
) -> tuple[Recording, Seen]:
    """A loop with clipping, a schedule and accumulation; what it sees is copied for comparison."""
    model, optimizer = prepare()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    seen: Seen = {}
    with recording(out, model, steps=steps, output_names=("y",)) as r:
        for step, batch in enumerate(batches()):
            between(step, model)
            saw: dict[str, Any] = {"start": copy.deepcopy(weights(model))}
            saw |= {"optimizer": copy.deepcopy(optimizer_state(model, optimizer)), "states": read_states()}
            r.batch(batch)

            def run(batch: Tensor = batch, step: int = step, saw: dict[str, Any] = saw) -> Tensor:
                loss = model(batch).square().mean()
                r.loss(loss)
                if step % accumulate == 0:
                    optimizer.zero_grad()
                loss.backward()
                r.backward_done()
                if step % accumulate == accumulate - 1:
                    clip(model)
                saw["used"] = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
                return loss

            if closure:
                optimizer.step(run)
            else:
                run()
                if step % accumulate == accumulate - 1:
                    optimizer.step()
                    schedule.step()
            r.step_done(optimizer, step % accumulate == accumulate - 1, schedulers=[schedule])
            seen[step] = saw
    return open_recording(out), seen


def same(one: Any, other: Any) -> bool:
    assert one.keys() == other.keys()
    return all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) if a is not None and b is not None else a is b
        for a, b in ((one[name], other[name]) for name in one)
    )


def kept(step: StepFiles, name: str) -> list[str]:
    return list(torch.load(step._recording.path / step.folder / name, weights_only=True)["entries"])


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("steps", [None, [0, 2]], ids=["every step", "with a gap"])
def test_a_step_starts_from_what_the_loop_saw(tmp_path: Path, steps: list[int] | None, closure: bool) -> None:
    recorded, seen = train(tmp_path / "run", steps, closure=closure)
    for number in recorded.steps:
        step, saw = recorded.step(number), seen[number]
        start, state, used = step.start_weights(), step.start_optimizer_state(), step.applied_gradients()
        assert start is not None and state is not None and used is not None
        assert same(start, saw["start"])
        assert state.keys() == saw["optimizer"]["state"].keys()
        assert all(same(state[name], saw["optimizer"]["state"][name]) for name in state)
        assert step.start_groups() == saw["optimizer"]["param_groups"]
        assert same(used.gradients, saw["used"])
        for generator, content in (step.state_at("batch_ready") or {}).items():
            assert content == state_bytes(generator, saw["states"][generator])
        gap = number == 2 and steps is not None
        assert kept(step, files.STEP_START) == (list(start) if gap else []), "only what changed since"
        assert kept(step, files.OPTIMIZER_START) == (list(state) if gap else [])


def test_an_update_can_be_made_again(tmp_path: Path) -> None:
    recorded, _ = train(tmp_path / "run", [2])
    step = recorded.step(2)
    start, used, groups = step.start_weights(), step.applied_gradients(), step.start_groups()
    state = step.start_optimizer_state()
    assert start and used and groups and state and groups[0]["lr"] == 0.025
    parameters = {name: nn.Parameter(start[name].clone()) for name in groups[0]["params"]}
    optimizer = torch.optim.AdamW(parameters.values(), lr=groups[0]["lr"])
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {key: value.clone() for key, value in state[name].items()}
        parameter.grad = used.gradients[name]
    optimizer.step()
    after = step.weights()
    assert all(torch.equal(parameter, after[name]) for name, parameter in parameters.items())


def test_clipping_by_norm_is_one_factor(tmp_path: Path) -> None:
    step = train(tmp_path / "run", [0])[0].step(0)
    used = step.applied_gradients()
    assert used is not None and used.factor is not None and used.norm is not None
    raw = [gradient for gradient in step.gradients().values() if gradient is not None]
    assert torch.equal(used.norm, nn.utils.get_total_norm(raw)) and 0 < float(used.factor) < 1
    assert used.edited == [] and set(used.scaled) == set(step.gradients())


@pytest.mark.parametrize(
    ("clip", "edited"),
    [(lambda model: None, []), (lambda model: model.body[0].bias.grad.clamp_(0.01, 0.01), ["body.0.bias"])],
    ids=["none", "by value"],
)
def test_what_is_not_one_factor_is_kept(tmp_path: Path, clip: Callable[[Net], Any], edited: list[str]) -> None:
    used = train(tmp_path / "run", [0], clip=clip)[0].step(0).applied_gradients()
    assert used is not None and (used.scaled, used.edited) == ([], edited)


def test_an_edit_by_a_hook_of_the_optimizer_is_in_what_it_uses(tmp_path: Path) -> None:
    model, optimizer = prepare()
    with recording(tmp_path / "run", model) as r:
        r.batch(batches()[0])
        loss = model(batches()[0]).sum()
        r.loss(loss)
        loss.backward()
        r.backward_done()
        optimizer.register_step_pre_hook(lambda *_: model.body[4].bias.grad.neg_() and None)
        optimizer.step()
        r.step_done(optimizer)
    used = open_recording(tmp_path / "run").step(0).applied_gradients()
    assert used is not None and used.scaled == ["body.4.bias"] and float(used.factor) == -1  # type: ignore[arg-type]
    assert len(optimizer._optimizer_step_pre_hooks) == 1, "no hook of the recorder stays"


def test_what_gradients_held_before_backward(tmp_path: Path) -> None:
    recorded, _ = train(tmp_path / "run", accumulate=2)
    before = [recorded.step(number).gradients_before() for number in recorded.steps]
    assert set((before[0] or {}).values()) == {None}, "cleared between the loss and backward"
    entries = recorded.index.tensors[f"step_0/{files.GRADIENTS}"]
    assert before[1] == {name: entries[name].digest for name in before[1] or {}}, "accumulated"
    assert recorded.step(0).applied_gradients() is None and recorded.step(0).start_groups() is None
    assert recorded.step(1).applied_gradients() is not None


def test_zeroed_gradients_are_said_to_be_zero(tmp_path: Path) -> None:
    model, optimizer = prepare()
    with recording(tmp_path / "run", model) as r:
        for batch in batches()[:2]:
            r.batch(batch)
            optimizer.zero_grad(set_to_none=False)
            loss = model(batch).sum()
            r.loss(loss)
            loss.backward()
            r.backward_done()
            r.step_done(optimizer)
    before = open_recording(tmp_path / "run").step(1).gradients_before()
    assert before and set(before.values()) == {"zero"}


def test_what_changes_between_two_steps(tmp_path: Path) -> None:
    """A validation that leaves statistics and a mode behind."""

    def leave(step: int, model: Net) -> None:
        if step == 1:
            model.body[1](torch.ones(4, 8))
            model.body[3].eval()

    recorded, _ = train(tmp_path / "run", between=leave)
    statistics = ["body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"]
    assert [recorded.step(n).changed(files.STEP_START) for n in recorded.steps] == [[], statistics, [], []]
    facts = [recorded.step(n).facts() for n in recorded.steps]
    assert [fact.training for fact in facts if fact] == [{}, *[{"body.3": False}] * 3]


def test_schedules(tmp_path: Path) -> None:
    facts = train(tmp_path / "run", [1])[0].step(1).facts()
    assert facts is not None
    (schedule,) = facts.schedulers
    assert schedule.scheduler_class == "torch.optim.lr_scheduler.StepLR"
    assert (schedule.state["gamma"], schedule.state["last_epoch"], schedule.state["_last_lr"]) == (0.5, 2, [0.025])


class Pair(nn.Module):
    """Edits its first field in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a.mul_(2)
        return self.linear(a + b)


@pytest.mark.parametrize("shared", [False, True])
def test_fields_in_one_memory(tmp_path: Path, shared: bool) -> None:
    model, a = Pair(), torch.ones(2, 4)
    with recording(tmp_path / "run", model) as r:
        batch = {"a": a, "b": a[:1] if shared else torch.ones(1, 4)}
        r.batch(batch)
        r.loss(model(**batch).sum())
        r.step_done()
    facts = open_recording(tmp_path / "run").step(0).facts()
    assert facts and facts.shared == ([["a", "b"]] if shared else [])
    assert facts.edited == (["a", "b"] if shared else ["a"])


def test_neighbours_in_one_storage_share_nothing() -> None:
    whole = torch.arange(12.0)
    named = [("c", whole[8:]), ("a", whole[:4]), ("b", whole[4:8]), ("d", whole[6:9]), ("e", whole[:0])]
    assert shared_memory(named) == [["c", "b", "d"]]
    assert shared_memory([("x", whole.view(3, 4)[:, 1:]), ("y", whole[3:5])]) == [["x", "y"]]


def test_parameters_in_one_memory(tmp_path: Path) -> None:
    tied, views, apart = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(3))
    tied[1].weight = tied[0].weight
    views[1].weight.data = views[0].weight.data
    found = []
    for model in (tied, views, apart):
        with recording(tmp_path / "run", model, overwrite=True) as r:
            r.batch(torch.ones(1))
            r.step_done()
        found.append(open_recording(tmp_path / "run").structure.shared)
    assert found == [[["0.weight", "1.weight"]], [["0.weight", "1.weight"]], []]


def test_every_generator_goes_back_to_a_state_of_bytes() -> None:
    before = {generator: state_bytes(generator, state) for generator, state in read_states().items()}
    torch.rand(3)
    for generator, content in before.items():
        set_state(generator, content)
    assert {generator: state_bytes(generator, state) for generator, state in read_states().items()} == before
    with pytest.raises(ValueError, match="no generator 'torch_cuda_99' here"):
        set_state("torch_cuda_99", b"")
