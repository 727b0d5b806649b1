"""The model with a list of losses: masks, negatives, codes, and who predicts what."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.config.losses import Contrastive
from nest_ssl.config.parts import Cuts, Patches
from nest_ssl.config.strict import read_config
from nest_ssl.model.contrastive import ContrastiveLoss, without_repeats
from nest_ssl.model.gumbel import GumbelVectorQuantizer
from nest_ssl.model.masking.patches import MaskedPatchAugmentation
from nest_ssl.model.masking.spec_augment import SpecAugment
from nest_ssl.model.wav2vec_bert import Wav2VecBertModel
from nest_ssl.releases import GENERATIONS

LIST = "model.loss_list"
CODES = (f"{LIST}.contrastive.loss.quantized_targets=true", f"{LIST}.contrastive.loss.codebook_size=4",
         f"{LIST}.mlm.is_active=true", f"{LIST}.mlm.decoder.num_classes=16")  # fmt: skip


def tiny(*overrides: str) -> Wav2VecBertModel:
    torch.manual_seed(0)
    return Wav2VecBertModel(compose(["recipe=wav2vec-bert", "size=tiny", *overrides]).model)


def heard(model: Wav2VecBertModel) -> tuple[Tensor, ...]:
    """`forward` on two utterances of noise of different length."""
    random.seed(0)
    torch.manual_seed(1)
    return model(torch.randn(2, 32_000), torch.tensor([32_000, 20_000]))


def test_masks_are_where_features_were_set_to_zero_and_as_many_in_each_utterance() -> None:
    model = tiny("model.spec_augment.freq_masks=0").eval()
    features, masks, encoded, lengths = heard(model)
    steps = masks.reshape(2, 80, -1, 8).mean((1, 3)) == 1
    assert steps.sum(1).tolist() == [12, 12], "half of 125 frames are two patches of 48, six steps each"
    assert not masks[1, :, 125:].any() and encoded.shape == (2, 64, features.size(2) // 8)
    assert (features.abs().sum(1)[masks.bool().all(1)] > 0).all(), "what is predicted was not masked"
    assert lengths.tolist() == [25, 16]


def test_the_second_loss_predicts_the_codes_of_the_first() -> None:
    model = tiny(*CODES)
    model.train()
    total, losses = model.decoder_loss_step(*heard(model))
    assert list(losses) == ["contrastive", "mlm"]
    assert total.item() == pytest.approx((losses["contrastive"] + 1000 * losses["mlm"]).item())
    ids = model.decoder_losses["contrastive"]["loss"].target_ids
    assert ids.shape == (2, 26) and ids.min() >= 0 and ids.max() < 16
    total.backward()
    assert model.decoder_losses["contrastive"]["loss"].quantizer.vars.grad.abs().sum() > 0


def test_a_loss_begins_at_its_step_and_the_temperature_falls() -> None:
    model = tiny(*CODES, f"{LIST}.mlm.start_step=3", f"{LIST}.contrastive.loss.quantizer_temp_decay=0.5")
    quantizer = model.decoder_losses["contrastive"]["loss"].quantizer
    for step, active, temperature in ((0, False, 2.0), (1, False, 1.0), (3, True, 0.5)):
        model.begin_step(step, training=True)
        assert (model.decoder_losses_active["mlm"], quantizer.temperature) == (active, temperature)
        assert ("mlm" in model.decoder_loss_step(*heard(model))[1]) == active
    model.begin_step(1, training=False)
    assert quantizer.temperature == 0.5, "validation leaves it as it is"


def test_a_layers_output_is_kept_for_its_head_and_let_go_behind_it() -> None:
    model = tiny(*CODES, f"{LIST}.mlm.output_from_layer=layers.0", f"{LIST}.mlm.transpose_encoded=true")
    found = heard(model)
    assert model.encoder.kept[0].shape == (2, 26, 64)
    assert [layer.is_of_the_paper for layer in model.encoder.layers] == [True, False]
    model.decoder_loss_step(*found)
    assert model.encoder.kept == {0: None}


def settings(**keys: Any) -> Contrastive:
    return Contrastive(**{"in_dim": 4, "proj_dim": 6, "combine_time_steps": 2, "num_negatives": 3, **keys})


def test_a_negative_that_is_the_true_vector_does_not_count() -> None:
    loss = ContrastiveLoss(settings())
    true, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    scores = loss.similarity(true, torch.stack([true, other]), true)
    assert scores.tolist() == [[pytest.approx(10.0)], [-math.inf], [0.0]]


def test_too_few_vectors_are_drawn_again_since_nemo_3_alone() -> None:
    among = torch.randn(2, 6)
    assert ContrastiveLoss(settings()).sample_negatives(among, 5).shape == (3, 5, 6)
    with pytest.raises(UserError, match="before 3.0 stops where 2 steps are masked, and 3 negatives"):
        ContrastiveLoss(settings(), GENERATIONS["2.7"]).sample_negatives(among, 5)


def test_tokens_without_repeats() -> None:
    tokens, lengths = without_repeats(torch.tensor([[5, 5, 2, 2, 5], [1, 2, 3, 3, 3]]))
    assert tokens.tolist() == [[5, 2, 5], [1, 2, 3]] and lengths.tolist() == [3, 3]


def test_in_evaluation_a_code_is_the_likeliest_and_its_number_counts_the_first_group_most() -> None:
    quantizer = GumbelVectorQuantizer(settings(quantized_targets=True, codebook_size=3)).eval()
    with torch.no_grad():
        quantizer.weight_proj.weight.zero_()
        quantizer.weight_proj.bias.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0, 9.0]))
    codes, _, _, tokens = quantizer(torch.randn(1, 2, 8), return_ids=True)
    assert tokens.tolist() == [[1 * 3 + 2] * 2]
    assert torch.equal(codes[0, 0], torch.cat([quantizer.vars[0, 1], quantizer.vars[0, 2]]))


def test_codes_are_drawn_by_their_number_and_there_must_be_more_than_steps() -> None:
    quantizer = GumbelVectorQuantizer(settings(quantized_targets=True, codebook_size=3))
    torch.manual_seed(5)
    drawn = quantizer.random_codes(2, 8)
    torch.manual_seed(5)
    tokens = torch.randint(9, (16,)).view(2, 8)
    assert torch.equal(drawn, torch.cat([quantizer.vars[0, tokens // 3], quantizer.vars[0, tokens % 3]], dim=-1))
    with pytest.raises(UserError, match="NeMo stops, too, where 9 steps are masked"):
        quantizer.random_codes(2, 9)


def test_masked_steps_that_are_not_as_many_in_each_utterance_are_a_line_of_the_users() -> None:
    loss, masks = ContrastiveLoss(settings()), torch.zeros(2, 4, 8)
    masks[0] = 1
    masks[1, :, :6] = 1
    features, out = torch.randn(2, 4, 8), torch.randn(2, 4, 6)
    with pytest.raises(UserError, match="NeMo stops, too, where 7 masked steps"):
        loss(features, masks, out)
    masks[1] = 1
    assert loss(features, masks, out).isfinite()


def test_masks_lie_within_utterances_and_widths() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([40, 20])
    masked = SpecAugment(Cuts(time_masks=1, time_width=0.5))(torch.ones(2, 3, 40), lengths) == 0
    assert not masked[1, :, 20:].any() and masked[0].all(0).sum() <= 20 and masked[1].all(0).sum() <= 10
    bands = SpecAugment(Cuts(freq_masks=2, freq_width=4, mask_value=7))(torch.ones(2, 16, 5), lengths) == 7
    assert 0 < bands[0].all(1).sum() <= 6 and bands.any(1).all() == bands.all(2).any()


@pytest.mark.parametrize(("asked", "number"), [(3, 3), (0.5, 2), (0.03, 1), (99, 5), (0.0, 0)])
def test_how_many_patches(asked: float, number: int) -> None:
    assert MaskedPatchAugmentation(Patches(patch_size=10, mask_patches=asked)).number_in(torch.tensor([80, 39])) == min(
        number, 3
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"{LIST}.mlm.is_active=true"], "that loss has no tokens yet"),
        ([*CODES, f"{LIST}.mlm.decoder.num_classes=14"], "15 classes cannot name 16 tokens"),
        ([f"{LIST}.contrastive.loss.in_dim=64"], "does not fit preprocessor.features=80"),
        ([f"{LIST}.contrastive.loss.combine_time_steps=4"], "does not fit frames for a vector of the decoder=8"),
        ([f"{LIST}.contrastive.decoder.feat_out=64"], "does not fit .*contrastive.decoder.feat_out=64"),
        ([f"{LIST}.contrastive.decoder.apply_softmax=true"], "this loss takes vectors"),
        ([f"{LIST}.contrastive.loss.codebook=3"], "unknown key: model.loss_list.contrastive.loss.codebook"),
        ([*CODES, f"{LIST}.mlm.output_from_layer=layers.2"], "no such layer: layers.2"),
        (
            [*CODES, f"{LIST}.mlm.output_from_layer=layers.0"],
            "NeMo stops .* channels elsewhere: .*mlm.transpose_encoded",
        ),
        ([*CODES, f"{LIST}.mlm.transpose_encoded=true"], "NeMo stops .* channels elsewhere: .*mlm.transpose_encoded"),
        ([f"{LIST}.contrastive.is_active=false"], "no loss is left at the first step: model.loss_list"),
        ([f"{LIST}.contrastive.start_step=1"], "no loss is left at the first step: model.loss_list"),
        ([f"{LIST}=[]"], "no losses by name: model.loss_list"),
        (["model.encoder=[]"], "cannot be resolved: model.optim.sched.d_model"),
        (["~model.loss_list"], "no loss and its decoder: model.decoder"),
        (["model.spec_augment=null"], "a section is null: model.spec_augment"),
        (["model.train_ds.noise_manifest=a.json"], "given no noise: model.train_ds.noise_manifest"),
        (["model.preprocessor.pad_to=4", *CODES], "does not fit 8 frames in a token"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_config(["recipe=wav2vec-bert", "size=tiny", *overrides])
