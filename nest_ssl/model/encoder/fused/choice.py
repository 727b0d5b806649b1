"""Where the fused way may be taken: no hook looks into the layer, and it is of the one kind that is fused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

if TYPE_CHECKING:
    from nest_ssl.model.encoder.layer import ConformerLayer

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = [f"_global{name}" for name in HOOKS]
SMALLEST = 1 << 17  # elements of a layer's input: on fewer, what is saved is less than the branches' own Python takes
REPLACED = frozenset({"forward", "_call_impl"})  # set on one object: somebody put something around it


def is_watched(module: nn.Module, itself: bool = True) -> bool:
    """Whether somebody sees calls of a module: by a hook, or by something in place of its forward.

    Args:
        itself: whether `module` counts; else those in it alone.
    """
    if any(getattr(torch_module, hooks, None) for hooks in GLOBAL_HOOKS):
        return True
    seen = (each for each in module.modules() if itself or each is not module)
    return any(_is_replaced(each) or any(vars(each)[hooks] for hooks in HOOKS) for each in seen)


def _is_replaced(module: nn.Module) -> bool:
    """Whether another function is set on it; its own, as Lightning leaves behind under ddp, is none."""
    given = {name: vars(module)[name] for name in REPLACED if name in vars(module)}
    return any(getattr(value, "__func__", None) is not getattr(type(module), name) for name, value in given.items())


def is_fusable(layer: ConformerLayer, x_BTD: Tensor) -> bool:
    """Whether `fused.layer` gives what its own forward does, to the last bit, and where no hook sees it: whoever
    looks at the layer alone, as a recorder of boundaries, sees its input and output, and these are the same.

    It stands for training on a CPU in one precision: on a GPU dropout draws otherwise, and evaluation keeps nothing
    that could be saved.
    """
    if x_BTD.numel() < SMALLEST:
        return False
    if not (torch.is_grad_enabled() and x_BTD.requires_grad and x_BTD.device.type == "cpu" and x_BTD.is_contiguous()):
        return False
    if x_BTD.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or x_BTD.size(0) * x_BTD.size(1) < 2:  # batch norm refuses one frame
        return False
    trained = all(module.training for module in layer.modules()) and all(p.requires_grad for p in layer.parameters())
    return trained and layer.is_of_the_paper and not is_watched(layer, itself=False)
