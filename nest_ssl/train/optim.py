"""Optimizers by NeMo's names and keys. The schedules of their rates are in `schedules.py`.

Source: NeMo 3.0.0 `nemo.core.classes.modelPT`, `ModelPT.setup_optimization` and `setup_optimizer_param_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from nest_ssl.base.errors import UserError
from nest_ssl.config.optim import TORCH_CLASSES, Optim
from nest_ssl.config.section import read

WHERE = "model.optim"
CHUNK = 1 << 17  # elements of a parameter that are updated at a time: caches hold them, their gradient and moments


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
    (beta1, beta2), rate, eps = group["betas"], group["lr"], group["eps"]
    kept = 1 - rate * group["weight_decay"]
    for parameter, gradient, mean, square, step in zip(parameters, gradients, means, squares, steps, strict=True):
        step += 1
        size = -rate / (1 - beta1 ** step.item())
        correction = (1 - beta2 ** step.item()) ** 0.5
        whole = (parameter, gradient, mean, square)
        flat = all(each.is_contiguous() for each in whole)
        pieces = zip(*(torch.split(each.view(-1), CHUNK) for each in whole), strict=True) if flat else [whole]
        for part, gradient_part, mean_part, square_part in pieces:
            if group["weight_decay"] != 0:
                part.mul_(kept)
            mean_part.lerp_(gradient_part, 1 - beta1)
            square_part.mul_(beta2).addcmul_(gradient_part, gradient_part, value=1 - beta2)
            part.addcdiv_(mean_part, square_part.sqrt().div_(correction).add_(eps), value=size)


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
