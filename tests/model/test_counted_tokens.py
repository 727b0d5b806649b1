"""Decoder and loss of the tokens that count have every bit of those of all tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.config.losses import Decoder, Loss
from nest_ssl.model import counted_tokens
from nest_ssl.model.counted_tokens import blocks_of_sums, loss_of_counted
from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.loss import MLMLoss, MultiMLMLoss
from tests.model.test_fused_modes import Doubling

FRAMES = 4  # of a token


@pytest.fixture(autouse=True)
def smallest(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches of these tests' size are computed so too, on one thread."""
    monkeypatch.setattr(counted_tokens, "SMALLEST", 0)
    blocks_of_sums.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    blocks_of_sums.cache_clear()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each call's way: packed, whole, or open where decoder and loss were called."""
    ways: list[str] = []
    apply, loss_of_all = counted_tokens.CountedLogits.apply, counted_tokens.loss_of_all

    def applied(*given: Any) -> Any:
        ways.append("packed" if given[-1] else "whole")
        return apply(*given)

    def opened(*given: Any) -> Tensor:
        ways.append("open")
        return loss_of_all(*given)

    monkeypatch.setattr(counted_tokens.CountedLogits, "apply", applied)
    monkeypatch.setattr(counted_tokens, "loss_of_all", opened)
    return ways


class Case:
    """A decoder, its loss, and a batch for them.

    Args:
        share: how much of it is masked; or masks of tokens (B, S).
    """

    def __init__(self, batch: int, steps: int, width: int = 64, classes: int = 128, books: int = 1,
                 share: float | Tensor = 0.3, squeeze: bool = False, seed: int = 0, short: int = 0,
                 **decoder: Any) -> None:  # fmt: skip
        torch.manual_seed(seed)
        settings: dict[str, Any] = {"num_decoders": books, "squeeze_single": squeeze}
        decoder = {"use_bias": True, **decoder}
        self.decoder = MultiSoftmaxDecoder(Decoder(feat_in=width, num_classes=classes, **settings, **decoder))
        self.loss = MultiMLMLoss(Loss(combine_time_steps=FRAMES, mask_threshold=0.8, **settings))
        self.encoded_BSD = torch.randn(batch, steps, width)
        counts_BS = torch.rand(batch, steps) < share if isinstance(share, float) else share
        self.masks_BFT = counts_BS.float().repeat_interleave(FRAMES, 1).unsqueeze(1).repeat(1, 5, 1)
        of_books = () if squeeze else (books,)
        self.tokens_BSH = torch.randint(classes, (batch, steps - short, *of_books))

    def stepped(self, compute: Callable[..., Tensor]) -> dict[str, Any]:
        """Loss and gradients, as bytes and with how they lie in memory, and the generator."""
        leaf = self.encoded_BSD.clone().requires_grad_()
        encoded_BDS = (leaf * 1).transpose(1, 2)
        encoded_BDS.retain_grad()
        self.decoder.zero_grad()
        torch.manual_seed(7)
        loss = compute(self.decoder, self.loss, encoded_BDS, self.tokens_BSH, self.masks_BFT)
        (loss * 3).backward()
        grads = {name: parameter.grad for name, parameter in self.decoder.named_parameters()}
        found = {"loss": loss, "encoded": encoded_BDS.grad, "leaf": leaf.grad, **grads}
        bits = {
            n: None if t is None else (t.stride(), t.detach().contiguous().numpy().tobytes()) for n, t in found.items()
        }
        return {**bits, "generator": torch.get_rng_state().numpy().tobytes()}

    def differing(self) -> list[str]:
        """What is not the same in both ways."""
        opened, short = self.stepped(of_all), self.stepped(loss_of_counted)
        assert opened.keys() == short.keys()
        return [name for name in opened if opened[name] != short[name]]


def of_all(decoder: nn.Module, loss: nn.Module, encoded: Tensor, tokens: Tensor, masks: Tensor) -> Tensor:
    """The open way."""
    value: Tensor = loss(masks=masks, decoder_outputs=decoder(encoder_output=encoded), targets=tokens)
    return value


def only(batch: int, steps: int, *places: tuple[int, int]) -> Tensor:
    """Masks of these tokens (utterance, step) alone."""
    counts = torch.zeros(batch, steps, dtype=torch.bool)
    for utterance, step in places:
        counts[utterance, step] = True
    return counts


CASES: dict[str, dict[str, Any]] = {
    "2 x 3 s": {"batch": 2, "steps": 38},
    "8 x 16 s": {"batch": 8, "steps": 201},
    "longer": {"batch": 3, "steps": 402},
    "short": {"batch": 5, "steps": 7},
    "one utterance": {"batch": 1, "steps": 101},
    "as wide as large": {"batch": 3, "steps": 53, "width": 512, "classes": 1024},
    "two books": {"batch": 4, "steps": 60, "books": 2},
    "five books": {"batch": 4, "steps": 60, "books": 5, "classes": 48},
    "squeezed": {"batch": 4, "steps": 60, "squeeze": True},
    "one token": {"batch": 3, "steps": 40, "share": only(3, 40, (1, 39))},
    "an utterance without": {"batch": 3, "steps": 40, "share": only(3, 40, (0, 0), (0, 17), (2, 39), (2, 5))},
    "all but one": {"batch": 3, "steps": 40, "share": ~only(3, 40, (1, 3))},
    "a whole utterance": {"batch": 3, "steps": 40, "share": torch.arange(3)[:, None].expand(3, 40) == 1},
    "no bias": {"batch": 3, "steps": 40, "use_bias": False},
    "most": {"batch": 3, "steps": 40, "share": 0.8},
    "clean audio is shorter": {"batch": 3, "steps": 40, "short": 2},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_packed_tokens_have_the_same_bits(case: str, seed: int, taken: list[str]) -> None:
    made = Case(**CASES[case], seed=seed)
    assert made.differing() == []
    # Of few tokens MKL computes the last ones of an utterance in another order.
    alike = blocks_of_sums(made.decoder.decoder_layers[0].out_channels, *made.encoded_BSD.shape[:0:-1])
    assert taken == ["packed" if alike else "whole"]


def test_usual_lengths_are_packed_where_products_are_of_mkl() -> None:
    """Which of them is a matter of the processor; if none were, packing would be there for nothing."""
    alike = [blocks_of_sums(8192, 512, steps) for steps in (38, 101, 201)]
    assert any(alike) or not torch.backends.mkl.is_available()


@pytest.mark.parametrize("case", CASES)
def test_so_they_have_on_two_threads_where_all_is_multiplied(case: str, taken: list[str]) -> None:
    torch.set_num_threads(2)
    assert Case(**CASES[case]).differing() == []
    assert taken == ["whole"]


def test_where_backward_has_more_threads_than_forward_all_is_multiplied(
    taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was packed in forward: a packed product is that of the open way on one thread alone."""
    monkeypatch.setattr(counted_tokens, "blocks_of_sums", lambda *sizes: (0,))
    own, wanted = counted_tokens._conv_backward, list[bool]()

    def seen(d: Tensor, read: Tensor, weight: Tensor, asked: list[bool]) -> tuple[Tensor | None, ...]:
        wanted.append(asked[0])
        return own(d, read, weight, asked)

    def stepped(threads: int) -> list[bool]:
        def computed(*given: Any) -> Tensor:
            value = loss_of_counted(*given)
            torch.set_num_threads(threads)
            return value

        wanted.clear()
        torch.set_num_threads(1)
        Case(batch=3, steps=101).stepped(computed)
        return list(wanted)

    monkeypatch.setattr(counted_tokens, "_conv_backward", seen)
    assert (stepped(1), stepped(2)) == ([], [True])  # gradients of the encodings, by the convolution's backward
    assert taken == ["packed"] * 2


def test_so_they_have_under_any_default_device(taken: list[str]) -> None:
    case = Case(3, 40)
    without = case.stepped(loss_of_counted)
    blocks_of_sums.cache_clear()
    with torch.device("meta"):
        assert case.stepped(loss_of_counted) == without
    assert taken[0] == taken[1] != "open"


def test_many_utterances_are_multiplied_as_one(taken: list[str]) -> None:
    assert Case(batch=16, steps=30).differing() == []
    assert taken == ["whole"]


@pytest.mark.parametrize(("width", "classes"), [(64, 100), (60, 128)])
def test_where_utterances_begin_between_vectors_all_is_multiplied(width: int, classes: int, taken: list[str]) -> None:
    assert Case(batch=3, steps=40, width=width, classes=classes).differing() == []
    assert taken == ["whole"]


@pytest.mark.parametrize("steps", [261, 265, 301])
def test_of_more_tokens_than_codes_each_place_is_tried(steps: int, taken: list[str]) -> None:
    """Each code tries one; MKL adds the last tokens of these lengths up by themselves."""
    counts = torch.rand(6, steps, generator=torch.Generator().manual_seed(0)) < 0.3
    counts[:, -4:] = True
    assert Case(batch=6, steps=steps, width=48, classes=256, share=counts).differing() == []
    assert taken == ["packed" if blocks_of_sums(256, 48, steps) else "whole"]


def of_other_kind(case: Case) -> None:
    case.decoder.decoder_layers[0] = type("Other", (nn.Conv1d,), {})(64, 128, 1)


def of_other_layers(case: Case) -> None:
    case.decoder.decoder_layers = type("Other", (nn.Sequential,), {})(*case.decoder.decoder_layers)


def of_two_layers(case: Case) -> None:
    case.decoder.decoder_layers.append(nn.ReLU())


def of_three_frames(case: Case) -> None:
    case.decoder.decoder_layers[0] = nn.Conv1d(64, 128, 3, padding=1)


def frozen(case: Case) -> None:
    case.decoder.decoder_layers[0].weight.requires_grad_(False)


def none_masked(case: Case) -> None:
    case.masks_BFT.zero_()


def all_masked(case: Case) -> None:
    case.masks_BFT.fill_(1)


def no_number(case: Case) -> None:
    """Of a token that does not count: times its zero it is none either."""
    case.masks_BFT[0, :, :FRAMES] = 0
    case.encoded_BSD[0, 0, 0] = torch.nan


def endless(case: Case) -> None:
    no_number(case)
    case.encoded_BSD[0, 0, 0] = 1e38


def in_float64(case: Case) -> None:
    case.decoder.double()
    case.encoded_BSD = case.encoded_BSD.double()


@pytest.mark.parametrize(
    "change",
    [of_other_kind, of_other_layers, of_two_layers, of_three_frames, frozen, none_masked, all_masked, no_number,
     endless, in_float64],
)  # fmt: skip
def test_what_is_another_thing_is_open(change: Callable[[Case], None], taken: list[str]) -> None:
    case = Case(batch=3, steps=40)
    change(case)
    assert case.differing() == []
    assert taken == ["open"]


CHANGED = [
    (MultiSoftmaxDecoder, "forward"), (MultiSoftmaxDecoder, "log_probs"), (MultiMLMLoss, "forward"),
    (MultiMLMLoss, "over_books"), (MLMLoss, "forward"), (MLMLoss, "of_counted"), (nn.Sequential, "forward"),
    (nn.Conv1d, "forward"), (nn.Conv1d, "_conv_forward"), (nn.Module, "__call__"), (nn.Module, "_call_impl"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), CHANGED)
def test_what_was_changed_in_a_class_is_called(
    kind: type[nn.Module], name: str, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in vain: by what the user put there, in the shapes in which torch or NeMo would call it."""
    case, own, calls = Case(batch=3, steps=40), getattr(kind, name), []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append([each.shape for each in (*given, *named.values()) if isinstance(each, Tensor)])
        return own(*given, **named)

    monkeypatch.setattr(kind, name, counted)
    case.stepped(of_all)
    expected = calls.copy()
    calls.clear()
    case.stepped(loss_of_counted)
    assert taken == ["open"] and calls == expected and calls


def test_numbers_that_are_none_reach_every_gradient() -> None:
    """The test above would see it if they were left out."""
    case = Case(batch=3, steps=40)
    no_number(case)
    case.stepped(of_all)
    assert case.decoder.decoder_layers[0].weight.grad.isnan().any()


def test_evaluation_and_other_precisions_are_open(taken: list[str]) -> None:
    case = Case(batch=3, steps=40)
    given = case.decoder, case.loss, case.encoded_BSD.transpose(1, 2), case.tokens_BSH, case.masks_BFT
    with torch.no_grad():
        assert torch.equal(loss_of_counted(*given), of_all(*given))
    with torch.autocast("cpu", torch.bfloat16):
        loss_of_counted(*given)
    assert taken == ["open", "open"]


def test_a_mode_that_sees_operators_opens_it_and_leaves_no_verdict(taken: list[str]) -> None:
    with Doubling():
        assert Case(batch=3, steps=40).differing() == []
    assert taken == ["open"] and blocks_of_sums.cache_info().currsize == 0


def test_a_trial_is_of_float32_and_precisions_of_products_are_asked_each_time(taken: list[str]) -> None:
    case, default, precision = Case(batch=3, steps=40), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    case.stepped(loss_of_counted)
    blocks_of_sums.cache_clear()
    try:
        torch.set_default_dtype(torch.float64)
        blocks_of_sums(128, 64, 40)
        torch.set_default_dtype(default)
        torch.set_float32_matmul_precision("highest")
        case.stepped(loss_of_counted)
        torch.set_float32_matmul_precision("medium")
        assert case.differing() == []
    finally:
        torch.set_default_dtype(default)
        torch.set_float32_matmul_precision(precision)
    assert taken[0] == taken[1] and taken[2] == "whole"


def test_small_batches_are_open(taken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_tokens, "SMALLEST", 3 * 40 * 128 + 1)
    Case(batch=3, steps=40).stepped(loss_of_counted)
    Case(batch=3, steps=41).stepped(loss_of_counted)
    assert taken == ["open", "packed"]


def test_a_product_whose_last_places_sum_otherwise_is_seen(taken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel may that computes what is behind the last whole vector."""
    conv1d = F.conv1d

    def planted(read_BDS: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = conv1d(read_BDS, weight, bias)
        turned = conv1d(read_BDS.flip(1), weight.flip(1), bias)
        return torch.cat([out[..., :-3], turned[..., -3:]], dim=2)

    assert blocks_of_sums(128, 64, 40)
    blocks_of_sums.cache_clear()
    monkeypatch.setattr(counted_tokens.F, "conv1d", planted)
    assert not blocks_of_sums(128, 64, 40)
    Case(batch=3, steps=40).stepped(loss_of_counted)
    assert taken == ["whole"]


def test_gradients_of_encodings_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    own = counted_tokens._conv_backward

    def planted(d: Tensor, read: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
        d_read, *others = own(d, read, weight, wanted)
        turned, *_ = own(d.flip(1), read, weight.flip(0), [True, False, False])
        return torch.cat([d_read[..., :-3], turned[..., -3:]], dim=2), *others

    monkeypatch.setattr(counted_tokens, "_conv_backward", planted)
    assert not blocks_of_sums(128, 64, 40)


def test_blocks_that_begin_elsewhere_are_seen(taken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 tokens here: the weight's gradient is tried by the blocks that were found."""
    begins = counted_tokens._begins(128, 64, 40)
    monkeypatch.setattr(counted_tokens, "_begins", lambda *sizes: (*begins, 20) if begins == (0,) else (0,))
    assert not blocks_of_sums(128, 64, 40)
    assert Case(batch=3, steps=40).differing() == []
    assert taken == ["whole"]


@pytest.mark.parametrize("steps", [38, 101, 151, 201, 202, 402])
def test_blocks_begin_at_the_first_token_and_in_order(steps: int) -> None:
    begins = counted_tokens._begins(1024, 512, steps)
    assert begins[0] == 0 and list(begins) == sorted(set(begins)) and begins[-1] < steps


def in_another_order(d: Tensor, read: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    """Utterances from the last to the first."""
    turned = torch.ops.aten.convolution_backward(
        d.flip(0), read.flip(0), weight, [len(weight)], *counted_tokens.SETTINGS, wanted
    )
    return (turned[0] if turned[0] is None else turned[0].flip(0)), *turned[1:]


def test_another_order_of_sums_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_tokens, "_conv_backward", in_another_order)
    assert set(Case(batch=4, steps=60).differing()) == {"decoder_layers.0.weight", "decoder_layers.0.bias"}
