"""`.nemo` archives, which NeMo's `restore_from` reads, and which NeMo's `save_to` writes.

Source of the format: NeMo 3.0.0 `nemo.core.connectors.save_restore_connector.SaveRestoreConnector`; 2.4 and 2.7 write
the same. A tar file, gzipped in old releases, of `model_config.yaml` and `model_weights.ckpt`; further files
(tokenizers and the like, which this model has none of) are passed over. Nothing is ever unpacked onto the disk.
"""

from __future__ import annotations

import copy
import gzip
import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from torch import nn

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.safe_load import ANOTHER_FILE, READER_ERRORS, check_state_dict, load_tensors, opened, plain_settings

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
TARGET = "nemo.collections.asr.models.ssl_models.EncDecDenoiseMaskedTokenPredModel"
NEMO_VERSION = "3.0.0"  # whose format this is

MIB = 1 << 20
CONFIG_AT_MOST = 4 * MIB
GZIP_RATIO = 20  # trained weights shrink by a tenth; what grows more than this was made to fill the memory


def nemo_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """NeMo's `model` section as NeMo keeps it beside the weights: resolved, and naming the class and the release."""
    config = plain_settings(settings, "model")
    return {**config, "target": config.get("target", TARGET), "nemo_version": config.get("nemo_version", NEMO_VERSION)}


@rank_zero_only
def save_nemo(model: nn.Module, path: Path | str) -> None:
    """Write a `NestModule` (its `settings` and state dict) to `path`, as `write_nemo` does; on the first rank only."""
    write_nemo(nemo_config(model.settings), model.state_dict(), path)  # type: ignore[arg-type]


def write_nemo(config: Mapping[str, Any], state_dict: dict[str, torch.Tensor], path: Path | str) -> None:
    """Write a `.nemo` archive in one go: a killed process leaves the old file or the new one. Same content, same bytes.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    on_cpu = copy.copy(state_dict)  # with the versions of the modules, which torch keeps in an attribute
    on_cpu.update({name: tensor.detach().cpu() for name, tensor in state_dict.items()})
    with _put_in_place(path) as stream, tempfile.TemporaryFile(dir=path.parent) as weights:
        torch.save(on_cpu, weights)
        with tarfile.open(fileobj=stream, mode="w") as archive:
            _add(archive, CONFIG, io.BytesIO(text.encode()))
            _add(archive, WEIGHTS, weights)


def load_nemo(path: Path | str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration (NeMo's `model` section, plain builtins) and the weights, on the CPU, of a `.nemo` archive.

    Raises:
        UserError: no such file, not an archive, a damaged one, or one that was made to do harm.
    """
    found = _read_members(path)
    for name in (CONFIG, WEIGHTS):
        if name not in found:
            raise UserError("not a .nemo archive", f"{path} has no {name}", ANOTHER_FILE)
    config = _read_config(found[CONFIG], f"{path}, {CONFIG}")
    where = f"{path}, {WEIGHTS}"
    return config, check_state_dict(load_tensors(io.BytesIO(found[WEIGHTS]), where), where)


# --- writing


@contextmanager
def _put_in_place(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, to be written; it takes the place of `path` when that went well."""
    partial = path.with_name(f".{path.name}.partial")  # always the same: what a killed process left is written over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    except RuntimeError as error:  # how torch.save reports a full disk
        raise UserError("could not write (is the disk full?)", str(path), "Free some space.") from error
    finally:
        partial.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, name: str, content: BinaryIO | io.BytesIO) -> None:
    """Add a file whose owner and times say nothing of this machine."""
    member = tarfile.TarInfo(f"./{name}")
    member.size = content.seek(0, os.SEEK_END)
    content.seek(0)
    archive.addfile(member, content)


# --- reading


class _Limited(io.RawIOBase):
    """A stream that ends in an error beyond so many bytes."""

    def __init__(self, stream: Any, at_most: int, where: str) -> None:
        super().__init__()
        self._stream, self._left, self._where = stream, at_most, where

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise UserError("it unpacks to more than it is", self._where, ANOTHER_FILE)
        return data


def _read_members(path: Path | str) -> dict[str, bytes]:
    """The two files of an archive, once every entry's name and kind was found harmless."""
    seen: set[str] = set()
    found: dict[str, bytes] = {}
    try:
        with opened(path) as stream, tarfile.open(fileobj=_unzipped(stream, str(path)), mode="r|") as archive:
            for member in archive:
                name = _checked_name(member, path)
                if name in seen:
                    raise UserError("an archive with a file twice", f"{path}: {member.name}", ANOTHER_FILE)
                seen.add(name)
                if name in (CONFIG, WEIGHTS):
                    found[name] = _content(archive, member, path)
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, *READER_ERRORS) as error:
        raise UserError("not a .nemo archive, or a damaged one", str(path), ANOTHER_FILE) from error
    return found


def _unzipped(stream: BinaryIO, where: str) -> Any:
    """The tar stream of a file, gzipped or not, that ends where no honest archive would go on."""
    size = os.fstat(stream.fileno()).st_size
    gzipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return _Limited(gzip.open(stream), GZIP_RATIO * size + CONFIG_AT_MOST, where) if gzipped else stream


def _checked_name(member: tarfile.TarInfo, path: Path | str) -> str:
    """A member's name without `./`; links, devices, absolute names and names that climb are refused."""
    name = member.name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or any(":" in part for part in parts[:1]):
        raise UserError("an archive that reaches outside itself", f"{path}: {member.name}", ANOTHER_FILE)
    if not (member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and member.sparse is None):
        raise UserError("an archive of more than files and folders", f"{path}: {member.name}", ANOTHER_FILE)
    return "/".join(parts)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path | str) -> bytes:
    file = archive.extractfile(member)
    if file is None or (member.name.endswith(CONFIG) and member.size > CONFIG_AT_MOST):
        raise UserError("a file of the archive cannot be what it says", f"{path}: {member.name}", ANOTHER_FILE)
    content = file.read()
    if len(content) != member.size:
        raise tarfile.ReadError("the archive ends early")
    return content


def _read_config(content: bytes, where: str) -> dict[str, Any]:
    """YAML as OmegaConf reads it: no tag makes an object. An alias, which NeMo never writes, can blow it up."""
    try:
        text = content.decode()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UserError("YAML with aliases", where, ANOTHER_FILE)
        config = plain_settings(OmegaConf.create(text), where)
    except (yaml.YAMLError, *READER_ERRORS) as error:
        raise UserError("settings that cannot be read", where, ANOTHER_FILE) from error
    return config.get("model", config)
