"""Optimizers by NeMo's names and keys. The schedules of their rates are in `schedules.py`.

Source: NeMo 3.0.0 `nemo.core.classes.modelPT`, `ModelPT.setup_optimization` and `setup_optimizer_param_groups`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.train.schedules import SCHEDULES, build_schedule

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}
DEFAULT = "adam"  # NeMo's
WHERE = "model.optim"
# `check_optim` builds a schedule before data tells how long training is.
SOME_STEPS = 1_000_000


def allowed_keys() -> frozenset[str]:
    """Every key that may stand below `model.optim`."""
    taken = {name for cls in OPTIMIZERS.values() for name in inspect.signature(cls).parameters}
    return frozenset(taken - {"params"} | {"name", "_target_", "cls", "args", "sched"})


def build_optimizer(
    model: nn.Module, section: Mapping[str, Any], groups: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """The optimizer of NeMo's `model.optim` section over all parameters, frozen ones too (they get no gradient).

    Args:
        model: whose parameters to train.
        section: `name` (or torch's class as `_target_`), `lr`, and the optimizer's own settings; or those in `args`,
            beside which NeMo reads `lr` alone. In plain builtins.
        groups: NeMo's `model.optim_param_groups`, settings by the name of a part of the model.

    Raises:
        UserError: an optimizer that is not offered, or an argument that it does not take.
    """
    name = optimizer_name(section)
    if name not in OPTIMIZERS:
        raise UserError("unknown optimizer", f"{WHERE}.name={name}", f"Choose one of: {', '.join(OPTIMIZERS)}.")
    try:
        return OPTIMIZERS[name](parameter_groups(model, groups), **_arguments(section))
    except (TypeError, ValueError) as error:
        raise UserError("an optimizer setting is wrong", f"{WHERE}: {error}", f"See torch's {name}.") from error


def optimizer_name(section: Mapping[str, Any]) -> str:
    """A key of `OPTIMIZERS`, or what stands in the section instead of one."""
    target = section.get("_target_")
    if target is None:
        return str(section.get("name") or DEFAULT)
    return next((name for name, cls in OPTIMIZERS.items() if target == f"torch.optim.{cls.__name__}"), str(target))


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


def check_optim(section: Mapping[str, Any] | None) -> None:
    """Refuse what neither trainer could use, before anything is built: NeMo would stop at it with a traceback.

    Optimizers and schedules that only NeMo has pass: the port refuses them when it builds.

    Raises:
        UserError: a section that is missing, or settings that are unknown or contradict each other.
    """
    if section is None:
        raise UserError("a section is missing", WHERE, "Add it; conf/nest_fast-conformer.yaml has one.")
    if "sched" in section and section["sched"] is None:
        raise UserError("a schedule that is null", f"{WHERE}.sched", f"For a constant rate remove it: ~{WHERE}.sched.")
    name = optimizer_name(section)
    if name not in OPTIMIZERS and name == name.lower():  # NeMo's names have no capitals
        return
    optimizer = build_optimizer(nn.Linear(1, 1), section)
    schedule = section.get("sched") or {}
    if schedule.get("name", "") in SCHEDULES:
        build_schedule(optimizer, schedule, SOME_STEPS)


def _arguments(section: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments; a `lr` of null is torch's default."""
    arguments = section.get("args", section)
    if not isinstance(arguments, Mapping) or ("args" in section and {"name", "_target_"} & arguments.keys()):
        fix = "Write the settings directly below model.optim."
        raise UserError("not supported: NeMo's classes of parameters", f"{WHERE}.args", fix)
    taken = {key: value for key, value in arguments.items() if key not in ("name", "_target_", "cls", "lr", "sched")}
    rate = section.get("lr")
    return taken if rate is None else {**taken, "lr": rate}
