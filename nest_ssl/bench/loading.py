"""How fast batches are loaded, and by stage: utterances of 16 s, each with a piece of a noise clip of 30 s."""

from __future__ import annotations

import cProfile
import hashlib
import itertools
import json
import pstats
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

RATE, BATCH = 16_000, 8
UTTERANCES, CLIPS = (16, 16), (8, 30)  # how many, and the seconds of each
PROFILED = "all, while it is profiled"
# By stage, of both trainers: the end of a file's name, and the function in it.
STAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "reading audio": (("preprocessing/segment.py", "from_file"), ("data/audio.py", "load")),
    "is the noise silent": (("~", "<built-in method builtins.sum>"), ("data/noise.py", "running_sum")),
    "making a batch": (("ssl_dataset.py", "_audio_noise_collate_fn"), ("data/batch.py", "collate")),
}


def write_corpus(folder: Path) -> list[str]:
    """Utterances and noise clips, drawn; returns the settings of a training on them."""
    generator = np.random.default_rng(0)
    settings = [f"model.train_ds.batch_size={BATCH}", "model.train_ds.max_duration=60"]
    for key, (number, seconds) in (("manifest_filepath", UTTERANCES), ("noise_manifest", CLIPS)):
        manifest = folder / f"{key}.json"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for each in range(number):
            path = folder / f"{key}-{each}.wav"
            soundfile.write(path, 0.1 * generator.standard_normal(seconds * RATE), RATE, subtype="PCM_16")
            lines.append(json.dumps({"audio_filepath": str(path), "duration": seconds, "text": "-"}))
        manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
        settings.append(f"model.train_ds.{key}={manifest}")
    return settings


def load(loader: Iterable[Any], batches: int) -> dict[str, Any]:
    """Load so many batches three times: to hash them, timed, and by stage.

    Returns:
        CPU milliseconds of an item; by the profiler, which takes time itself, of each of its stages by name and of all
        of it; and a hash of the first batches.
    """
    digest, items, endless = hashlib.sha256(), batches * BATCH, itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(endless, batches):
        for value in vars(batch).values():
            digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else b"")
    started = time.process_time()
    deque(itertools.islice(endless, batches), maxlen=0)
    milliseconds = 1000 * (time.process_time() - started) / items
    profile = cProfile.Profile(time.process_time)
    started = time.process_time()
    profile.runcall(deque, itertools.islice(endless, batches), maxlen=0)
    profiled = 1000 * (time.process_time() - started) / items
    timed = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    stages = {
        stage: 1000 * sum(row[3] for (file, _, name), row in timed.items() for end, function in functions
                          if file.endswith(end) and name == function) / items
        for stage, functions in STAGES.items()
    }  # fmt: skip
    stages[PROFILED] = profiled
    return {"item_ms": milliseconds, "stages": stages, "sha256": digest.hexdigest()}
