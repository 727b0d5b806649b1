"""Makes small, real recordings: a miniature of the NEST model, trained for a few steps, with faults planted on demand.

record(tmp_path / "nest", Plan(name="nest", after_build=lambda model: ...))
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from nest_ssl.compare import FixedTolerance, compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Finding
from nest_ssl.record.session import Session
from nest_ssl.recording import layout as files
from nest_ssl.recording.address import Kind
from nest_ssl.recording.index import sealed
from nest_ssl.recording.reader import open_recording
from nest_ssl.recording.tensors import describe_tensors
from nest_ssl.recording.writer import RecordingWriter

FEATURES, WIDTH, CODES, STRIDE = 4, 8, 5, 8
FRAMES, RATE = 32, 16  # a "clip" of 2 s at 16 Hz
DATA = {"train": {"manifests": [{"name": "train.json", "sha256": "aa"}], "audio": {"a.wav": "11", "b.wav": "22"}}}
OUTPUTS = ("log_probs", "encoded_len", "masks", "tokens")
FLAGS = {"deterministic_algorithms": False, "matmul_tf32": False}
CONFIG = {
    "seed": 42,
    "output_dir": "outputs/x",
    "save_steps": 0,
    "model": {
        "sample_rate": RATE,
        "encoder": {"d_model": WIDTH, "att_context_size": [-1, -1]},
        "loss": {"combine_time_steps": STRIDE, "mask_threshold": 0.8},
        "optim": {"name": "adamw", "lr": 0.01},
    },
}


class Features(nn.Module):
    def forward(self, audio: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        stacked = torch.stack([audio * (k + 1) for k in range(FEATURES)], 1)
        return torch.log(stacked.square() + 1e-3), length


class Masking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mask_emb = nn.Parameter(torch.randn(FEATURES), requires_grad=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        masks = (torch.rand(features.shape[0], features.shape[2] // STRIDE) < 0.6).repeat_interleave(STRIDE, 1)
        masks = masks.unsqueeze(1).expand_as(features).to(features.dtype).contiguous()
        return torch.where(masks > 0, self.mask_emb[None, :, None].expand_as(features), features), masks


class Tokens(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.mean(1).unflatten(1, (-1, STRIDE)).mean(-1).abs().long() % CODES


class Block(nn.Module):
    """Two branches and a residual, as a Conformer layer has them; `activation` is shared by all blocks."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear1 = nn.Linear(WIDTH, WIDTH)
        self.activation = activation
        self.batch_norm = nn.BatchNorm1d(WIDTH)
        self.linear2 = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.factor = 0.5

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        inner = self.activation(self.linear1(self.norm(x)))
        inner = self.batch_norm(inner.transpose(1, 2)).transpose(1, 2)
        return x + self.factor * self.linear2(self.activation(inner)) * self.scale


class Encoder(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        activation = nn.SiLU()
        self.pre_encode = nn.Linear(FEATURES * STRIDE, WIDTH)
        self.layers = nn.ModuleList(Block(activation) for _ in range(layers))

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        x = audio_signal.transpose(1, 2).reshape(audio_signal.shape[0], -1, FEATURES * STRIDE)
        x = self.pre_encode(x)
        for layer in self.layers:
            x = layer(x, pad_mask=None)
        return x, length // STRIDE


class Loss(nn.Module):
    def forward(self, log_probs: Tensor, tokens: Tensor, masks: Tensor) -> Tensor:
        counted = masks.mean(1).unflatten(1, (-1, STRIDE)).mean(-1) > 0.8
        return nn.functional.nll_loss(log_probs[counted], tokens[counted])


class Model(nn.Module):
    """Features, tokens, mask, encoder, decoder, loss; `spare` is built and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocessor, self.quantizer, self.masking = Features(), Tokens(), Masking()
        self.encoder, self.decoder, self.loss = Encoder(), nn.Linear(WIDTH, CODES), Loss()
        self.spare = nn.Identity()

    def forward(self, audio: Tensor, audio_len: Tensor) -> tuple[Tensor, ...]:
        features, length = self.preprocessor(audio, length=audio_len)
        tokens = self.quantizer(features)
        masked, masks = self.masking(features)
        encoded, encoded_len = self.encoder(audio_signal=masked, length=length)
        return self.decoder(encoded).log_softmax(-1), encoded_len, masks, tokens


def nothing(*args: Any) -> None:
    """The default of every hook of a `Plan`."""


@dataclass
class Plan:
    """What to record. The hooks plant faults: each gets what it may change."""

    name: str = "nemo"
    version: str = "3.0.0"
    seed: int = 42
    steps: tuple[int, ...] = (0, 1)
    config: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(CONFIG)))
    model: Callable[[], nn.Module] = Model
    optimizer: dict[str, Any] = field(default_factory=lambda: {"lr": 0.01, "weight_decay": 0.1})
    after_build: Callable[[nn.Module], None] = nothing
    on_batch: Callable[[int, dict[str, Tensor]], None] = nothing
    on_loss: Callable[[int, Tensor], Tensor | None] = nothing
    on_gradients: Callable[[int, nn.Module], None] = nothing
    before_step: Callable[[int, nn.Module], None] = nothing
    after_step: Callable[[int, nn.Module], None] = nothing
    index: dict[str, Any] = field(default_factory=dict)


def record(target: Path, plan: Plan | None = None) -> Path:
    """Train as `plan` says, and record every step into `target`."""
    plan = plan or Plan()
    writer = RecordingWriter(target, overwrite=True)
    with Session(writer, plan.steps, OUTPUTS, yaml.safe_dump(plan.config)) as session:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(plan.seed)
        session.mark("before_model")
        model = plan.model()
        plan.after_build(model)
        session.mark("after_model")
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), **plan.optimizer)
        session.begin(model)
        for step in plan.steps:
            _train_step(plan, session, step, model, optimizer)
        trainer = {"name": plan.name, "package": f"{plan.name}-ssl", "version": plan.version}
        facts = {"seed": plan.seed, "flags": FLAGS, "data": DATA, "device": {"type": "cpu", "name": "a processor"}}
        session.finish(**{"trainer": trainer, **facts, **plan.index})
    return target


def _train_step(plan: Plan, session: Session, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    batch = batch_of(step)
    plan.on_batch(step, batch)
    session.batch(batch, step)
    outputs = model.forward(**batch)
    loss = model.loss(outputs[0], outputs[3], masks=outputs[2])
    replaced = plan.on_loss(step, loss)
    loss = loss if replaced is None else replaced
    session.loss(loss)
    optimizer.zero_grad()
    loss.backward()
    plan.on_gradients(step, model)
    session.backward_done()
    plan.before_step(step, model)
    optimizer.step()
    plan.after_step(step, model)
    session.step_done(optimizer)


def batch_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    audio = torch.randn(2, FRAMES, generator=generator)
    return {"audio": audio, "audio_len": torch.tensor([FRAMES, FRAMES - STRIDE])}


# --- editing what was recorded ----------------------------------------------------------------------------------------


def edit_tensors(recording: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Rewrite one file of tensors, index and all; `change` edits in place, and what it returns is ignored."""
    value = torch.load(recording / name, weights_only=True)
    change(value)
    torch.save(value, recording / name)
    reindex(recording, name)


def edit_index(recording: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((recording / files.INDEX).read_text())
    change(index)
    (recording / files.INDEX).write_text(json.dumps(sealed(index)))


def edit_config(recording: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load((recording / files.CONFIG).read_text())
    change(config)
    (recording / files.CONFIG).write_text(yaml.safe_dump(config))
    reindex(recording, files.CONFIG)


def edit_structure(recording: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    structure = pickle.loads((recording / files.STRUCTURE).read_bytes())
    change(structure)
    (recording / files.STRUCTURE).write_bytes(pickle.dumps(structure))
    reindex(recording, files.STRUCTURE)


def remove(recording: Path, name: str) -> None:
    (recording / name).unlink()
    edit_index(recording, lambda index: index["files"].pop(name))


def reindex(recording: Path, name: str) -> None:
    """Make the index agree with a file that was edited, as whoever forges a recording would."""
    data = (recording / name).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def update(index: dict[str, Any]) -> None:
        index["files"][name] = entry
        if name in index["tensors"]:
            index["tensors"][name] = describe_tensors(torch.load(recording / name, weights_only=True))

    edit_index(recording, update)


def judge(reference: Path, candidate: Path, atol: float = 1e-5, rtol: float = 1e-5, **options: Any) -> Comparison:
    """Compare two recordings; no structural difference is declared unless `declared` says so."""
    options = {"declared": [], **options}
    sides = open_recording(reference), open_recording(candidate)
    return compare_recordings(*sides, FixedTolerance(atol, rtol), **options)


def first(comparison: Comparison) -> tuple[Any, ...]:
    """(rung, step, module, call, name) of the headline; see `name_of`."""
    assert comparison.first is not None
    return place_of(comparison.first)


def place_of(finding: Finding) -> tuple[Any, ...]:
    address, step = finding.address, finding.moment.step
    return finding.rung, step if step >= 0 else None, address.module, address.call, name_of(finding)


def name_of(finding: Finding) -> str | None:
    """``output``, ``weight.exp_avg``, ``param_groups.0.lr``, ``fetch.torch_cpu``, ``rng.forward_done.numpy``."""
    address, phase = finding.address, finding.moment.phase.name.lower()
    if address.kind == Kind.OPTIMIZER_SETTING:
        return f"param_groups.{address.own_name}"
    if address.kind == Kind.GENERATOR_STATE:
        return f"rng.{phase}.{address.slot}"
    if address.kind == Kind.DRAW and address.module is None:
        return f"{phase}.{address.slot}"
    return address.own_name or None


def left(comparison: Comparison) -> dict[str, list[str]]:
    """What is not explained: names by reason."""
    return {
        remainder.why.name: [
            ".".join(part for part in (finding.address.module, name_of(finding)) if part)
            for finding in remainder.findings
        ]
        for remainder in comparison.unexplained
    }


def noted(comparison: Comparison, kind: str) -> list[dict[str, Any]]:
    """The values of all notes of a kind."""
    return [note.values for note in comparison.notes if note.kind == kind]


def statuses(comparison: Comparison) -> dict[str, str]:
    return {rung.name: rung.status for rung in comparison.rungs}
