"""A map of names: a renamed or wrapped module has the reference's name, and nothing is hidden by it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.compare import compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.evidence import open_evidence
from nest_ssl.compare.name_map import load_names, renaming
from nest_ssl.compare.names import Renamed, uncompiled
from nest_ssl.recording.evidence import (
    FLOAT64,
    OPERATORS,
    Operator,
    Operators,
    float64_names,
    seal_of,
    write_evidence,
)
from nest_ssl.recording.reader import open_recording
from tests.compare.builder import Encoder, Model, Plan, first, noted, record

RENAMED = {"encoder.blocks": "encoder.layers"}
WRAPPED = {"decoder.inner": "decoder"}


class Blocks(Encoder):
    """The same with another name for its list of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = self.layers
        del self.layers

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        object.__setattr__(self, "layers", self.blocks)
        return super().forward(audio_signal, length)


Blocks.__qualname__ = "Encoder"


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        assert isinstance(found, Tensor)
        return found


class Other(Model):
    """Other names; made of the same draws in the same order."""

    def __init__(self) -> None:
        super().__init__()
        state = torch.get_rng_state()
        encoder = Blocks()
        torch.set_rng_state(state)
        encoder.load_state_dict({
            name.replace("layers", "blocks"): value for name, value in self.encoder.state_dict().items()
        })  # fmt: skip
        self.encoder = encoder


def wrapped(model: nn.Module) -> None:
    model.decoder = Wrapper(model.decoder)


def compared(reference: Path, candidate: Path, names: dict[str, str]) -> Comparison:
    renamed = Renamed(open_recording(candidate), renaming(names))
    return compare_recordings(open_recording(reference), renamed, declared=[])


def test_a_renamed_module(reference: Path, tmp_path: Path) -> None:
    made = record(tmp_path / "nest", Plan("nest", "0.1.0", model=Other))
    assert compare_recordings(open_recording(reference), open_recording(made), declared=[]).verdict == "diverged"
    comparison = compared(reference, made, RENAMED)
    assert comparison.verdict == "identical", first(comparison)
    assert comparison.rung("weights").compared > 100


def test_a_wrapped_module(reference: Path, tmp_path: Path) -> None:
    made = record(tmp_path / "nest", Plan("nest", "0.1.0", after_build=wrapped))
    assert compared(reference, made, WRAPPED).verdict == "identical"


def test_a_fault_below_a_name_that_is_mapped_is_found_and_named(reference: Path, tmp_path: Path) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.blocks[1].norm.eps = 2e-3

    made = record(tmp_path / "nest", Plan("nest", "0.1.0", model=Other, after_build=plant))
    assert first(compared(reference, made, RENAMED))[:3] == ("forward", 0, "encoder.layers.1.norm")


def without_a_map(reference: Path, candidate: Path) -> Comparison:
    sides = open_recording(reference), open_recording(candidate)
    rename = uncompiled(*sides)
    return compare_recordings(sides[0], Renamed(sides[1], rename) if rename else sides[1], declared=[])


TORCHS_OWN = "ignore:The .grad attribute of a Tensor:UserWarning"  # torch.compile asks


@pytest.mark.filterwarnings(TORCHS_OWN)
def test_what_torch_compile_has_wrapped_is_compared_as_a_whole(reference: Path, tmp_path: Path) -> None:
    """Calls in it are not watched, since it is compiled with whatever watches it; its weights and its output are."""

    def compiled(model: nn.Module, factor: float = 0.5) -> None:
        model.encoder.layers[1].factor = factor
        model.encoder.layers[1] = torch.compile(model.encoder.layers[1], backend="eager")

    right = without_a_map(reference, record(tmp_path / "right", Plan("nest", "0.1.0", after_build=compiled)))
    assert right.verdict == "identical", first(right)
    assert right.rung("weights").compared > 100 and right.rung("forward").missing_candidate == 0
    assert noted(right, "computed_otherwise")[0]["count"] == 8  # of one that both layers share, both calls
    plan = Plan("nest", "0.1.0", after_build=lambda model: compiled(model, 0.50001))
    wrong = without_a_map(reference, record(tmp_path / "wrong", plan))
    assert wrong.verdict == "diverged" and first(wrong)[:3] == ("forward", 0, "encoder.layers.1.norm")  # not called
    differing = [one for one in wrong.rung("forward").findings if one.metrics and one.address.module]
    assert min(differing, key=lambda one: one.moment).address.module == "encoder.layers.1"


@pytest.mark.filterwarnings(TORCHS_OWN)
def test_what_is_compiled_in_place_is_compared_by_what_is_around_it(reference: Path, tmp_path: Path) -> None:
    def compiled(model: nn.Module) -> None:
        model.encoder.layers[1].compile(backend="eager")

    right = record(tmp_path / "right", Plan("nest", "0.1.0", after_build=compiled))
    assert without_a_map(reference, right).verdict == "identical"


def test_evidence_about_the_candidate_is_read_under_the_same_names(reference: Path, tmp_path: Path) -> None:
    """Its recording in float64, and the operators of a wrapper, which belong to the call around it."""
    made = record(tmp_path / "nest", Plan("nest", "0.1.0", after_build=wrapped))
    for path, name in zip((reference, made), float64_names(reference, made), strict=True):
        shutil.copytree(path, tmp_path / "evidence" / FLOAT64 / name)
    one, other = open_recording(reference), Renamed(open_recording(made), renaming(WRAPPED))
    ran = [
        Operator(name=name, phase="forward", module=module, call=0)
        for name, module in (("a", ""), ("b", "decoder"), ("c", "decoder.inner"))
    ]
    ran.append(Operator(name="d", phase="optimizer", module="decoder.inner"))
    for side, modules in (("reference", {"#0": "", "decoder#0": "#0"}),
                          ("candidate", {"#0": "", "decoder#0": "#0", "decoder.inner#0": "decoder#0"})):  # fmt: skip
        both = {"reference": seal_of(one.index), "candidate": seal_of(other.index)}
        of_side = Operators(**both, side=side, step=0, operators=ran, enclosing=modules)
        write_evidence(tmp_path / "evidence" / OPERATORS / f"{side}.json", of_side)
    found = open_evidence(tmp_path / "evidence", one, other)
    assert found.float64 and found.operators
    in_float64 = compare_recordings(*found.float64, declared=[])
    assert in_float64.verdict == "identical", first(in_float64)
    operators = found.operators[1]
    assert operators.enclosing == {"#0": "", "decoder#0": "#0"}
    assert [(o.name, o.module, o.call) for o in operators.operators] == [
        ("a", "", 0), ("b", "", 0), ("c", "decoder", 0), ("d", "decoder", None),
    ]  # fmt: skip


def test_the_longest_name_counts_and_a_star_is_one_part() -> None:
    rename = renaming({"model": "", "model.encoder": "encoder.inside", "layers.*.attn.*": "blocks.*.*"})
    names = ("model", "model.decoder.bias", "model.encoder.x", "models.y", "layers.3.attn.q.w")
    renamed = ["", "decoder.bias", "encoder.inside.x", "models.y", "blocks.3.q.w"]
    assert [rename(name) for name in names] == renamed


@pytest.mark.parametrize("text", ["- a", "a: 1", "'': b", "a: b.*"])
def test_what_is_no_map_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(UserError, match="no map of names"):
        load_names(tmp_path / "names.yaml")


def test_a_map_that_fits_nothing_is_refused(reference: Path) -> None:
    with pytest.raises(UserError, match="fits nothing"):
        Renamed(open_recording(reference), renaming({"nowhere": "x"}))


@pytest.mark.parametrize("names", [{"encoder.layers.1": "encoder.layers.0", "encoder.layers.0": "encoder.layers.0"},
                                   {"encoder.layers.*": "encoder.layers.0"}])  # fmt: skip
def test_two_things_have_no_name_in_common(reference: Path, names: dict[str, str]) -> None:
    """One of the two would stand for both, and no difference in the other would be seen."""
    with pytest.raises(UserError, match="gives two things one name") as raised:
        Renamed(open_recording(reference), renaming(names))
    assert "encoder.layers.0 and encoder.layers.1 are both 'encoder.layers.0'" in raised.value.where
