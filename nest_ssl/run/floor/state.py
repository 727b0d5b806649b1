"""What a training step starts from: saved, put back, and moved by one unit in the last place."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from nest_ssl.base.nested import to_builtins
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.train.lightning_internals import Counters, counters

PIECE = 1 << 16  # elements moved at a time: what fits the cache
_INTEGER_OF = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element


def live_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name: the model's own tensors, wherever they are."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def write_weights(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Give parameters and buffers the saved values, in place; a buffer of another shape meanwhile is replaced, and one
    that the first forward made stays: it may make none again."""
    for name, tensor in live_weights(model).items():
        if name not in saved:
            continue
        if tensor.shape == saved[name].shape:
            tensor.copy_(saved[name])
        else:
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, saved[name].clone())


def plain_numbers(model: nn.Module) -> list[tuple[nn.Module, dict[str, float]]]:
    """Of every module the attributes that are numbers or flags: a forward may count in them, or keep there for how long
    an input a buffer suffices (as `max_audio_length` of the encoder, in NeMo and here)."""
    plain = (bool, int, float)
    return [(one, {name: own for name, own in vars(one).items() if type(own) in plain}) for one in model.modules()]


@dataclass
class SavedState:
    """All that a step reads and changes, but for the batch.

    Args:
        weights: parameters and buffers, copied.
        numbers: plain ones, by module.
        gradients: as they stood, in the order of the parameters.
        optimizer: its state, by parameter.
        groups: settings of its groups.
        generators: states of every generator.
        precision: of the precision plugin, such as a gradient scaler.
    """

    weights: dict[str, Tensor]
    numbers: list[tuple[nn.Module, dict[str, float]]]
    gradients: list[Tensor | None]
    optimizer: dict[Any, Any]
    groups: list[dict[str, Any]]
    generators: dict[str, Any]
    precision: dict[str, Any]

    @classmethod
    def take(cls, trainer: Trainer, model: nn.Module, lasting: bool) -> SavedState:
        """The present state.

        Args:
            lasting: whether training goes on in between, and would change what is not copied.
        """
        optimizer, gradients = trainer.optimizers[0], [parameter.grad for parameter in model.parameters()]
        state = dict(optimizer.state)
        return cls(
            copied(live_weights(model)),
            plain_numbers(model),
            copy.deepcopy(gradients) if lasting else gradients,
            {parameter: copy.deepcopy(entries) for parameter, entries in state.items()} if lasting else state,
            settings_of(optimizer),
            generator_states(),
            copy.deepcopy(trainer.precision_plugin.state_dict()),
        )

    def put_back(self, trainer: Trainer, model: nn.Module, again: bool) -> None:
        """Make it the present state.

        Args:
            again: whether it will be put back once more, so that training may not have its tensors.
        """
        optimizer = trainer.optimizers[0]
        write_weights(model, self.weights)
        for module, numbers in self.numbers:
            vars(module).update(numbers)
        gradients = copy.deepcopy(self.gradients) if again else self.gradients
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.state.clear()
        for parameter, entries in self.optimizer.items():
            optimizer.state[parameter] = copy.deepcopy(entries) if again else entries
        write_settings(optimizer, self.groups)
        restore_generators(self.generators)
        trainer.precision_plugin.load_state_dict(copy.deepcopy(self.precision))


@dataclass
class SavedBatch:
    """A batch as it reached training, and what else its step needs.

    Args:
        number: of the training batch, from 0.
        batch: a copy: training may edit its own.
        position: in the epoch.
        counters: Lightning's, which say whether gradients accumulate.
        groups: settings of the optimizer's groups, with this step's learning rate.
        generators: what the step draws from.
    """

    number: int
    batch: Any
    position: int
    counters: Counters
    groups: list[dict[str, Any]]
    generators: dict[str, Any]

    @classmethod
    def take(cls, trainer: Trainer, number: int, batch: Any, position: int) -> SavedBatch:
        groups = settings_of(trainer.optimizers[0])
        return cls(number, copy.deepcopy(batch), position, counters(trainer), groups, generator_states())


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of each group everything but its parameters."""
    groups = optimizer.param_groups
    return [copy.deepcopy({key: value for key, value in group.items() if key != "params"}) for group in groups]


def write_settings(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update(copy.deepcopy(saved))


def tensors_of(batch: Any) -> list[Tensor]:
    """Every tensor of a batch, the tensors themselves."""
    found: list[Tensor] = []
    to_builtins(batch, found.append)
    return found


def move_by_one_ulp(tensors: Iterable[Tensor], generator: torch.Generator) -> None:
    """Move every element of the floating-point tensors to its next neighbour up or down, by the toss of a coin.

    Zeros stay, for they are exact (padding, masks, biases at the start), and so does what is not finite. So do numbers
    of a finer type than the others (codebooks in float64): what they are rounded to is nothing beside the rest.

    Args:
        tensors: edited in place.
        generator: on the CPU; of its own, so that training draws what it would have drawn.
    """
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    sizes = Counter[torch.dtype]()
    for tensor in floating:
        sizes[tensor.dtype] += tensor.numel()
    finest = min((torch.finfo(dtype).eps for dtype, _ in sizes.most_common(1)), default=0.0)
    for tensor in floating:
        if torch.finfo(tensor.dtype).eps < finest:
            continue
        words = torch.empty((tensor.numel() + 7) // 8, dtype=torch.int64).random_(generator=generator)
        coins = words.view(torch.int8)[: tensor.numel()].bitwise_and_(1).mul_(2).sub_(1).to(tensor.device)
        flat = tensor.contiguous().view(-1)  # the tensor's own memory, if that is contiguous
        size = PIECE if tensor.device.type == "cpu" else max(1, flat.numel())
        for piece, coin in zip(torch.split(flat, size), torch.split(coins, size), strict=True):
            # Neighbouring floats have neighbouring integers: one more is one ulp away from zero, one less nearer to it.
            moved = (piece.view(_INTEGER_OF[piece.element_size()]) + coin).view(piece.dtype)
            piece.copy_(torch.where((piece != 0) & torch.isfinite(moved), moved, piece))
        if not tensor.is_contiguous():
            tensor.copy_(flat.view(tensor.shape))
