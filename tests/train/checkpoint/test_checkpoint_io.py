"""Checkpoint files: whole or absent; a damaged one is never resumed from; the one furthest into training is found."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.train.checkpoint.checkpoint_io import (
    AtomicCheckpointIO,
    check_fits,
    examine,
    newest_whole,
    remove_partial,
)

LIMITED = Path(__file__).parents[2] / "limited.py"


def checkpoint(batches: int = 4, width: int = 3) -> dict[str, Any]:
    progress = {"epoch_loop.batch_progress": {"total": {"ready": batches}}}
    model = nn.Linear(width, 2)
    return {"global_step": batches // 2, "loops": {"fit_loop": progress}, "optimizer_states": [],
            "state_dict": model.state_dict(), "nest_ssl": {}}  # fmt: skip


def save(path: Path, batches: int = 4, **changes: Any) -> Path:
    AtomicCheckpointIO().save_checkpoint({**checkpoint(batches), **changes}, path)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path: Path) -> None:
    """In a tensor, where only its checksum can tell."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
        start = record.header_offset + 30 + len(record.filename)
        start += int.from_bytes(content[record.header_offset + 28 : record.header_offset + 30], "little")
    content[start] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "a.ckpt", 7)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["global_step"] == 3 and set(loaded["state_dict"]) == {"weight", "bias"}
    found = examine(path)
    assert (found.path, found.batches, found.steps, found.exact) == (path, 7, 3, True)
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


def test_the_furthest_is_found_whatever_its_name_and_age(tmp_path: Path) -> None:
    furthest = save(tmp_path / "best.ckpt", 9)
    save(tmp_path / "x-last.ckpt", 8)
    os.utime(furthest, (1, 1))
    assert newest_whole(tmp_path)[0].path == furthest
    assert newest_whole(tmp_path / "no such folder") == (None, [])


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: Any) -> None:
    earlier, torn = save(tmp_path / "a-last.ckpt", 4), save(tmp_path / "b-last.ckpt", 8)
    damage(torn)
    found, said = newest_whole(tmp_path)
    assert found.path == earlier and len(said) == 1 and str(torn) in said[0] and "damaged" in said[0]
    with pytest.raises(UserError, match="b-last.ckpt"):
        examine(torn)


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    cut(save(tmp_path / "a-last.ckpt"))
    with pytest.raises(UserError, match="no checkpoint can be used"):
        newest_whole(tmp_path)


def test_what_cannot_be_resumed_from(tmp_path: Path) -> None:
    value = checkpoint()
    del value["optimizer_states"]
    torch.save(value, tmp_path / "weights.ckpt")
    torch.save({**checkpoint(), "hyper_parameters": Path("a")}, tmp_path / "objects.ckpt")
    with pytest.raises(UserError, match="of the model alone"):
        examine(tmp_path / "weights.ckpt")
    with pytest.raises(UserError, match="of another trainer"):
        examine(tmp_path / "objects.ckpt")
    with pytest.raises(UserError, match="no such checkpoint"):
        examine(tmp_path / "none.ckpt")


def test_another_model_is_told_by_its_first_parameter(tmp_path: Path) -> None:
    path = examine(save(tmp_path / "a.ckpt"))
    check_fits(path, nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"weight is \[2, 3\] in it and \[2, 4\]"):
        check_fits(path, nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"bias is \[2\] in it and nothing"):
        check_fits(path, nn.Linear(3, 2, bias=False))


def test_whatever_torch_save_raises_is_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tmpfs that is full it says `basic_ios::clear: iostream error`."""
    path = save(tmp_path / "a.ckpt", 4)
    before = path.read_bytes()

    def fail(value: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise RuntimeError("basic_ios::clear: iostream error")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(UserError, match=f"could not write.*iostream error.*{path}"):
            save(path, 8)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("fails", ["torch.save", "os.fsync", "os.replace"])
def test_a_failing_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = save(tmp_path / "a.ckpt", 4)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(fails, fail)
        with pytest.raises(UserError, match=f"no space left on the disk: {path}"):
            save(path, 8)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_torchs_own_words_for_a_full_disk(tmp_path: Path, python: str) -> None:
    """No file may grow beyond 100 kB; torch says that as a RuntimeError."""
    (program := tmp_path / "program.py").write_text(
        "import sys, torch; from nest_ssl.base.errors import run_command\n"
        "from nest_ssl.train.checkpoint.checkpoint_io import AtomicCheckpointIO\n"
        "value = {'state_dict': torch.zeros(100_000)}\n"
        "run_command(lambda: AtomicCheckpointIO().save_checkpoint(value, sys.argv[1]))"
    )
    limited = [python, str(LIMITED), "100000", str(program), str(tmp_path / "a.ckpt")]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == [program]


def test_what_a_killed_run_was_writing_goes(tmp_path: Path) -> None:
    """What a living process is writing stays: two experiments may share a folder of checkpoints."""
    kept = save(tmp_path / "a.ckpt")
    host, dead = socket.gethostname(), subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".b.ckpt.partial-{dead.pid}@{host}").write_bytes(b"half")
    living = tmp_path / f".b.ckpt.partial-{os.getppid()}@{host}"
    living.write_bytes(b"half")
    remove_partial(tmp_path)
    assert sorted(tmp_path.iterdir()) == [living, kept]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda value: [1, 2], "it is a list"),
        (lambda value: 7, "it is a int"),
        (lambda value: {k: v for k, v in value.items() if k != "state_dict"}, "state_dict is NoneType"),
        (lambda value: {**value, "state_dict": [1]}, "state_dict is list"),
        (lambda value: {**value, "state_dict": {"a": 1}}, "no state dict"),
        (lambda value: {**value, "loops": {"fit_loop": 3}}, "loops do not say"),
        (lambda value: {**value, "loops": 3}, "loops is int"),
        (lambda value: {**value, "global_step": "x"}, "global_step is str"),
        (lambda value: {**value, "callbacks": 3}, "callbacks is int"),
        (lambda value: {**value, "optimizer_states": {}}, "optimizer_states is dict"),
        (lambda value: {**value, "nest_ssl": 3}, "nest_ssl is int"),
    ],
)
def test_what_lightning_would_fail_on_is_one_line(tmp_path: Path, change: Any, told: str) -> None:
    torch.save(change(checkpoint()), path := tmp_path / "a.ckpt")
    for read in (examine, lambda path: newest_whole(path.parent)):
        with pytest.raises(UserError, match=told) as error:
            read(path)
        assert str(path) in str(error.value)


def test_garbage_in_the_pickle_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02].")
        archive.writestr("archive/version", b"3")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", b"")
    with pytest.raises(UserError, match="a.ckpt"):
        examine(path)


def test_it_is_read_once_before_lightning_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = save(tmp_path / "a.ckpt"), []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: opened.append(a) or load(*a, **k))
    found = newest_whole(tmp_path)[0]
    check_fits(found, nn.Linear(3, 2))
    assert found.path == path and len(opened) == 1
