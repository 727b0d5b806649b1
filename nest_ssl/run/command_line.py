"""What both training scripts do before they train: read the command line, check what a user can get wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import DEFAULT_NAME, data_paths
from nest_ssl.config.strict import read_config
from nest_ssl.data.loader import check_dataset
from nest_ssl.model.build import plain
from nest_ssl.releases import concerning, generation
from nest_ssl.run.machine import adapt_to_machine
from nest_ssl.run.reference import reference_generation
from nest_ssl.train.checkpoint.init_from import check_sources
from nest_ssl.train.optim import check_optim
from nest_ssl.train.validation import loss_prefixes

FLOAT64 = ("64", "64-true")  # Lightning's names
EXAMPLES = """overrides (key=value, +key=value and ++key=value are the same):
  size=tiny run=full seed=7 save_steps=0-2 batches=3 output_dir=outputs/nest overwrite=true
  model.train_ds.manifest_filepath=/data/train.json model.train_ds.batch_size=4 trainer.accelerator=gpu
every key and its default: conf/nest_fast-conformer.yaml"""


def read_command_line(trainer: str, argv: Sequence[str] | None = None) -> DictConfig:
    """The checked configuration of the run that the command line asks for.

    Args:
        trainer: `nemo` or `nest`; names the default output folder.
        argv: the arguments; the process's own when None.

    Raises:
        UserError: whatever is wrong in the configuration or the data.
    """
    args = _parse(trainer, argv)
    cfg, _ = read_config(args.overrides, args.config_path, args.config_name)
    cfg.nemo = reference_generation(cfg.nemo)
    if args.cfg:
        print(OmegaConf.to_yaml(cfg), end="")
        raise SystemExit(0)
    cfg.output_dir = cfg.output_dir or f"outputs/{trainer}"
    _check_accelerator(cfg)
    check_precision(str(cfg.trainer.get("precision")), cfg.nemo, **concerning(check_precision, generation(cfg.nemo)))
    check_optim(plain(cfg.model.get("optim")))
    for change in adapt_to_machine(cfg, torch.cuda.device_count()):
        print(f"note: {change}")
    _tell_what_is_not_used(cfg, trainer)
    return cfg


def check_data(cfg: DictConfig, skips_bad_audio: bool = False) -> DictConfig:
    """A copy of `cfg` with absolute data paths, once every manifest, audio file and source of weights can be used.

    Args:
        skips_bad_audio: whether the trainer can go on without files that cannot be used, if `cfg` says so.

    Raises:
        UserError: the first file that is missing or cannot be read, and where it is named; validation sets whose
            losses would have no name.
    """
    cfg = data_paths(cfg)
    skip = cfg.bad_audio == "skip"
    if skip and not skips_bad_audio:
        print("note: bad_audio=skip is the port's own: this trainer stops at a file that cannot be used")
    for section in ("train_ds", "validation_ds"):
        if cfg.model.get(section) is not None:
            check_dataset(cfg.model[section], skip_bad=skip and skips_bad_audio)
    if cfg.model.get("validation_ds") is not None:
        loss_prefixes(plain(cfg.model.validation_ds))
    check_sources(cfg)
    return cfg


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError("bad usage", message, f"See {self.prog} --help.")


def _parse(trainer: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog=f"train_{trainer}.py",
        description="Train a NEST model and record the steps asked for.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides, Hydra's syntax")
    parser.add_argument("--config-path", "-cp", type=Path, help="folder of another config, e.g. NeMo's own")
    parser.add_argument("--config-name", "-cn", default=DEFAULT_NAME, help="its file name")
    parser.add_argument("--cfg", "-c", choices=["job"], help="print the resolved config and stop")
    return parser.parse_intermixed_args(argv)


def _check_accelerator(cfg: DictConfig) -> None:
    if cfg.trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        where = f"trainer.accelerator={cfg.trainer.accelerator}"
        fix = "Use trainer.accelerator=cpu (DEVICE=cpu), or check the driver and the torch build."
        raise UserError("no GPU that torch can use", where, fix)


def check_precision(precision: str, nemo: str, float64: str = "runs") -> None:
    """Refuse a precision in which the generation `nemo` cannot train; `float64`: see `generations.Generation`.

    Raises:
        UserError: it cannot.
    """
    if precision in FLOAT64 and float64 == "fails":
        fix = "Compare with another generation in float64: NEMO_VERSION=3.0.0 (nemo=3.0)."
        raise UserError(f"NeMo {nemo} does not train in float64", f"trainer.precision={precision}", fix)


def _tell_what_is_not_used(cfg: DictConfig, trainer: str) -> None:
    if trainer != "nemo":
        return
    if cfg.no_masked_token != "nan":
        print(f"note: no_masked_token={cfg.no_masked_token} is the port's alone: NeMo's loss stays NaN in such a batch")
    if cfg.get("exp_manager"):  # the port's own is `nest_ssl.run.exp_manager`
        print("note: exp_manager is not used: no logger or checkpoint is written")
