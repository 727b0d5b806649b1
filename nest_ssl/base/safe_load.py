"""Reading what strangers wrote: weights and settings come in, code never does, and nothing unpacks to more than it is.

Weights go through `torch.load(weights_only=True)` with a short list of further classes, those of OmegaConf, which NeMo
and Lightning put into a checkpoint. Settings end as plain builtins, and only references within them are followed.
"""

from __future__ import annotations

import collections
import pickle
import re
import struct
import typing
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf, nodes
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.errors import OmegaConfBaseException

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.nested import DEEPEST

# All of them hold data: none opens, imports or calls anything when it is unpickled.
# fmt: off
SETTINGS_CLASSES: list[Any] = [
    DictConfig, ListConfig, ContainerMetadata, Metadata, nodes.AnyNode, nodes.StringNode, nodes.IntegerNode,
    nodes.FloatNode, nodes.BooleanNode, typing.Any, collections.defaultdict, dict, list, tuple, str, int, float, bool,
]
# What a damaged or hostile file makes the readers raise.
READER_ERRORS = (pickle.UnpicklingError, struct.error, zipfile.BadZipFile, ArithmeticError, AssertionError,
                 AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
# fmt: on
REFERENCE = re.compile(r"\$\{([\w.-]+)\}")  # `${model.sample_rate}`, and not `${oc.env:HOME}`
SETTINGS_AT_MOST = 100_000  # values, once references are replaced: NeMo's largest files have some hundred
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ANOTHER_FILE = "Choose another file, or have it written again."


@contextmanager
def opened(path: Path | str) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Raises:
        UserError: it is not there, is no regular file or cannot be read.
    """
    if not Path(path).is_file():
        raise UserError("no such file", str(path), "Check the path.")
    try:
        with open(path, "rb") as stream:
            yield stream
    except OSError as error:
        if error.errno is None:  # a reader's own, about the content
            raise
        raise from_os_error(error, str(path)) from error


@contextmanager
def settings_allowed() -> Iterator[None]:
    """Meanwhile `torch.load(weights_only=True)` takes OmegaConf's settings too, which NeMo's checkpoints hold."""
    with torch.serialization.safe_globals(SETTINGS_CLASSES):
        yield


def load_tensors(source: Path | BinaryIO, where: str = "", mapped: bool = False) -> Any:
    """What `torch.save` wrote: tensors (on the CPU), builtins and OmegaConf's settings, in their nesting.

    Args:
        source: the file; an open one is read from its beginning.
        where: what to call it in an error, if not by its path.
        mapped: leave the tensors of a path on the disk. Their checksums, which cost a reading of all, are not checked.

    Raises:
        UserError: the file is damaged, would unpack to more than it is, or holds anything else.
    """
    where = where or str(source)
    with opened(source) if isinstance(source, Path) else nullcontext(source) as stream:
        try:
            check_zip(stream, where, checksums=not mapped)
            with settings_allowed():
                file = source if mapped else stream
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except READER_ERRORS as error:
            foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
            if foreign:
                fix = "Only tensors, builtins and OmegaConf's settings are read, so that no code of the file runs."
                raise UserError(f"it holds {foreign[1]}, which is no weight", where, fix) from error
            what = "not a file of weights, or a damaged one"
            raise UserError(what, f"{where} ({_first_line(error)})", ANOTHER_FILE) from error


def check_zip(stream: BinaryIO, where: str, checksums: bool = True) -> None:
    """Refuse what no `torch.save` writes, and what was changed since; leaves the stream at its beginning.

    torch stores and never compresses, so what unpacks to more than the file holds was made to fill the memory.

    Raises:
        UserError: it unpacks to more than it is.
        zipfile.BadZipFile: a record does not match its checksum (torch compares none), or it is no zip.
    """
    size = stream.seek(0, 2)
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
            raise UserError("it unpacks to more than it is", where, ANOTHER_FILE)
        if checksums and (broken := archive.testzip()):
            raise zipfile.BadZipFile(f"{broken} does not match its checksum")
    stream.seek(0)


class _Loader(yaml.CSafeLoader):
    """Dates stay text, as in OmegaConf: nothing but JSON's types comes out."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: bytes | str, where: str) -> Any:
    """YAML in builtins: without aliases and tags, which could make a small file endless, nor deep nesting.

    Raises:
        UserError: it is not that.
    """
    depth, reason = 0, "it is nested too deep"
    try:
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                reason = f"it has an alias or a tag in line {getattr(event.start_mark, 'line', 0) + 1}"
                break
            if depth > DEEPEST:
                break
        else:
            return yaml.load(text, _Loader)
    except (yaml.YAMLError, *READER_ERRORS) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError("not YAML that can be read", f"{where}: {reason}", ANOTHER_FILE)


def check_state_dict(value: Any, where: str) -> dict[str, torch.Tensor]:
    """`value`, if it maps names to tensors that can be weights: dense floats of 16 bits or more, or whole counts.

    Raises:
        UserError: it does not.
    """
    if not (isinstance(value, Mapping) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in value.items())):
        raise UserError("no state dict: names and their tensors", where, ANOTHER_FILE)
    for name, tensor in value.items():
        number = tensor.dtype in FLOATS or (tensor.dtype == torch.int64 and tensor.ndim == 0)
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not (number and dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()):
            kind = f"{tensor.dtype}, {list(tensor.shape)}"
            raise UserError("an entry that cannot be a weight", f"{where}: {name} ({kind})", ANOTHER_FILE)
    return dict(value)


def check_finite(state_dict: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse weights from which nothing can be trained.

    Raises:
        UserError: names the first entry with a NaN or an infinite value.
    """
    for name, tensor in state_dict.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError("weights that are NaN or infinite", f"{where}: {name}", ANOTHER_FILE)


def plain_settings(config: Any, where: str) -> dict[str, Any]:
    """A mapping of settings as plain builtins, its `${...}` references replaced by their values.

    Raises:
        UserError: it is no mapping, a reference leads nowhere or grows without end, or a value asks for more than
            another setting (`${oc.env:HOME}`).
    """
    try:
        raw = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
        if not isinstance(raw, dict):
            raise UserError("no settings", where, ANOTHER_FILE)
        resolved = _Settings(raw, where).resolve(raw)
    except (OmegaConfBaseException, *READER_ERRORS) as error:
        raise UserError("settings that cannot be read", f"{where}: {_first_line(error)}", ANOTHER_FILE) from error
    return {str(key): value for key, value in resolved.items()}


class _Settings:
    """Replaces references by what they name, within a budget: a few lines of them can ask for 2^60 values."""

    def __init__(self, root: dict[Any, Any], where: str) -> None:
        self.root, self.where, self.left = root, where, SETTINGS_AT_MOST

    def resolve(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1
        if depth > DEEPEST or self.left < 0:
            raise UserError("settings that are nested or refer to each other without end", self.where, ANOTHER_FILE)
        if isinstance(value, dict):
            return {key: self.resolve(child, depth + 1) for key, child in value.items()}
        if isinstance(value, list):
            return [self.resolve(child, depth + 1) for child in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        reference = REFERENCE.fullmatch(value)
        if reference is None:
            raise UserError("a setting that is not a value", f"{self.where}: {value[:80]}", "Write the value itself.")
        target: Any = self.root
        for key in reference[1].split("."):
            if not isinstance(target, dict) or key not in target:
                raise UserError("a reference to nothing", f"{self.where}: {value[:80]}", "Write the value itself.")
            target = target[key]
        return self.resolve(target, depth + 1)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
