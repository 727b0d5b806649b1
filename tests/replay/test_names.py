"""A candidate whose modules have other names: with the map of names it is replayed as if it had the reference's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from train_nest import NEST

from nest_ssl.cli import replay as command
from nest_ssl.compare.name_map import renaming
from nest_ssl.compare.names import Renamed
from nest_ssl.recording.evidence import Replay, read_evidence, seal_of
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.replay import replay
from nest_ssl.run.experiment import run
from tests.replay.conftest import OVERRIDES, blamed
from tests.replay.test_kinds_of_modules import Zoo, another_keyword, factor, slope, train


class Wrapper(nn.Module):
    """Hands on what it gets, but for a factor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.factor = inner, 1.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        return output if self.factor == 1.0 else output * self.factor


def rename_block(model: Any) -> nn.Module:
    model.piece = model.block
    del model.block
    object.__setattr__(model, "block", model.piece)  # what its forward calls
    return model  # type: ignore[no-any-return]


def wrap_keyword(model: Any) -> nn.Module:
    model.keyword = Wrapper(model.keyword)
    return model  # type: ignore[no-any-return]


OTHERWISE: dict[Callable[[Any], nn.Module], dict[str, str]] = {
    rename_block: {"piece": "block"},
    wrap_keyword: {"keyword.inner": "keyword"},
    Wrapper: {"inner": ""},
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return train(tmp_path_factory.mktemp("zoo"), Zoo)


def fed(reference: Recording, rebuild: Callable[[Any], nn.Module], *plants: Callable[[Any], None]) -> Replay:
    model = Zoo()
    for plant in plants:
        plant(model)
    return replay(reference, rebuild(model), rename=renaming(OTHERWISE[rebuild]))


@pytest.mark.parametrize("rebuild", OTHERWISE, ids=lambda rebuild: rebuild.__name__)
def test_under_other_names_the_same_function_is_the_same(zoo: Recording, rebuild: Any) -> None:
    found, plain = fed(zoo, rebuild), replay(zoo, Zoo())
    assert {unit.outcome for unit in found.units} == {"same bits"}
    assert [(u.module, u.call, u.phase, u.compared) for u in found.units] == [
        (u.module, u.call, u.phase, u.compared) for u in plain.units
    ]
    assert (found.only_reference, found.only_candidate) == ([], [])


@pytest.mark.parametrize("rebuild", OTHERWISE, ids=lambda rebuild: rebuild.__name__)
def test_under_other_names_a_fault_is_named_by_the_references(zoo: Recording, rebuild: Any) -> None:
    expected = {"block": {"forward", "backward"}, "block.act": {"backward"}, "keyword": {"forward"}}
    assert blamed(fed(zoo, rebuild, factor, slope, another_keyword)) == expected


def test_what_a_wrapper_adds_is_blamed_on_whoever_calls_it(zoo: Recording) -> None:
    def rebuild(model: Any) -> nn.Module:
        wrap_keyword(model).get_submodule("keyword").factor = 1.0001
        return model  # type: ignore[no-any-return]

    found = replay(zoo, rebuild(Zoo()), rename=renaming(OTHERWISE[wrap_keyword]))
    assert blamed(found) == {"": {"forward", "backward"}}


def test_without_the_map_what_has_another_name_is_not_replayed(zoo: Recording) -> None:
    found = replay(zoo, rename_block(Zoo()))
    assert found.only_reference[:1] == ["block"] and found.only_candidate[:1] == ["piece"]
    assert "the candidate has no such module" in {unit.why for unit in found.units if unit.module == "block"}


class Kernel(nn.Module):
    """A linear layer whose weight is stored transposed, as other frameworks have it."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(of.weight.detach().t().clone()), nn.Parameter(of.bias.detach().clone())

    def forward(self, x: Any) -> Any:
        return x @ self.kernel + self.bias


def test_a_module_whose_weights_are_other_tensors_is_left_out_and_all_others_are_judged(zoo: Recording) -> None:
    model = Zoo()
    model.start[0] = Kernel(model.start[0])  # type: ignore[arg-type]
    factor(model)
    rename = renaming({"start.0.kernel": {"to": "start.0.weight", "transpose": True}})
    found = replay(zoo, model, rename=rename)
    assert blamed(found) == {"block": {"forward", "backward"}}
    left_out = {(unit.module, unit.why) for unit in found.units if unit.outcome == "not replayed"}
    assert {module for module, _ in left_out} == {"start.0"} and "one way alone" in left_out.pop()[1]


NAMES = "encoder.blocks: encoder.layers\ndecoder.inner: decoder\n"


def otherwise(model: Any) -> None:
    """A layer list renamed and the decoder wrapped, as somebody's own port may have them."""
    encoder = model.encoder
    encoder.blocks = encoder.layers
    del encoder.layers
    object.__setattr__(encoder, "layers", encoder.blocks)
    model.decoder = Wrapper(model.decoder)


def test_the_command_takes_the_map(
    reference: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One candidate that is right, and the same one with an eps that is wrong."""
    wrong = False

    def build_model(*args: Any) -> Any:
        model = NEST.build_model(*args)
        otherwise(model)
        if wrong:
            model.encoder.blocks[1].norm_out.eps = 1e-6
        return model

    subject = dataclasses.replace(NEST, build_model=build_model)
    assert run(subject, [*OVERRIDES, f"output_dir={tmp_path / 'nest'}"]) == 0
    (tmp_path / "names.yaml").write_text(NAMES)
    monkeypatch.setattr(command, "subject_of", lambda *_: subject)
    sides = ["--reference", str(reference.path), "--candidate", str(tmp_path / "nest")]
    words = [*sides, "--names", str(tmp_path / "names.yaml"), "--out", str(tmp_path / "replay.json")]
    assert command.main(words) == 0
    found = read_evidence(tmp_path / "replay.json", Replay)
    assert blamed(found) == {} and {unit.outcome for unit in found.units} == {"same bits"}
    assert {"batch", "loss", "optimizer", "schedule"} < {unit.phase for unit in found.units}
    renamed = Renamed(open_recording(tmp_path / "nest"), renaming({"encoder.blocks": "encoder.layers"}))
    assert found.candidate == seal_of(renamed.index)
    wrong = True
    assert command.main(words) == 0
    module = "encoder.layers.1.norm_out"
    assert blamed(read_evidence(tmp_path / "replay.json", Replay)) == {module: {"forward", "backward"}}
