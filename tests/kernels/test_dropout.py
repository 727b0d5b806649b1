"""Draws, outputs and gradients of our dropout beside torch's, to the last bit, and where torch's own must run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nest_ssl.kernels import available, draws, dropout
from nest_ssl.kernels.draws import FEWEST, bernoulli, generator_is_known
from nest_ssl.kernels.dropout import Dropout, drop_

SIZES = (FEWEST, FEWEST + 1, 3 * 624 * 16 + 5, 200_001)
BLOCKS = (0, 1, 2, 311, 623, 624, 625)  # words that were drawn before: a pair then lies in one block, or in two


def layouts(size: int) -> list[Tensor]:
    side = int((2 * size) ** 0.5) + 1
    square = torch.randn(side, side)
    stack = torch.randn(2, side, side)
    return [
        torch.randn(size),
        square,
        square.t(),
        square[:, ::2],
        stack.transpose(1, 2),
        stack[:1, 1:],
        stack[:, :, 1:],
    ]


def drawn_by(draw: Callable[[Tensor], Tensor], like: Tensor, before: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(before)
    torch.empty(before).random_()  # a word each
    drawn = draw(like)
    return drawn, torch.get_rng_state()


def test_the_loops_run_here() -> None:
    """Else the tests below compare torch with torch. Whether torch draws one by one is asked of torch alone."""
    assert available.loops(available.ELEMENTWISE) is not None
    if not torch_draws_one_by_one():
        pytest.skip("torch draws otherwise on this processor")
    assert generator_is_known()


def torch_draws_one_by_one() -> bool:
    """Not so on Intel's processors, for which it draws with MKL."""
    drawn = torch.empty(100).bernoulli_(0.3, generator=torch.Generator().manual_seed(1))
    fractions = torch.rand(100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.equal(drawn.bool(), fractions < 0.3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", BLOCKS)
def test_draws_and_the_generator_are_torchs(size: int, before: int) -> None:
    for like in layouts(size):
        for probability in (0.9, 0.1, 1 / 3, 1e-9, 1 - 2**-53):
            ours, state = drawn_by(lambda x, p=probability: bernoulli(x, p), like, before)
            theirs, torchs = drawn_by(
                lambda x, p=probability: torch.empty_like(x, dtype=torch.bool).bernoulli_(p), like, before
            )
            assert torch.equal(ours, theirs) and ours.stride() == theirs.stride() and torch.equal(state, torchs)


@pytest.mark.parametrize("word", [2, 0])
def test_where_the_first_word_ties_the_second_decides(word: int) -> None:
    """Of 2**21 first words one is the threshold's: a threshold that is a fraction drawn, and those beside it."""
    torch.manual_seed(7)
    state = torch.get_rng_state()
    fraction = int(torch.rand(FEWEST, dtype=torch.float64)[FEWEST // 2 + word].mul(2**53).item())
    for threshold in (fraction - 1, fraction, fraction + 1):
        torch.set_rng_state(state)
        ours = bernoulli(torch.empty(FEWEST), threshold / 2**53)
        torch.set_rng_state(state)
        theirs = torch.empty(FEWEST, dtype=torch.bool).bernoulli_(threshold / 2**53)
        assert torch.equal(ours, theirs)
        assert not torch_draws_one_by_one() or bool(ours[FEWEST // 2 + word]) == (threshold > fraction)


@pytest.fixture(params=[1 << 30, 0], ids=["few", "many"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As few elements as torch's own product is for, and as many as a function in Python is for."""
    monkeypatch.setattr(dropout, "FEW", request.param)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 1 / 3])
def test_dropout_is_torchs(dtype: torch.dtype, rate: float) -> None:
    for like in layouts(40_000):
        for strange in (False, True):
            ours, theirs = (made(layer, like.to(dtype), strange) for layer in (Dropout(rate), nn.Dropout(rate)))
            for own, other in zip(ours, theirs, strict=True):
                assert own.stride() == other.stride()
                assert torch.equal(bits(own), bits(other))


def test_few_elements_have_torchs_backward_and_many_keep_booleans() -> None:
    kinds = []
    for size in (dropout.FEW, dropout.FEW + 1):
        made = Dropout(0.1)(torch.ones(size, requires_grad=True)).grad_fn
        assert made is not None
        kinds.append(made.name())
    assert kinds == ["MulBackward0", "_DropoutBackward"]


def made(layer: nn.Module, x: Tensor, strange: bool) -> tuple[Tensor, Tensor]:
    """Output and gradient, the gradient lying otherwise in memory if `strange`; with numbers that are no numbers."""
    x = x.clone()
    for number, strange_one in enumerate((float("nan"), float("inf"), -float("inf"), -0.0, 1e-40)):
        x[(0,) * (x.dim() - 1) + (number,)] = strange_one
    x.requires_grad_()
    torch.manual_seed(3)
    out = layer(x)
    grad = torch.randn(out.shape).to(x.dtype)
    out.backward(grad.t().contiguous().t() if strange and grad.dim() == 2 else grad)
    assert x.grad is not None
    return out.detach(), x.grad


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def test_in_evaluation_and_at_the_ends_it_is_torchs() -> None:
    x = torch.randn(FEWEST)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
    torch.manual_seed(1)
    Dropout(1.0)(x), Dropout(0.0)(x)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    F.dropout(x, 1.0), F.dropout(x, 0.0)
    assert torch.equal(state, torch.get_rng_state())


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        self.names.append(func.__name__)
        return func(*args, **kwargs or {})


def test_whoever_watches_operators_sees_torchs() -> None:
    seen = []
    for layer in (Dropout(0.1), nn.Dropout(0.1)):
        with Operators() as operators:
            layer(torch.ones(FEWEST))
        seen.append(operators.names)
    assert seen[0] == seen[1] and "bernoulli_.float" in seen[0]


def transformed(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """By what torch's own goes through: transforms, derivatives forward and of second order, a compiler."""
    gradient = torch.func.grad(lambda y: layer(y).square().sum())(x)
    several = torch.func.vmap(layer, randomness="different")(x)
    with torch.autograd.forward_ad.dual_level():
        tangent = torch.autograd.forward_ad.unpack_dual(layer(torch.autograd.forward_ad.make_dual(x, x))).tangent
    twice = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(layer(twice).square().sum(), twice, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), twice)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")(x)
    return [gradient, several, tangent, first.detach(), second, compiled, layer(torch._neg_view(x)).clone()]


@pytest.mark.usefixtures("either_way")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch itself
def test_whatever_goes_through_torchs_goes_through_ours() -> None:
    found = []
    for layer in (Dropout(0.1), nn.Dropout(0.1)):
        torch.manual_seed(5)
        found.append([*transformed(layer, torch.linspace(-1, 1, 40_000).view(200, 200)), torch.get_rng_state()])
    assert [torch.equal(one, other) for one, other in zip(*found, strict=True)] == [True] * 8


def test_torchs_dropout_changed_in_its_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes it means every dropout of a model."""
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x * 3)
    assert Dropout(0.1)(torch.ones(FEWEST)).eq(3).all()


def test_another_generator_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor for which torch draws otherwise: here its probabilities are off by a little."""
    own = draws._draw

    def off(drawn: Tensor, probability: float, generator: torch.Generator) -> None:
        own(drawn, probability + 1e-3, generator)

    monkeypatch.setattr(draws, "_draw", off)
    generator_is_known.cache_clear()
    try:
        assert not generator_is_known()
        torch.manual_seed(0)
        ours = bernoulli(torch.empty(FEWEST), 0.5)
        torch.manual_seed(0)
        assert torch.equal(ours, torch.empty(FEWEST, dtype=torch.bool).bernoulli_(0.5))
    finally:
        generator_is_known.cache_clear()


@pytest.mark.usefixtures("either_way")
def test_without_numba_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    for loops in ("mersenne_twister", "elementwise"):
        monkeypatch.setitem(sys.modules, f"nest_ssl.kernels.{loops}", None)
        monkeypatch.delattr(f"nest_ssl.kernels.{loops}", raising=False)
    known = (generator_is_known, available.loops)
    for each in known:
        each.cache_clear()
    try:
        assert not generator_is_known() and available.loops(available.ELEMENTWISE) is None
        test_dropout_is_torchs(torch.float32, 0.1)
    finally:
        for each in known:
            each.cache_clear()


USED = """
import torch
from nest_ssl.kernels import available
from nest_ssl.kernels.dropout import Dropout, drop_
from nest_ssl.train.optim import quickest
torch.manual_seed(1)
looped = available.loops(available.ELEMENTWISE) is not None
print(Dropout(0.1)(torch.ones(1 << 15)).sum().item(), looped, quickest().__name__)
"""


def used(**environment: str) -> list[str]:
    """What a process says that drops out and asks for AdamW's loops."""
    command = [sys.executable, "-c", USED]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_numba_that_compiles_nothing_or_whose_cache_is_damaged_stops_no_training(tmp_path: Path) -> None:
    dropped, looped, _ = used(NUMBA_CACHE_DIR=str(tmp_path))
    assert looped == "True"
    assert used(NUMBA_DISABLE_JIT="1") == [dropped, "False", "update_piece"]
    for pattern in ("*.nbc", "*.nbi"):
        files = list(tmp_path.rglob(pattern))
        assert files
        for file in files:
            file.write_bytes(file.read_bytes()[:50])
        assert used(NUMBA_CACHE_DIR=str(tmp_path))[:2] == [dropped, "True"]


def test_a_fake_tensor_leaves_nothing_behind() -> None:
    """A rate that was first used while nothing is computed, as compilers do, is a number afterwards."""
    rate = 0.123
    with FakeTensorMode():
        drop_(torch.ones(8), torch.ones(8, dtype=torch.bool), rate)
    kept = torch.tensor([True, False])
    assert torch.equal(drop_(torch.ones(2), kept, rate), torch.ones(2).div_(1 - rate) * kept)
