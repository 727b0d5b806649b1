"""The grammar of maps of names, tensors in another layout, what is left over, and drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import nest_ssl
from nest_ssl.base.errors import UserError
from nest_ssl.cli import main as command
from nest_ssl.compare.name_map import load_names, renaming
from tests.record.loop import recorded_step

WIDTH = 4


def named(names: dict[str, Any], *given: str) -> list[list[str]]:
    rename = renaming(names)
    return [match.names() if (match := rename.match(name)) else [name] for name in given]


def test_holes_alternatives_and_parts() -> None:
    names = {
        "blocks.{i}.attn.{q,k}_proj": "layers.{i}.self_attn.linear_{q,k}",
        "blocks.{i}": "layers.{i}",
        "a.{i}.b.{j}": "x.{j}.{i}",
        "fused.*.qkv": "apart.*.{q,k,v}",
        "one.{w,b}": "both",
    }
    assert named(names, "blocks.3.attn.q_proj.weight") == [["layers.3.self_attn.linear_q.weight"]]
    assert named(names, "blocks.3.norm", "a.1.b.2.c", "blocksx.1") == [["layers.3.norm"], ["x.2.1.c"], ["blocksx.1"]]
    assert named(names, "fused.0.qkv", "fused.0.qkv.bias") == [
        ["apart.0.q", "apart.0.k", "apart.0.v"], ["fused.0.qkv.bias"],
    ]  # fmt: skip
    assert named(names, "one.w", "one.b") == [["both"], ["both"]]
    assert named({"a.{i}.{i}": "b.{i}"}, "a.1.1", "a.1.2") == [["b.1"], ["a.1.2"]]


@pytest.mark.parametrize(
    ("names", "fix"),
    [
        ({"a": 1}, "Give a name of the reference"), ({"": "b"}, "Give a name"), ({"a": "b.*"}, "on the left too"),
        ({"a.{i}": "b.{j}"}, "on the left too"), ({"a.{p,q}": "b.{p,q,r}"}, "as many alternatives"),
        ({"a": {"to": "b", "tranpose": True}}, "Did you mean transpose"),
        ({"a": {"to": "b", "dtype": "flaot"}}, "torch has no"),
        ({"a": {"to": "b", "dim": "0"}}, "dim: Input should be a valid integer"),
        ({"{a,b}.{c,d,e}": "f"}, "Give all groups of '{a,b}.{c,d,e}'"),
        ({"a.{p,q}": "{b,c}.{d,e,f}"}, "Give all groups of '{b,c}.{d,e,f}'"),
        ({"a": {"to": "{b,c}", "sizes": [1, 2, 3]}}, "sizes: they are 3, for 2 parts"),
        ({"a": {"to": "b", "sizes": [1]}}, "sizes: they are 1, for nothing that is split"),
        ({"{a,b}": {"to": "{c,d}", "sizes": [1, 2]}}, "sizes: they are 2, for nothing that is split"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_map_is_one_line(names: dict[str, Any], fix: str) -> None:
    with pytest.raises(UserError, match="no map of names") as raised:
        renaming(names)
    assert fix in raised.value.fix


def test_a_mistake_in_a_file_is_said_with_its_line(both: tuple[Path, Path], tmp_path: Path) -> None:
    """When it is read, and when a tensor does not have the shape for it."""
    path = tmp_path / "names.yaml"
    path.write_text("block0: layer0\n\n# fused\nblock0.{a,b}.{c,d,e}: layer0.q\n")
    with pytest.raises(UserError, match="no map of names") as raised:
        load_names(path)
    assert raised.value.where == f"{path}, line 4: 'block0.{{a,b}}.{{c,d,e}}'"
    for sizes in ([WIDTH, WIDTH, 1], [WIDTH, WIDTH, WIDTH, WIDTH], [2**70, 1, 1]):
        path.write_text(f"block0: layer0\nblock0.qkv: {{to: 'layer0.{{q,k,v}}', sizes: {sizes}}}\n")
        with pytest.raises(UserError) as raised:
            nest_ssl.compare(*both, names=path)
        assert f"{path}, line 2: 'block0.qkv'" in raised.value.where, sizes


@pytest.mark.parametrize(
    ("settings", "made"),
    [
        ({"transpose": True}, [[1, 3, 5], [2, 4, 6]]), ({"slice": [1, 3]}, [[3, 4], [5, 6]]),
        ({"negate": True}, [[-1, -2], [-3, -4], [-5, -6]]),
        ({"reshape": [1, 6]}, [[1, 2, 3, 4, 5, 6]]), ({"permute": [1, 0]}, [[1, 3, 5], [2, 4, 6]]),
        ({"reshape": [2, 3], "transpose": True}, [[1, 4], [2, 5], [3, 6]]),
        ({"slice": [0, 1], "dim": 1}, [[1], [3], [5]]),
    ],
)  # fmt: skip
def test_what_is_done_to_a_tensor(settings: dict[str, Any], made: list[list[int]]) -> None:
    (entry,) = renaming({"a": {"to": "b", **settings}}).entries
    (changed,) = entry.changed([torch.tensor([[1.0, 2], [3, 4], [5, 6]])])
    assert torch.equal(changed, torch.tensor(made, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"\w"):
        (renaming({"a": {"to": "b", "permute": [2, 1, 0]}}).entries[0]).changed([torch.ones(2, 2)])


class Attention(nn.Module):
    """Parameters of its own, no modules in it: the same products of the same numbers, however they are kept."""

    def __init__(self, kept: str, fault: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        q, k, v, out = (torch.randn(WIDTH, WIDTH, generator=generator) for _ in range(4))
        self.kept = kept
        if kept == "apart":
            self.q, self.k, self.v, self.out = map(nn.Parameter, (q, k, v, out))
        else:
            self.qkv, self.kernel = nn.Parameter(torch.cat([q, k, v + fault])), nn.Parameter(-out.t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        apart = self.kept == "apart"
        q, k, v = (self.q, self.k, self.v) if apart else self.qkv.chunk(3)
        out = self.out if apart else -self.kernel.t().contiguous()
        return ((x @ q) * (x @ k) * (x @ v)) @ out


class Model(nn.Module):
    def __init__(self, name: str, *settings: Any) -> None:
        super().__init__()
        for number in range(2):
            self.add_module(f"{name}{number}", Attention(*settings))

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


FUSED = {
    "block0": "layer0",
    "block1": "layer1",
    "block0.qkv": "layer0.{q,k,v}",
    "block1.qkv": {"to": "layer1.{q,k,v}", "sizes": [WIDTH, WIDTH, WIDTH]},
    "block0.kernel": {"to": "layer0.out", "transpose": True, "negate": True},
    "block1.kernel": {"to": "layer1.out", "transpose": True, "negate": True},
}
APART = {
    "layer0.{q,k,v}": "block0.qkv", "layer1.{q,k,v}": "block1.qkv", "layer0": "block0", "layer1": "block1",
    "layer0.out": {"to": "block0.kernel", "transpose": True, "negate": True},
    "layer1.out": {"to": "block1.kernel", "transpose": True, "negate": True},
}  # fmt: skip


def record(out: Path, model: nn.Module) -> Path:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with nest_ssl.recording(out, model, steps=[0, 1], output_names=("y",)) as r:
        for step in range(2):
            x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(step))
            r.batch(x)
            recorded_step(r, model, optimizer, x)
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("maps")
    return record(folder / "apart", Model("layer", "apart")), record(folder / "fused", Model("block", "fused"))


def written(path: Path, names: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(names))
    return path


def test_split_fused_and_transposed_parameters_are_the_same_bits(both: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights, gradients, the optimizer's state and its groups, of two steps; in both directions."""
    for sides, names in ((both, FUSED), (both[::-1], APART)):
        found = nest_ssl.compare(*sides, names=written(tmp_path / "names.yaml", names))
        assert found.verdict == "identical", found
        assert command.dispatch(["map", "check", str(tmp_path / "names.yaml"), *of(sides)]) == 0


def test_a_fault_in_one_part_of_what_is_fused_is_named(both: tuple[Path, Path], tmp_path: Path) -> None:
    other = record(tmp_path / "other", Model("block", "fused", 1e-3))
    found = nest_ssl.compare(both[0], other, names=written(tmp_path / "names.yaml", FUSED))
    differing = {one.address.slot for one in found.findings if one.rung == "initial_weights"}
    assert (found.verdict, differing) == ("diverged", {"v"}), found


def of(sides: tuple[Path, ...]) -> list[str]:
    return ["--reference", str(sides[0]), "--candidate", str(sides[1])]


def test_what_is_left_over_is_listed_with_what_is_nearest(
    both: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name: target for name, target in FUSED.items() if name != "block1.kernel"}
    assert command.dispatch(["map", "check", str(written(tmp_path / "names.yaml", names)), *of(both)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "map: left over in the reference: layer1.out [4, 4]; nearest: layer1.kernel",
        "map: left over in the candidate: layer1.kernel [4, 4]; nearest: layer1.out",
    ]


def test_a_shape_that_does_not_fit_is_one_line(both: tuple[Path, Path], tmp_path: Path) -> None:
    names = FUSED | {"block0.qkv": {"to": "layer0.{q,k,v}", "sizes": [4, 4, 5]}}
    with pytest.raises(UserError, match=r"line 6: 'block0\.qkv', of block0\.qkv: "):
        nest_ssl.compare(*both, names=written(tmp_path / "names.yaml", names))


class Stack(nn.Module):
    def __init__(self, name: str, inner: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.add_module(
            name, nn.ModuleList(nn.ModuleDict({inner: nn.Linear(3, 3), "norm": nn.LayerNorm(3)}) for _ in "abc")
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in next(iter(self.children())):
            for part in layer.values():
                x = part(x)
        return x


def test_a_draft_makes_them_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(out: Path, model: nn.Module) -> Path:
        with nest_ssl.recording(out, model, steps=[0]) as r:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            r.batch(torch.ones(2, 3))
            loss = model(torch.ones(2, 3)).square().sum()
            r.loss(loss)
            loss.backward()
            r.backward_done()
            optimizer.step()
            r.step_done(optimizer)
        return out

    sides = run(tmp_path / "one", Stack("layers", "linear")), run(tmp_path / "other", Stack("blocks", "fc"))
    assert command.dispatch(["map", "suggest", *of(sides)]) == 0
    drafted = capsys.readouterr().out
    assert yaml.safe_load(drafted) == {"blocks.{i}.fc": "layers.{i}.linear", "blocks.{i}.norm": "layers.{i}.norm"}
    (tmp_path / "names.yaml").write_text(drafted)
    found = nest_ssl.compare(*sides, names=tmp_path / "names.yaml")
    assert not [one for one in found.findings if not one.missing], found


def test_hugging_faces_encoder_has_nemos_names_by_the_shipped_map() -> None:
    """Names as transformers 5.23 has them; held against the library itself in tests/against_nemo."""
    rename = load_names(Path("huggingface_parakeet"))
    given = {
        "encoder.subsampling.layers.5.weight": "encoder.pre_encode.conv.5.weight",
        "encoder.layers.7.self_attn.relative_k_proj.weight": "encoder.layers.7.self_attn.linear_pos.weight",
        "encoder.layers.7.self_attn.bias_u": "encoder.layers.7.self_attn.pos_bias_u",
        "encoder.layers.7.conv.norm.running_var": "encoder.layers.7.conv.batch_norm.running_var",
        "encoder.layers.7.norm_out.bias": "encoder.layers.7.norm_out.bias",
    }
    assert [(match.names()[0] if (match := rename.match(name)) else name) for name in given] == [*given.values()]
