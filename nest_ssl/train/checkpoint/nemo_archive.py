"""`.nemo` archives, which NeMo's `restore_from` reads, and which NeMo's `save_to` writes.

Source of the format: NeMo 3.0.0 `nemo.core.connectors.save_restore_connector.SaveRestoreConnector`; 2.4 and 2.7 write
the same. A tar file, gzipped in old releases, of `model_config.yaml` and `model_weights.ckpt`; further files
(tokenizers and the like, which this model has none of) are passed over. No member is ever unpacked onto the disk, and
the weights are read straight from the archive's place in memory: a file of 1 GB takes 1 GB.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import mmap
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import replacing
from nest_ssl.base.safe_load import ANOTHER_FILE, READER_ERRORS, load_yaml, opened
from nest_ssl.releases import NEWEST, RELEASES
from nest_ssl.train.checkpoint.weights import check_state_dict, load_weights, plain_settings

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
TARGET = "nemo.collections.asr.models.ssl_models.EncDecDenoiseMaskedTokenPredModel"

MIB = 1 << 20
CONFIG_AT_MOST = MIB // 2  # NeMo's is 6 kB
GZIP_RATIO = 20  # trained weights shrink by a tenth; what grows more than this was made to fill the memory


def nemo_config(settings: Mapping[str, Any], generation: str = NEWEST) -> dict[str, Any]:
    """NeMo's `model` section as NeMo keeps it beside the weights: resolved, and naming the class and the release."""
    named = {"target": TARGET, "nemo_version": RELEASES[generation]}
    config = plain_settings(settings, "model")
    return {**config, **{key: config.get(key, value) for key, value in named.items()}}


@rank_zero_only
def save_nemo(model: nn.Module, path: Path | str) -> None:
    """Write a `NestModule` (its `settings` and state dict) to `path`, as `write_nemo` does; on the first rank only."""
    write_nemo(nemo_config(model.settings, model.generation), model.state_dict(), path)  # type: ignore[arg-type]


def write_nemo(config: Mapping[str, Any], state_dict: dict[str, torch.Tensor], path: Path | str) -> None:
    """Write a `.nemo` archive in one go: a killed process leaves the old file or the new one. Same content, same bytes.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    on_cpu = copy.copy(state_dict)  # with the versions of the modules, which torch keeps in an attribute
    on_cpu.update({name: tensor.detach().cpu() for name, tensor in state_dict.items()})
    with write_errors(str(path)), replacing(path) as partial, tempfile.TemporaryFile(dir=path.parent) as weights:
        torch.save(on_cpu, weights)
        with tarfile.open(partial, mode="w") as archive:
            _add(archive, CONFIG, io.BytesIO(text.encode()))
            _add(archive, WEIGHTS, weights)


def load_nemo(path: Path | str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration (NeMo's `model` section, plain builtins) and the weights, on the CPU, of a `.nemo` archive.

    Raises:
        UserError: no such file, not an archive, a damaged one, or one that was made to do harm.
    """
    try:
        with opened(path) as file, _mapped(file, str(path)) as content, tarfile.open(None, "r:", content) as archive:
            members = _harmless_members(archive, path)
            for name in (CONFIG, WEIGHTS):
                if name not in members:
                    raise UserError("not a .nemo archive", f"{path} has no {name}", ANOTHER_FILE)
            if not members[CONFIG].isfile() or members[CONFIG].size > CONFIG_AT_MOST:
                raise UserError("a file of the archive cannot be what it says", f"{path}: {CONFIG}", ANOTHER_FILE)
            config = _read_config(_stream(archive, members[CONFIG]).read(), f"{path}, {CONFIG}")
            where = f"{path}, {WEIGHTS}"
            return config, check_state_dict(load_weights(_stream(archive, members[WEIGHTS]), where), where)
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, *READER_ERRORS) as error:
        raise UserError("not a .nemo archive, or a damaged one", str(path), ANOTHER_FILE) from error


# --- writing


def _add(archive: tarfile.TarFile, name: str, content: BinaryIO | io.BytesIO) -> None:
    """Add a file; its owner and times say nothing of this machine."""
    member = tarfile.TarInfo(f"./{name}")
    member.size = content.seek(0, os.SEEK_END)
    content.seek(0)
    archive.addfile(member, content)


# --- reading


class _Content(mmap.mmap):
    """A file as memory. No read or seek gets beyond its end, whatever size a header claims."""

    def seekable(self) -> bool:  # which mmap itself lacks before Python 3.13
        return True


@contextmanager
def _mapped(file: BinaryIO, where: str) -> Iterator[_Content]:
    """The tar in a file; a gzipped one (old releases) is first unpacked into a file without a name.

    Raises:
        UserError: it unpacks to more than an honest one would.
    """
    size = os.fstat(file.fileno()).st_size
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    with contextlib.ExitStack() as stack:
        if gzipped:
            unpacked = stack.enter_context(tempfile.TemporaryFile())
            source = stack.enter_context(gzip.GzipFile(fileobj=file))
            left = GZIP_RATIO * size + CONFIG_AT_MOST
            while chunk := source.read(MIB):
                left -= len(chunk)
                if left < 0:
                    raise UserError("it unpacks to more than it is", where, ANOTHER_FILE)
                unpacked.write(chunk)
            unpacked.flush()
            file = unpacked
        content = _Content(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            yield content
        finally:
            with contextlib.suppress(BufferError):  # an error on its way may still hold a view; it goes with it
                content.close()


def _harmless_members(archive: tarfile.TarFile, path: Path | str) -> dict[str, tarfile.TarInfo]:
    """The members by name without `./`.

    Raises:
        UserError: a link, device, sparse file, absolute name, a name that climbs, or one that comes twice.
    """
    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        name = member.name.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or any(":" in part for part in parts[:1]):
            raise UserError("an archive that reaches outside itself", f"{path}: {member.name}", ANOTHER_FILE)
        if not (member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and member.sparse is None):
            raise UserError("an archive of more than files and folders", f"{path}: {member.name}", ANOTHER_FILE)
        name = "/".join(parts)
        if name in members:
            raise UserError("an archive with a file twice", f"{path}: {member.name}", ANOTHER_FILE)
        members[name] = member
    return members


def _stream(archive: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    stream = archive.extractfile(member)
    if stream is None:
        raise tarfile.ReadError(f"{member.name} is no file")
    return cast(BinaryIO, stream)


def _read_config(content: bytes, where: str) -> dict[str, Any]:
    """The model's settings. `load_yaml` only judges: OmegaConf reads numbers like 1e-5 as NeMo has them."""
    load_yaml(content, where)
    try:
        config = plain_settings(OmegaConf.create(content.decode()), where)
    except (yaml.YAMLError, OmegaConfBaseException, *READER_ERRORS) as error:
        raise UserError("settings that cannot be read", where, ANOTHER_FILE) from error
    section = config.get("model", config)
    if not isinstance(section, dict):
        raise UserError("no settings", f"{where}, model", ANOTHER_FILE)
    return section
