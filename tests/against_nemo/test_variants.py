"""A sample of the matrix (`make matrix`) in one process: variants on real NeMo and the port, every bit of two steps."""

from __future__ import annotations

import random
import runpy
from typing import Any

import pytest
import torch

from nest_ssl.config.compose import ROOT
from nest_ssl.matrix.step import first_difference
from nest_ssl.matrix.variants import STOPPED, VARIANTS, pairs, pairs_of_listed
from nest_ssl.matrix.worker import answer
from nest_ssl.run.stops import stop_behind
from nest_ssl.run.subject import Subject

# One for each class and function that only a variant uses; every release trains them.
OF_EACH_KIND = (
    """
subsampling: stacking norm|reduction: striding behind the first layer|reduction: pooling behind all
attention: absolute|attention: absolute sdpa|attention: sdpa|attention: local with spaced global tokens
attention: local with separate global tokens|context: several chunks with probabilities|context: several
norm: layer norm|norm: instance norm|norm: group norm of 8|norm: fused batch norm|depth: stochastic depth linear
class: adapters|features: exact padding|features: narrow band|initialisation: tds uniform
recipe: 128 bands|recipe: without noise|contrastive: codes and their prediction|prediction: of a layer
contrastive: negatives from the codebook|contrastive: decoder that doubles the rate|prediction: ctc without repeats
patches: stretches drawn one by one|patches: rectangles|convolutional: squeezed over a stretch
convolutional: dense residuals|convolutional: groups|convolutional: little future|transducer: alone with all draws
""".strip()
    .replace("\n", "|")
    .split("|")
)
DRAWN = [variant.title for variant in random.Random(0).sample([*VARIANTS, *pairs(), *pairs_of_listed()], 6)]
# When a release can train one of them, the port has to learn it.
STOPS_NEMO = sorted(STOPPED - {"attention: sdpa flash"})  # that one is a matter of the device


@pytest.fixture(scope="module")
def sides(pair: Any) -> list[Subject]:
    """NeMo and the port; `pair` skips where there is no NeMo."""
    scripts = (runpy.run_path(str(ROOT / f"scripts/train_{name}.py")) for name in ("nemo", "nest"))
    return [next(value for value in script.values() if isinstance(value, Subject)) for script in scripts]


def both(sides: list[Subject], title: str, release: str) -> list[Any]:
    variant = next(variant for variant in (*VARIANTS, *pairs(), *pairs_of_listed()) if variant.title == title)
    return [answer(side, [*variant.settings, f"nemo={release}"]) for side in sides]


@pytest.mark.parametrize("title", dict.fromkeys([*OF_EACH_KIND, *DRAWN]))
def test_a_variant_has_nemos_bits(sides: list[Subject], release: str, title: str) -> None:
    reference, candidate = both(sides, title, release)
    if "error" in reference:
        assert title not in OF_EACH_KIND and "error" in candidate, reference["error"]
        return
    assert "error" not in candidate, candidate["error"]
    assert len(reference["digests"]) > 800
    assert first_difference(reference["digests"], candidate["digests"]) is None


@pytest.mark.parametrize("title", STOPS_NEMO)
def test_what_nemo_cannot_train_is_refused(sides: list[Subject], release: str, title: str) -> None:
    reference, candidate = both(sides, title, release)
    if release == "3.0":
        assert "error" in reference, "this release can train it: the port has to learn it"
        assert "error" in candidate


@pytest.mark.parametrize("words", ["evenly", "codes to draw", "before 3.0"])
def test_a_batch_at_which_nemo_stops_is_a_line(pair: Any, release: str, words: str) -> None:
    from nemo.collections.asr.losses import ContrastiveLoss

    more: dict[str, Any] = {"num_negatives": 9} if words == "before 3.0" else {"num_negatives": 1}
    if words == "codes to draw":
        more |= {"quantized_targets": True, "codebook_size": 2, "sample_from_codebook": True}
        more |= {"sample_from_same_utterance_only": False}
    loss, masks = ContrastiveLoss(in_dim=4, proj_dim=6, combine_time_steps=2, **more), torch.ones(2, 4, 8)
    if words == "evenly":
        masks[1, :, 6:] = 0
    given = {"spectrograms": torch.randn(2, 4, 8), "spec_masks": masks, "decoder_outputs": torch.randn(2, 4, 6)}
    if words == "before 3.0" and release == "3.0":
        assert loss(**given).isfinite()
        return
    with pytest.raises((RuntimeError, AssertionError)) as stopped:
        loss(**given)
    assert words in str(stop_behind(stopped.value))
    assert stop_behind(RuntimeError("shape is invalid for input of size 7")) is None, "an error of elsewhere"


def test_a_batch_with_more_tokens_than_any_utterance_has_is_a_line(pair: Any) -> None:
    from nemo.collections.asr.losses import RNNTLossForSSL

    given = {"spec_masks": torch.zeros(2, 4, 8), "decoder_outputs": torch.randn(2, 5, 4, 6)}
    lengths = {"decoder_lengths": torch.tensor([5, 4]), "target_lengths": torch.tensor([2, 1])}
    with pytest.raises(ValueError, match="Output length mismatch") as stopped:
        RNNTLossForSSL(num_classes=5)(**given, **lengths, targets=torch.zeros(2, 3, dtype=torch.long))
    assert "reduce_ids=true" in str(stop_behind(stopped.value))
