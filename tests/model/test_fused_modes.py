"""A mode of torch's that sees calls, or what is kept for backward, opens a layer as a hook does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nest_ssl.model.encoder import layer as layer_module
from nest_ssl.model.encoder.fused import choice, convolution, subsampling
from nest_ssl.model.encoder.fused.choice import is_fusable, is_watched
from tests.model.test_fused import differing, encoder, stepped


class Seeing(torch.overrides.TorchFunctionMode):
    """A mode that changes an activation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made * 2 if getattr(func, "__name__", "") == "silu" else made


class Doubling(TorchDispatchMode):
    """A mode that changes an operator, and not the product that a fused layer has in its place."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made * 2 if func is torch.ops.aten.convolution.default else made


def test_a_mode_that_sees_operators_opens_a_layer_and_leaves_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products were tried before, and are not tried in it."""
    ways = list[bool]()
    monkeypatch.setattr(choice, "SMALLEST", 0)
    monkeypatch.setattr(layer_module, "is_fusable", lambda *given: (ways.append(is_fusable(*given)), ways[-1])[1])
    convolution._products_have_its_sums.cache_clear()
    stepped(encoder(), (60, 37), watched=False, steps=1)
    tried = convolution._products_have_its_sums.cache_info().currsize
    with Doubling():
        both = [stepped(encoder(), (60, 41), watched, steps=1) for watched in (True, False)]
        assert not subsampling.is_maskable_in_place(encoder().pre_encode.conv)
    assert subsampling.is_maskable_in_place(encoder().pre_encode.conv)
    assert ways == [True, True, *[False] * 4] and differing(*both) == []
    assert convolution._products_have_its_sums.cache_info().currsize == tried


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
