"""Names of the stages of the ledger of random draws, as `rng.json` of schema 1 has them."""

from __future__ import annotations

# Stages outside the calls of modules, in the order in which they come.
MODEL_CONSTRUCTION, FIT_START = "model_construction", "fit_start"
VALIDATION, FETCH, TRAINING_STEP, LOSS, BACKWARD, OPTIMIZER_STEP = (
    "validation", "fetch", "training_step", "loss", "backward", "optimizer_step",
)  # fmt: skip
