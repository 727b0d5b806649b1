"""The tiny model's configuration, as `size=tiny` gives it; and shapes, checked at every call of the model."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import beartype
import jaxtyping
import pytest
import torch

from nest_ssl import model
from nest_ssl.config.compose import compose
from nest_ssl.model.encoder.fused.choice import Methods
from nest_ssl.model.nest import NestModel


@pytest.fixture
def tiny() -> dict[str, Any]:
    """`model:`, in a form that tests can edit."""
    return compose(["size=tiny", "run=full"]).model


@pytest.fixture
def build(tiny: dict[str, Any]) -> Callable[..., NestModel]:
    """`build(seed=0)`: the tiny model from a seed."""

    def make(seed: int = 0) -> NestModel:
        torch.manual_seed(seed)
        return NestModel(tiny)

    return make


@pytest.fixture(scope="module", autouse=True)
def shapes_are_checked() -> Iterator[None]:
    """Every annotation `Float[Tensor, "B T D"]` in nest_ssl.model holds, one letter meaning one size within a call.

    The annotations cost nothing elsewhere: jaxtyping is imported for type checkers and for tests alone.
    """
    names = [info.name for info in pkgutil.walk_packages(model.__path__, f"{model.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    check = jaxtyping.jaxtyped(typechecker=beartype.beartype)
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for kind in (jaxtyping.Bool, jaxtyping.Float, jaxtyping.Int):
                patch.setattr(module, kind.__name__, kind, raising=False)
        for module in modules:
            for name, value in list(vars(module).items()):
                if getattr(value, "__module__", None) != module.__name__:
                    continue
                for owner, key, function in [(module, name, value), *((value, *item) for item in methods(value))]:
                    if inspect.isfunction(function) and "Tensor" in str(function.__annotations__):
                        patch.setattr(owner, key, check(function))
        for known in (value for module in modules for value in vars(module).values() if isinstance(value, Methods)):
            checked = [(space, name, space.get(name)) for space, name, _ in known._own]
            patch.setattr(known, "_own", checked)  # these are no other methods
        yield


def methods(value: Any) -> list[tuple[str, Any]]:
    return list(vars(value).items()) if inspect.isclass(value) else []
