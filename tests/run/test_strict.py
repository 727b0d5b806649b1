"""A misspelt key names the nearest one; a right key is accepted whether or not the file has it."""

from __future__ import annotations

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.run.strict import check_keys


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("sed=1", "seed"),
        ("trainer.max_epoch=1", "trainer.max_epochs"),
        ("+trainer.limit_train_batch=1", "trainer.limit_train_batches"),
        ("model.encoder.nlayers=3", "model.encoder.n_layers"),
        ("++model.train_ds.batchsize=3", "model.train_ds.batch_size"),
        ("model.train_ds.batch_augmentor.probb=1", "model.train_ds.batch_augmentor.prob"),
        ("model.optim.weight_decy=1", "model.optim.weight_decay"),
        ("model.optim.sched.warmup=1", "model.optim.sched.warmup_"),
        ("model.optim.sched.decay=1", "model.optim.sched.decay_rate"),
        ("model.optim.nestrov=true", "model.optim.nesterov"),
        ("n_layers=3", "model.encoder.n_layers"),
        ("model.preprocessor.dithr=0", "model.preprocessor.dither"),
        ("modle.encoder.n_layers=1", "model"),
    ],
)
def test_misspelt_keys(override: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean {nearest}"):
        check_keys([override], compose())


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "+seed=1", "size=tiny", "++run=full", "trainer.limit_val_batches=0",
        "+trainer.gradient_clip_algorithm=norm",
        "model.encoder.dropout=0.2", "model.train_ds.channel_selector=0", "model.masking.max_mask_ratio=0.5",
        "exp_manager.exp_dir=/tmp/x", "trainer={}", "~trainer.benchmark", "model.optim.eps=1e-9",
        "model.optim.sched.hold_ratio=0.1", "model.optim.sched.args.anything=1", "model.optim._target_=torch.optim.SGD",
        "model.optim_param_groups.encoder.lr=0.1",
        "model.train_ds.batch_augmentor=null",
    ],
)  # fmt: skip
def test_right_keys(override: str) -> None:
    check_keys([override], compose())
