"""Two NeMos and the port as exact with each, as stand-ins of a few modules: what changed, and what has a name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl import recording
from nest_ssl.base.errors import UserError
from nest_ssl.cli.track import main
from nest_ssl.compare.born import Born
from nest_ssl.releases import RELEASES, describe
from nest_ssl.track.changes import Tracked, place_of

Edit = Callable[[nn.Module], None]
DATA = {"train": {"manifests": [{"name": "train.json", "sha256": "aa"}], "audio": {"a.wav": "11"}}}


class Features(nn.Module):
    def __init__(self, padding: str) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, audio: Tensor) -> Tensor:
        return nn.functional.pad(audio, (2, 2), mode=self.padding)


class Norm(nn.LayerNorm):
    pass


class Halved(nn.Module):
    by_two = True

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if self.by_two else x * 0.5


class StandIn(nn.Module):
    """What a generation does otherwise is the padding."""

    def __init__(self, generation: str) -> None:
        super().__init__()
        padding = {each["name"]: each["value"] for each in describe(generation)["differences"]}["stft_padding"]
        self.preprocessor = nn.ModuleDict({"featurizer": Features(padding)})
        self.encoder = nn.ModuleDict({"norm": Norm(8), "halved": Halved()})

    def forward(self, audio: Tensor) -> Tensor:
        return self.encoder["halved"](self.encoder["norm"](self.preprocessor["featurizer"](audio)))


def train(folder: Path, generation: str, name: str, edit: Edit, operators: bool = True, seed: int = 1) -> None:
    torch.manual_seed(1)
    model = StandIn(generation)
    edit(model)
    if name == "nemo":
        model.spec_augmentation = nn.Identity()  # built and never called, as NeMo's
    package, version = {"nemo": ("nemo_toolkit", RELEASES[generation]), "nest": ("stand-in", "1")}[name]
    trainer = {"name": name, "package": package, "version": version, "class": "StandIn"}
    facts = {"trainer": trainer, "generation": describe(generation), "seed": seed, "data": DATA}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording(folder / name, model, steps=[0, 1], operators=operators, overwrite=True, **facts) as r:
        for _ in range(2):
            batch = torch.arange(12.0).reshape(3, 4)
            r.batch(batch)
            loss = model(batch).square().sum()
            r.loss(loss)
            optimizer.zero_grad()
            loss.backward()
            r.backward_done()
            optimizer.step()
            r.step_done(optimizer)


def unchanged(model: nn.Module) -> None:
    """As the generation has it."""


def pair(folder: Path, generation: str, nemo: Edit = unchanged, nest: Edit = unchanged) -> str:
    train(folder, generation, "nemo", nemo)
    train(folder, generation, "nest", nest)
    return str(folder)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pair(tmp_path_factory.mktemp("track") / "old", "2.4")


def smaller_eps(model: nn.Module) -> None:
    model.encoder["norm"].eps = 1e-6


def rewritten(model: nn.Module) -> None:
    model.encoder["halved"].by_two = False


def tracked(before: str, after: str, out: Path) -> tuple[int, str, dict[str, object]]:
    code = main([before, after, "--out", str(out)])
    return code, (out / "track.md").read_text(), json.loads((out / "track.json").read_text())


def test_what_the_table_names_is_all(old: str, tmp_path: Path) -> None:
    code, text, tree = tracked(old, pair(tmp_path / "new", "3.0"), tmp_path)
    assert code == tree["exit_code"] == 0 and tree["between"] == "diverged"
    assert text.startswith("# From NeMo 2.4.1 to NeMo 3.0.0: 18 named differences, none without a name\n")
    (row,) = [line for line in text.splitlines() if line.startswith("| stft_padding")]
    assert row.endswith("| reflect | constant | 2 operators |")
    assert "Operators at `preprocessor.featurizer`" in text and "aten.reflection_pad1d.default" in text
    assert "Without a name" not in text and "Other operators" not in text


def test_what_has_no_name_is_placed_with_operators_and_lines(old: str, tmp_path: Path) -> None:
    code, text, tree = tracked(old, pair(tmp_path / "new", "3.0", smaller_eps), tmp_path)
    assert code == tree["exit_code"] == 1
    (found,) = tree["unnamed"]
    assert (found["module"], found["before"], found["after"]) == ("encoder.norm", False, True)
    assert text.startswith("# From NeMo 2.4.1 to NeMo 3.0.0: 18 named differences, and 1 without a name\n")
    part = text[text.index("## Without a name") : text.index("## Operators at")]
    assert "The port parts here from NeMo 3.0.0." in part and "eps=1e-05 -> 1e-06" in part
    assert "test_track.py:" in part and "reflection_pad1d" not in part


def test_what_the_port_has_wrong_in_both_did_not_change(tmp_path: Path) -> None:
    sides = [pair(tmp_path / name, "3.0", unchanged, smaller_eps) for name in ("one", "other")]
    code, text, tree = tracked(*sides, tmp_path)
    assert code == 1 and tree["between"] == "identical" and tree["named"] == []
    assert "from NeMo 3.0.0 (before) and NeMo 3.0.0 (after): it did not change between the two" in text


def test_a_rewrite_with_the_same_bits_is_listed_and_passes(old: str, tmp_path: Path) -> None:
    code, text, tree = tracked(old, pair(tmp_path / "new", "2.4", rewritten), tmp_path)
    assert (code, tree["between"], tree["other_operators"]) == (0, "identical", ["encoder.halved"])
    assert "Nothing: to the table both are of generation 2.4." in text and "aten.mul.Tensor" in text


def test_a_value_that_changed_back_is_sought_in_the_table(old: str, tmp_path: Path) -> None:
    """A later NeMo pads as the earlier did: the place has names, and the table another value."""

    def reflect(model: nn.Module) -> None:
        model.preprocessor["featurizer"].padding = "reflect"

    code, text, tree = tracked(old, pair(tmp_path / "new", "3.0", reflect), tmp_path)
    assert code == 1 and tree["unnamed"][0]["module"] == "preprocessor.featurizer"
    assert "The table has stft_padding, " in text and "one of them may have another value" in text


def test_other_experiments_and_recordings_without_operators(old: str, tmp_path: Path) -> None:
    other = tmp_path / "seed"
    for name in ("nemo", "nest"):
        train(other, "3.0", name, unchanged, seed=2)
    code, text, _ = tracked(old, str(other), tmp_path)
    assert code == 4 and text.startswith("# Not the same experiment from NeMo 2.4.1 to NeMo 3.0.0\n")
    train(other, "3.0", "nemo", unchanged, operators=False)
    with pytest.raises(UserError, match=r"no operators were recorded: .*operators=true"):
        main([old, str(other)])


def test_a_place_in_which_others_lie_stands_for_itself() -> None:
    places = {"encoder": "encoder", "encoder.layers.0": None, "encoder.pre_encode.conv.0": "encoder.pre_encode",
              "preprocessor.featurizer": "preprocessor.featurizer", None: None, "": None}  # fmt: skip
    assert {module: place_of(module) for module in places} == places


def test_what_has_no_name_is_in_causal_order_whichever_of_the_two_it_shows_in() -> None:
    late, early, first = Born("loss", "loss", step=0), Born("forward", "encoder", step=0, order=4), Born("batch", None)
    sides: list[Any] = [SimpleNamespace(proof=SimpleNamespace(born=born)) for born in ([late], [first, early, late])]
    tracked = Tracked(sides[0], *sides, operators=(), files={})
    assert [one.born for one in tracked.unnamed] == [first, early, late]
    assert [(one.before, one.after) for one in tracked.unnamed] == [(False, True), (False, True), (True, True)]
