"""Rung 2: what the models are made of, and the list of declared differences."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.compare.declared import FILE, Entry, load_declared
from tests.compare.builder import Model, Plan, edit_structure, first, judge, left, noted, record, statuses

SPARE = Entry("spare", only_in="nemo", not_in="nest", reason="built and never called")


class WithoutSpare(Model):
    def __init__(self) -> None:
        super().__init__()
        del self.spare


class SiLU(nn.SiLU):
    """Another class of the same unqualified name."""


class Swish(nn.SiLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.01


def named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


@pytest.mark.parametrize(
    ("kind", "name", "key", "value", "place"),
    [
        ("modules", "decoder", "class", "torch.nn.modules.linear.Bilinear", ("decoder", "class")),
        ("modules", "decoder", "training", False, ("decoder", "training")),
        ("parameters", "decoder.weight", "shape", [8, 5], ("decoder", "weight.shape")),
        ("parameters", "decoder.weight", "dtype", "float64", ("decoder", "weight.dtype")),
        ("parameters", "decoder.weight", "requires_grad", False, ("decoder", "weight.requires_grad")),
        ("buffers", "encoder.layers.0.batch_norm.running_mean", "persistent", False,
         ("encoder.layers.0.batch_norm", "running_mean.persistent")),
    ],
)  # fmt: skip
def test_a_changed_entry(
    reference: Path, copy: Path, kind: str, name: str, key: str, value: Any, place: tuple[str, str]
) -> None:
    edit_structure(copy, lambda structure: named(structure[kind], name).update({key: value}))
    comparison = judge(reference, copy)
    assert comparison.exit_code == 1
    assert first(comparison) == ("structure", None, place[0], None, place[1])


def test_packages_of_classes_may_differ(reference: Path, make: Callable[..., Path]) -> None:
    def same_name(model: nn.Module) -> None:
        for layer in model.encoder.layers:
            layer.activation.__class__ = SiLU

    assert judge(reference, make(after_build=same_name)).verdict == "identical"


def test_classes_of_another_name_differ(reference: Path, make: Callable[..., Path]) -> None:
    def another(model: nn.Module) -> None:
        model.encoder.layers[0].activation.__class__ = Swish

    comparison = judge(reference, make(after_build=another))
    assert first(comparison) == ("structure", None, "encoder.layers.0.activation", None, "class")
    assert comparison.rung("forward").status == "diverged"
    assert comparison.unexplained == []


@pytest.mark.parametrize(("module", "earlier"), [("preprocessor", True), ("encoder.layers.1.linear2", False)])
def test_another_class_stands_where_it_is_called(
    reference: Path, make: Callable[..., Path], module: str, earlier: bool
) -> None:
    """What was computed before it is the headline, and does not explain it."""

    def plant(model: nn.Module) -> None:
        model.encoder.layers[0].activation.__class__ = Swish
        model.get_submodule(module).register_forward_hook(lambda *call: _nudged(call[-1]))

    comparison = judge(reference, make(after_build=plant))
    assert first(comparison)[0] == ("forward" if earlier else "structure")
    assert left(comparison).get("CLASSES") == (["encoder.layers.0.activation.class"] if earlier else None)


def _nudged(output: Any) -> Any:
    return (output[0] + 0.1, *output[1:]) if isinstance(output, tuple) else output + 0.1


def test_the_root_may_have_another_class(reference: Path, make: Callable[..., Path]) -> None:
    class OwnModel(Model):
        pass

    comparison = judge(reference, make(model=OwnModel))
    assert comparison.verdict == "identical"
    assert noted(comparison, "model_class") == [{"reference": "Model", "candidate": "OwnModel"}]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_module_on_one_side_is_an_error(reference: Path, make: Callable[..., Path], swapped: bool) -> None:
    sides = reference, make(model=WithoutSpare)
    comparison = judge(*(sides[::-1] if swapped else sides))
    assert (comparison.verdict, statuses(comparison)["structure"]) == ("diverged", "missing")
    assert first(comparison)[:3] == ("structure", None, "spare")
    rung = comparison.rung("structure")
    assert (rung.missing_reference, rung.missing_candidate) == ((1, 0) if swapped else (0, 1))


@pytest.mark.parametrize("swapped", [False, True])
def test_a_declared_module_is_excused_and_shown(reference: Path, make: Callable[..., Path], swapped: bool) -> None:
    sides = reference, make(model=WithoutSpare)
    comparison = judge(*(sides[::-1] if swapped else sides), declared=[SPARE])
    assert comparison.verdict == "identical"
    assert [entry.modules for entry in comparison.declared] == [("spare",)]


def test_an_entry_that_no_longer_applies_is_an_error(reference: Path, make: Callable[..., Path]) -> None:
    comparison = judge(reference, make(), declared=[SPARE])
    assert comparison.exit_code == 1
    assert first(comparison) == ("structure", None, None, None, "declared")
    assert "no longer a difference" in str(comparison.first.reference if comparison.first else "")


def test_an_entry_about_a_module_that_both_call_is_about_another_model(
    reference: Path, make: Callable[..., Path]
) -> None:
    called = replace(SPARE, pattern="encoder.layers.0.activation")
    assert judge(reference, make(), declared=[called]).verdict == "identical"


def test_an_entry_about_other_trainers_is_passed_over(reference: Path) -> None:
    assert judge(reference, reference, declared=[SPARE]).verdict == "identical"


class WithNumbers(Model):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(1, 1)


class WithBufferInside(Model):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Sequential(nn.BatchNorm1d(2, affine=False))


class WithCall(Model):
    def forward(self, **batch: Any) -> Any:
        self.spare(batch["audio"])
        return super().forward(**batch)


@pytest.mark.parametrize("model", [WithNumbers, WithBufferInside, WithCall])
def test_a_module_that_carries_numbers_cannot_be_declared(tmp_path: Path, model: type[Model]) -> None:
    nemo = record(tmp_path / "nemo", Plan(model=model, steps=(0,)))
    nest = record(tmp_path / "nest", Plan(model=WithoutSpare, name="nest", steps=(0,)))
    comparison = judge(nemo, nest, declared=[Entry("spare*", "nemo", "nest", "no reason")])
    assert comparison.exit_code == 1
    assert all(not entry.modules or entry.modules == ("spare.0",) for entry in comparison.declared)
    assert first(comparison)[:3] == ("structure", None, "spare")


def test_the_committed_list_is_readable() -> None:
    assert all(entry.reason for entry in load_declared(FILE))


@pytest.mark.parametrize(
    "text",
    [
        "- pattern: x",
        "- 3",
        "- {pattern: x, only_in: a, not_in: b, reason: 1}",
        "{",
        "3",
        "x: 1",
        "&a [*a]",
        "- !!python/object:x {}",
    ],
)
def test_a_damaged_list_is_a_users_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.yaml").write_text(text)
    with pytest.raises(UserError):
        load_declared(tmp_path / "list.yaml")


def test_a_list_that_is_no_regular_file_is_a_users_error(tmp_path: Path) -> None:
    """A pipe would be waited for without end."""
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("none.yaml", "pipe.yaml", "."):
        with pytest.raises(UserError, match="no such file"):
            load_declared(tmp_path / name)
