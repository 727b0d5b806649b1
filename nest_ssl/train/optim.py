"""Optimizers by NeMo's names and keys. The schedules of their rates are in `schedules.py`.

Source: NeMo 3.0.0 `nemo.core.classes.modelPT`, `ModelPT.setup_optimization` and `setup_optimizer_param_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.optim import TORCH_CLASSES, Optim
from nest_ssl.config.section import read

WHERE = "model.optim"


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
        optimizer: type[torch.optim.Optimizer] = getattr(torch.optim, name)
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
