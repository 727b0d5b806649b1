"""Which tensors lie in the same memory: an edit of one in place is an edit of the others."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def shared_memory(named: Iterable[tuple[str, torch.Tensor]]) -> list[list[str]]:
    """Names of tensors whose memory overlaps, in groups; each group, and the groups, in the given order."""
    order = []
    spans = []
    for name, tensor in named:
        if tensor.layout is torch.strided and tensor.numel() and tensor.device.type != "meta":
            extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            start = tensor.data_ptr()
            spans.append((str(tensor.device), start, start + extent * tensor.element_size(), name))
            order.append(name)
    groups: list[list[str]] = []
    where, end = "", 0
    for device, start, stop, name in sorted(spans):
        if device == where and start < end:
            groups[-1].append(name)
        else:
            groups.append([name])
            where, end = device, stop
        end = max(end, stop)
    place = {name: number for number, name in enumerate(order)}
    return sorted((sorted(g, key=place.__getitem__) for g in groups if len(g) > 1), key=lambda g: place[g[0]])
