"""What `safe_load` takes, and what it refuses, wherever the file came from."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.base.safe_load import load_tensors, load_yaml, opened


def saved(value: Any) -> io.BytesIO:
    torch.save(value, stream := io.BytesIO())
    stream.seek(0)
    return stream


def test_tensors_and_builtins() -> None:
    value = load_tensors(saved({"w": torch.arange(3), "n": (1, "a")}), "x")
    assert torch.equal(value["w"], torch.arange(3)) and value["n"] == (1, "a")


def test_settings_are_read_where_they_are_allowed_only() -> None:
    """A recording of a stranger has no business with them."""
    with pytest.raises(UserError, match="it holds omegaconf"):
        load_tensors(saved({"settings": OmegaConf.create({"a": 1})}), "x")


class Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


@pytest.mark.parametrize("function", [os.mkdir, exec, eval, __import__, Path, OmegaConf.register_new_resolver])
def test_nothing_else_is_called(tmp_path: Path, function: Any) -> None:
    with pytest.raises(UserError, match="which is no weight|not a file of weights") as error:
        load_tensors(saved({"w": Runs(function, str(tmp_path / "trap"))}), "the file")
    assert "the file" in str(error.value) and not (tmp_path / "trap").exists()


def test_an_environment_that_allows_everything_is_not_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="mkdir"):
        load_tensors(saved(Runs(os.mkdir, str(tmp_path / "trap"))), "x")
    assert not (tmp_path / "trap").exists()


def test_the_list_of_allowed_classes_is_given_back() -> None:
    before = torch.serialization.get_safe_globals()
    load_tensors(saved({}), "x")
    assert torch.serialization.get_safe_globals() == before


def repacked(compression: int) -> io.BytesIO:
    """A file of torch's, its entries packed anew."""
    result = io.BytesIO()
    with zipfile.ZipFile(saved({"w": torch.zeros(1 << 20)})) as old, zipfile.ZipFile(result, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    result.seek(0)
    return result


def test_a_compressed_file_is_a_bomb() -> None:
    load_tensors(repacked(zipfile.ZIP_STORED), "x")
    with pytest.raises(UserError, match="unpacks to more"):
        load_tensors(repacked(zipfile.ZIP_DEFLATED), "x")


WHOLE = saved({"w": torch.ones(999)}).read()


@pytest.mark.parametrize("content", [b"", b"x" * 999, pickle.dumps({"a": 1}), WHOLE[:2000], WHOLE[500:]])
def test_damaged(content: bytes) -> None:
    with pytest.raises(UserError, match="damaged"):
        load_tensors(io.BytesIO(content), "x")


def test_every_flipped_bit_of_the_weights_is_found() -> None:
    weights = torch.arange(999.0)
    torch.save({"w": weights}, stream := io.BytesIO())
    start = stream.getvalue().index(weights.numpy().tobytes())
    for offset in (0, 1000, weights.nbytes - 1):
        content = bytearray(stream.getvalue())
        content[start + offset] ^= 1
        with pytest.raises(UserError, match="damaged"):
            load_tensors(io.BytesIO(content), "x")


@pytest.mark.parametrize("mapped", [True, False])
def test_from_a_path(tmp_path: Path, mapped: bool) -> None:
    torch.save({"w": torch.arange(3)}, tmp_path / "w.pt")
    assert load_tensors(tmp_path / "w.pt", mapped=mapped)["w"].tolist() == [0, 1, 2]
    (tmp_path / "w.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"damaged.*w\.pt"):
        load_tensors(tmp_path / "w.pt", mapped=mapped)


def test_yaml() -> None:
    assert load_yaml("a: [1, x, {b: null}]\nc: '日本'", "x") == {"a": [1, "x", {"b": None}], "c": "日本"}
    assert load_yaml(b"", "x") is None
    assert load_yaml("a: 2020-01-01", "x") == {"a": "2020-01-01"}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


@pytest.mark.parametrize(
    "text",
    [BOMB, "a: &a [*a]", "a: !!python/name:os.system", "a: !x 1", "[" * 20_000, "a: b: c", b"a: \xff", "a: \0", "a: {",
     "- " * 200 + "x"],
)  # fmt: skip
def test_no_yaml(text: str | bytes) -> None:
    with pytest.raises(UserError, match="not YAML that can be read: the file: .") as error:
        load_yaml(text, "the file")
    assert "\n" not in str(error.value)


def test_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for path in (tmp_path, tmp_path / "none", tmp_path / "pipe"):
        with pytest.raises(UserError, match="no such file"), opened(path):
            pass
