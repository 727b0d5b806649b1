""".nemo archives: what is written is read back to the bit; what was made to do harm is refused in one line."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.model.nest import NestModel
from nest_ssl.train.checkpoint import nemo_archive
from nest_ssl.train.checkpoint.nemo_archive import CONFIG, WEIGHTS, load_nemo, save_nemo, write_nemo
from nest_ssl.train.module import NestModule

Parts = dict[str, bytes]


def parts(path: Path) -> Parts:
    """The archive's files, by name."""
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


def write_tar(path: Path, files: Parts, *extra: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_round_trip(tmp_path: Path, tiny: Callable[..., NestModule]) -> None:
    model = tiny()
    save_nemo(model, tmp_path / "new" / "a.nemo")
    config, state_dict = load_nemo(tmp_path / "new" / "a.nemo")
    assert list(state_dict) == list(model.state_dict())
    assert all(torch.equal(state_dict[name], tensor) for name, tensor in model.state_dict().items())
    assert config["target"] == nemo_archive.TARGET and config["nemo_version"] == "3.0.0"
    assert config["encoder"] == model.settings.encoder and config["preprocessor"]["dither"] == 1e-5
    NestModel(config).load_state_dict(state_dict)


def test_same_content_same_bytes(tmp_path: Path, tiny: Callable[..., NestModule]) -> None:
    for name in ("a", "b"):
        save_nemo(tiny(), tmp_path / f"{name}.nemo")
    assert (tmp_path / "a.nemo").read_bytes() == (tmp_path / "b.nemo").read_bytes()
    save_nemo(tiny(seed=1), tmp_path / "b.nemo")
    assert (tmp_path / "a.nemo").read_bytes() != (tmp_path / "b.nemo").read_bytes()
    with tarfile.open(tmp_path / "a.nemo") as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == [f"./{CONFIG}", f"./{WEIGHTS}"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize(("generation", "release"), [("2.4", "2.4.1"), ("2.7", "2.7.3"), ("3.0", "3.0.0")])
def test_the_release_is_the_one_to_be_exact_with(
    tmp_path: Path, tiny: Callable[..., NestModule], generation: str, release: str
) -> None:
    settings = tiny().settings
    save_nemo(NestModule(settings, generation), tmp_path / "a.nemo")
    assert load_nemo(tmp_path / "a.nemo")[0]["nemo_version"] == release


def test_the_release_that_the_settings_came_from_is_kept(tmp_path: Path, tiny: Callable[..., NestModule]) -> None:
    model = tiny("+model.nemo_version=2.4.1")
    save_nemo(model, tmp_path / "a.nemo")
    assert load_nemo(tmp_path / "a.nemo")[0]["nemo_version"] == "2.4.1"


FAILURES = [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_write_that_fails_leaves_the_old_file(
    archive: Callable[..., Path], tiny: Callable[..., NestModule], monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    path = archive("a")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UserError, match=r"a\.nemo"):
        save_nemo(tiny(seed=1), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_only_the_first_rank_writes(
    tmp_path: Path, tiny: Callable[..., NestModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", 1)
    save_nemo(tiny(), tmp_path / "a.nemo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("prefix", ["./", ""])
def test_as_other_releases_pack_them(tmp_path: Path, archive: Callable[..., Path], mode: str, prefix: str) -> None:
    files = {prefix + Path(name).name: content for name, content in parts(archive("a")).items()}
    files["./0a1b_tokenizer.model"] = b"x"
    path = write_tar(tmp_path / "b.nemo", files, entry(".", tarfile.DIRTYPE), mode=mode)
    config, state_dict = load_nemo(path)
    theirs_config, theirs = load_nemo(tmp_path / "a.nemo")
    assert config == theirs_config and all(torch.equal(state_dict[name], tensor) for name, tensor in theirs.items())


class Evil:
    """Unpickled in full, it would make a file."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trap),)


def saved(value: object) -> bytes:
    torch.save(value, stream := io.BytesIO())
    return stream.getvalue()


C, W = f"./{CONFIG}", f"./{WEIGHTS}"
EVIL = {
    "climbs": (lambda f, p, t: write_tar(p, {**f, "../trap": b"x"}), "outside"),
    "climbs, hidden": (lambda f, p, t: write_tar(p, {**f, "./a/../../trap": b"x"}), "outside"),
    "climbs, Windows": (lambda f, p, t: write_tar(p, {**f, "..\\trap": b"x"}), "outside"),
    "drive": (lambda f, p, t: write_tar(p, {**f, "C:\\trap": b"x"}), "outside"),
    "absolute": (lambda f, p, t: write_tar(p, {**f, str(t): b"x"}), "outside"),
    "symbolic link": (lambda f, p, t: write_tar(p, f, entry("./x", tarfile.SYMTYPE, "/etc/x")), "files and folders"),
    "weights are a link": (lambda f, p, t: write_tar(p, {C: f[C]}, entry(W, tarfile.SYMTYPE, "/etc/x")), "files and"),
    "hard link": (lambda f, p, t: write_tar(p, f, entry("./x", tarfile.LNKTYPE, C)), "files and folders"),
    "device": (lambda f, p, t: write_tar(p, f, entry("./x", tarfile.CHRTYPE)), "files and folders"),
    "pipe": (lambda f, p, t: write_tar(p, f, entry("./x", tarfile.FIFOTYPE)), "files and folders"),
    "twice": (lambda f, p, t: write_tar(p, {**f, CONFIG: f[C]}), "twice"),
    "no settings": (lambda f, p, t: write_tar(p, {W: f[W]}), CONFIG),
    "no weights": (lambda f, p, t: write_tar(p, {C: f[C]}), WEIGHTS),
    "settings are a folder": (lambda f, p, t: write_tar(p, {W: f[W]}, entry(C, tarfile.DIRTYPE)), CONFIG),
    "not a tar": (lambda f, p, t: p.write_bytes(b"a letter to my friend " * 100), "not a .nemo"),
    "empty": (lambda f, p, t: p.write_bytes(b""), "not a .nemo"),
    "truncated": (lambda f, p, t: p.write_bytes(write_tar(p, f).read_bytes()[:50_000]), "damaged"),
    "truncated, gzip": (lambda f, p, t: p.write_bytes(write_tar(p, f, mode="w:gz").read_bytes()[:50_000]), "damaged"),
    "not gzip": (lambda f, p, t: p.write_bytes(b"\x1f\x8b" + bytes(1000)), "not a .nemo"),
    "settings of a gigabyte": (lambda f, p, t: _declare(p, f, C, 1 << 30), "damaged"),
    "settings of a megabyte": (lambda f, p, t: write_tar(p, {**f, C: b"a: " + b"x" * (1 << 20)}), "cannot be what it"),
    "bomb": (lambda f, p, t: _bomb(p, f), "unpacks to more"),
    "pickle that runs": (lambda f, p, t: write_tar(p, {**f, W: saved({"a": Evil(t)})}), "mkdir"),
    "no state dict": (lambda f, p, t: write_tar(p, {**f, W: saved([1, 2])}), "state dict"),
    "weights are no zip": (lambda f, p, t: write_tar(p, {**f, W: b"x" * 1000}), "damaged"),
    "YAML tag": (lambda f, p, t: write_tar(p, {**f, C: f"a: !!python/object/apply:os.mkdir ['{t}']".encode()}), CONFIG),
    "YAML aliases": (lambda f, p, t: write_tar(p, {**f, C: b"a: &x [1]\nb: [*x, *x]\n"}), "alias"),
    "YAML, deep": (lambda f, p, t: write_tar(p, {**f, C: b"a: " + b"[" * 5000}), CONFIG),
    "not YAML": (lambda f, p, t: write_tar(p, {**f, C: b"a: {"}), CONFIG),
    "not text": (lambda f, p, t: write_tar(p, {**f, C: b"\xff\xfe\x00"}), CONFIG),
    "a list": (lambda f, p, t: write_tar(p, {**f, C: b"[1, 2]"}), CONFIG),
    "resolver": (lambda f, p, t: write_tar(p, {**f, C: b"a: ${oc.env:HOME}"}), "oc.env"),
    "resolver, hidden": (lambda f, p, t: write_tar(p, {**f, C: b"b: oc.env\na: ${${b}:HOME}"}), "HOME"),
    "an unfinished reference": (lambda f, p, t: write_tar(p, {**f, C: b"a: ${b"}), CONFIG),
    "a reference in a text": (lambda f, p, t: write_tar(p, {**f, C: b"b: 1\na: x${b}"}), "not a value"),
    "a reference to itself": (lambda f, p, t: write_tar(p, {**f, C: b"a: {b: '${a}'}"}), "without end"),
    "references that double": (lambda f, p, t: write_tar(p, {**f, C: doubling()}), "without end"),
    "model is a list": (lambda f, p, t: write_tar(p, {**f, C: b"model: [1]"}), "no settings"),
    "a member of a terabyte": (lambda f, p, t: _prepend(p, f, _header("x", 1 << 40)), "damaged"),
    "a member of 2^63": (lambda f, p, t: _prepend(p, f, _header("x", 1 << 63)), "damaged"),
    "pax, a petabyte": (lambda f, p, t: _prepend(p, f, _pax("size", str(1 << 50))), "damaged"),
    "pax, a header of a terabyte": (
        lambda f, p, t: _prepend(p, f, _header("x", 1 << 40, b"x")), "damaged"),
    "a name of a terabyte": (
        lambda f, p, t: _prepend(p, f, _header("x", 1 << 40, b"L")), "damaged"),
    "complex weights": (lambda f, p, t: write_tar(p, {**f, W: saved({"a": torch.ones(2) * 1j})}), "cannot be a weight"),
    "true or false": (lambda f, p, t: write_tar(p, {**f, W: saved({"a": torch.ones(2) > 0})}), "cannot be a weight"),
    "whole numbers": (lambda f, p, t: write_tar(p, {**f, W: saved({"a": torch.ones(2).int()})}), "cannot be a weight"),
    "float8": (
        lambda f, p, t: write_tar(p, {**f, W: saved({"a": torch.ones(2).to(torch.float8_e5m2)})}), "be a weight"),
    "sparse": (lambda f, p, t: write_tar(p, {**f, W: saved({"a": torch.ones(2).to_sparse()})}), "evil.nemo"),
    "larger than its data": (
        lambda f, p, t: write_tar(p, {**f, W: saved({"a": torch.ones(1).expand(1 << 40)})}), "cannot be a weight"),
    "reference to nothing": (lambda f, p, t: write_tar(p, {**f, C: b"a: ${b}"}), "a reference to nothing"),
}  # fmt: skip


def doubling() -> bytes:
    """Sixty lines that name the one before them twice: 2^60 values."""
    return b"a0: 1\n" + b"".join(b"a%d: ['${a%d}', '${a%d}']\n" % (n, n - 1, n - 1) for n in range(1, 60))


def _prepend(path: Path, files: Parts, header: bytes) -> None:
    path.write_bytes(header + write_tar(path, files).read_bytes())


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = entry(name, kind)
    member.size = size
    return member.tobuf()


def _pax(key: str, value: str) -> bytes:
    """A header that gives the next member another size."""
    member = entry("./x")
    member.pax_headers = {key: value}
    return member.tobuf(format=tarfile.PAX_FORMAT)


def test_every_flipped_bit_in_the_weights_is_found(tmp_path: Path, archive: Callable[..., Path]) -> None:
    """torch itself compares no checksum: 54 of 120 such archives were loaded as sound."""
    whole, weights = archive("a").read_bytes(), load_nemo(tmp_path / "a.nemo")[1]
    path, draw, loaded = tmp_path / "b.nemo", random.Random(7), 0
    for _ in range(60):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            found = load_nemo(path)[1]
        except UserError:
            continue
        loaded += 1
        assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    assert loaded < 20, "the rest are bits of padding, names and times"


def test_a_model_is_in_memory_once(tmp_path: Path) -> None:
    """Of 64 MiB of weights in 16 tensors, no more than one is held besides torch's own memory."""
    write_nemo({"a": 1}, {f"w{number}": torch.ones(1 << 20) for number in range(16)}, path := tmp_path / "a.nemo")
    tracemalloc.start()  # which does not see torch's own memory
    load_nemo(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


def _declare(path: Path, files: Parts, name: str, size: int) -> None:
    """An archive that says that one of its files is so large."""
    member = entry(name)
    member.size = size
    path.write_bytes(member.tobuf() + files[name])


def _bomb(path: Path, files: Parts) -> None:
    """Gzipped zeros, a thousand times larger than the file, in a member that nobody asked for."""
    member = entry("./zeros")
    member.size = 200 << 20
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write(member.tobuf())
        for _ in range(200):
            stream.write(bytes(1 << 20))


@pytest.mark.parametrize("kind", EVIL)
def test_harmful_or_damaged(
    tmp_path: Path, archive: Callable[..., Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, told = EVIL[kind]
    path, trap = tmp_path / "evil.nemo", tmp_path / "trap"
    files = parts(archive("good"))
    monkeypatch.chdir(tmp_path)
    spoil(files, path, trap)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        load_nemo(path)
    assert told in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before and not trap.exists()


def test_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.nemo"):
        with pytest.raises(UserError, match="no such file"):
            load_nemo(path)
