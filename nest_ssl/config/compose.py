"""The experiment's configuration: composed by Hydra, checked before anything runs, the same for both trainers.

    cfg = compose(["size=tiny", "trainer.precision=32"])

Overrides may be written `key=value`, `+key=value` or `++key=value`, whether or not the key is in the file. Misspelt
keys are `train/keys.py`'s matter, for it takes the model and the Trainer to know what may stand where.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nest_ssl.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
DEFAULT_NAME = "nest_fast-conformer"
GROUPS = ("size", "run")
OWN_DEFAULTS: dict[str, Any] = {
    "nemo": "3.0",
    "seed": 42,
    "output_dir": None,
    "save_steps": 0,
    "overwrite": False,
    "batches": None,
    "no_masked_token": "nan",
    "bad_audio": "stop",
}
NO_MASKED_TOKEN = ("nan", "zero")
BAD_AUDIO = ("stop", "skip")
PATH_KEYS = ("manifest_filepath", "noise_manifest")  # of train_ds and validation_ds
SOURCE_KEYS = ("init_from_nemo_model", "init_from_ptl_ckpt")  # a path, or groups with a `path`
ALL_STEPS = None


def compose(
    overrides: Sequence[str] = (),
    config_path: str | Path | None = None,
    config_name: str = DEFAULT_NAME,
    strict: bool = True,
) -> DictConfig:
    """The resolved configuration.

    Args:
        overrides: in Hydra's syntax; the leading ``+`` or ``++`` may be there or not.
        config_path: folder of another config, e.g. NeMo's own; ours when None.
        config_name: its file name, with or without ``.yaml``.
        strict: resolve references and refuse missing values; otherwise the file is given as it stands.

    Raises:
        UserError: no such config, a value that is missing or cannot be read.
    """
    folder = Path(config_path).resolve() if config_path else CONF
    name = config_name.removesuffix(".yaml")
    if not (folder / f"{name}.yaml").is_file():
        raise UserError("no such config", str(folder / f"{name}.yaml"), "Check --config-path and --config-name.")
    nemo = [o for o in overrides if re.match(r"\+*nemo\s*=", o)]
    cfg = _compose_with_hydra(folder, name, [_normalise(o, folder) for o in overrides if o not in nemo])
    for key, default in OWN_DEFAULTS.items():
        if key not in cfg:
            OmegaConf.update(cfg, key, default, force_add=True)
    if nemo:  # not through Hydra, which takes a folder nemo/ beside the config, such as a recording, for a group
        cfg.nemo = split_override(nemo[-1])[1].strip().strip("'\"")
    for section in ("model", "trainer"):
        if not isinstance(cfg.get(section), DictConfig):
            raise UserError(
                "a section is missing", section, f"Give {section} as a group of keys, as our config has it."
            )
    if not strict:
        return cfg
    _apply_batches(cfg)
    return _resolve(cfg)


def parse_steps(value: Any) -> frozenset[int] | None:
    """The training batches to record: `0`, `"0"`, `"0,1,2"`, `[0, 1, 2]`, `"0-9"`, `"all"` (gives None), `"none"`.

    Raises:
        UserError: anything else.
    """
    if isinstance(value, str) and value.strip().lower() == "all":
        return ALL_STEPS
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none")):
        return frozenset()
    parts = (
        value if isinstance(value, Sequence) and not isinstance(value, str) else str(value).strip("[]() ").split(",")
    )
    return frozenset(step for part in parts for step in _step_range(str(part).strip(), value))


def split_override(override: str) -> tuple[str, str]:
    """Key and value of `key=value`, `+key=value` or `++key=value`.

    Raises:
        UserError: it is neither.
    """
    key, equals, value = override.partition("=")
    key = key.lstrip("+").strip()
    if not equals or not key:
        raise UserError("not an override", repr(override), "Write key=value, e.g. size=tiny or model.optim.lr=1.0.")
    return key, value


def data_paths(cfg: DictConfig) -> DictConfig:
    """A copy of `cfg` whose data and weights have absolute paths: looked up from here, then from the repository."""
    cfg = cfg.copy()
    for section in ("train_ds", "validation_ds"):
        for key in PATH_KEYS:
            value = OmegaConf.select(cfg, f"model.{section}.{key}")
            if value is not None:
                OmegaConf.update(cfg, f"model.{section}.{key}", _absolute(value))
    for key in SOURCE_KEYS:
        if isinstance(cfg.get(key), str):
            cfg[key] = _absolute_path(cfg[key])
        elif isinstance(cfg.get(key), DictConfig):
            for entry in cfg[key].values():
                if isinstance(entry, DictConfig) and isinstance(entry.get("path"), str):
                    entry.path = _absolute_path(entry.path)
    return cfg


def adapt_to_machine(cfg: DictConfig, cuda_devices: int) -> list[str]:
    """Turn NeMo's many-GPU trainer settings into what this machine can run; returns a line for each change.

    Lightning rejects ``devices=-1``, ``ddp`` and synchronised batch norm without a GPU; NeMo's YAML has all three.
    """
    trainer, changes = cfg.trainer, []
    on_cpu = trainer.get("accelerator", "auto") == "cpu" or (
        trainer.get("accelerator") in ("auto", None) and not cuda_devices
    )
    wanted = {}
    if on_cpu and trainer.get("devices") in (-1, "-1", "auto", None):
        wanted["devices"] = 1
    if (
        on_cpu
        and str(trainer.get("strategy", "auto")).startswith("ddp")
        and trainer.get("devices") in (1, -1, "-1", None)
    ):
        wanted["strategy"] = "auto"
    if on_cpu and trainer.get("sync_batchnorm"):
        wanted["sync_batchnorm"] = False
    for key, value in wanted.items():
        changes.append(f"trainer.{key}={trainer.get(key)} needs GPUs and none is used: {value} instead")
        OmegaConf.update(cfg, f"trainer.{key}", value, force_add=True)
    return changes


# --- composing


def _compose_with_hydra(folder: Path, name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    extra = [] if folder == CONF else [f"hydra.searchpath=[{_quote(CONF.as_uri())}]"]
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            cfg = hydra_compose(config_name=name, overrides=overrides + extra)
    except (HydraException, OmegaConfBaseException) as error:
        message = str(error).split("\n")[0]
        raise UserError(
            "the configuration cannot be composed", message, "Check the override and the config file."
        ) from error
    except yaml.YAMLError as error:
        raise UserError("a config file is not YAML", str(error), "Mend the file.") from error
    OmegaConf.set_struct(cfg, False)
    return cfg


def _normalise(override: str, folder: Path) -> str:
    """`key=value` with any or no plus signs, as Hydra adds or overrides; its value quoted if need be."""
    if override.startswith("~"):
        return override
    key, value = split_override(override)
    if key in GROUPS:
        _check_group(key, value)
        return f"{key}={value}" if _has_default(folder, key) else f"+{key}={value}"
    plain = f"++{key}={value}"
    return plain if _is_simple(plain) else f"++{key}={_quote(value)}"


def _is_simple(override: str) -> bool:
    """Whether Hydra reads it as one value (`0,1,2` would be a sweep over three)."""
    try:
        return not OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:
        return False


def _quote(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"


def _check_group(group: str, value: str) -> None:
    choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if value not in choices:
        raise UserError(f"no such {group}", repr(value), f"Choose one of: {', '.join(choices)}.")


def _has_default(folder: Path, group: str) -> bool:
    return folder == CONF and group in GROUPS


def _apply_batches(cfg: DictConfig) -> None:
    """`batches=N` trains exactly N batches: enough epochs, no more than N steps."""
    if cfg.batches is None:
        return
    if not isinstance(cfg.batches, int) or isinstance(cfg.batches, bool) or cfg.batches < 1:
        raise UserError("not a number of batches", f"batches={cfg.batches}", "Give a whole number from 1.")
    accumulate = int(OmegaConf.select(cfg, "trainer.accumulate_grad_batches") or 1)
    steps = -(-cfg.batches // accumulate)
    for key, value in {"max_steps": steps, "limit_train_batches": cfg.batches, "max_epochs": cfg.batches}.items():
        OmegaConf.update(cfg, f"trainer.{key}", value, force_add=True)


def _resolve(cfg: DictConfig) -> DictConfig:
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError("a value is missing", missing[0], f"Give it: {missing[0]}=...")
    parse_steps(cfg.save_steps)  # a mistake here shows now, not after training
    cfg.no_masked_token = str(cfg.no_masked_token)  # Hydra reads `nan` as a number
    if cfg.no_masked_token not in NO_MASKED_TOKEN:
        where = f"no_masked_token={cfg.no_masked_token}"
        raise UserError("not a loss for a batch without a masked token", where, "Choose nan or zero.")
    if cfg.bad_audio not in BAD_AUDIO:
        raise UserError("not a way with bad audio", f"bad_audio={cfg.bad_audio}", "Choose stop or skip.")
    try:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(
            "a value cannot be resolved", str(error).split("\n")[0], "Check its ${...} reference."
        ) from error


# --- steps and paths


def _step_range(part: str, value: Any) -> range:
    match = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
    if not match or (match[2] and int(match[2]) < int(match[1])):
        raise UserError(
            "steps that cannot be read", f"save_steps={value}", "Write 0, 0,1,2, [0,1,2], 0-9, all or none."
        )
    first, last = int(match[1]), int(match[2] or match[1])
    return range(first, last + 1)


def _absolute(value: Any) -> Any:
    if isinstance(value, str):
        return ",".join(_absolute_path(part.strip()) for part in value.split(","))
    return [_absolute(part) for part in value]


def _absolute_path(path: str) -> str:
    given = Path(path).expanduser()
    from_here = Path.cwd() / given
    return str(from_here if given.is_absolute() or from_here.exists() else ROOT / given)
