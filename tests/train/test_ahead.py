"""Numbers that a GPU alone knows: no step of the port waits for one, and its bits are those of a step that does.

The GPU is stood in for by torch's `meta`, whose tensors have no numbers: whatever needs one on the host fails there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nest_ssl.base.determinism import set_determinism
from nest_ssl.config.losses import Decoder, Loss
from nest_ssl.config.parts import Quantizer
from nest_ssl.config.schema import BEST_RQ, NEST
from nest_ssl.model import ahead
from nest_ssl.model.ahead import LateTokens, Places, loss_ahead
from nest_ssl.model.counted_tokens import loss_of_all
from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.loss import MLMLoss, MultiMLMLoss
from nest_ssl.model.quantizer import RandomProjectionVectorQuantizer
from nest_ssl.train.fast import FAST_MODULES
from nest_ssl.train.module import MODULES, NestModule
from nest_ssl.train.optim import build_optimizer
from tests.replayed import capture_on_cpu
from tests.train.test_fast import OPTIM, batch_of, built, stepped

MASKED = "model.masking.mask_prob=0.05"
WAITS = pytest.raises((NotImplementedError, RuntimeError, TypeError), match="nonzero|meta")


@pytest.fixture(autouse=True)
def _flags_stay() -> Iterator[None]:
    yield
    set_determinism()
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is asked as a GPU is."""
    monkeypatch.setattr(ahead, "DEVICE", "cpu")


# --- no wait ----------------------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):
    """Operators that read one device and write to another; for these, too, a host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, out) if isinstance(each, Tensor) and each.dim()]
        if len({each.device for each in tensors}) > 1:
            self.seen.append(str(func))
        return out


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A step of a module on `meta`, with clipping and optimizer; `answers` to how many there are, in order."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which has no such device

    def step(module: NestModule, *answers: int, train: bool = True) -> list[str]:
        left = iter(answers)

        class Answered(Places):
            def __init__(self, mask: Tensor) -> None:
                super().__init__(mask)
                self._number = torch.tensor(next(left))

        monkeypatch.setattr(ahead, "Places", Answered)
        given = batch_of(module)
        parts = given if isinstance(given, tuple) else [getattr(given, f.name) for f in dataclasses.fields(given)]
        moved = [each.to("meta") if isinstance(each, Tensor) else each for each in parts]
        batch = tuple(moved) if isinstance(given, tuple) else type(given)(*moved[1:])
        module.to("meta").train(train)
        with Copies() as copies, torch.set_grad_enabled(train):
            loss = module._loss(batch)
            if train:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                build_optimizer(module, OPTIM).step()
        assert loss.device.type == "meta" and list(left) == []
        return copies.seen

    return step


@pytest.mark.parametrize("modules", [MODULES, FAST_MODULES], ids=["exact", "fast"])
@pytest.mark.parametrize("model", [NEST, BEST_RQ])
@pytest.mark.parametrize("overrides", [(), ("model.num_books=2",), ("model.masking.allow_overlap=true",)])
def test_a_step_waits_for_nothing(
    modules: Any, model: str, overrides: tuple[str, ...], far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "DEVICE", "meta")
    assert far(built(modules, *overrides, model=model), 0, 3) == []


@pytest.mark.parametrize("wanted", ["nan", "zero"])
def test_nor_do_validation_half_precision_and_a_batch_without_a_masked_token(
    wanted: str, far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "DEVICE", "meta")
    assert far(built(MODULES), 0, 3, train=False) == []
    assert far(built(MODULES, no_masked_token=wanted), 0, 0) == []
    assert far(built(MODULES).to(torch.bfloat16), 0, 3) == []


def test_waits_are_seen(far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the open way, of a second look at rows, and of a copy."""
    with WAITS:
        far(built(MODULES))
    monkeypatch.setattr(ahead, "DEVICE", "meta")
    with WAITS:
        far(built(MODULES), 1, 3)
    watched = built(MODULES)
    watched.decoder.register_forward_hook(lambda *_: None)
    with WAITS:
        far(watched)
    own = NestModule.heard
    monkeypatch.setattr(NestModule, "heard", lambda self, batch: (torch.ones(1).to("meta"), own(self, batch))[1])
    assert far(built(MODULES), 0, 3) == ["aten._to_copy.default"]


@pytest.mark.parametrize("model", [NEST, BEST_RQ])
def test_it_is_asked_before_the_encoder_and_looked_at_behind(
    model: str, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, seen = built(MODULES, MASKED, model=model), list[str]()

    class Seen(Places):
        def __init__(self, mask: Tensor) -> None:
            seen.append("asked")
            super().__init__(mask)

        def look(self) -> Tensor:
            seen.append("looked at")
            return super().look()

    monkeypatch.setattr(ahead, "Places", Seen)
    module.graphed = lambda **named: (seen.append("encoder"), module.encoder(**named))[1]  # type: ignore[assignment]
    assert stepped(module)["loss"].isfinite()
    assert seen == ["asked", "asked", "encoder", "looked at", "looked at"]


def test_a_number_is_read_when_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    class There(Tensor):  # on a device that is not the current one
        is_cuda, device = True, torch.device("cuda:1")  # type: ignore[assignment]

    class Pinned:
        def copy_(self, number: Tensor, non_blocking: bool) -> Any:
            assert non_blocking
            steps.append("copied")
            return self

        def numpy(self) -> int:
            steps.append("read")
            return 2

    event = SimpleNamespace(synchronize=lambda: steps.append("come"))
    streams = lambda device: SimpleNamespace(record_event=lambda: (steps.append(f"marked on {device}"), event)[1])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "current_stream", streams)
    monkeypatch.setattr(torch, "empty_like", lambda number, device, pin_memory: Pinned())
    asked = Places(torch.tensor([[False, True], [False, True]]).as_subclass(There))
    assert steps == ["copied", "marked on cuda:1"]
    assert asked.look().tolist() == [1, 3] and steps[2:] == ["come", "read"]
    monkeypatch.undo()
    with pytest.raises(TypeError, match="to numpy"):
        Places(torch.ones(2, dtype=torch.bool, device="meta")).look()


# --- the same bits ----------------------------------------------------------------------------------------------------

FRAMES = 4  # of a token
KINDS = ("speech", "silence", "tie", "not a number")


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    batch, heard = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    clean, books = draw(st.integers(1, heard)), draw(st.integers(1, 2))
    counts = draw(st.sampled_from(["none", "all", "some", "one"]))
    masked = {"none": [False], "all": [True], "one": [True] + [False] * (batch * heard - 1)}.get(counts)
    if masked is None:
        masked = draw(st.lists(st.booleans(), min_size=batch * heard, max_size=batch * heard))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=batch * clean, max_size=batch * clean))
    squeezed = books == 1 and draw(st.booleans())
    return {
        "masked": torch.tensor(masked).expand(batch * heard).view(batch, heard), "kinds": kinds, "clean": clean,
        "books": books, "squeezed": squeezed, "empty": draw(st.sampled_from(["nan", "zero"])),
        "seed": draw(st.integers(0, 99)), "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }  # fmt: skip


def made(case: dict[str, Any]) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A model of a drawn mask, clean features of drawn kinds, what is heard, and lengths."""
    torch.manual_seed(case["seed"])
    (batch, heard), books, squeeze = case["masked"].shape, case["books"], case["squeezed"]
    quantizer = RandomProjectionVectorQuantizer(
        Quantizer(feat_in=6, code_dim=4, num_classes=20, num_books=books, combine_time_steps=FRAMES, dist_fn="l2",
                  squeeze_single=squeeze)
    )  # fmt: skip
    quantizer.codebooks.data[:, 13] = quantizer.codebooks.data[:, 7]
    clean_BST = torch.randn(batch * case["clean"], FRAMES * 6)
    for row, kind in zip(clean_BST, case["kinds"], strict=True):
        if kind == "tie":  # between the nearest two, which are one code
            row.copy_(torch.linalg.pinv(quantizer.proj.weight[:4]) @ quantizer.codebooks[0, 7].float())
        elif kind != "speech":
            row.fill_(0.0 if kind == "silence" else torch.nan)
    frames = case["masked"].repeat_interleave(FRAMES, dim=1).to(case["dtype"]).unsqueeze(1).expand(-1, 6, -1)
    loss = MultiMLMLoss(Loss(combine_time_steps=FRAMES, num_decoders=books, squeeze_single=squeeze))
    loss.mlm_loss.no_masked_token = case["empty"]
    decoder = MultiSoftmaxDecoder(Decoder(feat_in=8, num_classes=20, num_decoders=books, squeeze_single=squeeze))
    encoder = nn.Conv1d(6, 8, FRAMES, stride=FRAMES)
    model = SimpleNamespace(
        quantizer=quantizer, loss=loss, decoder=decoder.to(case["dtype"]), conv=encoder.to(case["dtype"]), graphed=None,
        mask_processor=lambda input_feats, input_lengths: (input_feats * (1 - frames), frames),
        encoder=lambda audio_signal, length: (encoder(audio_signal), length),
    )  # fmt: skip
    clean_BFT = clean_BST.view(batch, -1, 6).transpose(1, 2)
    return model, clean_BFT, torch.randn(batch, 6, FRAMES * heard, dtype=case["dtype"]), torch.full((batch,), heard)


def taken(model: Any, loss: Tensor) -> list[Tensor]:
    parameters = [*model.decoder.parameters(), *model.conv.parameters()]
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


@settings(max_examples=200, deadline=None)
@given(cases())
def test_tokens_loss_and_gradients_are_those_of_the_open_way(case: dict[str, Any]) -> None:
    model, clean_BFT, heard_BFT, length = made(case)
    _, tokens = model.quantizer(input_signal=clean_BFT)
    late = LateTokens(model.quantizer, clean_BFT)
    looked = late.look()
    assert looked.dtype == tokens.dtype and torch.equal(looked, tokens)
    heard_masked_BFT, masks_BFT = model.mask_processor(heard_BFT, length)
    encoded_BDS, _ = model.encoder(heard_masked_BFT, length)
    wanted = taken(model, loss_of_all(model.decoder, model.loss, encoded_BDS, tokens, masks_BFT))
    found = taken(model, loss_ahead(model, clean_BFT, heard_BFT, length))
    assert all(bits(one) == bits(other) for one, other in zip(wanted, found, strict=True))


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def test_ties_and_what_is_no_number_are_looked_at_and_silence_is_not() -> None:
    """What the cases above are drawn from."""
    for kind, number in zip(KINDS, (0, 0, 1, 1), strict=True):
        case = {"masked": torch.ones(1, 1), "kinds": [kind], "clean": 1, "books": 1, "squeezed": False}
        model, clean_BFT, *_ = made({**case, "empty": "nan", "seed": 0, "dtype": torch.float32})
        assert len(LateTokens(model.quantizer, clean_BFT)._unsure.look()) == number, kind


@pytest.mark.parametrize("precision", [nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)])
@pytest.mark.parametrize("graphed", [False, True])
@pytest.mark.parametrize("model", [NEST, BEST_RQ])
def test_steps_are_those_of_one_that_waits(
    model: str, graphed: bool, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if graphed:
        capture_on_cpu(monkeypatch.setattr)
    found, seen, steps = [], list[str](), 4 if graphed else 1
    monkeypatch.setattr(ahead, "loss_ahead", lambda *given: (seen.append(ahead.DEVICE), loss_ahead(*given))[1])
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(ahead, "DEVICE", device)
        module = built(MODULES, MASKED, "model.num_books=2", model=model, cuda_graphs=graphed)
        with precision():
            found.append([stepped(module) for _ in range(steps)])
    assert seen == ["cpu"] * steps and (module.graphed is None or module.graphed.replayed > 0)
    for one, other in zip(*found, strict=True):
        assert bits(one["loss"]) == bits(other["loss"]) and torch.equal(one["generator"], other["generator"])
        assert one["grads"].keys() == other["grads"].keys()
        assert [name for name, grad in one["grads"].items() if bits(grad) != bits(other["grads"][name])] == []


@pytest.mark.parametrize("modules", [MODULES, FAST_MODULES], ids=["exact", "fast"])
@pytest.mark.parametrize("name", ["quantizer", "loss", "encode", "kind"])
def test_what_was_changed_is_called(
    name: str, modules: dict[str, Any], on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, calls = built(modules, MASKED), list[int]()
    kind, method = {
        "quantizer": (RandomProjectionVectorQuantizer, "forward"), "loss": (MLMLoss, "forward"),
        "encode": (NestModule, "encode"), "kind": (None, "forward"),
    }[name]  # fmt: skip
    if kind is None:
        kind = type("Own", (RandomProjectionVectorQuantizer,), {"forward": RandomProjectionVectorQuantizer.forward})
        module.quantizer.__class__ = kind
    own = getattr(kind, method)

    def counted(self: Any, *args: Any, **named: Any) -> Any:
        calls.append(1)
        return own(self, *args, **named)

    monkeypatch.setattr(kind, method, counted)
    stepped(module)
    assert calls == [1]
