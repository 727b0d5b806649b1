"""The optimizer and the schedule of its rate, with NeMo's names and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import Field, model_validator

from nest_ssl.config.section import Number, Positive, Section, Unfit, silent

# Of torch, and exact: which settings each takes besides `lr`. Others of NeMo's are refused, with this list.
OPTIMIZERS: dict[str, frozenset[str]] = {
    "adamw": frozenset({"betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "capturable",
                        "differentiable", "fused"}),
    "adam": frozenset({"betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "capturable",
                       "differentiable", "fused", "decoupled_weight_decay"}),
    "sgd": frozenset({"momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach", "differentiable",
                      "fused"}),
}  # fmt: skip
TORCH_CLASSES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
_OF_ANY_OPTIMIZER = frozenset().union(*OPTIMIZERS.values())
_STAGES = frozenset({"warmup_steps", "warmup_ratio", "min_lr", "max_steps", "last_epoch"})
SCHEDULES: dict[str, frozenset[str]] = {
    "NoamAnnealing": _STAGES | {"d_model"},
    "NoamHoldAnnealing": _STAGES | {"hold_steps", "hold_ratio", "decay_rate"},
    "CosineAnnealing": _STAGES | {"constant_steps", "constant_ratio"},
    "WarmupPolicy": _STAGES,
    "WarmupHoldPolicy": _STAGES | {"hold_steps", "hold_ratio"},
}
Steps = Annotated[Number, Ge(0)]  # NeMo takes 1e4 for 10000


class Sched(Section):
    """The schedule of the learning rate. Source: NeMo 3.0.0 `nemo.core.optim.lr_scheduler`."""

    # Lightning's, and those that NeMo fills in itself.
    ACCEPTED = silent(
        "monitor reduce_on_plateau t_max_epochs t_accumulate_grad_batches t_limit_train_batches t_num_workers"
    )

    name: str | None = None  # none: a constant rate
    args: Any = None  # the settings, in place of those below
    d_model: Positive | None = None
    warmup_steps: Steps | None = None
    warmup_ratio: Number | None = None
    hold_steps: Steps | None = None
    hold_ratio: Number | None = None
    constant_steps: Steps | None = None
    constant_ratio: Number | None = None
    decay_rate: Number = 0.5
    min_lr: Number = 0.0
    max_steps: Number | None = None
    last_epoch: int = -1

    @classmethod
    def check_kind(cls, given: Mapping[str, Any]) -> None:
        if given.get("name") is not None and given["name"] not in SCHEDULES:
            fix = f"Exact with NeMo's are: {', '.join(SCHEDULES)}; or a constant rate: ~model.optim.sched."
            raise Unfit(f"not supported: {given['name']}", "name", fix)

    @model_validator(mode="after")
    def _of_one_schedule(self) -> Sched:
        _check_args(self.args, "model.optim.sched")
        if self.name is not None and self.args is None:
            for key in sorted(self.model_fields_set - SCHEDULES[self.name] - {"name", "args"}):
                raise Unfit(f"{self.name} does not take {key}", key, f"Remove it: ~model.optim.sched.{key}.")
        for stage in ("warmup", "hold", "constant"):
            if getattr(self, f"{stage}_steps") is not None and getattr(self, f"{stage}_ratio") is not None:
                raise Unfit(f"{stage}_steps and {stage}_ratio are both given", f"{stage}_ratio", "Set one to null.")
        return self


class Optim(Section):
    """The optimizer. Source: NeMo 3.0.0 `ModelPT.setup_optimization`."""

    ACCEPTED = silent("cls")

    name: str | None = None  # null: adam, NeMo's default
    target: str | None = Field(None, alias="_target_")  # torch's class in place of the name
    args: Any = None  # the settings, in place of those below; NeMo then reads `lr` alone beside them
    lr: Number | None = None  # null: torch's
    betas: list[Number] | None = None
    eps: Number | None = None
    weight_decay: Number | None = None
    momentum: Number | None = None
    dampening: Number | None = None
    nesterov: bool | None = None
    amsgrad: bool | None = None
    maximize: bool | None = None
    foreach: bool | None = None
    capturable: bool | None = None
    differentiable: bool | None = None
    fused: bool | None = None
    decoupled_weight_decay: bool | None = None
    sched: Sched | None = None

    @classmethod
    def check_kind(cls, given: Mapping[str, Any]) -> None:
        key = "_target_" if given.get("_target_") is not None else "name"
        if given.get(key) is not None and _optimizer(given.get("name"), given.get("_target_")) not in OPTIMIZERS:
            raise Unfit(f"not supported: {given[key]}", key, f"Exact with NeMo's are: {', '.join(OPTIMIZERS)}.")

    @property
    def optimizer(self) -> str:
        """A key of `OPTIMIZERS`."""
        return _optimizer(self.name, self.target)

    def settings(self) -> dict[str, Any]:
        """The arguments of torch's optimizer."""
        arguments = dict(self.args or {key: getattr(self, key) for key in self.model_fields_set & _OF_ANY_OPTIMIZER})
        return arguments if self.lr is None else {**arguments, "lr": self.lr}

    @model_validator(mode="after")
    def _of_one_optimizer(self) -> Optim:
        _check_args(self.args, "model.optim")
        for key in sorted(self.settings().keys() - OPTIMIZERS[self.optimizer] - {"lr"}):
            raise Unfit(f"{self.optimizer} does not take {key}", key, f"Remove it: ~model.optim.{key}.")
        if "sched" in self.model_fields_set and self.sched is None:
            raise Unfit("a schedule that is null", "sched", "For a constant rate remove it: ~model.optim.sched.")
        return self


def _optimizer(name: Any, target: Any) -> str:
    if target is None:
        return str(name or "adam")  # NeMo's default
    return next((name for name, cls in TORCH_CLASSES.items() if target == f"torch.optim.{cls}"), str(target))


def _check_args(args: Any, where: str) -> None:
    if args is not None and (not isinstance(args, dict) or {"name", "_target_"} & args.keys()):
        fix = f"Write the settings directly below {where}."
        raise Unfit("not supported: NeMo's classes of parameters", "args", fix)
