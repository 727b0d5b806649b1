"""Where one forward takes its time: the model's parts, by the device's clock and by the host's."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# Of both trainers' model, by the names of their modules; the last four are inside the layers.
PARTS = {
    "features": r"preprocessor",
    "quantizer": r"quantizer",
    "mask": r"mask_processor",
    "subsampling": r"encoder\.pre_encode",
    "layers": r"encoder\.layers\.\d+",
    "decoder": r"decoder",
    "loss": r"loss",
    "feed-forward": r"encoder\.layers\.\d+\.feed_forward[12]",
    "attention": r"encoder\.layers\.\d+\.self_attn",
    "convolution": r"encoder\.layers\.\d+\.conv",
    "norms": r"encoder\.layers\.\d+\.norm_\w+",
}


def times_of_parts(model: nn.Module, forward: Callable[[], Any], device: torch.device, times: int) -> dict[str, Any]:
    """Milliseconds of the model's parts in one forward: by the device's clock, and by the host's until all is launched.

    Where both are alike, the host is what takes the time. Medians over `times` of `forward`, behind one to warm up.
    """
    open_spans: list[tuple[Any, float]] = []
    spans: dict[str, list[tuple[Any, Any, float]]] = {}

    def moment() -> tuple[Any, float]:
        if device.type != "cuda":
            return time.perf_counter(), time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event, time.perf_counter()

    def hooks(part: str, module: nn.Module) -> Iterator[RemovableHandle]:
        def end(*_: Any) -> None:
            (begun, clock), (ended, now) = open_spans.pop(), moment()
            spans.setdefault(part, []).append((begun, ended, 1000 * (now - clock)))

        yield module.register_forward_pre_hook(lambda *_: open_spans.append(moment()))
        yield module.register_forward_hook(end)

    handles = [
        handle
        for part, pattern in PARTS.items()
        for name, module in model.named_modules()
        if re.fullmatch(pattern, name)
        for handle in hooks(part, module)
    ]
    runs: list[dict[str, tuple[float, float]]] = []
    for _ in range(1 + times):
        spans.clear()
        forward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        runs.append(
            {
                part: (sum(float(a.elapsed_time(b)) if device.type == "cuda" else 1000 * (b - a) for a, b, _ in own),
                       sum(host for *_, host in own))
                for part, own in spans.items()
            }
        )  # fmt: skip
    for handle in handles:
        handle.remove()
    found = {part: [statistics.median(run[part][i] for run in runs[1:]) for i in (0, 1)] for part in runs[0]}
    return found
