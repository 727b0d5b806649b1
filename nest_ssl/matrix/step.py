"""A model built from a seed and trained for three steps, as digests of all that is seen of it, in causal order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nest_ssl.base.nested import leaves
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.recording.tensors import tensor_digest

SEEDS = 1, 2  # one for each step
# Characters of both utterances by number, and how many; of a loss that reads them.
TRANSCRIPTS = torch.tensor([[17, 14, 21, 21, 24, 94, 12], [10, 94, 10, 0, 0, 0, 0]]), torch.tensor([7, 3])
Digests = dict[str, str]


def observe(build: Callable[[], nn.Module], seed: int = 42) -> Digests:
    """Digests of initial values, two training steps with every call, one unwatched, and an evaluation.

    Args:
        build: makes the model, and draws its initial values while it does.
        seed: for these.
    """
    _seed(seed)
    model = build().train()
    found = {f"initial {name}": digest_of(value) for name, value in model.state_dict().items()}
    found.update(_generators("initial"))
    classes = {name: type(module).__name__ for name, module in model.named_modules() if name}
    found.update((f"class of {name}", kind) for name, kind in classes.items() if name != "spec_augmentation")
    batch = batch_of(model)
    for number, seed_of_step in enumerate(SEEDS):
        found.update((f"step {number} {name}", digest) for name, digest in train_step(model, batch, seed_of_step))
    found.update((f"unwatched {name}", digest) for name, digest in train_step(model, batch, SEEDS[0], watched=False))
    model.eval()
    _seed(SEEDS[0])
    with torch.no_grad():
        output = model.forward(**{name: value.clone() for name, value in batch.items()})
    found.update((f"evaluation {path}", digest_of(value)) for path, value in leaves(output))
    return found


def first_difference(reference: Digests, candidate: Digests) -> str | None:
    """The first place, in the reference's order, at which the two are not the same; None if they are."""
    for name in {**reference, **candidate}:
        if reference.get(name) != candidate.get(name):
            lacking = "the reference" if name not in reference else "the candidate" if name not in candidate else ""
            return f"{name} (not in {lacking})" if lacking else name
    return None


def digest_of(value: Any) -> str:
    """A short name for a value; the same if and only if type, shape and every bit are."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {tensor_digest(value)[:16]}"
    return repr(value)


def batch_of(model: nn.Module) -> dict[str, Any]:
    """Two utterances of different length; for a model that denoises, the second's noise is shorter than its speech."""
    draw = torch.Generator().manual_seed(3)
    clean = torch.randn(2, 48000, generator=draw) * 0.1
    noise = torch.randn(2, 48000, generator=draw) * 0.02
    clean[1, 37123:] = 0
    batch: dict[str, Any] = {"input_signal": clean, "input_signal_length": torch.tensor([48000, 37123])}
    if hasattr(model, "quantizer"):
        batch["apply_mask"] = torch.tensor(True)
    if type(model).__name__ in DENOISING:
        noise_length = torch.tensor([48000, 30000])
        batch |= {"noise_signal": noise, "noise_signal_length": noise_length}
        batch |= {"noisy_input_signal": clean + noise, "noisy_input_signal_length": noise_length}
    return batch


DENOISING = "EncDecDenoiseMaskedTokenPredModel", "NestModule"


def train_step(model: nn.Module, batch: dict[str, Any], seed: int, watched: bool = True) -> Iterator[tuple[str, str]]:
    """Digests of a step, in causal order: calls (if `watched`: the port's fused ones are open then), loss, generators,
    gradients, buffers."""
    model.zero_grad()
    _seed(seed)
    observer = CallObserver(model)
    if watched:
        observer.attach()
    output: Any = model.forward(**{name: value.clone() for name, value in batch.items()})
    loss = loss_of(model, output)
    generators = dict(_generators("after"))
    torch.autograd.backward(loss)
    calls = observer.detach()
    moments = [(call.start, call, "in", call.inputs) for call in calls]
    moments += [(call.end, call, "out", call.output) for call in calls]
    for _, call, kind, value in sorted(moments, key=lambda moment: moment[0]):
        yield from ((f"{kind} of {call.name} {path}", digest_of(leaf)) for path, leaf in leaves(value))
    for call in sorted(calls, key=lambda call: call.grad_event or 0):
        yield from ((f"gradient of {call.name} {path}", digest_of(leaf)) for path, leaf in call.output_grads.items())
    yield "loss", digest_of(loss)
    yield from generators.items()
    for name, parameter in model.named_parameters():
        yield f"gradient {name}", digest_of(parameter.grad)
    for name, buffer in model.named_buffers():
        yield f"buffer {name}", digest_of(buffer)


def loss_of(model: Any, output: Any) -> Tensor:
    """The loss, as the model's own `training_step` computes it."""
    if hasattr(model, "quantizer"):
        log_probs, encoded_length, masks, tokens = output
        loss: Tensor = model.loss(
            masks=masks, decoder_outputs=log_probs, targets=tokens, decoder_lengths=encoded_length
        )
        return loss
    loss, _ = model.decoder_loss_step(*output, *TRANSCRIPTS)
    return loss


def _seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def _generators(when: str) -> Iterator[tuple[str, str]]:
    """The states of Python's, NumPy's and torch's generators."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state().tolist()}
    for name, state in states.items():
        yield f"{when} generator {name}", hashlib.sha256(repr(state).encode()).hexdigest()[:16]
