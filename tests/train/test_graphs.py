"""`cuda_graphs`: steps whose encoder is replayed are the steps without, to the last bit, in both modes.

CUDA's graphs are stood in for on a CPU (`tests/replayed.py`); that torch's own replay the same bits is for a GPU to
show (`make test-gpu`, part parity).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from nest_ssl.base.determinism import set_determinism
from nest_ssl.base.nested import leaves
from nest_ssl.base.rng import generator_states
from nest_ssl.config.compose import compose
from nest_ssl.config.schema import BEST_RQ, NEST
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.model.encoder import graphs
from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.train.fast import FAST_MODULES
from nest_ssl.train.module import MODULES, NestModule
from tests.replayed import capture_on_cpu

SHORT, LONG, LONGER = 32_000, 40_000, 64_000  # samples; the last has more frames than the table of positions
STEPS = (SHORT, LONG, SHORT, SHORT, LONG, LONG, SHORT)
SMALL = ("size=tiny", "run=full", "model.encoder.subsampling_conv_channels=4", "model.encoder.d_model=16",
         "model.encoder.pos_emb_max_len=300", "model.masking.mask_prob=0.05")  # fmt: skip


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    capture_on_cpu(monkeypatch.setattr)
    yield
    set_determinism()
    torch.use_deterministic_algorithms(False)


def built(modules: dict[str, Any], graphed: bool, *overrides: str, model: str = NEST) -> NestModule:
    cfg = compose([*SMALL, f"model.target=nemo.collections.asr.models.{model}", *overrides]).model
    OmegaConf.update(cfg, "train_ds", None)
    OmegaConf.update(cfg, "validation_ds", None)
    torch.manual_seed(0)
    made: NestModule = modules[model](cfg, cuda_graphs=graphed)
    return made.train()


def trained(
    module: NestModule, steps: tuple[int, ...] = STEPS, precision: Any = nullcontext, look: Callable[[int], Any] = id
) -> list[Any]:
    """Loss, weights, buffers, gradients and generators after each step, in Lightning's order.

    Args:
        look: called before each step with its number.
    """
    optimizer, found = torch.optim.AdamW(module.parameters(), lr=0.01), []
    torch.manual_seed(1)
    for number, samples in enumerate(steps):
        look(number)
        audio, lengths = torch.randn(2, samples) * 0.1, torch.tensor([samples, samples - 9000])
        noisy = audio + 0.01 * torch.randn_like(audio)
        batch: Any = AudioNoiseBatch(audio, lengths, noisy - audio, lengths, noisy, lengths)
        with precision():
            loss = module._loss((noisy, lengths, None, None) if "BestRq" in type(module).__name__ else batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
        optimizer.step()
        state = {name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())}
        found.append([loss.detach(), grads, state, generator_states()])
    return found


def differing(one: Any, other: Any) -> list[str]:
    pairs = zip(leaves(one), leaves(other), strict=True)
    return [p for (p, a), (_, b) in pairs if not (torch.equal(a, b) if isinstance(a, Tensor) else a == b)]


def bf16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("modules", [MODULES, FAST_MODULES], ids=["exact", "fast"])
@pytest.mark.parametrize("model", [NEST, BEST_RQ])
@pytest.mark.parametrize("precision", [nullcontext, bf16])
@pytest.mark.parametrize("overrides", [(), ("model.masking.freeze=false", "model.encoder.untie_biases=false")])
def test_steps_are_those_without(modules: Any, model: str, precision: Any, overrides: tuple[str, ...]) -> None:
    plain, graphed = (built(modules, graphed, *overrides, model=model) for graphed in (False, True))
    assert differing(trained(plain, precision=precision), trained(graphed, precision=precision)) == []
    assert graphed.graphed is not None and plain.graphed is None
    assert (graphed.graphed.replayed, graphed.graphed.shapes) == (3, 2)


@pytest.mark.parametrize("forgotten", ["generators", "buffers"])
def test_what_capturing_moves_and_is_not_put_back_is_seen(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(built(MODULES, False))
    if forgotten == "generators":
        monkeypatch.setattr(graphs, "restore_generators", lambda states: None)
    else:
        monkeypatch.setattr(ConformerEncoder, "buffers", lambda self: iter(()))
    found = differing(expected, trained(built(MODULES, True)))
    assert found and all(int(path.partition(".")[0]) >= 3 for path in found)  # the step that captures


def test_who_looks_sees_every_call_and_changes_nothing() -> None:
    plain, graphed = built(MODULES, False), built(MODULES, True)
    seen: list[int] = []
    handles: list[Any] = []

    def look(number: int) -> None:
        for handle in handles:
            handle.remove()
        handles[:] = [graphed.encoder.register_forward_hook(lambda *_: seen.append(number))] if number in (1, 3) else []

    assert differing(trained(plain, (SHORT,) * 6), trained(graphed, (SHORT,) * 6, look=look)) == []
    assert seen == [1, 3] and graphed.graphed is not None and graphed.graphed.replayed == 2  # at 4 and 5


def test_the_table_of_positions_that_longer_audio_brings_is_captured() -> None:
    steps = (*[SHORT] * 4, LONGER, SHORT, SHORT)
    plain, graphed = built(MODULES, False), built(MODULES, True)
    held = graphed.encoder.pos_enc.pe
    assert differing(trained(plain, steps), trained(graphed, steps)) == []
    assert graphed.encoder.pos_enc.pe is not held
    assert graphed.graphed is not None and (graphed.graphed.replayed, graphed.graphed.shapes) == (4, 2)


@pytest.mark.parametrize(
    ("overrides", "flag"),
    [
        (("model.encoder.feat_out=8", "model.decoder.feat_in=8"), None),
        (("model.encoder.subsampling_conv_chunking_factor=2",), None),
        (("model.encoder.stochastic_depth_drop_prob=0.5",), None),
        ((), torch.autograd.set_detect_anomaly),
    ],
)
def test_what_is_not_captured(overrides: tuple[str, ...], flag: Any) -> None:
    graphed = built(MODULES, True, *overrides)
    with flag(True) if flag else nullcontext():
        trained(graphed, (SHORT,) * 4)
    assert graphed.graphed is not None and graphed.graphed.shapes == graphed.graphed.replayed == 0


def test_another_layout_and_other_flags_are_another_shape() -> None:
    encoder = built(MODULES, False).encoder
    graphed = graphs.GraphedEncoder(encoder)
    x_BFT, length = torch.randn(2, 80, 200), torch.tensor([200, 150])
    for x in [x_BFT] * 4 + [x_BFT.transpose(1, 2).contiguous().transpose(1, 2)] * 2:
        graphed(audio_signal=x, length=length)
    assert (graphed.replayed, graphed.shapes) == (2, 1)
    torch.use_deterministic_algorithms(True)
    graphed(audio_signal=x_BFT, length=length)
    assert graphed.replayed == 2
    with torch.no_grad():
        graphed(audio_signal=x_BFT, length=length)
    torch.use_deterministic_algorithms(False)
    graphed(audio_signal=x_BFT, length=length)
    assert graphed.replayed == 3


def test_torch_captures_with_what_is_put_in_its_place() -> None:
    source = inspect.getsource(torch.cuda.graphs.make_graphed_callables)
    assert source.count("torch.cuda.graph(") == 2  # forward and backward
    with graphs._other_threads_go_on():
        assert torch.cuda.graph.keywords == {"capture_error_mode": "thread_local"}  # type: ignore[attr-defined]
    assert inspect.isclass(torch.cuda.graph)
