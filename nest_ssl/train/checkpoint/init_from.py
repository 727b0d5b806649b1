"""Weights to start from: `init_from_nemo_model` and `init_from_ptl_ckpt`, with NeMo's meaning.

Source: NeMo 3.0.0 `ModelPT.maybe_init_from_pretrained_checkpoint` and `load_part_of_state_dict` in
`nemo.core.classes.modelPT`. Both trainers check their files here before they train; the port also loads them here, from
what was read then: a file is opened once.

    init_from_nemo_model: a.nemo
    init_from_nemo_model: {first: {path: a.nemo, include: [encoder]}, second: {path: b.nemo, exclude: [decoder]}}
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import sha256_of
from nest_ssl.base.safe_load import ANOTHER_FILE, READER_ERRORS, opened
from nest_ssl.config.schema import CLASSES, InitFrom
from nest_ssl.config.section import NEMO, read
from nest_ssl.model.models import model_of
from nest_ssl.train.checkpoint.lightning_checkpoint import load_checkpoint
from nest_ssl.train.checkpoint.nemo_archive import load_nemo
from nest_ssl.train.checkpoint.weights import check_finite, settings_allowed

ARCHIVE, CHECKPOINT = "init_from_nemo_model", "init_from_ptl_ckpt"
OTHER_WEIGHTS = "Use another file; init_strict=false takes missing and unexpected names."
# Far beyond any model that was ever trained: more than this is asked for to fill the memory.
AT_MOST = {"encoder.n_layers": 256, "preprocessor.features": 1024, "preprocessor.n_fft": 1 << 15,
           "preprocessor.window_size": 1, "quantizer.num_books": 256, "decoder.num_decoders": 256}  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A file, and which of its entries to take.

    Args:
        name: the setting that names it, e.g. `init_from_nemo_model.first`.
        path: of the file.
        include: parts of names; an entry is taken if its name contains one of them,
        exclude: unless it contains one of these.
    """

    name: str
    path: str
    include: list[str]
    exclude: list[str]

    def takes(self, name: str) -> bool:
        return any(part in name for part in self.include) and not any(part in name for part in self.exclude)


def read_sources(cfg: Mapping[str, Any]) -> list[Source]:
    """The files that the configuration names, in the order in which they are loaded.

    Raises:
        UserError: an entry that is not as NeMo has it. (That only one key is given is the schema's matter.)
    """
    key = next((key for key in (ARCHIVE, CHECKPOINT) if cfg.get(key) is not None), None)
    if key is None:
        return []
    named = {key: {"path": cfg[key]}}
    if not isinstance(cfg[key], str):
        named = {f"{key}.{name}": entry for name, entry in cfg[key].items()}
    return [Source(name, **read(InitFrom, entry, name).model_dump()) for name, entry in named.items()]


@dataclass(frozen=True)
class Loaded:
    """What one source holds.

    Args:
        source: where it came from.
        sha256: of the file, as it was read.
        config: an archive's own settings, of which NeMo builds a model; None for a checkpoint.
        weights: on the CPU.
    """

    source: Source
    sha256: str
    config: dict[str, Any] | None
    weights: Mapping[str, torch.Tensor]


def load_sources(cfg: Mapping[str, Any]) -> list[Loaded]:
    """Read every source, so that its mistakes show before training, and NeMo opens none that does harm.

    Raises:
        UserError: see `read_sources`, and what is wrong with a file.
    """
    loaded: list[Loaded] = []
    config: dict[str, Any] | None
    for source in read_sources(cfg):
        is_archive, given = source.name.startswith(ARCHIVE), f"{source.name}={source.path}"
        with opened(source.path) as stream:  # easily confused: a checkpoint is a zip, an archive a tar
            is_zip = stream.read(4) == b"PK\x03\x04"
        if is_archive and is_zip:
            raise UserError("not an archive but a checkpoint", given, f"Use {CHECKPOINT}.")
        if not (is_archive or is_zip) and tarfile.is_tarfile(source.path):
            raise UserError("not a checkpoint but an archive", given, f"Use {ARCHIVE}.")
        if is_archive:
            config, weights = load_nemo(source.path)
            _check_archive(config, weights, source.path, bool(cfg.get("init_strict", True)))
        else:
            config, weights = None, load_checkpoint(source.path)[1]
        check_finite(weights, source.path)
        if weights and not any(map(source.takes, weights)):
            log.warning("warning: %s: include and exclude leave none of the entries of %s", source.name, source.path)
        loaded.append(Loaded(source, sha256_of(Path(source.path)), config, weights))
    return loaded


@rank_zero_only  # as in NeMo; a distributed strategy hands the weights on
def init_from_pretrained(model: nn.Module, cfg: Mapping[str, Any], sources: Sequence[Loaded] | None = None) -> None:
    """Load into `model` what `cfg` names; entries that the model does not have are passed over.

    As in NeMo, each archive's own model is built first, which draws from torch's generator: dropout and masks
    afterwards are other ones than without a source.

    Args:
        model: to change.
        cfg: the whole configuration.
        sources: what `load_sources` found; read here when None.

    Raises:
        UserError: see `load_sources`.
        RuntimeError: an entry of another shape than the model's.
    """
    for loaded in load_sources(cfg) if sources is None else sources:
        weights = loaded.weights
        if loaded.config is not None:
            own = model_of(loaded.config)
            own.load_state_dict(weights, strict=bool(cfg.get("init_strict", True)))
            weights = own.state_dict()
        source = loaded.source
        part = {name: tensor for name, tensor in weights.items() if source.takes(name)}
        model.load_state_dict(part, strict=False)
        used, names = part.keys() & model.state_dict().keys(), model.state_dict()
        rank_zero_info(f"{source.name}: {len(used)} of the model's {len(names)} entries from {source.path}")
        left_out = sorted(name for name in weights if any(word in name for word in source.exclude))
        if left_out:
            rank_zero_info(f"{source.name}: excluded {', '.join(left_out)}")


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


def _check_archive(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], path: str, strict: bool) -> None:
    """Refuse what NeMo could not build, or would need more memory for than the weights. Built on torch's `meta`
    device, the model takes none, and draws nothing.

    Args:
        config: of the archive.
        weights: of the archive.
        path: of the archive.
        strict: whether every weight of the model must be there (`init_strict`).
    """
    target = config.get("target")
    if not isinstance(target, str) or not target.startswith(NEMO) or target.rsplit(".", 1)[-1] not in CLASSES:
        raise UserError("not a NEST model", f"{path}: target is {target}", f"Only NeMo's {CLASSES[0]} is read.")
    for key, limit in AT_MOST.items():
        section, name = key.split(".")
        value = config[section].get(name) if isinstance(config.get(section), dict) else None
        if value is not None and (not isinstance(value, int | float) or not 0 < value <= limit):
            raise UserError("a setting of the archive that cannot be", f"{path}: {key}={value}", ANOTHER_FILE)
    layers = len({name.split(".")[2] for name in weights if name.startswith("encoder.layers.")})
    if strict and isinstance(config.get("encoder"), dict) and config["encoder"].get("n_layers", layers) != layers:
        where = f"{path}: encoder.n_layers={config['encoder']['n_layers']}, and weights of {layers} layers"
        raise UserError("an archive of weights that do not fit its model", where, OTHER_WEIGHTS)
    try:
        with torch.device("meta"):
            model = model_of(config).to("meta")  # the mel filters are NumPy's
        model.load_state_dict({name: weight.to("meta") for name, weight in weights.items()}, strict=strict)
    except UserError as error:
        raise UserError(error.what, f"{path}, {error.where}", error.fix) from error
    except RuntimeError as error:
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()] or ["RuntimeError"]
        where = f"{path}: {lines[1] if len(lines) > 1 else lines[0]}"
        raise UserError("an archive of weights that do not fit its model", where, OTHER_WEIGHTS) from error
    except READER_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError("settings of which no model can be built", f"{path}: {reason}", ANOTHER_FILE) from error
