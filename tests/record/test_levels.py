"""Levels of a recording: hashes alone, boundaries of blocks, modules by their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nest_ssl
from nest_ssl.base.errors import UserError
from nest_ssl.compare import compare_recordings
from nest_ssl.compare.digests import compare_digests
from nest_ssl.compare.findings import Status
from nest_ssl.recording.address import Kind
from nest_ssl.recording.digests import digest_steps, digests, fingerprint
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.replay import replay
from tests.record.loop import recorded_step

STEPS, WIDTH = 12, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act = nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner(x))  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front, self.layers = nn.Linear(WIDTH, WIDTH), nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        for layer in self.layers:
            x = layer(x)
        return x


def train(out: Path, fault: int | None = None, steps: int = STEPS, **settings: Any) -> tuple[Recording, Net]:
    """From step `fault` on the second block's output is a little larger."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    with nest_ssl.recording(out, model, **settings) as r:
        for step in range(steps):
            if step == fault:
                model.layers[1].register_forward_hook(lambda _, __, output: output + 1e-3)
            x = torch.randn(4, WIDTH, generator=generator)
            r.batch(x)
            recorded_step(r, model, optimizer, x)
    return open_recording(out), model


def test_operators_alone_are_those_of_a_whole_recording_and_never_a_pass(tmp_path: Path) -> None:
    whole, trained = train(tmp_path / "whole", steps=2, operators=True)
    alone, other = train(tmp_path / "alone", steps=2, record="operators")
    assert all(torch.equal(one, two) for one, two in zip(trained.parameters(), other.parameters(), strict=True))
    for step in (0, 1):
        names = [f"{side.path}/step_{step}/operators.json" for side in (whole, alone)]
        assert Path(names[0]).read_bytes() == Path(names[1]).read_bytes()
    assert {name for name in alone.index.tensors if "/" in name} == {"initial_weights/parameter_weights.pt"}
    assert compare_recordings(alone, alone).verdict == Status.INCONCLUSIVE


def test_hashes_are_those_of_what_is_recorded_whole_and_training_is_not_changed(tmp_path: Path) -> None:
    whole, trained = train(tmp_path / "whole", steps=2)
    hashed, other = train(tmp_path / "hashed", steps=2, record="digest")
    assert digest_steps(hashed) == [0, 1] and hashed.steps == [] and digest_steps(whole) == []
    assert all(torch.equal(one, two) for one, two in zip(trained.parameters(), other.parameters(), strict=True))
    step, found = whole.step(1), dict(digests(hashed, 1).entries())
    kept = {(place.kind, place.module, place.call, place.own_name): entry for place, entry in found.items()}
    for call in step.calls():
        assert kept[Kind.OUTPUT, call.module, call.call, "output"].same(fingerprint(call.output)), call.name
        assert kept[Kind.INPUT, call.module, call.call, f"inputs.{call.arg_names[0]}"].same(fingerprint(call.args[0]))
        for gradient in call.output_grads.values():
            assert kept[Kind.OUTPUT_GRADIENT, call.module, call.call, "output_grad"].same(fingerprint(gradient))
    for name, tensor in step.weights().items():
        module, _, own = name.rpartition(".")
        assert kept[Kind.PARAMETER, module, None, own].same(fingerprint(tensor))
        state = step.optimizer_state()["state"][name]
        assert kept[Kind.OPTIMIZER_STATE, module, None, f"{own}.exp_avg"].same(fingerprint(state["exp_avg"]))
    kinds = [place.kind for place in found]
    assert kinds.index(Kind.OUTPUT) < kinds.index(Kind.LOSS) < kinds.index(Kind.GRADIENT) < kinds.index(Kind.PARAMETER)
    assert nest_ssl.compare(tmp_path / "hashed", tmp_path / "hashed").verdict == "inconclusive"
    with pytest.raises(UserError, match="a recording of digest cannot be replayed"):
        replay(hashed, Net())


def test_the_first_step_and_module_that_differ(tmp_path: Path) -> None:
    one, _ = train(tmp_path / "one", record="digest")
    two, _ = train(tmp_path / "two", record="digest")
    other, _ = train(tmp_path / "other", fault=7, record="digest")
    same = compare_digests(one, two)
    assert same.first is None and len(same.steps) == STEPS and same.tensors > 500
    found = compare_digests(one, other)
    assert found.first and (found.first.step, found.steps) == (7, [*range(8)])
    assert (found.first.address.kind, found.first.address.module) == (Kind.OUTPUT, "layers.1")
    assert found.first.reference and found.first.candidate
    assert found.first.candidate.least == pytest.approx(found.first.reference.least + 1e-3)
    with pytest.raises(UserError, match="no step of which both have hashes"):
        compare_digests(one, train(tmp_path / "whole", steps=1)[0])


@pytest.mark.parametrize(
    ("settings", "modules"),
    [
        ({"record": "boundaries"}, ["", "front", "layers.0", "layers.1"]),
        ({"include": ["layers.1*"]}, ["", "layers.1", "layers.1.inner", "layers.1.act"]),
        ({"record": "boundaries", "exclude": ["front"]}, ["", "layers.0", "layers.1"]),
        ({"exclude": ["*.act", "*.inner"]}, ["", "front", "layers.0", "layers.1"]),
    ],
)
def test_some_modules_alone(tmp_path: Path, settings: dict[str, Any], modules: list[str]) -> None:
    found, model = train(tmp_path / "one", steps=1, **settings)
    assert [call.module for call in found.step(0).calls()] == modules
    comparison = nest_ssl.compare(tmp_path / "one", tmp_path / "one")
    assert comparison.verdict == "identical" and "were not recorded" in str(comparison)
    with pytest.raises(UserError, match="some modules cannot be replayed"):
        replay(found, model)


def test_what_one_side_alone_did_not_record_is_said(tmp_path: Path) -> None:
    """The same calls, by another choice: under `identical` stands which modules of which side were not seen."""
    train(tmp_path / "one", steps=1, record="boundaries")
    train(tmp_path / "other", steps=1, include=["front", "layers.?"])
    comparison = nest_ssl.compare(tmp_path / "one", tmp_path / "other").comparison
    assert (comparison.verdict, [note.kind for note in comparison.unseen]) == ("identical", ["unseen_level_side"] * 2)
    assert [note.values["side"] for note in comparison.unseen] == ["reference", "candidate"]
    train(tmp_path / "whole", steps=1)
    for sides, side in ((("whole", "one"), "candidate"), (("one", "whole"), "reference")):
        comparison = nest_ssl.compare(*(tmp_path / name for name in sides)).comparison
        assert [note.values["side"] for note in comparison.unseen] == [side]


SOME: list[dict[str, Any]] = [
    {"record": "boundaries"}, {"include": ["layers.0*"]}, {"exclude": ["*.act"]}, {"record": "operators"},
    {"record": "digest"},
]  # fmt: skip


@pytest.mark.parametrize("settings", SOME, ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_trainer_with_less_recorded_is_no_other_trainer(
    tmp_path: Path, settings: dict[str, Any], swapped: bool
) -> None:
    """Of what one side alone left out nothing can be said, and nothing bad is; what it has is compared."""
    train(tmp_path / "whole", steps=2)
    train(tmp_path / "part", steps=2, **settings)
    sides = ("part", "whole") if swapped else ("whole", "part")
    found = nest_ssl.compare(*(tmp_path / name for name in sides)).comparison
    said = [note.kind for note in found.unseen]
    whole = settings.get("record") in ("operators", "digest")
    assert found.verdict == ("inconclusive" if whole else "identical"), (found.verdict, found.first)
    assert found.exit_code != 4 and said[0] in ("unseen_level_side", "unseen_digest_side")
    if not whole:
        train(tmp_path / "part", steps=2, fault=1, overwrite=True, **settings)
        assert nest_ssl.compare(*(tmp_path / name for name in sides)).verdict == "diverged"


class Blocks(nn.ModuleList):
    """A list by another name, as recordings have it."""


def test_what_both_recorded_is_compared_whatever_its_list_is_called(tmp_path: Path) -> None:
    """A block whose output nothing reads: its own call alone shows the fault."""
    made = {"whole": (0.0, {}), "part": (0.0, {"record": "boundaries"}), "fault": (1e-3, {"record": "boundaries"})}
    for name, (off, settings) in made.items():
        torch.manual_seed(0)
        model = nn.Module()
        model.part = nn.Module()
        model.part.layers = Blocks([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        model.part.layers[1].register_forward_hook(lambda *given, off=off: given[-1] + off)

        def forward(x: Tensor, layers: Any = model.part.layers) -> Tensor:
            layers[1](x)
            return layers[0](x)  # type: ignore[no-any-return]

        model.forward = forward
        optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(2, WIDTH)
        with nest_ssl.recording(tmp_path / name, model, **settings) as r:
            r.batch(x)
            recorded_step(r, model, optimizer, x)
    for one, other, verdict in (("part", "fault", "diverged"), ("whole", "fault", "diverged"),
                                ("whole", "part", "identical")):  # fmt: skip
        assert nest_ssl.compare(tmp_path / one, tmp_path / other).verdict == verdict, (one, other)


def blocks(out: Path, kind: Any, off: float = 0.0, called: int = 2) -> Path:
    """Boundaries of two blocks in one part, in a list of this kind; the part adds `off` to what they give."""
    torch.manual_seed(0)
    model, part = nn.Module(), nn.Module()
    layers = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
    model.part, part.layers = part, nn.Sequential(*layers) if kind is nn.Sequential else kind(layers)

    def forward(x: Tensor) -> Tensor:
        for layer in list(part.layers)[:called]:
            x = layer(x)
        return x * part.scale + off

    part.scale = nn.Parameter(torch.ones(()))
    part.forward, model.forward = forward, lambda x: part(x)
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(2, WIDTH)
    with nest_ssl.recording(out, model, record="boundaries") as r:
        r.batch(x)
        recorded_step(r, model, optimizer, x)
    return out


class ModuleList(nn.Module):
    """A class of someone's own that has torch's name and is no list: its blocks are attributes."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)

    def __iter__(self) -> Iterator[nn.Module]:
        return self.children()


Named = type("Blocks", (ModuleList,), {})  # no list either, by the name of one


@pytest.mark.parametrize("kinds", [(nn.ModuleList, nn.Sequential), (nn.Sequential, nn.ModuleList),
                                   (Blocks, nn.Sequential), (nn.ModuleList, ModuleList), (ModuleList, nn.ModuleList),
                                   (Blocks, Named), (Named, Blocks)])  # fmt: skip
def test_blocks_that_one_side_has_in_no_list_are_not_missing(tmp_path: Path, kinds: tuple[Any, Any]) -> None:
    """Of the same level, too, one side may leave out what the other has: that is no call which was not made."""
    one, other = blocks(tmp_path / "one", kinds[0]), blocks(tmp_path / "other", kinds[1])
    found = nest_ssl.compare(one, other).comparison
    named = "identical" if kinds[0].__name__ == kinds[1].__name__ else "diverged"
    assert found.rung("forward").status == "identical" and found.rung("structure").status == named
    assert "computed_otherwise" not in [note.kind for note in found.notes]
    found = nest_ssl.compare(one, blocks(tmp_path / "fault", kinds[1], off=1e-3)).comparison
    apart = found.rung("forward").findings
    assert (apart[0].address.kind, apart[0].address.module) == (Kind.OUTPUT, "part")
    assert not [one for one in apart if one.missing]


@pytest.mark.parametrize("kind", [nn.ModuleList, Blocks])
@pytest.mark.parametrize("called", [0, 1])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_block_that_is_really_not_called_is_missing(tmp_path: Path, kind: Any, called: int, swapped: bool) -> None:
    sides = [blocks(tmp_path / "one", kind), blocks(tmp_path / "other", kind, called=called)]
    found = nest_ssl.compare(*(reversed(sides) if swapped else sides)).comparison
    missing = [one.address.module for one in found.rung("forward").findings if one.missing]
    assert found.verdict == "diverged" and missing == [f"part.layers.{number}" for number in range(called, 2)]


def test_a_call_outside_of_the_models_forward_is_left_out_too(tmp_path: Path) -> None:
    """The loss is a module that the loop calls: no call around it agrees."""
    for name, settings in (("whole", {}), ("part", {"include": ["front"]})):
        model = nn.ModuleDict({"front": nn.Linear(WIDTH, WIDTH), "loss": nn.MSELoss()})
        torch.manual_seed(0)
        nn.init.normal_(model["front"].weight)
        nn.init.zeros_(model["front"].bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with nest_ssl.recording(tmp_path / name, model, steps=[0], **settings) as r:
            x = torch.ones(2, WIDTH)
            r.batch(x)
            loss = model["loss"](model["front"](x), x)
            r.loss(loss)
            optimizer.zero_grad()
            loss.backward()
            r.backward_done()
            optimizer.step()
            r.step_done(optimizer)
    for sides in (("whole", "part"), ("part", "whole")):
        assert nest_ssl.compare(*(tmp_path / side for side in sides)).exit_code == 0


@pytest.mark.parametrize(
    "settings", [{"record": "boundaries"}, {"include": ["front"]}, {"exclude": ["layers.0", "layers.0.*"]}], ids=str
)
def test_a_compiled_part_is_chosen_by_its_own_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    calls = []
    for compiled in (False, True):
        model = Net()
        model.front = torch.compile(model.front, backend="eager") if compiled else model.front  # type: ignore[assignment]
        optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(2, WIDTH)
        with nest_ssl.recording(tmp_path / "one", model, steps=[0], overwrite=True, **settings) as r:
            r.batch(x)
            recorded_step(r, model, optimizer, x)
        calls.append(
            [call.module.replace("._orig_mod", "") for call in open_recording(tmp_path / "one").step(0).calls()]
        )
    assert calls[0] == calls[1] and "front" in calls[0]


def test_a_pattern_that_fits_no_module_is_one_line(tmp_path: Path) -> None:
    for option, pattern, said in (("include", "layer.1", "Did you mean layers.1"), ("exclude", "*x", "with . and ?")):
        with pytest.raises(UserError, match=f"fits no module: {option}=.*{said}"):
            train(tmp_path / "one", **{option: ["front", pattern]})
    assert not (tmp_path / "one").exists()


def test_a_level_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such level: record=digests. Did you mean digest"):
        train(tmp_path / "one", record="digests")
    with pytest.raises(UserError, match=r"a text in place of a list of patterns: include='front'"):
        train(tmp_path / "one", include="front")
    with pytest.raises(UserError, match="a digest has no operators"):
        train(tmp_path / "one", record="digest", operators=True)
