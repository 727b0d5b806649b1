"""Whatever is wrong with a recording is one line that names it: nothing hangs, fills the memory or is a traceback."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nest_ssl.base.errors import UserError
from nest_ssl.recording import layout as files
from nest_ssl.recording.reader import load_builtins, open_recording
from nest_ssl.recording.tensors import check_storable

from .conftest import places, put, read_all, refused, replace, seal

WRONG = [
    ...,
    None,
    True,
    -1,
    1.5,
    math.inf,
    10**30,
    "x",
    "../../x",
    "a\0b",
    "\ud800",
    "x" * 300,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
]
TENSOR_FILES = [files.INITIAL_WEIGHTS, *(f"step_0/{name}" for name in (
    files.BATCH, files.FORWARD_OUTPUT, files.LOSS, files.GRADIENTS, files.WEIGHTS, files.OPTIMIZER,
    files.CALLS))]  # fmt: skip
ALL_FILES = [files.CONFIG, files.STRUCTURE, f"step_0/{files.RNG}", *TENSOR_FILES]


def outcomes(path: Path, cases: list[Callable[[], None]], only: str = "") -> tuple[int, int]:
    """Of many damages, each made anew: how many are refused, how many read as something sound."""
    counted = [0, 0]
    for case in cases:
        case()
        counted[refused(path, only=only) is None] += 1
    return counted[0], counted[1]


def test_the_whole_one_is_read(whole: Path) -> None:
    assert len(read_all(whole)) > 500 and read_all(whole, verify=False) == read_all(whole)


# --- values of another type, hashed anew


def test_any_field_of_the_index(either: Path) -> None:
    original = (either / files.INDEX).read_text()
    chosen = random.Random(0)
    fields = [p for p in places(json.loads(original)) if p and p[0] not in ("tensors", "packages", "sources")]
    some = [p for p in places(json.loads(original)) if p and p[0] in ("tensors", "packages", "sources")]

    def mutate(field: tuple[Any, ...], wrong: Any) -> None:
        index = json.loads(original)
        put(index, field, wrong)
        seal(either, index) if "schema" in index and isinstance(index["schema"], str) else (
            either / files.INDEX
        ).write_text(json.dumps(index))

    cases = [(field, chosen.choice(WRONG)) for field in [*chosen.sample(fields, 150), *chosen.sample(some, 30)]]
    refusals, sound = outcomes(either, [lambda f=f, w=w: mutate(f, w) for f, w in cases], f"step_0/{files.LOSS}")  # type: ignore[misc]
    assert refusals > 100 and sound > 2, (refusals, sound)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("git", True), ("packages", True), ("host", 1), ("device", [[]]), ("ledger", 5), ("generation", "x"),
     ("world_size", 0), ("world_size", None),
     ("world_size", math.inf), ("steps", {"x": {}}), ("steps", {"-1": {}}), ("command", [0]), ("init_from", None),
      ("container", "x"), ("threads", []),
     ("cuda", 1), ("data", []), ("rng", {"a": {"b": "c"}}), ("trainer", {"name": 1}), ("trainer", None), ("files",
      {}), ("unknown", 1),
     ("tensors", {"../x": {}}), ("calls", {"0": [1]}), ("git", {"commit": []})],
)  # fmt: skip
def test_the_field_is_named(either: Path, field: str, wrong: Any) -> None:
    index = json.loads((either / files.INDEX).read_text())
    index[field] = wrong
    seal(either, index)
    assert f"recording.json: {field if wrong != {} else 'it does not list'}" in str(refused(either))


@pytest.mark.parametrize("name", [f"step_0/{files.RNG}", f"step_0/{files.FACTS}", files.STRUCTURE, files.CONFIG])
def test_any_field_of_a_file_of_facts(either: Path, name: str) -> None:
    if name.endswith(files.FACTS) and files.SCHEMA_1 in (either / files.INDEX).read_text():
        pytest.skip("schema 1 has none")
    dump, load = {
        ".json": (lambda v: json.dumps(v).encode(), lambda: json.loads((either / name).read_text())),
        ".pkl": (lambda v: pickle.dumps(v, 4), lambda: pickle.loads((either / name).read_bytes())),
        ".yaml": (lambda v: yaml.safe_dump(v).encode(), lambda: yaml.safe_load((either / name).read_text())),
    }[Path(name).suffix]
    original, chosen = load(), random.Random(1)

    def mutate(field: tuple[Any, ...], wrong: Any) -> None:
        value = pickle.loads(pickle.dumps(original))
        put(value, field, wrong)
        try:
            replace(either, name, dump(value))
        except (ValueError, UnicodeError):
            replace(either, name, b"\xff")

    cases = [(chosen.choice([f for f in places(original) if f]), chosen.choice(WRONG)) for _ in range(40)]
    refusals, sound = outcomes(either, [lambda f=f, w=w: mutate(f, w) for f, w in cases], name)  # type: ignore[misc]
    assert refusals > (0 if name == files.CONFIG else 20) and refusals + sound == 40
    for value in (None, 1, [], "x", {"a": {1: 2}} if name != files.CONFIG else [1]):
        replace(either, name, dump(value))
        assert refused(either)


ODD: list[Callable[[], Any]] = [
    lambda: None, lambda: 1, lambda: "x", list, dict, lambda: {1: torch.ones(1)}, lambda: [None],
    lambda: torch.Size([1]), lambda: torch.float32,
    lambda: torch.ones(2).to_sparse(), lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
    lambda: b"x", lambda: 1j,
    lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), lambda: torch.nn.Parameter(torch.ones(1)),
    lambda: torch.ones(1, requires_grad=True), lambda: torch.ones(1, dtype=torch.complex64).conj(),
    lambda: torch.ones(1).expand(1 << 40),
    lambda: torch.ones(1, device="meta"), lambda: torch.ones(0), lambda: torch.tensor(float("nan")),
    lambda: deep(300), lambda: endless(), lambda: shared(40),
]  # fmt: skip


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 1


def endless() -> Any:
    value: list[Any] = []
    value.append({"again": value})
    return value


def shared(levels: int) -> Any:
    """Two to the power of `levels` values in a file that mentions each list twice."""
    value: Any = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def changes(base: str, entries: Any = None) -> dict[str, Any]:
    return {"base": base, "names": ["w"], "entries": entries or {}}


def saved(value: Any) -> bytes:
    torch.save(value, stream := io.BytesIO())
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TENSOR_FILES)
def test_any_value_of_a_file_of_tensors(damaged: Path, name: str) -> None:
    original, chosen = torch.load(damaged / name, weights_only=True), random.Random(2)

    def mutate(field: tuple[Any, ...], odd: Any) -> None:
        value: Any = [torch.load(io.BytesIO(whole), weights_only=True)]
        put(value, (0, *field), odd)
        content = saved(value[0])
        try:
            check_storable(value[0], len(content))
        except ValueError:  # more than a forger can describe
            replace(damaged, name, content)
        else:
            replace(damaged, name, content, value[0])

    whole = (damaged / name).read_bytes()
    cases = [((), make()) for make in ODD] + [(chosen.choice([*places(original)]), make()) for make in ODD]
    refusals, sound = outcomes(damaged, [lambda f=f, o=o: mutate(f, o) for f, o in cases], name)  # type: ignore[misc]
    assert refusals > 0.6 * len(cases) and refusals + sound == len(cases), (refusals, sound)


@pytest.mark.parametrize(
    ("name", "content"),
    [(files.LOSS, torch.ones(1)), (files.LOSS, [torch.ones(1)]), (files.LOSS, {1: torch.ones(1)}), (files.LOSS,
     {"loss": 1.0}),
     (files.OPTIMIZER, {"state": {}}), (files.OPTIMIZER, {"state": [], "param_groups": []}), (files.OPTIMIZER,
      {"state": {}, "param_groups": [1]}),
     (files.OPTIMIZER, {"state": {}, "param_groups": [{"lr": 1}]}), (files.OPTIMIZER, {"state": {},
      "param_groups": [{"params": [1]}]}),
     (files.CALLS, {}), (files.CALLS, {"calls": 1}), (files.CALLS, {"calls": []}), (files.CALLS, []),
      (files.GRADIENTS, {"w": 1}), (files.STEP_START, changes("")), (files.STEP_START, changes("", {"w": 1})),
     (files.STEP_START, changes("config.yaml")), (files.STEP_START, changes(f"step_0/{files.WEIGHTS}")),
     (files.STEP_START, {"base": ""}), (files.OPTIMIZER_START, changes("", {"w": 1}) | {"param_groups": []}),
     (files.OPTIMIZER_START, {**changes("", {"w": {}}), "param_groups": [{"lr": 1}]}),
     *((files.APPLIED_GRADIENTS, {"norm": norm, "factor": None, "scaled": ["no such"], "entries": {}})
       for norm in (None, 1.0))],
)  # fmt: skip
def test_files_of_another_shape(damaged: Path, name: str, content: Any) -> None:
    replace(damaged, f"step_0/{name}", saved(content), content)
    assert f"step_0/{name}: " in str(refused(damaged))


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("index", 7), ("index", "0"), ("module", 1), ("call", -1.5), ("arg_names", ["a", "b", "c"]), ("args", None),
     ("kwargs", {1: 2}), ("training", 1),
     ("output_grads", {"0": 1}), ("module", "another"), ("unknown", 1), ("output_grads", None)],
)  # fmt: skip
def test_calls_whose_parts_do_not_fit(either: Path, key: str, wrong: Any) -> None:
    content = torch.load(either / f"step_0/{files.CALLS}", weights_only=True)
    content["calls"][3][key] = wrong
    replace(either, f"step_0/{files.CALLS}", saved(content), content)
    if (key, "end_index" in content["calls"][0]) != ("unknown", True):  # of schema 1 only what is known is read
        assert f"step_0/{files.CALLS}: " in str(refused(either))


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("producers", {"x": [99, ""]}), ("producers", {"x": [-1, ""]}), ("start", -5), ("end", 0), ("grad_event", "x")],
)
def test_events_and_producers_that_do_not_fit(damaged: Path, key: str, wrong: Any) -> None:
    content = torch.load(damaged / f"step_0/{files.CALLS}", weights_only=True)
    if "end_index" not in content["calls"][0]:
        content["calls"][3][key] = wrong
        replace(damaged, f"step_0/{files.CALLS}", saved(content), content)
        assert f"step_0/{files.CALLS}: " in str(refused(damaged))


# --- the index is the root of trust


def test_no_edit_of_the_index_is_unnoticed(whole: Path, tmp_path: Path) -> None:
    text, chosen = (whole / files.INDEX).read_text(), random.Random(3)
    for name in os.listdir(whole):
        (tmp_path / name).symlink_to(whole / name) if name != files.INDEX else None
    for old, new in [('"seed": 42', '"seed": 43'), ('"Linux"', '"Linus"'), ('"dirty": ', '"dirtz": ')]:
        assert old in text
        (tmp_path / files.INDEX).write_text(text.replace(old, new, 1))
        with pytest.raises(UserError, match=r"recording\.json: it differs from its own SHA-256"):
            open_recording(tmp_path)
    for _ in range(150):
        content = bytearray(text.encode())
        position = chosen.randrange(len(content))
        content[position] ^= 1 << chosen.randrange(8)
        (tmp_path / files.INDEX).write_bytes(content)
        try:
            same = json.loads(content) == json.loads(text)
        except ValueError:
            same = False
        if not same:
            with pytest.raises(UserError, match=r"recording\.json|unknown recording schema"):
                open_recording(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"x"', "null", '{"schema": "other/9"}', '{"schema": []}', "[" * 100_000, '{"a":' * 100_000,
     '{"schema": ' + "9" * 5000 + "}",
     "\ufeff{}", "\0", '{"schema": "nest-ssl-recording/1"}', '{"schema": "nest-ssl-recording/2"}', "\xff"],
)  # fmt: skip
def test_an_index_that_is_none(either: Path, text: str) -> None:
    (either / files.INDEX).write_bytes(text.encode("latin-1") if text == "\xff" else text.encode())
    assert refused(either)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../x", "a\0b", "\ud800", "x" * 300, ".hidden", "a//b", "", "a/b/c/d/e/f"]
)
def test_names_of_files(damaged: Path, name: str) -> None:
    index = json.loads((damaged / files.INDEX).read_text())
    index["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    seal(damaged, index)
    assert "recording.json: files" in str(refused(damaged)) or name == "\ud800"


# --- files


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ALL_FILES)
def test_a_flipped_bit(damaged: Path, name: str, verify: bool) -> None:
    """Without verifying all files, it is found in what is read, or is in no value."""
    original, whole, chosen = read_all(damaged, only=name), (damaged / name).read_bytes(), random.Random(name)
    for _ in range(4):
        content = bytearray(whole)
        content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
        (damaged / name).write_bytes(content)
        if verify:
            assert "differs from its SHA-256" in str(refused(damaged))
        elif name in TENSOR_FILES and not refused(damaged, verify=False, only=name):
            read = read_all(damaged, verify=False, only=name)
            tensors = {place: value for place, value in original.items() if isinstance(value, str) and len(value) == 64}
            assert {place: read.get(place) for place in tensors} == tensors


@pytest.mark.parametrize("name", [files.CONFIG, files.STRUCTURE, files.INITIAL_WEIGHTS, f"step_0/{files.LOSS}"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "missing", "empty", "link out", "/dev/zero"])
def test_no_regular_file(damaged: Path, name: str, kind: str, tmp_path: Path) -> None:
    path, content = damaged / name, (damaged / name).read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
        index = json.loads((damaged / files.INDEX).read_text())
        index["files"][name]["bytes"] = 0
        seal(damaged, index)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "link out":
        (tmp_path / "outside").write_bytes(content)
        path.symlink_to(tmp_path / "outside")
    elif kind == "/dev/zero":
        path.symlink_to("/dev/zero")
    assert str(path) in str(refused(damaged)) and str(path) in str(refused(damaged, verify=False))


def test_an_index_that_is_a_pipe(damaged: Path) -> None:
    (damaged / files.INDEX).unlink()
    os.mkfifo(damaged / files.INDEX)
    with pytest.raises(UserError, match="not a complete recording"):
        open_recording(damaged)


# --- bombs


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MiB


def repacked(content: bytes, compression: int, data: bytes | None = None) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream := io.BytesIO(), "w", compression) as new:
        for info in old.infolist():
            inside = data if data is not None and info.filename.endswith("data.pkl") else old.read(info)
            new.writestr(info.filename, inside)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"\x80\x02]r\xff\xff\xff\x0f.", b"\x80\x02]r\xff\xff\xff\x7f.", b"\x80\x05\x96\0\0\0\0\x10\0\0\0.",
     b"\x80\x04\x8d\0\0\0\0\x10\0\0\0.",
     b"\x80\x04X\xff\xff\xff\xffx.", b"cos\nsystem\n.", b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
     b"\x80\x04}(K\x01K\x02u.", b"\x80\x02P1\n.", b"",
     b"\x80\x04.", pickle.dumps(1, 0), b"\x80\x04" + b"(" * 9999 + b".", pickle.dumps(shared(40), 4),
     pickle.dumps(endless(), 4), pickle.dumps({"a": {1}}, 4)],
)  # fmt: skip
def test_structures_that_are_bombs_or_code(damaged: Path, content: bytes) -> None:
    before = memory()
    replace(damaged, files.STRUCTURE, content)
    assert files.STRUCTURE in str(refused(damaged)) and memory() - before < 200


@pytest.mark.parametrize(
    "text",
    ["a0: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(9)), "a: &a [*a]",
     "a: !!python/name:os.system", "[" * 20_000, "a: \0",
     "a: b: c", "- 1", "1", "", "a: !x 1"],
)  # fmt: skip
def test_configs_that_are_bombs_or_none(damaged: Path, text: str) -> None:
    replace(damaged, files.CONFIG, text.encode())
    assert files.CONFIG in str(refused(damaged))


def test_a_config_of_other_keys_and_dates_is_plain(damaged: Path) -> None:
    replace(damaged, files.CONFIG, b"2: x\ntrue: 2020-01-01\nb: {2: [1.0e-5, ~]}\n")
    assert open_recording(damaged).config == {"2": "x", "True": "2020-01-01", "b": {"2": [1e-5, None]}}


def test_tensors_that_are_bombs(damaged: Path) -> None:
    before, whole = memory(), (damaged / files.INITIAL_WEIGHTS).read_bytes()
    large = torch.ones(1).expand(805_306_368)
    for content in (
        repacked(whole, zipfile.ZIP_DEFLATED, b"\0" * (1 << 26)),
        repacked(whole, zipfile.ZIP_STORED, b"\x80\x02]r\xff\xff\xff\x7f."),
        saved({"w": large}),
        whole[: len(whole) // 2],
    ):
        replace(damaged, files.INITIAL_WEIGHTS, content)
        for verify in (True, False):
            assert files.INITIAL_WEIGHTS in str(refused(damaged, verify))
    assert memory() - before < 300


def test_only_builtins() -> None:
    value = {"a": [1, -1, 2**40, 1.5, None, True, False, "日本", "x" * 300, (), (1,), (1, 2, 3, 4)], "b": {"a": []}}
    assert load_builtins(pickle.dumps(value, 4)) == value
