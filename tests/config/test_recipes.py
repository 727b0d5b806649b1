"""The recipes and sizes of conf/: NeMo's values, and what a model without noise refuses."""

from __future__ import annotations

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.config.strict import read_config
from nest_ssl.model.nest import NestModel
from nest_ssl.model.wav2vec_bert import Wav2VecBertModel

RECIPES = "nest", "nest-128", "best-rq", "wav2vec-bert"
# The table in NeMo's nest_fast-conformer.yaml (3.0.0): layers, width, heads, weight decay, scaled, millions.
SIZES = {
    "small": (16, 176, 4, 0.0, True, 14),
    "medium": (16, 256, 4, 0.001, True, 32),
    "large": (17, 512, 8, 0.001, True, 120),
    "xlarge": (24, 1024, 8, 0.001, False, 616),
    "xxlarge": (42, 1024, 8, 0.001, False, 1200),
}


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_are_nemos(size: str) -> None:
    cfg, settings = read_config([f"size={size}", "run=full"])
    layers, width, heads, decay, scaled, millions = SIZES[size]
    encoder = settings.model.encoder
    assert (encoder.n_layers, encoder.d_model, encoder.n_heads, encoder.xscaling) == (layers, width, heads, scaled)
    assert encoder.conv_kernel_size == 9 and cfg.model.optim.weight_decay == decay
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in NestModel(cfg.model).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.15)  # NeMo rounds up


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("run", ["quick", "full", "train"])
@pytest.mark.parametrize("kind", ["plain", "tarred"])
def test_every_recipe_composes_and_the_last_word_is_its_own(recipe: str, run: str, kind: str) -> None:
    cfg, settings = read_config([f"recipe={recipe}", f"run={run}", f"kind={kind}", "size=tiny"])
    encoder, heard = settings.model.encoder, settings.model.train_ds.noise_manifest
    assert (encoder.feat_in, encoder.use_bias, encoder.xscaling) == (
        (128, False, False) if recipe == "nest-128" else (80, True, True)
    )
    assert (heard is None) == (recipe in ("best-rq", "wav2vec-bert") or (run == "quick" and kind == "plain"))
    with torch.device("meta"):
        (Wav2VecBertModel if recipe == "wav2vec-bert" else NestModel)(cfg.model)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.train_ds.noise_manifest=a.json", "given no noise: model.train_ds.noise_manifest"),
        ("model.train_ds.batch_augmentor.prob=0.5", "given no noise: model.train_ds.batch_augmentor.prob"),
        ("model.train_ds.return_sample_id=true", "not supported in a model without noise"),
        ("model.train_ds.labels=[a,b]", "not supported in a model without noise"),
        ("model.validation_ds.noise_manifest=a.json", "given no noise: model.validation_ds.noise_manifest"),
        ("model.target=nemo.collections.asr.models.EncDecCTCModel", "not supported: nemo.collections"),
        ("model.target=mine.EncDecMaskedTokenPredModel", "not supported: mine"),
    ],
)
def test_what_a_model_without_noise_refuses(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        read_config(["recipe=best-rq", "size=tiny", override])
    if "target" not in override:
        read_config(["size=tiny", override])  # NEST takes it, or has no use for it


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("att_context_style=chunked_limited_with_rc", "att_context_style=chunked_limited_with_rc"),
        ("conv_context_style=regular", "conv_context_style"),
        ("att_chunk_context_size=null", "att_chunk_context_size"),
    ],
)
def test_an_option_that_came_with_a_release_is_refused_before(override: str, key: str) -> None:
    model = compose(["size=tiny", f"model.encoder.{override}"]).model
    with torch.device("meta"):
        NestModel(model, "3.0")
        for generation in ("2.4", "2.7"):
            with pytest.raises(UserError, match=f"before 3.0 has no such option: model.encoder.{key}"):
                NestModel(model, generation)
        NestModel(compose(["size=tiny"]).model, "2.7")


def test_ranges_of_chunks_need_their_style() -> None:
    with pytest.raises(UserError, match="not supported.*att_chunk_context_size"):
        read_config(["size=tiny", "model.encoder.att_chunk_context_size=[[8],[2],[0]]"])
