"""NeMo itself does not say which audio file it stumbled over in the middle of training; its script does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from aligning import GENERATION
from train_nemo import NEMO

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import ROOT
from nest_ssl.run.experiment import run


@pytest.mark.parametrize("workers", [0, 2])
def test_nemo_stops_with_the_files_name(tmp_path: Path, workers: int) -> None:
    lines = []
    for name in ("00", "01", "02"):
        samples, rate = soundfile.read(ROOT / "data" / "dummy_ssl" / "train" / f"utt_{name}.wav")
        soundfile.write(tmp_path / f"{name}.flac", samples, rate)
        lines.append(json.dumps({"audio_filepath": f"{name}.flac", "duration": len(samples) / rate}) + "\n")
    bad = tmp_path / "01.flac"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    (tmp_path / "speech.json").write_text("".join(lines))
    options = [f"model.train_ds.manifest_filepath={tmp_path / 'speech.json'}", "model.train_ds.batch_size=1",
               f"model.train_ds.num_workers={workers}", f"output_dir={tmp_path / 'out'}", "batches=3"]  # fmt: skip
    with pytest.raises(UserError, match=r"01\.flac \(.*speech\.json, line 2\)"):
        run(NEMO, ["size=tiny", f"nemo={GENERATION}", *options])
    assert not (tmp_path / "out").exists()
