"""What came out against what was recorded: by bits, and where these differ, how far apart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nest_ssl.base.nested import ABSENT, leaves, pairs, to_builtins
from nest_ssl.record.observers.copies import same_bits
from nest_ssl.recording.address import Address
from nest_ssl.recording.evidence import Deviation, Place
from nest_ssl.recording.tensors import describe_tensor


def compare_nested(address: Address, recorded: Any, found: Any) -> tuple[int, list[Deviation]]:
    """How many leaves were compared, and those that differ; `found` may hold any object, `recorded` builtins."""
    one, other = (dict(leaves(to_builtins(value, lambda tensor: tensor.detach()))) for value in (recorded, found))
    deviations = [compare_leaf(address.at(path), *both) for path, *both in pairs(one, other)]
    return len(deviations), [deviation for deviation in deviations if deviation is not None]


def compare_leaf(address: Address, recorded: Any, found: Any) -> Deviation | None:
    """The deviation of one leaf; None where it has the same bits, or is an object of which only the class was kept."""
    if isinstance(recorded, Tensor) and isinstance(found, Tensor):
        return deviation_of(address, recorded, found.detach().cpu())
    if address.path.rpartition(".")[2] == "__repr__":
        return None
    if not (isinstance(recorded, Tensor) or isinstance(found, Tensor)) and (recorded, found) == (found, recorded):
        return None
    return Deviation(place=Place.of(address), why=f"{_named(recorded)} against {_named(found)}")


def deviation_of(
    address: Address, recorded: Tensor, found: Tensor, measured: tuple[Tensor, Tensor] | None = None
) -> Deviation | None:
    """How far `found` is from `recorded`, both on the CPU; None where every bit is the same.

    Args:
        measured: what the sizes are of, where it is not the two themselves: of weights after a step the updates.
    """
    if recorded.shape != found.shape or recorded.dtype != found.dtype:
        return Deviation(place=Place.of(address), why=f"{_named(recorded)} against {_named(found)}")
    if same_bits(found, recorded):
        return None
    one, other = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in measured or (recorded, found))
    one, other = one.to(torch.float64), other.to(torch.float64)
    finite = one.isfinite() & other.isfinite()
    disagree = ~(finite | (one.isnan() & other.isnan()) | (one == other))
    one, other = one.where(finite, 0.0), other.where(finite, 0.0)
    difference = (other - one).abs()
    norm, distance = float(one.norm()), float(difference.norm())
    return Deviation(
        place=Place.of(address),
        relative=distance / norm if norm else math.inf if distance else 0.0,
        norm=norm,
        max_abs=float(difference.max()) if difference.numel() else 0.0,
        elements=recorded.numel(),
        differing=max(1, int((recorded != found).sum())),  # one: zeros of unlike signs, NaNs of unlike bits
        nonfinite_disagree=int(disagree.sum()),
        shape=list(recorded.shape),
        eps=torch.finfo(recorded.dtype).eps if recorded.is_floating_point() or recorded.is_complex() else 0.0,
    )


def _named(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    if isinstance(value, Tensor):
        facts = describe_tensor(value)
        return f"{facts['shape']} {facts['dtype']}"
    return repr(value)[:80]
