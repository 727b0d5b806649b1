"""Optimizers by NeMo's names and keys. The schedules of their rates are in `schedules.py`.

Source: NeMo 3.0.0 `nemo.core.classes.modelPT`, `ModelPT.setup_optimization` and `setup_optimizer_param_groups`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from nest_ssl.base.errors import UserError
from nest_ssl.config.optim import TORCH_CLASSES, Optim
from nest_ssl.config.section import read
from nest_ssl.kernels.available import MOMENTS, loops, may_compute

WHERE = "model.optim"
TURN = 0.51  # of beta1: from a weight of 0.5 on torch's `lerp_` starts at the other end, which the loops do not
CHUNK = 1 << 17  # elements of a parameter that are updated at a time: caches hold them, their gradient and moments
WHOLE = 1 << 60  # for loops that go by pieces themselves


class AdamW(torch.optim.AdamW):
    """torch's own, a piece of a parameter after another on a CPU: the same bits in half the time.

    Torch goes nine times through a parameter and its moments, which are too large for the caches; here each piece is
    read once. Where its operators are recorded, or other settings are given than those of the recipe, torch's own is
    what runs.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        """What torch gathers of a group for its update, which finds nothing left to do if it was made here."""
        is_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        if not is_complex and may_cut(group, lists[0]):
            update_in_pieces(group, *lists)
            for each in lists:
                each.clear()
        return is_complex


def may_cut(group: Mapping[str, Any], parameters: Sequence[Tensor]) -> bool:
    """Whether `update_in_pieces` is what torch computes for these, and its operators are not being recorded."""
    others = ("amsgrad", "maximize", "foreach", "fused", "capturable", "differentiable")
    numbers = isinstance(group["lr"], float) and all(isinstance(beta, float) for beta in group["betas"])
    if not numbers or any(group.get(name) for name in others) or not group.get("decoupled_weight_decay", True):
        return False
    unseen = _get_current_dispatch_mode() is None and not torch.compiler.is_compiling()
    return unseen and all(parameter.device.type == "cpu" for parameter in parameters)


def update_in_pieces(
    group: Mapping[str, Any],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    _: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> None:
    """AdamW (arXiv 1711.05101, algorithm 2), with the operations and the order of torch's own, in place."""
    (beta1, beta2), rate = group["betas"], group["lr"]
    for parameter, gradient, mean, square, step in zip(parameters, gradients, means, squares, steps, strict=True):
        step += 1
        size = -rate / (1 - beta1 ** step.item())
        correction = (1 - beta2 ** step.item()) ** 0.5
        numbers = Numbers(1 - rate * group["weight_decay"], beta1, beta2, correction, group["eps"], size)
        whole = (parameter, gradient, mean, square)
        flat = all(each.is_contiguous() for each in whole)
        update = quickest() if flat and beta1 > TURN and may_loop(whole) else update_piece
        size_of_piece = WHOLE if update is update_in_one_pass else CHUNK
        pieces = zip(*(torch.split(each.view(-1), size_of_piece) for each in whole), strict=True) if flat else [whole]
        for part, gradient_part, mean_part, square_part in pieces:
            update(part, gradient_part, mean_part, square_part, numbers)


def may_loop(tensors: Sequence[Tensor]) -> bool:
    """Whether compiled loops may be quicker: with more threads, which they have not, torch's operators are."""
    plain = all(each.dtype is torch.float32 and may_compute(each) for each in tensors)
    return plain and torch.get_num_threads() == 1


class Numbers(NamedTuple):
    """Of one parameter's update: by what it is multiplied, the moments' factors, and those of the step."""

    kept: float
    beta1: float
    beta2: float
    correction: float
    eps: float
    size: float


Update: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Numbers], None]


def update_piece(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, by: Numbers) -> None:
    """With torch's operators."""
    if by.kept != 1:
        parameter.mul_(by.kept)
    mean.lerp_(gradient, 1 - by.beta1)
    square.mul_(by.beta2).addcmul_(gradient, gradient, value=1 - by.beta2)
    parameter.addcdiv_(mean, square.sqrt().div_(by.correction).add_(by.eps), value=by.size)


def update_by_loops(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, by: Numbers) -> None:
    """The same with compiled loops on both sides of torch's square root; all are float32 on a CPU, of one dimension,
    dense in memory."""
    compiled = loops(MOMENTS)
    assert compiled is not None
    mean_N, square_N = mean.numpy(), square.numpy()
    compiled.update_moments(mean_N, square_N, gradient.numpy(), 1 - by.beta1, by.beta2, 1 - by.beta2)
    root_N = square.sqrt().numpy()
    compiled.update_parameter(parameter.detach().numpy(), mean_N, root_N, by.kept, by.correction, by.eps, by.size)


def update_in_one_pass(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, by: Numbers) -> None:
    """The same in one compiled loop, of tensors as those of `update_by_loops`."""
    compiled = loops(MOMENTS)
    assert compiled is not None
    arrays = (each.detach().numpy() for each in (parameter, gradient, mean, square))
    factors = 1 - by.beta1, by.beta2, 1 - by.beta2
    compiled.update(*arrays, *factors, by.kept, by.correction, by.eps, by.size)


@cache
def quickest() -> Update:
    """The one that takes least time of those that are at hand and round as torch does here, tried once a process."""
    if loops(MOMENTS) is None:
        return update_piece
    if roots_are_torchs() and rounds_as_torch(update_in_one_pass):
        return update_in_one_pass
    return update_by_loops if rounds_as_torch(update_by_loops) else update_piece


def roots_are_torchs() -> bool:
    """Whether compiled square roots are torch's: of half a million numbers, some of each exponent."""
    compiled = loops(MOMENTS)
    assert compiled is not None
    x_N = torch.arange(0, 0x7F800001, 4099, dtype=torch.int32).view(torch.float32)
    roots_N = x_N.new_empty(-(-len(x_N) // 4) * 4)
    compiled.square_roots(roots_N.numpy(), x_N.numpy())
    return torch.equal(roots_N[: len(x_N)], x_N.sqrt())


def rounds_as_torch(update: Update) -> bool:
    """Whether an update has the bits of `update_piece`: with numbers of an early and of a late step, the smallest and
    largest squares among them, and of so many elements that torch's vectors leave a rest."""
    numbers = Numbers(1 - 1e-6, 0.9, 0.98, (1 - 0.98**3) ** 0.5, 1e-8, -1e-3 / (1 - 0.9**3))
    for by in (numbers, Numbers(1.0, 0.95, 0.999, 1.0, 1e-6, -0.1)):
        draw = torch.Generator().manual_seed(1711)
        looped = torch.randn(4, 4099, generator=draw, dtype=torch.float32, device="cpu")
        looped[1:] *= 1e-3
        looped[3].square_()[:5] = looped.new_tensor([0.0, 1e-44, 1e-38, 1e38, torch.finfo(torch.float32).max])
        looped[1, :5] = 0
        plain = looped.clone()
        update(looped[0], looped[1], looped[2], looped[3], by)
        update_piece(plain[0], plain[1], plain[2], plain[3], by)
        if not torch.equal(looped, plain):
            return False
    return True


def build_optimizer(
    model: nn.Module, section: Mapping[str, Any], groups: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of NeMo's `model.optim` section over all parameters, frozen ones too (they get no gradient).

    Args:
        model: with the parameters to train.
        section: `name` (or torch's class as `_target_`), `lr`, and the optimizer's own settings; or those in `args`,
            beside which NeMo reads `lr` alone.
        groups: NeMo's `model.optim_param_groups`, settings by the name of a part of the model.

    Raises:
        UserError: an optimizer that is not offered, or an argument that it does not take.
    """
    settings = read(Optim, section, WHERE)
    name = TORCH_CLASSES[settings.optimizer]
    try:
        optimizer: type[torch.optim.Optimizer] = AdamW if name == AdamW.__name__ else getattr(torch.optim, name)
        return optimizer(parameter_groups(model, groups), **settings.settings())
    except (TypeError, ValueError) as error:
        raise UserError("an optimizer setting is wrong", f"{WHERE}: {error}", f"See torch's {name}.") from error


def parameter_groups(model: nn.Module, groups: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One group of all parameters, or one for each part named and before them one of the rest, as NeMo orders them.

    Raises:
        UserError: the model has no part of that name.
    """
    if groups is None:
        return [{"params": list(model.parameters())}]
    parts = dict(model.named_children())
    for name in groups:
        if name not in parts:
            where = f"model.optim_param_groups.{name}"
            raise UserError("no such part of the model", where, f"Choose one of: {', '.join(parts)}.")
    named = [{"params": list(parts[name].parameters()), **settings} for name, settings in groups.items()]
    rest = [p for name, p in model.named_parameters() if not name.startswith(tuple(groups))]
    return [{"params": rest}, *named] if rest else named
