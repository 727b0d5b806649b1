"""A folder of tensors becomes a recording, and a fault in what made them is found in it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import nest_ssl
from nest_ssl.base.errors import UserError
from nest_ssl.cli import main as command
from nest_ssl.recording.importing import import_folder, read_tensors
from nest_ssl.recording.reader import open_recording

GUARD = 2.0**-24


class LogMel(nn.Module):
    """As a front end has it: power, a bank of filters, and a logarithm that is guarded."""

    def __init__(self) -> None:
        super().__init__()
        self.fb = nn.Parameter(torch.arange(32.0).reshape(8, 4) / 64, requires_grad=False)

    def forward(self, spectrum: Tensor) -> Tensor:
        return torch.log(spectrum.square() @ self.fb + GUARD)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.featurizer, self.head = LogMel(), nn.Linear(4, 2)

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.head(self.featurizer(spectrum))


def reference(out: Path) -> dict[str, np.ndarray[Any, Any]]:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD([*model.head.parameters()], lr=0.5)
    initial = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    with nest_ssl.recording(out, model, steps=[0], output_names=("y",)) as r:
        r.batch({"spectrum": spectrum()})
        loss = model(spectrum()).square().mean()
        r.loss(loss)
        loss.backward()
        r.backward_done()
        optimizer.step()
        r.step_done(optimizer)
    return initial


def spectrum() -> Tensor:
    return torch.arange(24.0).reshape(3, 8) / 1024


def candidate(folder: Path, initial: dict[str, Any], guard: float = GUARD) -> Path:
    """The same in NumPy, with names and a layout of its own; float32 products of these sizes are exact in any order."""
    step = folder / "step_0"
    step.mkdir(parents=True)
    bank = initial["featurizer.fb"]
    np.savez(folder / "initial_weights.npz", **{
        "frontend.fb": bank.T, "out.kernel": initial["head.weight"].T, "out.bias": initial["head.bias"],
    })  # fmt: skip
    power = np.square(spectrum().numpy()) @ bank
    mel = torch.log(torch.from_numpy(power + np.float32(guard))).numpy()
    np.savez(step / "batch.npz", spectrum=spectrum().numpy())
    np.savez(step / "activations.npz", **{"frontend": mel, "frontend/inputs/spectrum": spectrum().numpy()})
    (folder / "import.yaml").write_text("name: mine\npackage: numpy\nseed: null\n")
    return folder


NAMES = """
frontend: featurizer
frontend.fb: {to: featurizer.fb, transpose: true}
out.kernel: {to: head.weight, transpose: true}
out: head
"""


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "names.yaml").write_text(NAMES)
    return reference(tmp_path / "reference")


def compared(tmp_path: Path, initial: dict[str, Any], guard: float) -> nest_ssl.Compared:
    folder = candidate(tmp_path / f"made-{guard}", initial, guard)
    assert command.dispatch(["import", str(folder), "--out", str(tmp_path / f"run-{guard}")]) == 0
    return nest_ssl.compare(tmp_path / "reference", tmp_path / f"run-{guard}", names=tmp_path / "names.yaml")


def test_a_log_guard_that_is_another_is_found(
    tmp_path: Path, made: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = compared(tmp_path, made, 2.0**-20)
    said = capsys.readouterr().out
    assert "import: step 0: no activation_gradients, output, loss, gradients, weights" in said
    assert found.verdict == "diverged" and found.first
    place = found.first.address
    assert (found.first.rung, place.kind.value, place.module) == ("forward", "output", "featurizer")
    assert {one.rung for one in found.findings} == {"forward"}, found


def test_what_is_the_same_is_said_to_be_so_as_far_as_it_goes(tmp_path: Path, made: dict[str, Any]) -> None:
    found = compared(tmp_path, made, GUARD)
    assert (found.verdict, found.exit_code, found.findings) == ("inconclusive", 2, []), found
    rungs = {rung.name: rung.status.value for rung in found.comparison.rungs}
    assert [rungs[n] for n in ("initial_weights", "batch", "structure")] == ["identical", "identical", "not compared"]
    assert "which has activations, batch, initial_weights, and 2 calls fewer" in str(found)
    assert "2 of 3 tensors were laid out otherwise" in nest_ssl.report(found, tmp_path / "report").read_text()


@pytest.mark.parametrize(
    ("plant", "what"),
    [
        (lambda folder: (folder / "step_0" / "batch.npz").rename(folder / "step_0" / "bach.npz"), "Did you mean batch"),
        (lambda folder: (folder / "step_0" / "batch.npz").write_bytes(b"PK\3\4"), "cannot be read"),
        (lambda folder: (folder / "import.yaml").write_text("nam: x"), "Did you mean name"),
        (lambda folder: (folder / "step_0").rename(folder / "step0"), "nothing to import"),
        (lambda folder: np.savez(folder / "step_0" / "loss.npz", a=np.ones(2)), "a loss is one number"),
        (lambda folder: np.savez(folder / "step_0" / "activation_gradients.npz", x=np.ones(2)), "of no activation"),
        (lambda folder: np.savez(folder / "step_0" / "loss.npz", a=np.array([object()])), "cannot be read"),
    ],
)
def test_what_cannot_be_imported_is_one_line(tmp_path: Path, plant: Any, what: str) -> None:
    initial = {"featurizer.fb": np.ones((8, 4), "f"), "head.weight": np.ones((2, 4), "f"), "head.bias": np.ones(2, "f")}
    folder = candidate(tmp_path / "made", initial)
    plant(folder)
    with pytest.raises(UserError, match=what):
        command.dispatch(["import", str(folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_safetensors(tmp_path: Path) -> None:
    numbers = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    tensors = {"b": numbers, "a": torch.tensor([True, False]), "c": torch.empty(0)}
    kinds, data, header = {"b": "BF16", "a": "BOOL", "c": "F32"}, b"", {}
    for name, tensor in tensors.items():
        raw = tensor.view(torch.uint8).numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kinds[name], "shape": list(tensor.shape), "data_offsets": place}
        data += raw
    text = json.dumps({"__metadata__": {"x": "y"}, **header}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    found = read_tensors(path)
    assert list(found) == list(tensors) and all(torch.equal(found[name], tensors[name]) for name in tensors)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"dtype": "F8", "shape": [1], "data_offsets": [0, 1]}, "x is of type F8"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "it has 8 bytes of 8, for the shape \\[3\\]"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "its header"),
        ({"dtype": "F32"}, "its header"), ("F32", "its header"),
    ],
)  # fmt: skip
def test_a_header_that_is_none(tmp_path: Path, entry: Any, what: str) -> None:
    text = json.dumps({"x": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(UserError, match=what):
        read_tensors(tmp_path / "x.safetensors")


def test_a_mistake_of_this_program_is_not_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("of this program")

    np.savez(tmp_path / "x.npz", a=np.ones(2))
    for name in ("x.npz", "x.safetensors"):
        text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
        monkeypatch.setattr(torch, "from_numpy" if name == "x.npz" else "frombuffer", broken)
        with pytest.raises(RuntimeError, match="of this program"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("fault", [0.0, 2.0**-6])
def test_without_initial_weights_names_are_those_of_what_is_there(
    tmp_path: Path, made: dict[str, Any], fault: float
) -> None:
    """Calls and gradients have names, too, and a map of them is no map that fits nothing."""
    folder = candidate(tmp_path / "made", made)
    (folder / "initial_weights.npz").unlink()
    gradient = open_recording(tmp_path / "reference").step(0).gradients()["head.weight"]
    assert gradient is not None
    np.savez(folder / "step_0" / "gradients.npz", **{"out.kernel": gradient.numpy().T + np.float32(fault)})
    assert command.dispatch(["import", str(folder), "--out", str(tmp_path / "run")]) == 0
    found = nest_ssl.compare(tmp_path / "reference", tmp_path / "run", names=tmp_path / "names.yaml")
    differs = {(one.address.module, one.address.slot) for one in found.findings if not one.missing}
    assert differs == ({("head", "weight")} if fault else set()), found
    assert "1 of 1 tensors were laid out otherwise" in nest_ssl.report(found, tmp_path / "report").read_text()
    (tmp_path / "names.yaml").write_text("nowhere: head")
    with pytest.raises(UserError, match="fits nothing"):
        nest_ssl.compare(tmp_path / "reference", tmp_path / "run", names=tmp_path / "names.yaml")
    np.savez(folder / "step_0" / "gradients.npz", **{"a": np.ones(2, "f"), "b": np.ones(2, "f")})
    (tmp_path / "names.yaml").write_text("a: head.bias\nb: head.bias\n")
    assert command.dispatch(["import", str(folder), "--out", str(tmp_path / "two")]) == 0
    with pytest.raises(UserError, match="two things one name"):
        nest_ssl.compare(tmp_path / "reference", tmp_path / "two", names=tmp_path / "names.yaml")


class Pair(nn.Module):
    """Returns two tensors of two types, and is followed by a module that takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.out = Two(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(x)[0])


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, torch.full((3,), 4)


def pairs_recorded(out: Path) -> dict[str, Any]:
    """The names that an import has for what its calls were given and returned."""
    torch.manual_seed(0)
    model = Pair()
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.arange(12.0).reshape(3, 4)
    with nest_ssl.recording(out, model, steps=[0]) as r:
        r.batch({"x": x})
        loss = model(x).square().mean()
        r.loss(loss)
        loss.backward()
        r.backward_done()
        optimizer.step()
        r.step_done(optimizer)
    calls = {call.module: call for call in open_recording(out).step(0).calls()}
    first, second = calls["two"].output
    (given,) = calls["out"].inputs.values()
    (name,) = calls["out"].inputs
    tables = {"two/output/0": first, "two/output/1": second, "out": calls["out"].output, f"out/inputs/{name}": given}
    return {name: tensor.numpy() for name, tensor in tables.items()}


def imported(tmp_path: Path, tables: dict[str, Any], folder: str = "step_0") -> Path:
    (tmp_path / "made" / folder).mkdir(parents=True, exist_ok=True)
    np.savez(tmp_path / "made" / folder / "activations.npz", **tables)
    import_folder(tmp_path / "made", tmp_path / "imported", overwrite=True)
    return tmp_path / "imported"


INPUT = "out/inputs/input"


@pytest.mark.parametrize(
    "names",
    [("two/output/0", "two/output/1"), ("two/output/1", "two/output/0"), ("two/output/1",), ("two/output/0",), (INPUT,),
     ("two/output/0", INPUT), ("out", INPUT)],
)  # fmt: skip
def test_an_output_is_the_one_that_its_number_says(tmp_path: Path, names: tuple[str, ...]) -> None:
    """In whatever order a file has them; what it does not have is left out on both sides."""
    made = pairs_recorded(tmp_path / "reference")
    good = imported(tmp_path, {name: made[name] for name in names})
    assert nest_ssl.compare(tmp_path / "reference", good).exit_code == 2
    bad = imported(tmp_path, {name: made[name] + (name == names[0]) for name in names})
    assert nest_ssl.compare(tmp_path / "reference", bad).exit_code == 1


@pytest.mark.parametrize("names", [("two", "two/output/1"), ("two/output/1", "two"), ("two", "two#0")])
def test_two_tensors_for_one_place_are_one_line(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "made" / "step_0").mkdir(parents=True)
    np.savez(tmp_path / "made" / "step_0" / "activations.npz", **dict.fromkeys(names, np.ones(2)))
    with pytest.raises(UserError, match="two tensors for one place"):
        import_folder(tmp_path / "made", tmp_path / "imported")


def test_two_folders_of_one_step_are_one_line(tmp_path: Path) -> None:
    for folder in ("step_0", "step_00"):
        (tmp_path / "made" / folder).mkdir(parents=True)
        np.savez(tmp_path / "made" / folder / "activations.npz", two=np.ones(2))
    with pytest.raises(UserError, match="two folders of one step"):
        import_folder(tmp_path / "made", tmp_path / "imported")
