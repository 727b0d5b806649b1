"""A mode of torch's that sees calls, or what is kept for backward, opens a layer as a hook does."""

from __future__ import annotations

from typing import Any

import torch

from nest_ssl.model.encoder.fused.choice import is_watched
from tests.model.test_fused import encoder


class Seeing(torch.overrides.TorchFunctionMode):
    """A mode that changes an activation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made * 2 if getattr(func, "__name__", "") == "silu" else made


def test_modes_that_see_calls_or_what_is_kept_open_a_layer() -> None:
    module = encoder()
    with Seeing():
        assert is_watched(module)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.half(), lambda x: x.float()):
        assert is_watched(module)
    assert not is_watched(module)


def test_a_default_device_is_no_watcher_and_hides_none() -> None:
    module = encoder()
    with torch.device("cpu"):
        assert not is_watched(module)
        with Seeing():
            assert is_watched(module)
    with Seeing(), torch.device("cpu"):
        assert is_watched(module)
