"""Validation between two steps: its first batches and what it gave in all; training is as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.record.loop import recording
from nest_ssl.recording import layout as files
from nest_ssl.recording.reader import Recording, open_recording
from tests.record.test_lightning import Net as LightningNet
from tests.record.test_lightning import train as train_lightning
from tests.record.test_session import Net, batches, prepare


def validate(model: Net, r: Any, loaders: int = 2) -> None:
    r.validation()
    losses = []
    with torch.no_grad():
        model.eval()
        for loader in range(loaders):
            for batch in batches(2):
                r.validation_batch({"x": batch}, loader)
                losses.append(model(batch.clone()).mean())
        model.train()
    r.validation_done({"val_loss": torch.stack(losses).mean()})


def train(out: Path, count: int = 3, **settings: Any) -> Recording:
    model, optimizer = prepare()
    with recording(out, model, **settings) as r:
        validate(model, r)
        for batch in batches(count):
            r.batch(batch)
            loss = model(batch).sum()
            r.loss(loss)
            loss.backward()
            r.backward_done()
            optimizer.step()
            r.step_done(optimizer)
            validate(model, r)
    return open_recording(out)


def test_what_is_recorded(tmp_path: Path) -> None:
    recorded = train(tmp_path / "run")
    validations = recorded.validations() or []
    assert [each["before_step"] for each in validations] == [0, 1, 2, 3]
    assert [[batch["loader"] for batch in each["batches"]] for each in validations] == [[0, 1], [0, 1], [], []]
    first = validations[0]["batches"][1]
    assert torch.equal(first["fields"]["x"], batches()[0]), "the first of its loader"
    assert [(made["module"], made["call"]) for made in first["outputs"]] == [("body", 0), ("", 0)]
    assert torch.equal(first["outputs"][0]["output"], first["outputs"][1]["output"])
    values = [each["metrics"]["val_loss"] for each in validations]
    assert all(value.shape == () for value in values) and len({float(value) for value in values}) == 4


def test_a_run_of_which_no_step_is_recorded_watches_no_validation(tmp_path: Path) -> None:
    assert train(tmp_path / "run", steps=[]).validations() == []


def test_an_error_in_a_validation_leaves_no_hook(tmp_path: Path) -> None:
    model, _ = prepare()

    def fail() -> None:
        with recording(tmp_path / "run", model) as r:
            r.validation()
            r.validation_batch(batches()[0])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


class Left(LightningNet):
    """Its validation leaves statistics behind, and logs one value under no name of its kind; training does the rest."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("interval", 1.0)
        return super().training_step(batch, batch_idx)

    def on_validation_model_eval(self) -> None:
        pass

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.forward(batch)[0].mean())
        self.log("wer", 0.5)


@pytest.mark.parametrize("sanity", [0, 1])
def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sanity: int) -> None:
    monkeypatch.setattr("tests.record.test_lightning.Net", Left)
    settings = {"num_sanity_val_steps": sanity, "val_check_interval": 2}
    bare = train_lightning(None, None, **settings).state_dict()
    recorded_net = train_lightning(tmp_path / "run", None, **settings).state_dict()
    assert all(torch.equal(bare[name], recorded_net[name]) for name in bare)
    recorded = open_recording(tmp_path / "run")
    validations = recorded.validations() or []
    assert [each["before_step"] for each in validations] == ([0] if sanity else []) + [2]
    assert [each["metrics"].keys() for each in validations] == [{"val_loss", "wer"}] * len(validations)
    changed = [recorded.step(number).changed(files.STEP_START) or [] for number in recorded.steps]
    assert [bool(names) for names in changed] == [bool(sanity), False, True]
    assert all("body.1.running" in name or "num_batches" in name for names in changed for name in names)
