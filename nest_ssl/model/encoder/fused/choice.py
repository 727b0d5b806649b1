"""Where the fused way may be taken: no hook looks into the layer, and it is of the one kind that is fused, with the
methods that its classes had when they were imported."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

if TYPE_CHECKING:
    from nest_ssl.model.encoder.layer import ConformerLayer

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = [f"_global{name}" for name in HOOKS]
SMALLEST = 1 << 17  # elements of a layer's input: on fewer, what is saved is less than the branches' own Python takes
CALLS = ("__call__", "_wrapped_call_impl", "_call_impl")  # what torch comes by from a module's call to its forward
REPLACED = {"forward", "_call_impl", "_compiled_call_impl"}  # set on one object: somebody put something around it


class Methods:
    """The methods of some classes of modules, and of those that they derive from, as they are when this is made: when
    the classes are imported. Where a module's forward is not called, it is one of these that is left out.

    Args:
        kinds: the classes.
        names: of the methods; all if there are none.
    """

    def __init__(self, *kinds: type[nn.Module], names: tuple[str, ...] = ()) -> None:
        own: dict[tuple[type, str], object] = {(nn.Module, name): vars(nn.Module)[name] for name in CALLS}
        for kind in kinds:
            bases = [base for base in kind.__mro__ if base not in nn.Module.__mro__]
            methods = {name for base in bases for name, value in vars(base).items() if isinstance(value, FunctionType)}
            chosen = names or [name for name in methods if not name.startswith("__")]
            own |= {(base, name): vars(base).get(name) for base in bases for name in (*chosen, *CALLS)}
            REPLACED.update(chosen)  # they count where they are set on one object, too
        self._kinds = kinds
        self._own = [(vars(base), name, method) for (base, name), method in own.items()]

    def are_as_imported(self, *modules: nn.Module) -> bool:
        """Whether none of them has another in its place, and each of `modules` is of one of the classes itself."""
        kinds = all(type(module) in self._kinds for module in modules)
        return kinds and all(space.get(name) is method for space, name, method in self._own)


def is_watched(module: nn.Module, itself: bool = True) -> bool:
    """Whether somebody sees calls of a module: by a hook, by something in place of its forward, or by a mode of torch's
    that sees each function's call or each tensor that is kept for backward; a default device is none.

    Args:
        itself: whether `module` counts; else those in it alone.
    """
    if any(getattr(torch_module, hooks, None) for hooks in GLOBAL_HOOKS):
        return True
    keeps = torch._C._autograd._top_saved_tensors_default_hooks(True)  # type: ignore[attr-defined]
    # Of them a default device sees only where tensors are made.
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if keeps is not None or any(type(mode) is not DeviceContext for mode in modes):
        return True
    seen = (each for each in module.modules() if itself or each is not module)
    return any(_is_replaced(each) or any(vars(each)[hooks] for hooks in HOOKS) for each in seen)


def are_operators_seen() -> bool:
    """Whether a mode of torch's sees each operator: it may list them, or return another result, and then a trial's
    verdict holds no more."""
    return _get_current_dispatch_mode() is not None


def _is_replaced(module: nn.Module) -> bool:
    """Whether another function is set on it, or a compiled one; its own, as Lightning leaves behind under ddp, is
    none."""
    if REPLACED.isdisjoint(vars(module)):
        return False
    given = {name: value for name, value in vars(module).items() if name in REPLACED and callable(value)}
    own = {name: getattr(type(module), name, None) for name in given}
    return any(getattr(value, "__func__", value) is not own[name] for name, value in given.items())


def shares_gradients() -> bool:
    """Whether gradients are added up over three ranks or more. Each is added in an order that follows from where it
    lies among the others, and they lie in the order in which they came in the first step: a branch's come together."""
    ranks = torch.distributed
    return ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 2


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
    if shares_gradients() or are_operators_seen():
        return False
    trained = all(module.training for module in layer.modules())
    trained = trained and all(each.requires_grad and each.is_contiguous() for each in layer.parameters())
    return trained and layer.is_of_the_paper and not is_watched(layer, itself=False)
