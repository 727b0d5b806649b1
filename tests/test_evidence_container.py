"""The container of a bundle: whatever could harm who unpacks it is refused, and nothing lands outside its folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.bundle.archive import unpack
from nest_ssl.bundle.statement import read_statement


def member(name: str = "a", size: int = 0, **fields: Any) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = size
    for key, value in fields.items():
        setattr(header, key, value)
    return header.tobuf(tarfile.GNU_FORMAT)


END = b"\0" * 1024
HOSTILE = {
    "empty": b"",
    "no tar": b"x" * 2048,
    "cut short": member(size=600) + b"x" * 512,
    "no end": member(),
    "beyond its end": member(size=1 << 40) + END,
    "a path that escapes": member("../a") + END,
    "an absolute path": member("/etc/a") + END,
    "a path that escapes inside": member("a/../../b") + END,
    "a backslash": member("a\\b") + END,
    "a hidden file": member(".a") + END,
    "a drive": member("c:a") + END,
    "a symbolic link": member(type=tarfile.SYMTYPE, linkname="/etc/passwd") + END,
    "a hard link": member(type=tarfile.LNKTYPE, linkname="b") + END,
    "a device": member(type=tarfile.CHRTYPE) + END,
    "a folder": member("a/", type=tarfile.DIRTYPE) + END,
    "a sparse file": member(type=tarfile.GNUTYPE_SPARSE) + END,
    "an extended header": member("a" * 200) + END,
    "twice": member("a") + member("A") + END,
    "a file that is a folder": member("a") + member("a/b") + END,
    "something behind": member() + END + member("b") + END,
    "too many": b"",  # made when it is asked for, for that takes as long as all the others
    "compressed": gzip.compress(member() + END),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_container_is_refused_and_nothing_lands_outside(tmp_path: Path, name: str) -> None:
    many = member() + b"".join(member(f"f{i}") for i in range(20_001)) + END if name == "too many" else b""
    (tmp_path / "bundle.tar").write_bytes(many or HOSTILE[name])
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    with pytest.raises(UserError) as refused:
        unpack(tmp_path / "bundle.tar", inside)
    assert str(tmp_path / "bundle.tar") in refused.value.where and len(str(refused.value)) < 600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.tar", "deep"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["inside"]
    assert all(path.is_file() and not path.is_symlink() for path in inside.iterdir())


def test_the_smallest_container(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(member("a/b.c", 3) + b"abc" + b"\0" * 509 + END)
    (tmp_path / "out").mkdir()
    assert unpack(tmp_path / "b.tar", tmp_path / "out") == {"a/b.c": hashlib.sha256(b"abc").hexdigest()}
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "b.tar").read_bytes())) as archive:
        assert archive.getnames() == ["a/b.c"]


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"payload": "?"}', b"[" * 100_000])
def test_a_statement_that_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "s").write_bytes(text)
    with pytest.raises(UserError, match="not the statement of a bundle"):
        read_statement(tmp_path / "s", "b.tar")
