"""The command line of a training: parsed, and its configuration composed, before torch or Lightning are imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

THREADS = "OMP_NUM_THREADS"
EXAMPLES = """overrides (key=value, +key=value and ++key=value are the same):
  size=tiny run=full seed=7 save_steps=0-2 batches=3 output_dir=outputs/nest overwrite=true
  model.train_ds.manifest_filepath=/data/train.json model.train_ds.batch_size=4 trainer.accelerator=gpu
every key and its default: conf/nest_fast-conformer.yaml"""


def read_command_line(trainer: str, argv: Sequence[str] | None = None) -> DictConfig:
    """The configuration of the run that the command line asks for.

    Args:
        trainer: `nemo` or `nest`; names the default output folder.
        argv: the arguments; the process's own when None.

    Raises:
        UserError: whatever is wrong in the configuration by itself (`preflight` knows what the machine and data say).
    """
    parser = Parser(description="Train a NEST model and record the steps asked for.", epilog=EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration overrides, Hydra's syntax")
    parser.add_argument("--config-path", "-cp", type=Path, help="folder of another config, e.g. NeMo's own")
    parser.add_argument("--config-name", "-cn", help="its file name")
    parser.add_argument("--cfg", "-c", choices=["job"], help="print the resolved config and stop")
    args = parser.parse_intermixed_args(argv)
    threads = os.environ.get(THREADS, "1")
    if not threads.isdecimal() or int(threads) < 1:  # OpenMP would take as many as it likes, and the bits are others
        raise UserError("not a number of threads", f"{THREADS}={threads}", "Give a whole number from 1 (THREADS=1).")
    # Tenths of a second that --help and a misspelt option do not wait for; and a misspelt key waits for no composing.
    from nest_ssl.config.schema import Experiment
    from nest_ssl.config.section import check_keys

    if args.config_path is None and "${" not in "".join(args.overrides):  # what is referred to may be one's own key
        given = [override.lstrip("+").partition("=") for override in args.overrides]
        first_names = [key.strip().partition(".")[0] for key, equals, _ in given if equals]
        check_keys(Experiment, {name: None for name in first_names if name.isidentifier() and name != "hydra"})
    from omegaconf import OmegaConf

    from nest_ssl.config.compose import DEFAULT_NAME
    from nest_ssl.config.strict import read_config
    from nest_ssl.releases import unlisted
    from nest_ssl.run.reference import reference_generation

    cfg, _ = read_config(args.overrides, args.config_path, args.config_name or DEFAULT_NAME)
    note = unlisted(cfg.nemo)
    cfg.nemo = reference_generation(cfg.nemo)
    if args.cfg:
        print(OmegaConf.to_yaml(cfg), end="")
        raise SystemExit(0)
    if note:
        print(f"note: {note}")
    cfg.output_dir = cfg.output_dir or f"outputs/{trainer}"
    return cfg
