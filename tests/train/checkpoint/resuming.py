"""What the tests of resuming share: a tiny run with everything random on, and what must be the same at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from train_nest import NEST

from nest_ssl.run.experiment import run
from nest_ssl.train.checkpoint.checkpoint_io import AtomicCheckpointIO, examine

# 12 utterances, everything random on: dither, dropout, block masks, noise and speakers mixed in, shuffling. The model
# is as small as it can be, and of each utterance the first seconds are taken: what is kept is the matter here, and not
# its size. Blocks are masked more often, for the less there is of a batch, the oftener none would be.
STARTS = [f"model.{name}_ds.manifest_filepath=tests/against_nemo/starts/{file}.json"
          for name, file in (("train", "train"), ("validation", "val"))]  # fmt: skip
COMMON = ("size=tiny", "run=train", *STARTS, "model.masking.mask_prob=0.05",
          "trainer.accelerator=cpu", "exp_manager.create_tensorboard_logger=false",
          "exp_manager.checkpoint_callback_params.save_top_k=1", "model.optim.sched.warmup_steps=5",
          "model.train_ds.batch_augmentor.prob=0.9", "trainer.max_epochs=2", "model.train_ds.batch_size=2",
          "model.validation_ds.num_workers=0", "model.validation_ds.pin_memory=false",
          "model.train_ds.num_workers=0", "model.train_ds.pin_memory=false", "model.encoder.n_layers=1",
          "model.encoder.d_model=16", "model.encoder.subsampling_conv_channels=8")  # fmt: skip


def train(folder: Path, *overrides: str) -> None:
    place = (f"output_dir={folder / 'recording'}", f"exp_manager.exp_dir={folder}", "exp_manager.name=x")
    run(NEST, [*COMMON, *place, *overrides])


def last(folder: Path) -> dict[str, Any]:
    found = [examine(path) for path in (folder / "x" / "checkpoints").glob("*-last.ckpt")]
    return AtomicCheckpointIO().load_checkpoint(max(found, key=lambda one: one.steps).path)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested builtins; a tensor as its dtype, shape and bytes."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}/{str(key).rpartition('/')[2]}")
    elif isinstance(value, list | tuple):
        for number, child in enumerate(value):
            yield from leaves(child, f"{path}/{number}")
    elif isinstance(value, torch.Tensor):
        yield (
            path,
            (value.dtype, tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()),
        )
    else:
        yield path, Path(value).name if isinstance(value, str) else value


def assert_same(folder: Path, other: Path, killed: bool = False) -> None:
    """Weights, buffers, optimizer, schedule, counters, generators, metrics, what is known of the best checkpoints.

    Args:
        killed: `other` was killed on its way, perhaps between writing a checkpoint and deleting the one before.
    """
    one, two = (dict(leaves(last(place))) for place in (folder, other))
    assert len(one) > 1000 and "/nest_ssl/generators/torch_cpu" in one
    assert all(weight.isfinite().all() for weight in last(folder)["state_dict"].values()), "a token counts in each step"
    assert [path for path in one.keys() | two.keys() if one.get(path) != two.get(path)] == []
    names = [{path.name for path in (place / "x" / "checkpoints").iterdir()} for place in (folder, other)]
    assert names[0] <= names[1] if killed else names[0] == names[1]
