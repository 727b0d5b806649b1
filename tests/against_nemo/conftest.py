"""Real NeMo beside the port. These tests run in NeMo's environment, and are skipped where there is none.

Whichever release is installed there, the port is built for its generation.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.metadata
import importlib.util
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nest_ssl.base.nested import leaves
from nest_ssl.config.compose import ROOT, compose
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.loader import build_dataloader
from nest_ssl.model.nest import NestModel
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.releases import generation, generation_of


@pytest.fixture(scope="session")
def release() -> str:
    """The generation of the NeMo that is installed."""
    if importlib.util.find_spec("nemo") is None:
        pytest.skip("NeMo is not installed here: run with the environment of `make setup`, .venv/nemo-3.0.0")
    return generation_of(importlib.metadata.version("nemo_toolkit"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "against_nemo" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("default"))  # NeMo's warnings are not for us to mend


@pytest.fixture(scope="session", autouse=True)
def _nemo_is_imported() -> None:
    """Before the first test, so that its million objects are no garbage to look through in that test's file either."""
    if importlib.util.find_spec("nemo") is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("nemo.collections.asr.models")
    gc.set_threshold(10_000, 20, 20)  # what is left of a trainer goes at the end of a file, if not before


@pytest.fixture(autouse=True)
def _its_activation_trains() -> None:
    """NeMo's feed-forward modules share one activation, a default argument made when their class is: a model that an
    earlier test evaluated would have it evaluate in the next one, which starts training as it was built."""
    if importlib.util.find_spec("nemo") is not None:
        module = importlib.import_module("nemo.collections.asr.parts.submodules.conformer_modules")
        shared = [each for each in module.ConformerFeedForward.__init__.__defaults__ if isinstance(each, nn.Module)]
        for each in shared:
            each.train()


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_no_garbage(_nemo_is_imported: None) -> None:
    """NeMo's models and loaders that outlive a file are hundreds of thousands of objects to look through again."""
    gc.freeze()


@pytest.fixture
def memory_goes_back() -> Iterator[None]:
    """A large model's is the system's again: else every loader's worker, a fork, would copy its page tables."""
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nemo_model(release: str) -> Any:
    """A small NeMo model: its `_setup_dataloader_from_config` is the reference."""
    from train_nemo import build_model  # not scripts.train_nemo: NeMo 2 brings a package of that name along

    return build_model(compose(["size=tiny", "model.train_ds=null", "model.validation_ds=null"]))


@pytest.fixture(scope="session")
def build_candidate(release: str) -> Callable[[dict[str, Any]], Any]:
    """`build_candidate(section)`: the port's loader, of the generation of the NeMo that is installed."""
    return lambda section: build_dataloader(read(Dataset, section), 16_000, differences=generation(release))


@dataclass
class Pair:
    """NeMo's model and the port's, built from one configuration and seed."""

    cfg: DictConfig
    nemo: nn.Module
    nest: nn.Module
    rng_after: tuple[Tensor, Tensor]

    def part(self, name: str) -> tuple[nn.Module, nn.Module]:
        return self.nemo.get_submodule(name), self.nest.get_submodule(name)


@pytest.fixture(scope="session")
def pair(release: str) -> Callable[..., Pair]:
    """`pair("size=tiny", "run=full", seed=42)`: a `Pair`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from train_nemo import build_model, load_model_class

        load_model_class()

    def build(*overrides: str, seed: int = 42) -> Pair:
        cfg = compose(overrides)
        OmegaConf.update(cfg, "model.train_ds", None)  # no data: the tests bring their own
        OmegaConf.update(cfg, "model.validation_ds", None)
        torch.manual_seed(seed)
        nemo = build_model(cfg)
        nemo_rng = torch.get_rng_state()
        torch.manual_seed(seed)
        nest = NestModel(cfg.model, release)
        return Pair(cfg, nemo, nest, (nemo_rng, torch.get_rng_state()))

    return build


@pytest.fixture(scope="session")
def recorded(release: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`recorded(NEMO, "size=tiny")`: a recording, made once for all tests that ask for the same one, and only read."""
    from aligning import record

    @functools.cache
    def once(subject: Any, *overrides: str) -> Path:
        target = tmp_path_factory.mktemp("recorded") / subject.name
        record(subject, target, *overrides)
        return target

    return once


@pytest.fixture(scope="session")
def nemo_python(release: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Python for programs that need NeMo, imported once for all of them: see `tests/warm.py`.

    It has not imported nest_ssl, for a program may be of another copy of it.
    """
    warm_python = runpy.run_path(str(ROOT / "tests" / "warm.py"))["warm_python"]  # NeMo before 3.0 hides `tests`
    preloaded = ("torch", "lightning.pytorch", "librosa.filters", "hydra", "pydantic", "nemo.collections.asr.models")
    with warm_python(tmp_path_factory.mktemp("python"), preloaded) as executable:
        yield executable


def set_seed(value: int) -> None:
    """Seed all that the model draws from."""
    torch.manual_seed(value)
    np.random.seed(value)


def rng_states() -> dict[str, Tensor]:
    """What the model draws from: torch's generator, and before NeMo 2.5 NumPy's."""
    _, keys, position, *_ = np.random.get_state()
    return {"torch": torch.get_rng_state(), "numpy": torch.tensor([*keys.tolist(), position])}


@pytest.fixture(scope="session")
def seeded() -> Callable[[int], None]:
    """`seeded(5)` seeds all that the model draws from."""
    return set_seed


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Any, Any], None]:
    """`same_bits(reference, candidate)` fails unless both hold the same values, to the bit, in the same nesting."""

    def check(reference: Any, candidate: Any) -> None:
        reference, candidate = list(leaves(reference)), list(leaves(candidate))
        assert [path for path, _ in reference] == [path for path, _ in candidate]
        for (path, a), (_, b) in zip(reference, candidate, strict=True):
            if not isinstance(a, Tensor):
                assert a == b, path
                continue
            assert (a.shape, a.dtype) == (b.shape, b.dtype), path
            assert torch.equal(_bits(a), _bits(b)), f"{path}: {int((_bits(a) != _bits(b)).sum())} of {a.numel()} differ"

    return check


def _bits(tensor: Tensor) -> Tensor:
    integers = {torch.float32: torch.int32, torch.float64: torch.int64}
    return tensor.detach().contiguous().view(integers.get(tensor.dtype, tensor.dtype))


@pytest.fixture(scope="session")
def run() -> Callable[..., dict[str, Any]]:
    """`run(module, *args, **kwargs)`: one call and its backward pass, and everything that came of them.

    Inputs are copied. Those named by `wants_grad` get gradients; outputs get random ones. All draws start from `seed`.
    """

    def call(
        module: nn.Module, *args: Any, wants_grad: tuple[str, ...] = (), seed: int = 1, **kwargs: Any
    ) -> dict[str, Any]:
        copies: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in copies.items()}
        for name in wants_grad:
            copies[name].requires_grad_()
        module.zero_grad()
        set_seed(seed)
        positional = [copies[i] for i in range(len(args))]
        output = module(*positional, **{k: copies[k] for k in kwargs})
        rng = rng_states()
        results = [leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if results:
            torch.autograd.backward(results, [torch.randn_like(r) for r in results])
        return {
            "output": [leaf.detach() if isinstance(leaf, Tensor) else leaf for _, leaf in leaves(output)],
            "strides": [leaf.stride() for _, leaf in leaves(output) if isinstance(leaf, Tensor)],
            "inputs": {str(k): v for k, v in copies.items()},
            "input_gradients": {name: copies[name].grad for name in wants_grad},
            "parameter_gradients": {name: p.grad for name, p in module.named_parameters()},
            "buffers": dict(module.named_buffers()),
            "rng": rng,
        }

    return call


@pytest.fixture(scope="session")
def training_step() -> Callable[..., dict[str, Any]]:
    """`training_step(model, batch, seed)`: a step, and every call of every module in it (by our recorder)."""

    def step(model: nn.Module, batch: dict[str, Tensor], seed: int = 1) -> dict[str, Any]:
        batch = {name: tensor.clone() for name, tensor in batch.items()}
        model.zero_grad()
        set_seed(seed)
        capture = CallObserver(model).attach()
        output = model.forward(**batch, apply_mask=True)
        log_probs, encoded_len, masks, tokens = output
        loss = model.loss(masks=masks, decoder_outputs=log_probs, targets=tokens, decoder_lengths=encoded_len)
        rng = rng_states()
        loss.backward()
        return {
            "calls": [call.as_builtins() for call in capture.detach()],
            "output": [o.detach() for o in output],
            "loss": loss.detach(),
            "gradients": {name: p.grad for name, p in model.named_parameters()},
            "batch": batch,
            "rng": rng,
        }

    return step
