"""What the two trainers log: the same tags at the same steps with the same bits, in TensorBoard's own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aligning import GENERATION, NARROW, ONE_LAYER
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.base.determinism import seed_all, set_determinism
from nest_ssl.config.compose import ROOT, compose, data_paths
from nest_ssl.run.experiment import Subject, build_trainer
from nest_ssl.run.loggers import build_loggers

DATA = ROOT / "data" / "dummy_ssl"
Scalars = dict[str, list[tuple[int, float]]]  # tag -> step and value, in the order of the file


def logged(subject: Subject, folder: Path, *overrides: str) -> Scalars:
    """The scalars of a short run with validation in it."""
    cfg = data_paths(compose([f"nemo={GENERATION}", "size=tiny", ONE_LAYER, NARROW, "batches=5", *overrides]))
    set_determinism()
    trainer = build_trainer(cfg, [])
    trainer.loggers = build_loggers({"create_tensorboard_logger": True}, folder / subject.name)
    seed_all(cfg.seed)
    trainer.fit(subject.build_model(cfg, trainer))
    events = EventAccumulator(str(folder / subject.name))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def both(folder: Path, *overrides: str) -> Scalars:
    """What both logged, once it is found to be the same."""
    nemo, nest = (logged(subject, folder, *overrides) for subject in (NEMO, NEST))
    assert nest == nemo
    return nest


def manifests(folder: Path, *names: str) -> list[str]:
    """Copies of the validation manifest under other names, its paths made absolute."""
    folder.mkdir(exist_ok=True)
    lines = [json.loads(line) for line in (DATA / "val_manifest.json").read_text().splitlines()]
    for number, name in enumerate(names):
        kept = [{**line, "audio_filepath": str(DATA / line["audio_filepath"])} for line in lines[number:]]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in kept))
    return [str(folder / name) for name in names]


def test_one_validation_set(tmp_path: Path) -> None:
    scalars = both(
        tmp_path, "trainer.log_every_n_steps=2", "trainer.val_check_interval=2", "model.validation_ds.batch_size=1"
    )
    assert set(scalars) == {"train_loss", "learning_rate", "global_step", "val_loss", "epoch", "hp_metric"}
    assert [step for step, _ in scalars["train_loss"]] == [1, 3]
    assert [value for _, value in scalars["global_step"]] == [1, 3]
    assert [step for step, _ in scalars["val_loss"]] == [1, 3]
    assert len({value for _, value in scalars["val_loss"]}) == 2


def test_everything_random_and_accumulated(tmp_path: Path) -> None:
    scalars = both(tmp_path, "run=full", "model.train_ds.num_workers=0", "model.validation_ds.num_workers=0",
                   "model.train_ds.batch_size=4", "trainer.log_every_n_steps=1",
                   "trainer.accumulate_grad_batches=2")  # fmt: skip
    assert [value for _, value in scalars["global_step"]] == [0, 1, 2]
    assert scalars["learning_rate"] and scalars["val_loss"]


@pytest.mark.parametrize(
    ("overrides", "main"), [([], "dev_clean_"), (["model.validation_ds.val_dl_idx=1"], "dev_other_")]
)
def test_several_validation_sets(tmp_path: Path, overrides: list[str], main: str) -> None:
    files = manifests(tmp_path / "data", "dev-clean_manifest.json", "dev_other.json")
    scalars = both(tmp_path, f"model.validation_ds.manifest_filepath=[{','.join(files)}]", *overrides)
    losses = {tag: values for tag, values in scalars.items() if tag.endswith("val_loss")}
    assert set(losses) == {"val_loss", "dev_clean_val_loss", "dev_other_val_loss"}
    assert losses["val_loss"] == losses[f"{main}val_loss"]
    assert losses["dev_clean_val_loss"] != losses["dev_other_val_loss"]


def test_validation_sets_with_names(tmp_path: Path) -> None:
    files = manifests(tmp_path / "data", "a.json", "b.json")
    scalars = both(tmp_path, f"model.validation_ds.manifest_filepath=[{','.join(files)}]",
                   "model.validation_ds.name=[clean-dataset,other_]")  # fmt: skip
    assert {"clean_val_loss", "other_val_loss", "val_loss"} <= set(scalars)


def test_a_list_of_one(tmp_path: Path) -> None:
    files = manifests(tmp_path / "data", "dev.json")
    assert [tag for tag in both(tmp_path, f"model.validation_ds.manifest_filepath=[{files[0]}]") if "val" in tag] == [
        "val_loss"
    ]
