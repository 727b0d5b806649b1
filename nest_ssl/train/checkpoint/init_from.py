"""Weights to start from: `init_from_nemo_model` and `init_from_ptl_ckpt`, with NeMo's meaning.

Source: NeMo 3.0.0 `ModelPT.maybe_init_from_pretrained_checkpoint` and `load_part_of_state_dict` in
`nemo.core.classes.modelPT`. Both trainers check their files here before they train; ours also loads them here.

    init_from_nemo_model: a.nemo
    init_from_nemo_model: {first: {path: a.nemo, include: [encoder]}, second: {path: b.nemo, exclude: [decoder]}}
"""

from __future__ import annotations

import difflib
import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.base.safe_load import opened, settings_allowed
from nest_ssl.data.fingerprint import file_sha256
from nest_ssl.model.build import NEMO
from nest_ssl.model.nest import NestModel
from nest_ssl.train.checkpoint.lightning_checkpoint import load_checkpoint
from nest_ssl.train.checkpoint.nemo_archive import load_nemo

ARCHIVE, CHECKPOINT, CLOUD = "init_from_nemo_model", "init_from_ptl_ckpt", "init_from_pretrained_model"
KEYS = (ARCHIVE, CHECKPOINT, CLOUD)
# Both have the same parts, in the same order. Another class of NeMo draws other numbers while it is built.
CLASSES = ("EncDecDenoiseMaskedTokenPredModel", "EncDecMaskedTokenPredModel")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A file, and which of its entries to take.

    Args:
        name: the setting that names it, e.g. `init_from_nemo_model.first`.
        path: where it is.
        include: an entry is taken if its name contains one of these,
        exclude: unless it contains one of these.
    """

    name: str
    path: str
    include: tuple[str, ...] = ("",)
    exclude: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name.partition(".")[0]

    def takes(self, name: str) -> bool:
        return any(p in name for p in self.include) and not any(p in name for p in self.exclude)


def read_sources(cfg: Mapping[str, Any]) -> list[Source]:
    """The files that the configuration names, in the order in which they are loaded.

    Raises:
        UserError: more than one of the keys, a model from the cloud, or an entry that is not as NeMo has it.
    """
    given = [key for key in KEYS if key in cfg]
    if len(given) > 1:  # NeMo counts those that are null, too
        raise UserError("only one source of weights is allowed", ", ".join(given), f"Remove all but one: ~{given[1]}.")
    if not given or cfg[given[0]] is None:
        return []
    key, value = given[0], cfg[given[0]]
    if key == CLOUD:
        raise UserError("no model is fetched from a network", f"{CLOUD}={value}", f"Download it and use {ARCHIVE}.")
    if isinstance(value, str):
        return [Source(key, value)]
    if not isinstance(value, Mapping):
        raise UserError("neither a path nor a group of paths", f"{key}={value}", f"Write {key}=file.")
    return [_read_entry(f"{key}.{name}", entry) for name, entry in value.items()]


def check_sources(cfg: Mapping[str, Any]) -> None:
    """Read every source once, so that its mistakes show before training, and NeMo opens none that does harm.

    Raises:
        UserError: see `read_sources`, and what is wrong with a file.
    """
    for source in read_sources(cfg):
        state_dict = _weights(source, _is_strict(cfg))
        if state_dict and not any(map(source.takes, state_dict)):
            log.warning("warning: %s: include and exclude leave none of the entries of %s", source.name, source.path)


def fingerprint_sources(cfg: Mapping[str, Any]) -> dict[str, str | None]:
    """SHA-256 of every source's file, by the name of its setting; empty if the weights come from the seed."""
    return {source.name: file_sha256(source.path) for source in read_sources(cfg)}


@rank_zero_only  # as in NeMo; a distributed strategy hands the weights on
def init_from_pretrained(model: nn.Module, cfg: Mapping[str, Any]) -> None:
    """Load into `model` what `cfg` names; entries that the model does not have are passed over.

    As in NeMo, each archive's own model is built first, which draws from torch's generator: dropout and masks
    afterwards are other ones than without a source.

    Raises:
        UserError: see `check_sources`.
        RuntimeError: an entry of another shape than the model's.
    """
    for source in read_sources(cfg):
        _load(model, source, _weights(source, _is_strict(cfg)))


@contextmanager
def loading_sources(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Around either trainer's loading: NeMo may open its own checkpoints; shapes that do not fit are a user's error.

    NeMo reads them with torch's defaults, which since torch 2.6 refuse the OmegaConf objects that NeMo puts in.

    Raises:
        UserError: an entry of another shape than the model's.
    """
    try:
        with settings_allowed():
            yield
    except RuntimeError as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines() if "size mismatch" in line]
        if not lines:
            raise
        paths = ", ".join(source.path for source in read_sources(cfg))
        raise UserError("weights of another shape", f"{paths}: {lines[0]}", "Leave it out with exclude.") from error


def _read_entry(where: str, entry: Any) -> Source:
    if not isinstance(entry, Mapping):
        raise UserError("not a group of path, include and exclude", where, f"Write {where}.path=file.")
    known = ("path", "include", "exclude")
    for name in entry:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise UserError("unknown key", f"{where}.{name}", f"Did you mean {near}?")
    if not isinstance(entry.get("path"), str):
        raise UserError("a path is missing", where, f"Write {where}.path=file.")
    patterns = {name: _patterns(entry[name], f"{where}.{name}") for name in known[1:] if name in entry}
    return Source(where, entry["path"], **patterns)


def _patterns(value: Any, where: str) -> tuple[str, ...]:
    """NeMo takes a text as a list of its letters, which match nearly everything: surely a mistake."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise UserError("not a list of parts of names", f"{where}={value}", "Write it as a list, e.g. [encoder].")
    return tuple(value)


def _is_strict(cfg: Mapping[str, Any]) -> bool:
    return bool(cfg.get("init_strict", True))  # whether an archive must fit its own configuration


def _weights(source: Source, strict: bool) -> Mapping[str, torch.Tensor]:
    _check_kind(source)
    if source.key == CHECKPOINT:
        return load_checkpoint(source.path)[1]
    config, state_dict = load_nemo(source.path)
    _check_class(config.get("target"), source.path)
    try:
        model = NestModel(config)
        model.load_state_dict(state_dict, strict=strict)
    except UserError as error:
        raise UserError(error.what, f"{source.path}, {error.where}", error.fix) from error
    except RuntimeError as error:
        first = (str(error).splitlines()[1:2] or [str(error)])[0].strip().rstrip(".")
        fix = "Use another file; init_strict=false takes missing and unexpected names."
        raise UserError("an archive whose weights do not fit its model", f"{source.path}: {first}", fix) from error
    return model.state_dict()


def _check_kind(source: Source) -> None:
    """The two kinds of file are easily confused: a checkpoint is a zip, an archive a tar."""
    with opened(source.path) as stream:
        is_zip = stream.read(4) == b"PK\x03\x04"
    if source.key == ARCHIVE and is_zip:
        raise UserError("not an archive but a checkpoint", f"{source.name}={source.path}", f"Use {CHECKPOINT}.")
    if source.key == CHECKPOINT and not is_zip and tarfile.is_tarfile(source.path):
        raise UserError("not a checkpoint but an archive", f"{source.name}={source.path}", f"Use {ARCHIVE}.")


def _check_class(target: Any, path: str) -> None:
    if not isinstance(target, str) or not target.startswith(NEMO) or target.rsplit(".", 1)[-1] not in CLASSES:
        raise UserError("not a NEST model", f"{path}: target is {target}", f"Only NeMo's {CLASSES[0]} is read.")


def _load(model: nn.Module, source: Source, state_dict: Mapping[str, torch.Tensor]) -> None:
    part = {name: tensor for name, tensor in state_dict.items() if source.takes(name)}
    model.load_state_dict(part, strict=False)
    used = part.keys() & model.state_dict().keys()
    left_out = sorted(name for name in state_dict if any(p in name for p in source.exclude))
    rank_zero_info(f"{source.name}: {len(used)} of the model's {len(model.state_dict())} entries from {source.path}")
    if left_out:
        rank_zero_info(f"{source.name}: excluded {', '.join(left_out)}")
