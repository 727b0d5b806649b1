"""The experiment's configuration, composed: a file, its groups by Hydra, and overrides on top of them.

    cfg = compose(["size=tiny", "trainer.precision=32"])

Overrides may be written `key=value`, `+key=value` or `++key=value`, whether or not the key is in the file. Hydra sees
the groups alone (`GROUPS`): it takes any override for a group if a folder of that name, say the recording
nemo/, lies beside the config. Whether keys and values make sense is `strict.py`'s matter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from nest_ssl.base.errors import UserError
from nest_ssl.base.home import ROOT
from nest_ssl.config.schema import Experiment
from nest_ssl.config.section import takes_text

CONF = ROOT / "conf"
DEFAULT_NAME = "nest_fast-conformer"
GROUPS = ("size", "run", "kind", "recipe")
OWN_KEYS = ("nemo", "seed", "output_dir", "save_steps", "record", "include", "exclude", "stop_when_recorded",
            "noise_floor", "operators", "learning_rates", "overwrite", "batches", "no_masked_token", "bad_audio",
            "seeded_data", "numerics", "cuda_graphs")  # fmt: skip
WRITTEN_TO = ("output_dir", "exp_manager.exp_dir", "exp_manager.explicit_log_dir",
              "exp_manager.resume_from_checkpoint", "exp_manager.checkpoint_callback_params.dirpath")  # fmt: skip
PATH_KEYS = ("manifest_filepath", "noise_manifest", "tarred_audio_filepaths", "shar_path", "cuts_path")  # of data
SOURCE_KEYS = ("init_from_nemo_model", "init_from_ptl_ckpt")  # a path, or groups with a `path`


def compose(
    overrides: Sequence[str] = (), config_path: str | Path | None = None, config_name: str = DEFAULT_NAME
) -> DictConfig:
    """The configuration, its references resolved, and our own keys' defaults filled in.

    Args:
        overrides: in Hydra's syntax; the leading ``+`` or ``++`` may be there or not.
        config_path: folder of another config, e.g. NeMo's own; that of this repository when None.
        config_name: its file name, with or without ``.yaml``.

    Raises:
        UserError: no such config, one that cannot be read, a value that is missing or refers to nothing, a sweep.
    """
    folder, name = config_file(config_path, config_name)
    groups = [o for o in overrides if o.lstrip("+").partition("=")[0] in GROUPS]
    cfg = _compose_groups(folder, name, groups)
    for override in overrides:
        if override not in groups:
            _apply(cfg, _parse(override))
    _fill_in(cfg, {override.lstrip("+").partition("=")[0].strip() for override in overrides})
    try:
        try:
            resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        except MissingMandatoryValue as error:
            missing = min(OmegaConf.missing_keys(cfg))
            raise UserError("a value is missing", missing, f"Give it: {missing}=...") from error
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        where = key + str(error).split("\n")[0]
        raise UserError("a value cannot be resolved", where, "Check its ${...} reference.") from error
    except RecursionError as error:
        raise UserError("values that refer to one another", "${...}", "Break the circle of references.") from error
    assert isinstance(resolved, DictConfig)
    return resolved


def config_file(config_path: str | Path | None = None, config_name: str = DEFAULT_NAME) -> tuple[Path, str]:
    """Folder and name (without `.yaml`) of the main file.

    Raises:
        UserError: it is not there.
    """
    folder = Path(config_path).expanduser().resolve() if config_path else CONF
    name = config_name.removesuffix(".yaml")
    if not (folder / f"{name}.yaml").is_file():
        raise UserError("no such config", str(folder / f"{name}.yaml"), "Check --config-path and --config-name.")
    return folder, name


def chosen_groups(folder: Path, name: str) -> dict[str, str | None]:
    """The groups in the defaults list of a config file, and what it chooses of each."""
    try:
        content = yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f"{folder / name}.yaml: {error}"
        raise UserError("a config file is not YAML", where, "Correct the file.") from error
    entries = content.get("defaults") if isinstance(content, dict) else None
    chosen = [entry for entry in entries or () if isinstance(entry, dict)]
    return {str(group).split()[-1]: choice for entry in chosen for group, choice in entry.items()}


def data_paths(cfg: DictConfig) -> DictConfig:
    """A copy of `cfg` whose data and weights have absolute paths: looked up from here, then from the repository."""
    cfg = cfg.copy()
    for section in ("train_ds", "validation_ds"):
        for key in PATH_KEYS:
            value = OmegaConf.select(cfg, f"model.{section}.{key}")
            if value is not None:
                OmegaConf.update(cfg, f"model.{section}.{key}", _absolute(value))
        members = OmegaConf.select(cfg, f"model.{section}.input_cfg")
        if members:
            OmegaConf.update(cfg, f"model.{section}.input_cfg", _absolute_members(members))
    for key in SOURCE_KEYS:
        if isinstance(cfg.get(key), str):
            cfg[key] = _absolute(cfg[key], separator=None)
        elif isinstance(cfg.get(key), DictConfig):
            for entry in cfg[key].values():
                if isinstance(entry, DictConfig) and isinstance(entry.get("path"), str):
                    entry.path = _absolute(entry.path, separator=None)
    return cfg


# --- groups, by Hydra


def _compose_groups(folder: Path, name: str, groups: list[str]) -> DictConfig:
    """The file with the groups chosen, each `group=choice`; a plus before it where the file's own list has no such."""
    path = CONF.as_uri().replace("'", "\\'")
    overrides = [] if folder == CONF else [f"hydra.searchpath=['{path}']"]
    for override in groups:
        group, _, choice = override.lstrip("+").partition("=")
        choices = sorted({path.stem for place in (CONF, folder) for path in (place / group).glob("*.yaml")})
        if choice not in choices:
            raise UserError(f"no such {group}", repr(choice), f"Choose one of: {', '.join(choices)}.")
        overrides.append(f"{group}={choice}" if group in chosen_groups(folder, name) else f"+{group}={choice}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            cfg = hydra_compose(config_name=name, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        message = str(error).split("\n")[0]
        raise UserError("the configuration cannot be composed", message, "Check the config file.") from error
    except yaml.YAMLError as error:
        raise UserError("a config file is not YAML", str(error), "Correct the file.") from error
    OmegaConf.set_struct(cfg, False)
    return cfg


# --- overrides


def _parse(override: str) -> Override:
    """One `key=value` or `~key`, its value as Hydra's grammar has it, or text where that has no such value.

    Raises:
        UserError: neither, several values of which one is to be taken at a time, or a setting of Hydra's own.
    """
    key, equals, value = override.lstrip("+~").partition("=")
    if not key.strip() or not (equals or override.startswith("~")):
        fix = "Write key=value, e.g. size=tiny or model.optim.lr=1.0."
        raise UserError("not an override", repr(override), fix)
    if key.partition(".")[0].partition("/")[0] == "hydra":
        raise UserError("Hydra's own settings are not used", override, "output_dir=... says where a recording goes.")
    parser = OverridesParser.create()
    if override.startswith("~"):
        if key in GROUPS:
            raise UserError("a group that cannot be left out", override, f"Choose one of its files: {key}=...")
        return parser.parse_override(f"~{key}")
    try:
        parsed = parser.parse_override(f"++{key.strip()}={value}")
        if not parsed.is_sweep_override():
            return parsed
        if parsed.value_type is not ValueType.SIMPLE_CHOICE_SWEEP or not takes_text(Experiment, key.strip()):
            raise UserError("a sweep is not an experiment", override, "Give one value, and run once for each.")
    except HydraException:
        pass
    quoted = value.replace("'", "\\'")
    return parser.parse_override(f"++{key.strip()}='{quoted}'")


def _apply(cfg: DictConfig, override: Override) -> None:
    """Set or remove a key. What refers to a removed section, as validation to training's augmentor, goes with it."""
    key = override.key_or_group
    if not override.is_delete():
        value = override.value()
        # A list takes the place of a section, and is refused as what it is.
        merge = isinstance(value, dict) or not isinstance(
            OmegaConf.select(cfg, key, throw_on_resolution_failure=False), DictConfig
        )
        OmegaConf.update(cfg, key, value, merge=merge, force_add=True)
        if override.value() is None:
            _drop_references(cfg, f"{key}.")
        return
    parent = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg
    if not isinstance(parent, DictConfig) or key.rpartition(".")[2] not in parent:
        raise UserError("no such key to remove", f"~{key}", "See --cfg job for the keys that there are.")
    is_section = isinstance(OmegaConf.select(cfg, key, throw_on_resolution_failure=False), DictConfig)
    del parent[key.rpartition(".")[2]]
    if is_section:
        _drop_references(cfg, key)
        _drop_references(cfg, f"{key}.")


def _drop_references(section: DictConfig, key: str) -> None:
    """Remove what refers to `key`; with a dot at its end, to anything below it."""
    text = OmegaConf.to_container(section, resolve=False)
    assert isinstance(text, dict)
    for name, value in text.items():
        if isinstance(section._get_node(name), DictConfig) and isinstance(value, dict):
            _drop_references(section[name], key)
        elif isinstance(value, str) and (value == f"${{{key}}}" or (key[-1] == "." and value.startswith(f"${{{key}"))):
            del section[name]


# --- values


def _fill_in(cfg: DictConfig, given: set[str]) -> None:
    """Our own keys' defaults, and one form of what a file or a command line may say in several ways.

    Raises:
        UserError: a section is missing; `batches` and another override, of those `given`, contradict each other.
    """
    for key in OWN_KEYS:
        if key not in cfg:
            OmegaConf.update(cfg, key, Experiment.model_fields[key].default, force_add=True)
    for section in ("model", "trainer"):
        if not isinstance(cfg.get(section), DictConfig):
            fix = f"Give {section} as a group of keys, as our config has it."
            raise UserError("a section is missing", section, fix)
    if isinstance(cfg.nemo, (int, float)):
        cfg.nemo = str(cfg.nemo)
    if isinstance(cfg.no_masked_token, float):  # `nan` is a number to Hydra
        cfg.no_masked_token = str(cfg.no_masked_token)
    for key in WRITTEN_TO:
        value = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
        if isinstance(value, str):
            OmegaConf.update(cfg, key, os.path.expanduser(value))
    if isinstance(cfg.batches, int) and cfg.batches > 0:  # exactly so many: enough epochs, and no more steps
        accumulate = OmegaConf.select(cfg, "trainer.accumulate_grad_batches", throw_on_resolution_failure=False)
        steps = -(-cfg.batches // accumulate) if isinstance(accumulate, int) and accumulate > 0 else cfg.batches
        lengths = {"max_steps": (steps, -1), "limit_train_batches": (cfg.batches, 1.0), "max_epochs": (cfg.batches, -1)}
        for key, (length, unlimited) in lengths.items():  # what a file says gives way: that is what `batches` is for
            asked = cfg.trainer.get(key)
            if f"trainer.{key}" in given and repr(asked) not in map(repr, (length, unlimited, None)):
                where = f"trainer.{key}={asked} and batches={cfg.batches}"
                raise UserError("two settings say how long to train", where, "Leave one of them out (batches=null).")
            cfg.trainer[key] = length


def _absolute_members(members: Any) -> Any:
    """The members of a mixture, or the path of a file with them, read (paths in it are looked up as all others)."""
    if isinstance(members, str):
        members = OmegaConf.load(_absolute(members, None))
    found = []
    for member in members:
        paths = {key: _absolute(member[key]) for key in PATH_KEYS if member.get(key) is not None}
        groups = {"input_cfg": _absolute_members(member["input_cfg"])} if member.get("input_cfg") else {}
        found.append({**member, **paths, **groups})
    return found


def _absolute(value: Any, separator: str | None = ",") -> Any:
    if isinstance(value, (dict, DictConfig)):  # of shar: the files of each field
        return {key: _absolute(part) for key, part in value.items()}
    if not isinstance(value, str):
        return value if isinstance(value, (int, float)) else [_absolute(part) for part in value]
    if separator:
        return separator.join(_absolute(part.strip(), None) for part in value.split(separator))
    given = Path(value).expanduser()
    from_here = Path.cwd() / given
    is_here = (from_here.parent if "{" in value or "_OP_" in value else from_here).exists()  # a pattern names no file
    return str(from_here if given.is_absolute() or is_here else ROOT / given)
