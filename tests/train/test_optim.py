"""Which parameters are trained how, and settings that cannot be right. (Against NeMo: against_nemo/test_optim.)"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nest_ssl.base.errors import UserError
from nest_ssl.train import optim
from nest_ssl.train.optim import build_optimizer

SCHED = {"name": "NoamAnnealing", "d_model": 64, "warmup_steps": 10}


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1, bias=False)


def test_frozen_parameters_are_in_the_group_and_stay() -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    before = model.bias.detach().clone()
    optimizer = build_optimizer(model, {"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "sched": SCHED})
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert len(optimizer.param_groups[0]["params"]) == 2 and torch.equal(model.bias, before)


def test_no_name_is_adam() -> None:
    """A name of null too, as in NeMo 3.0.0 (2.4.1 stops at it)."""
    for section in ({"lr": 0.1}, {"name": None, "lr": 0.1}):
        assert type(build_optimizer(nn.Linear(1, 1), section)) is torch.optim.Adam


def test_parts_of_the_model_may_have_settings_of_their_own() -> None:
    model = TwoParts()
    groups = {"second": {"lr": 0.5}, "third": {"weight_decay": 0.0}}
    optimizer = build_optimizer(model, {"name": "adamw", "lr": 0.1, "weight_decay": 0.3}, groups)
    seen = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert seen == [(2, 0.1, 0.3), (2, 0.5, 0.3), (1, 0.1, 0.0)]
    with pytest.raises(UserError, match="optim_param_groups.fourth.*first, second, third"):
        build_optimizer(model, {"lr": 0.1}, {"fourth": {"lr": 1}})


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"name": "novograd", "lr": 1.0}, "adamw, adam, sgd"),
        ({"name": "AdamW", "lr": 1.0}, "adamw, adam, sgd"),
        ({"name": "adamw", "lr": 1.0, "sched": None}, "~model.optim.sched"),
        ({"name": "adamw", "lr": 1.0, "betas": [0.9, 1.5]}, "beta"),
        ({"name": "adamx", "lr": 1.0}, "adamw, adam, sgd"),
        ({"_target_": "torch.optim.Rprop", "lr": 1.0}, "adamw, adam, sgd"),
        ({"name": "adamw", "lr": 1.0, "beta": 0.9}, "beta"),
        ({"name": "adamw", "lr": 1.0, "args": {"name": "auto"}}, "directly below"),
    ],
)
def test_optimizers_that_cannot_be_right(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match="model.optim") as error:
        build_optimizer(nn.Linear(1, 1), section)
    assert told in str(error.value)


class Seen(TorchDispatchMode):
    """How many operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def updated(optimizer: torch.optim.Optimizer, steps: int = 3) -> list[torch.Tensor]:
    """Parameters and all of their state after some steps, the gradients drawn."""
    torch.manual_seed(1)
    parameters = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        for number, parameter in enumerate(parameters):
            gradient = torch.randn_like(parameter) * 10.0**-number
            parameter.grad = gradient.t().contiguous().t() if gradient.dim() == 2 and number % 2 else gradient
        optimizer.step()
    return [*parameters, *(value for each in parameters for value in optimizer.state[each].values())]


def takes_roots_by_steps() -> bool:
    """Whether torch takes roots by the steps of the loops: on an AMD processor, and with some that are not the
    nearest. Torch alone is asked, so that loops which no longer agree with it fail, and skip nothing."""
    cpus = Path("/proc/cpuinfo")
    x = torch.linspace(0.5, 2.0, 1 << 16)
    off = (x.sqrt() != x.double().sqrt().float()).float().mean().item()
    return cpus.exists() and "AuthenticAMD" in cpus.read_text() and 0.1 < off < 0.25


@pytest.mark.parametrize(
    ("threads", "way"),
    [(1, "update_in_one_pass"), (1, "update_by_loops"), (1, "update_piece"), (2, "update_piece")],
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.0, "eps": 1e-6}, {"amsgrad": True}, {"maximize": True}, {"betas": (0.5, 0.9)},
     {"betas": (0.0, 0.99)}],
)  # fmt: skip
def test_an_update_in_pieces_has_the_bits_of_torchs_own(
    settings: dict[str, Any], threads: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    whole = optim.update_in_pieces
    monkeypatch.setattr(optim, "CHUNK", 1 << 12)
    monkeypatch.setattr(optim, "update_in_pieces", lambda *each: made.append(len(each[1])) or whole(*each))
    pieces, update = [], getattr(optim, way)
    if way == "update_in_one_pass" and not takes_roots_by_steps():
        pytest.skip("torch takes roots otherwise on this processor")
    assert optim.rounds_as_torch(update)

    def counted(*each: Any) -> None:
        pieces.append(len(each[0]))
        update(*each)

    monkeypatch.setattr(optim, way, counted)
    if threads == 1:
        monkeypatch.setattr(optim, "quickest", lambda: counted)
    found, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    for kind in (torch.optim.AdamW, optim.AdamW):
        torch.manual_seed(0)
        shapes = [(7,), (1 << 12,), (33, 300), (65, 257), ((1 << 14) + 31,)]
        parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        found.append(updated(kind(parameters, lr=0.01, **{"betas": (0.9, 0.98), **settings})))
    torch.set_num_threads(before)
    others = settings.keys() & {"amsgrad", "maximize"}
    by_loops = way != "update_piece"
    assert made == ([] if others else [5] * 3)
    assert bool(pieces) == (not others and not (by_loops and "betas" in settings))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def changed(loops: Any, *names: str) -> Any:
    """Loops of which some round otherwise."""

    def nearest_roots(roots: Any, x: Any) -> None:
        roots[: len(x)] = np.sqrt(x)

    def twice_rounded(mean: Any, square: Any, gradient: Any, toward: float, beta2: float, share: float) -> None:
        mean += np.float32(toward) * (gradient - mean)
        square[:] = square * np.float32(beta2) + np.float32(share) * gradient * gradient

    def nearest_root(parameter: Any, gradient: Any, mean: Any, square: Any, *by: float) -> None:
        before = parameter.copy()
        loops.update(parameter, gradient, mean, square, *by)
        loops.update_parameter(before, mean, np.sqrt(square), *map(np.float32, by[3:]))
        parameter[:] = before

    others = {"square_roots": nearest_roots, "update_moments": twice_rounded, "update": nearest_root}
    return SimpleNamespace(**{**vars(loops), **{each: others[each] for each in names}})


@pytest.mark.parametrize(
    ("names", "way"),
    [
        ((), "update_in_one_pass"),
        (("square_roots",), "update_by_loops"),
        (("update",), "update_by_loops"),
        (("square_roots", "update_moments"), "update_piece"),
    ],
)
def test_loops_that_round_otherwise_are_not_used(
    names: tuple[str, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = optim.loops(optim.MOMENTS)
    if not takes_roots_by_steps():
        pytest.skip("torch takes roots otherwise on this processor")
    if names:
        monkeypatch.setattr(optim, "loops", lambda _: changed(loops, *names))
    assert optim.quickest.__wrapped__() is getattr(optim, way)


def test_the_quickest_is_the_same_whatever_the_default_type_is() -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert optim.quickest.__wrapped__() is optim.quickest()
    finally:
        torch.set_default_dtype(default)


def test_without_loops_torchs_operators_are_the_quickest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "loops", lambda _: None)
    assert optim.quickest.__wrapped__() is optim.update_piece


def test_square_roots_are_those_of_torchs_library() -> None:
    """Of each 61st number of float32, of both ends of the range, and of each place in a vector; where a processor has
    another library the loops are not used."""
    loops = optim.loops(optim.MOMENTS)
    assert loops is not None
    if not takes_roots_by_steps():
        pytest.skip("torch takes roots otherwise on this processor")
    many = np.arange(0, 0x7F800001, 61, dtype=np.uint32).view(np.float32)
    ends = np.concatenate([np.arange(9000), 0x00800000 + np.arange(-9000, 9000), 0x7F800000 - np.arange(9000)])
    for x in (many, ends.astype(np.uint32).view(np.float32)):
        for size in (1, 2, 3, 5, 8, len(x)):
            roots = np.empty(-(-size // 4) * 4, np.float32)
            loops.square_roots(roots, x[-size:].copy())
            torchs = torch.from_numpy(x[-size:].copy()).sqrt().numpy()
            assert np.array_equal(roots[:size].view(np.uint32), torchs.view(np.uint32))


def test_an_update_whose_operators_are_seen_is_torchs_own() -> None:
    counts = []
    for kind in (torch.optim.AdamW, optim.AdamW):
        with Seen() as seen:
            updated(kind([nn.Parameter(torch.ones(optim.CHUNK + 1))]), steps=1)
        counts.append(seen.count)
    assert counts[0] == counts[1]
