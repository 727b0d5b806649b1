"""The names of a recording's files, in one place: people's scripts read them, so they are a contract."""

from __future__ import annotations

SCHEMA = "nest-ssl-recording/2"
SCHEMA_1 = "nest-ssl-recording/1"  # still read, see `schema1`

INDEX = "recording.json"
RANKS = "ranks.json"  # of a folder with a recording for each of several processes
CONFIG = "config.yaml"
STRUCTURE = "model_structure.pkl"
INITIAL_WEIGHTS = "initial_weights/parameter_weights.pt"

BATCH = "batch.pt"
FORWARD_OUTPUT = "forward_output.pt"
LOSS = "loss.pt"
GRADIENTS = "parameter_gradients.pt"
WEIGHTS = "parameter_weights.pt"
CALLS = "layer_outputs.pkl"
OPTIMIZER = "optimizer_state.pt"
RNG = "rng.json"
GENERATOR_STATES = "generator_states.pt"  # whole, where a call drew or a step began: {generator: {digest: bytes}}

# Not in older recordings of this schema.
STEP_START = "step_start.pt"  # weights before the step, as far as they differ from what was recorded last
OPTIMIZER_START = "optimizer_start.pt"  # the optimizer's state before its update, alike, and the groups' settings
APPLIED_GRADIENTS = "applied_gradients.pt"  # gradients that the update used, as far as they are not those of backward
FACTS = "facts.json"
OPERATORS = "operators.json"  # ATen operators of the step, where they were asked for
DIGESTS = "digests.json"  # in place of all others, where a step was recorded by its hashes alone
LEARNING_RATES = "learning_rates.json"  # of the run, over steps that it need not train; where asked for


def validation_file(number: int) -> str:
    """`validation_0.pt`: what was seen of the run's first validation."""
    return f"validation_{number}.pt"


def rank_folder(rank: int) -> str:
    """`rank_1`: the recording of one of several processes."""
    return f"rank_{rank}"


def step_folder(step: int, rank: int = 0, world_size: int = 1) -> str:
    """`step_0`, or `rank_1/step_0` where several processes train."""
    folder = f"step_{step}"
    return folder if world_size == 1 else f"rank_{rank}/{folder}"
