"""The diff of two sides' operators: each planted change is named with its argument and lines, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nest_ssl.base.errors import UserError
from nest_ssl.compare import alignment
from nest_ssl.compare.alignment import aligned
from nest_ssl.compare.operators import Change, OperatorDifference, bind, diff, moved_in, read_operators, select
from nest_ssl.record.loop import recording
from nest_ssl.recording.evidence import Operator, StepOperators, seal_of, write_evidence
from nest_ssl.recording.reader import open_recording


class Attention(nn.Module):
    scale, eps = 0.5, 1e-5

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4, eps=self.eps)
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(x))
        scores = (self.q(x) @ self.k(x).transpose(-1, -2)) * self.scale
        return x + 0.5 * (scores.softmax(-1) @ x)


class Net(nn.Module):
    layer: type[Attention] = Attention
    activate: Callable[[Net, Tensor], Tensor] = lambda self, x: self.layers[0].activation(x)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention(), self.layer(), Attention()])
        for layer in self.layers:
            layer.activation = self.layers[0].activation  # shared, as NeMo's feed-forward modules share theirs

    def forward(self, x: Tensor) -> Tensor:
        padded = self.pad(x)
        for layer in self.layers:
            padded = layer(padded)
        return self.activate(padded)

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, 1), mode="constant")


def trace(
    folder: Path, kind: type[Net] = Net, optimizer: Callable[..., Any] = torch.optim.AdamW, **settings: Any
) -> Path:
    torch.manual_seed(1)
    model = kind()
    chosen = optimizer(model.parameters(), lr=0.1, **settings)
    with recording(folder, model, operators=True, overwrite=True) as r:
        for _ in range(2):
            batch = torch.randn(2, 3, 4)
            r.batch(batch)
            loss = model(batch).square().mean()
            r.loss(loss)
            chosen.zero_grad()
            loss.backward()
            r.backward_done()
            chosen.step()
            r.step_done(chosen)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> StepOperators:
    return read_operators(trace(tmp_path_factory.mktemp("operators") / "reference"))


@pytest.fixture
def found(reference: StepOperators, tmp_path: Path) -> Callable[..., list[OperatorDifference]]:
    """`found(kind, ...)`: the differences of a candidate of that kind."""
    return lambda *args, **settings: diff(reference, read_operators(trace(tmp_path / "candidate", *args, **settings)))


def places(differences: list[OperatorDifference], phase: str = "forward") -> dict[str | None, list[str]]:
    return {d.module: [c.kind for c in d.changes] for d in differences if d.phase == phase}


def test_the_same_twice_is_no_difference(found: Callable[..., Any]) -> None:
    assert found() == []


class OtherEps(Attention):
    eps = 1.1e-5


class OtherScale(Attention):
    scale = 0.500001


def test_another_argument_is_named_with_both_values_and_lines(found: Callable[..., Any]) -> None:
    differences = found(type("Other", (Net,), {"layer": OtherEps}))
    assert places(differences) == {"layers.1.norm": ["arguments"]}
    (change,) = differences[0].changes
    assert change.reference is not None and change.reference.name == "aten.native_layer_norm.default"
    assert change.arguments == {"eps": (1e-5, 1.1e-5)}
    assert change.reference_line == change.candidate_line == "x = self.activation(self.norm(x))"
    assert change.reference.source.rpartition("/")[2].startswith("test_operators.py:")


def test_a_scale_is_other_in_forward_and_backward(found: Callable[..., Any]) -> None:
    differences = found(type("Other", (Net,), {"layer": OtherScale}))
    assert places(differences) == {"layers.1": ["arguments"]}
    assert places(differences, "backward") == {"layers.1": ["arguments"]}
    assert {*places(differences, "optimizer")} <= {"layers.0", "layers.1"} and len(differences) == 2


class Reflected(Net):
    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x.transpose(1, 2), (1, 1), mode="reflect").transpose(1, 2)


def test_another_operator_is_missing_and_added(found: Callable[..., Any]) -> None:
    (root, *_) = found(Reflected)
    changed = {(c.kind, (c.reference or c.candidate).name) for c in root.changes}
    assert ("missing", "aten.constant_pad_nd.default") in changed and (
        "added",
        "aten.reflection_pad1d.default",
    ) in changed
    assert (root.module, root.phase) == ("", "forward")


class Fused(Attention):
    """One product in place of two modules."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(x))
        weight, bias = torch.cat([self.q.weight, self.k.weight]), torch.cat([self.q.bias, self.k.bias])
        q, k = F.linear(x, weight, bias).chunk(2, -1)
        return x + 0.5 * ((q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ x)


def test_several_modules_replaced_by_one_are_compared_where_both_sides_call(found: Callable[..., Any]) -> None:
    differences = found(type("Other", (Net,), {"layer": Fused}))
    layer = differences[0]
    assert (layer.module, layer.reference_calls, layer.candidate_calls) == (
        "layers.1",
        ("layers.1.q#0", "layers.1.k#0"),
        (),
    )
    names = [(c.kind, (c.reference or c.candidate).name) for c in layer.changes]
    assert names.count(("missing", "aten.addmm.default")) == 1 and ("added", "aten.cat.default") in names
    assert {d.module for d in differences if d.phase != "optimizer"} <= {"layers.1", "layers.1.q", "layers.1.k"}


def in_order(*names: str) -> StepOperators:
    """The operators of a call of ``m`` and of its dropout, ``m.drop``, in the order of these names."""
    modules = ["m.drop" if "dropout" in name else "m" for name in names]
    made = [Operator(name=name, phase="forward", module=module, call=0)
            for name, module in zip(names, modules, strict=True)]  # fmt: skip
    return StepOperators(step=0, enclosing={"": "", "m#0": "", "m.drop#0": "m#0"}, operators=made)


@pytest.mark.parametrize(
    ("candidate", "moved"),
    [
        (("add", "native_dropout", "_softmax", "mm"), ("m.drop",)),
        (("add", "_softmax", "native_dropout", "mm"), ()),
        (("_softmax", "add", "native_dropout", "mm"), ()),  # other operators than these: they say more
        (("add", "_softmax", "mm"), ()),  # it is not called at all
    ],
)
def test_a_module_that_is_called_at_another_place(candidate: tuple[str, ...], moved: tuple[str, ...]) -> None:
    reference = in_order("add", "_softmax", "native_dropout", "mm")
    assert moved_in("m", reference, in_order(*candidate)) == moved
    assert moved_in("m.drop", reference, in_order(*candidate)) == ()


class Inside(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Wrapped(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Inside(self.norm)


def test_the_same_in_a_wrapper_is_no_change(found: Callable[..., Any]) -> None:
    differences = found(type("Other", (Net,), {"layer": Wrapped}))
    assert [(d.phase, d.module, d.changes) for d in differences if d.phase != "optimizer" and d.call is not None] == [
        ("forward", "layers.1.norm", ()), ("backward", "layers.1.norm", ())]  # fmt: skip
    assert differences[0].candidate_calls == ("layers.1.norm.inner#0",)


class ByHand(Attention):
    """A function in place of the shared module, whose later calls then have other numbers."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(x))
        scores = (self.q(x) @ self.k(x).transpose(-1, -2)) * self.scale
        return x + 0.5 * (scores.softmax(-1) @ x)


def test_calls_of_a_shared_module_are_paired_by_where_they_are_made(found: Callable[..., Any]) -> None:
    differences = found(type("Other", (Net,), {"layer": ByHand}))
    assert [(d.module, d.reference_calls, d.changes) for d in differences if d.phase == "forward"] == [
        ("layers.1", ("layers.0.activation#1",), ())]  # fmt: skip


def test_another_optimizer_setting_is_told_apart_by_module_and_value(found: Callable[..., Any]) -> None:
    differences = found(Net, eps=1e-6)
    assert {d.phase for d in differences} == {"optimizer"}
    modules = {d.module for d in differences}
    assert {f"layers.{i}.{part}" for i in range(3) for part in ("norm", "q", "k")} == modules
    assert {tuple(c.arguments.items()) for d in differences for c in d.changes} == {(("other", (1e-8, 1e-6)),)}


def test_a_rate_times_1_00001_is_another_argument(found: Callable[..., Any]) -> None:
    differences = found(Net, lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr * 1.00001))
    changes = [c for d in differences for c in d.changes]
    assert {(c.kind, c.reference.name) for c in changes if c.reference} == {
        ("arguments", "aten.addcdiv_.default"), ("arguments", "aten.mul_.Tensor")}  # fmt: skip


def test_only_modules_that_a_pattern_names(reference: StepOperators, tmp_path: Path) -> None:
    both = type("Other", (Reflected,), {"layer": OtherEps})
    candidate = read_operators(trace(tmp_path / "candidate", both))
    assert {d.module for d in diff(reference, candidate, ["layers.*.norm"])} == {"layers.1.norm"}
    assert {o.module for o in select(reference, ["layers.*.norm"])} == {f"layers.{i}.norm" for i in range(3)}
    assert select(reference, None) == reference.operators


# --- alignment


def operator(name: str, value: float = 0.0, shape: str = "[1] float32") -> Operator:
    return Operator(name=name, phase="forward", tensors=[shape], arguments={"x": value})


def shown(pairs: list[tuple[Operator | None, Operator | None]]) -> list[tuple[str, str]]:
    return [tuple(f"{o.name}{o.arguments['x']:g}" if o else "-" for o in pair) for pair in pairs]  # type: ignore[misc]


@pytest.mark.parametrize("cells", [alignment.MOST_CELLS, 0])
def test_one_that_is_left_out_is_one_change(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MOST_CELLS", cells)
    many = [operator("add", i % 3) for i in range(30)]
    pairs = aligned([operator("a"), *many, operator("b")], [operator("a"), *many[:12], *many[13:], operator("b")])
    assert sum(one is None or other is None for one, other in pairs) == 1


def test_those_of_one_name_stand_side_by_side() -> None:
    one = [operator("a"), operator("add", 1), operator("add", 2), operator("b"), operator("c")]
    other = [operator("a"), operator("add", 2), operator("x"), operator("b", 5), operator("c")]
    assert shown(aligned(one, other)) == [
        ("a0", "a0"), ("add1", "-"), ("add2", "add2"), ("-", "x0"), ("b0", "b5"), ("c0", "c0")]  # fmt: skip


def test_types_count() -> None:
    one, other = (StepOperators(step=0, operators=[operator("a", value)]) for value in (1, 1.0))
    (difference,) = diff(one, other)
    assert difference.changes[0].arguments == {"x": (1, 1.0)}
    nan = StepOperators(step=0, operators=[operator("a", float("nan"))])
    assert diff(nan, nan.model_copy(deep=True)) == []


def test_other_shapes_alone_are_a_kind_of_their_own() -> None:
    one, other = (StepOperators(step=0, operators=[operator("a", shape=shape)]) for shape in ("[1] int32", "[1] int64"))
    assert [c.kind for d in diff(one, other) for c in d.changes] == ["tensors"]


# --- files


def test_evidence_is_bound_to_its_pair_and_read_back(tmp_path: Path) -> None:
    pair = [open_recording(trace(tmp_path / name)) for name in ("a", "b")]
    bound = bind(pair[1], "candidate", *pair, step=1)
    assert (bound.step, bound.side, bound.reference, bound.candidate) == (
        1, "candidate", seal_of(pair[0].index), seal_of(pair[1].index))  # fmt: skip
    write_evidence(tmp_path / "operators" / "candidate.json", bound)
    assert read_operators(tmp_path / "operators" / "candidate.json") == bound
    assert diff(read_operators(tmp_path / "b", 1), bound) == []
    with pytest.raises(UserError, match="no operators were recorded: .* is of step 1"):
        read_operators(tmp_path / "operators" / "candidate.json", 0)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"side": "a", "operators": [{"name": 1}]}))
    with pytest.raises(UserError, match="damaged evidence"):
        read_operators(tmp_path / "x.json")


# --- NeMo's releases


FIXTURES = Path(__file__).parent / "nemo_operators"


def test_from_nemo_2_4_1_to_3_0_0() -> None:
    """Of two traces of real NeMo (`run=full`, tiny) the parts that its releases changed, with no line of its code."""
    sides = [StepOperators.model_validate_json((FIXTURES / f"{v}.json").read_text()) for v in ("2.4.1", "3.0.0")]
    changes: dict[tuple[str, str | None], list[Change]] = {}
    for d in diff(*sides):
        changes.setdefault((d.phase, d.module), []).extend(d.changes)

    def names(phase: str, module: str, kind: str) -> set[str]:
        return {(c.reference or c.candidate).name for c in changes[phase, module] if c.kind == kind}

    featurizer = "preprocessor.featurizer"
    assert "aten.reflection_pad1d.default" in names("forward", featurizer, "missing"), "the padding mode"
    assert {"aten.constant_pad_nd.default", "aten.masked_fill.Scalar"} <= names("forward", featurizer, "added")
    plus_one = [c.reference for c in changes["forward", featurizer] if c.kind == "missing" and c.reference]
    assert [o.source for o in plus_one if o.arguments.get("other") == 1 and "int64" in o.tensors[0]] == [
        "nemo/collections/asr/parts/preprocessing/features.py:412"] * 2, "the length"  # fmt: skip
    assert "aten.mul.Tensor" in names("forward", "encoder.pre_encode.conv", "added"), "the masked convolutions"
    assert "aten.mul.Tensor" in names("backward", "encoder.pre_encode.conv", "added")
    assert {"numpy.draw", "aten.randperm.default"} <= names("forward", "mask_processor", "missing"), "the generators"
    assert "aten.rand.default" in names("forward", "mask_processor", "added")
    assert {module for _, module in changes} == {
        featurizer, "mask_processor", "encoder", "encoder.pre_encode", "encoder.pre_encode.conv"}  # fmt: skip
