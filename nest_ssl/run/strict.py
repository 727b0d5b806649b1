"""Misspelt configuration keys are errors that name the nearest key, before anything is built.

A key is known if the composed file has it, or if what reads that section takes it: our modules' constructors, the
loader, the optimizer, Lightning's Trainer.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config import exp_keys
from nest_ssl.config.compose import GROUPS, OWN_DEFAULTS, split_override
from nest_ssl.data import loader
from nest_ssl.model import nest
from nest_ssl.train import optim, schedules

# fmt: off
TOP_KEYS = {"name", "model", "trainer", "exp_manager", "init_from_nemo_model", "init_from_ptl_ckpt",
            "init_from_pretrained_model", "init_strict", *OWN_DEFAULTS, *GROUPS}
MODEL_KEYS = {"sample_rate", "num_classes", "num_books", "code_dim", "squeeze_single", "mask_position", "train_ds",
              "validation_ds", "test_ds", "preprocessor", "spec_augment", "masking", "quantizer", "encoder", "decoder",
              "loss", "optim", "optim_param_groups"}
# fmt: on


def check_keys(overrides: Sequence[str], base: DictConfig) -> None:
    """Check every overridden key against `base`, the configuration without them.

    Raises:
        UserError: the first unknown key, with the nearest known one.
    """
    in_file = set(_all_keys(OmegaConf.to_container(base, resolve=False)))
    for override in overrides:
        if not override.startswith("~"):
            _check_key(split_override(override)[0], in_file)


def known_keys(section: str) -> set[str]:
    """The keys that may stand directly below `section`, a dotted path; empty where anything may."""
    tables = {
        "": TOP_KEYS,
        "model": MODEL_KEYS,
        "model.optim": optim.allowed_keys(),
        "model.optim.sched": schedules.allowed_keys(),
        **exp_keys.TABLES,
    }
    if section in tables:
        return set(tables[section])
    if section == "trainer":
        return set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    match section.split("."):
        case ["model", "train_ds" | "validation_ds" | "test_ds", *rest]:
            return set(loader.allowed_keys(rest[0] if rest else "dataset"))
        case ["model", "optim_param_groups"]:
            return set()  # names of the model's parts, and below them whatever the optimizer takes
        case ["model", part]:
            return set(nest.allowed_keys(part)) | {"_target_"}
    return set()


def _check_key(key: str, in_file: Collection[str]) -> None:
    names = key.split(".")
    for depth, name in enumerate(names):
        section = ".".join(names[:depth])
        known = known_keys(section)
        if not known:
            return
        if name not in known and ".".join(names[: depth + 1]) not in in_file:
            raise UserError("unknown key", key, _nearest(name, section, known, in_file))


def _nearest(name: str, section: str, known: Collection[str], in_file: Collection[str]) -> str:
    prefix = f"{section}." if section else ""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    if near:
        return f"Did you mean {prefix}{near[0]}?"
    same_name = sorted((key for key in in_file if key.rsplit(".", 1)[-1] == name), key=len)
    anywhere = same_name or difflib.get_close_matches(prefix + name, sorted(in_file), n=1, cutoff=0.0)
    return f"Did you mean {anywhere[0]}?"


def _all_keys(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            name = f"{path}.{key}" if path else str(key)
            yield name
            yield from _all_keys(child, name)
