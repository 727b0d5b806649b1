"""What the tests of `nest-ssl explain` share: the settings of two recordings, and what was gathered of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nest_ssl.recording.evidence import Gathered, Gathering, read_evidence
from nest_ssl.recording.reader import Recording, open_recording
from tests.test_planted_faults import STARTS

Explain = Callable[..., int]
SMALL = ["model.encoder.subsampling_conv_channels=4", "model.encoder.d_model=16", "model.train_ds.batch_size=2",
         "model.masking.mask_prob=0.05", *STARTS]  # fmt: skip
TINY = ["size=tiny", "batches=3", *SMALL, "save_steps=0,1"]


def opened(folder: Path) -> tuple[Recording, Recording]:
    return open_recording(folder / "nemo"), open_recording(folder / "nest")


def gathered(folder: Path) -> dict[str, Gathering]:
    return {kind.kind: kind for kind in read_evidence(folder / "evidence" / "gathered.json", Gathered).kinds}
