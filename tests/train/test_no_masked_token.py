"""A batch in which no token is masked: `no_masked_token=zero` trains on, in one process and in two.

What NeMo does there, and we by default, is tested in against_nemo/.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer
from train_nemo import NEMO
from train_nest import NEST, build_model

from nest_ssl.base.determinism import seed_all
from nest_ssl.config.compose import ROOT, compose
from nest_ssl.run.command_line import read_command_line
from nest_ssl.run.preflight import check_settings

RATE = 16_000
TIME_LIMIT_S = 240  # for two processes to train three steps and end, on a machine that does other things too


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Two utterances, one long and one too short for a masked block; manifests both.json, short.json, long.json."""
    lines = {}
    for number, (name, seconds) in enumerate({"long": 4.0, "short": 0.3}.items()):
        samples = 0.1 * np.random.default_rng(number).standard_normal(int(seconds * RATE))
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
        lines[name] = json.dumps({"audio_filepath": f"{name}.wav", "duration": seconds}) + "\n"
        (tmp_path / f"{name}.json").write_text(lines[name])
    (tmp_path / "both.json").write_text(lines["long"] + lines["short"])
    return tmp_path


def settings(train: Path, validation: Path, *more: str) -> list[str]:
    """Blocks of 1.5 s: no block fits into the short utterance, which the loader repeats to one second."""
    return ["size=tiny", "model.masking.block_size=150", "model.masking.mask_prob=0.05", "trainer.accelerator=cpu",
            "model.train_ds.batch_size=1", "model.train_ds.min_duration=0.1", "model.validation_ds.min_duration=0.1",
            f"model.train_ds.manifest_filepath={train}", f"model.validation_ds.manifest_filepath={validation}",
            "batches=2", *more]  # fmt: skip


@pytest.mark.parametrize(("choice", "is_nan"), [("nan", True), ("zero", False)])
def test_loss_gradients_and_validation(audio: Path, choice: str, is_nan: bool) -> None:
    short = audio / "short.json"
    cfg = compose(settings(short, short, f"no_masked_token={choice}"))
    seed_all(1)
    model = build_model(cfg)
    trainer = Trainer(**cfg.trainer, enable_model_summary=False)
    trainer.fit(model)
    seen = {name: float(trainer.callback_metrics[name]) for name in ("train_loss", "val_loss")}
    assert {name: value != value for name, value in seen.items()} == {"train_loss": is_nan, "val_loss": is_nan}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.isfinite().all() for p in trained) and (is_nan or set(seen.values()) == {0.0})


def test_nemo_is_told_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nest_ssl.run.preflight._check_generation", lambda subject, wanted: None)  # NeMo is not here
    for subject in (NEMO, NEST):
        notes = check_settings(subject, read_command_line(subject.name, ["size=tiny", "no_masked_token=zero"]))
        assert any("NeMo's loss stays NaN" in note for note in notes) == (subject is NEMO)


# What both processes of the next test run. Lightning's sampler gives one of the two utterances to each.
PROGRAM = """
import sys, datetime
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from nest_ssl.config.compose import compose
from nest_ssl.base.determinism import seed_all
from nest_ssl.train.module import NestModule

class Report(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses = [*getattr(self, "losses", []), float(outputs["loss"])]
    def on_train_end(self, trainer, module):
        missing = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
        last = {n: p.detach() for n, p in module.named_parameters()}
        torch.save({"losses": self.losses, "missing": missing, "last": last}, f"rank_{trainer.global_rank}.pt")

class Detached(NestModule):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if loss.item() else loss.detach().requires_grad_()

kind, wait, overrides = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
cfg = compose(overrides)
seed_all(1)
cls = {"attached": NestModule, "detached": Detached}[kind]
strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False,
                       timeout=datetime.timedelta(seconds=wait))
Trainer(accelerator="cpu", devices=2, strategy=strategy, max_epochs=3, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Report()]).fit(cls(cfg.model, no_masked_token="zero"))
"""


def train_on_two_ranks(python: str, folder: Path, kind: str, wait: int) -> list[subprocess.CompletedProcess[str]]:
    """Run PROGRAM in `folder`, each rank as a launcher would; a hang is killed and is an error.

    Args:
        wait: seconds that a rank waits for the other.
    """
    (folder / "program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}  # fmt: skip
    command = [python, "program.py", kind, str(wait), *settings(folder / "both.json", folder / "long.json")]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with contextlib.ExitStack() as ranks:
        processes = []
        for rank in ("0", "1"):
            started = subprocess.Popen(command, cwd=folder, env={**environment, "LOCAL_RANK": rank}, **pipes)
            processes.append(ranks.enter_context(started))
            ranks.callback(started.kill)  # before it is waited for
        said = [process.communicate(timeout=TIME_LIMIT_S)[0] for process in processes]
    return [subprocess.CompletedProcess(command, p.returncode, out) for p, out in zip(processes, said, strict=True)]


@pytest.mark.slow
def test_two_ranks_of_which_one_has_no_masked_token(audio: Path, python: str) -> None:
    for done in train_on_two_ranks(python, audio, "attached", wait=120):
        assert done.returncode == 0, done.stdout[-3000:]
    ranks = [torch.load(audio / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]
    for losses in zip(*(rank["losses"] for rank in ranks), strict=True):
        assert min(losses) == 0.0 and max(losses) > 1, "in each step one rank has the short utterance"
    assert ranks[0]["missing"] == ranks[1]["missing"] == []
    assert all(torch.equal(tensor, ranks[1]["last"][name]) for name, tensor in ranks[0]["last"].items())


@pytest.mark.slow
def test_a_loss_that_hangs_on_nothing_would_stop_them(audio: Path, python: str) -> None:
    """Why the zero is attached: a detached one leaves the other rank waiting for gradients that never come."""
    ranks = train_on_two_ranks(python, audio, "detached", wait=6)
    said = "".join(done.stdout for done in ranks)
    assert all(done.returncode != 0 for done in ranks) and "gloo" in said, said[-3000:]
    assert not (audio / "rank_0.pt").exists()
