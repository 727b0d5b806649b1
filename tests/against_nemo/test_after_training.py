"""What NeMo's own code makes of the port's archive: the same features, and a CTC model that starts from its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import train_nemo
from aligning import GENERATION
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.determinism import seed_all
from nest_ssl.cli.export import main as export
from nest_ssl.config.compose import compose
from nest_ssl.export.features import encode, load_model
from nest_ssl.train.checkpoint.nemo_archive import save_nemo
from nest_ssl.train.module import NestModule

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.skipif(GENERATION != "3.0", reason="of NeMo 3.0")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The port's, of a tiny model."""
    path = tmp_path_factory.mktemp("archive") / "a.nemo"
    torch.manual_seed(7)
    save_nemo(NestModule(settings().model), path)
    return path


def settings() -> DictConfig:
    return compose(["size=tiny", "model.train_ds=null", "model.validation_ds=null"])


def test_features_are_nemos(archive: Path) -> None:
    from nemo.collections.asr.modules.conformer_encoder import ConformerMultiLayerFeatureExtractor

    reference = train_nemo.load_model_class().restore_from(str(archive), map_location="cpu").eval()
    audio = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    layers = [0, len(reference.encoder.layers) - 1]
    extractor = ConformerMultiLayerFeatureExtractor(reference.encoder, layers, include_final_output=False)
    with torch.no_grad():
        features, length = reference.preprocessor(input_signal=audio[None], length=torch.tensor([20_000]))
        expected, _ = extractor(audio_signal=features, length=length)
    got = encode(load_model(str(archive))[0], audio, layers)
    assert got.numpy().tobytes() == torch.cat(expected).numpy().tobytes()


@pytest.mark.parametrize("spoilt", [None, "pos_bias_u", "batch_norm.running_var", "linear_pos.weight"])
def test_hugging_faces_encoder_computes_the_same(tmp_path: Path, spoilt: str | None) -> None:
    """To rounding, for two utterances of different lengths; not if a weight is another one's."""
    from transformers import ParakeetEncoder

    model = NestModule(settings().model).eval()
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.encoder.state_dict().items():  # as trained ones: biases and statistics are no zeros
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator) * 0.2
            tensor.add_(noise if "running_var" in name else noise - 0.1)
    save_nemo(model, tmp_path / "a.nemo")
    assert export([str(tmp_path / "a.nemo"), "--to", "parakeet", "--out", str(tmp_path / "parakeet")]) == 0
    other, said = ParakeetEncoder.from_pretrained(tmp_path / "parakeet", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    features, lengths = torch.randn(2, 80, 160, generator=generator), torch.tensor([160, 101])
    features[1, :, 101:] = 0.0  # as features are padded; that encoder looks at them
    for name, tensor in model.encoder.layers[0].state_dict().items() if spoilt else ():
        tensor.mul_(2 if name.endswith(str(spoilt)) else 1)
    with torch.no_grad():
        expected, frames = model.encoder(audio_signal=features, length=lengths)
        mask = torch.arange(160) < lengths[:, None]
        got = other.eval()(features.transpose(1, 2), attention_mask=mask).last_hidden_state.transpose(1, 2)
    differences = [
        float((one[:, :n] - two[:, :n]).abs().max()) for one, two, n in zip(expected, got, frames, strict=True)
    ]
    assert (max(differences) < 1e-5) == (spoilt is None), differences


def test_a_ctc_model_starts_from_the_encoder(archive: Path, tmp_path: Path) -> None:
    """From the port's archive and from NeMo's own of the same weights: the same encoder, and the same first loss."""
    reference = train_nemo.load_model_class().restore_from(str(archive), map_location="cpu")
    reference.save_to(str(tmp_path / "nemo.nemo"))
    losses = []
    for path in (archive, tmp_path / "nemo.nemo"):
        model = ctc_model()
        source = {"init_from_nemo_model": {"x": {"path": str(path), "include": ["preprocessor", "encoder"]}}}
        model.maybe_init_from_pretrained_checkpoint(OmegaConf.create(source))
        weights, wanted = model.encoder.state_dict(), reference.encoder.state_dict()
        assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
        audio = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0)) * 0.1
        texts, lengths = torch.tensor([[1, 2, 3], [2, 1, 0]]), torch.tensor([3, 2])
        seed_all(5)
        log_probs, encoded_len, _ = model(input_signal=audio, input_signal_length=torch.tensor([24_000, 20_000]))
        losses.append(
            model.loss(log_probs=log_probs, targets=texts, input_lengths=encoded_len, target_lengths=lengths).item()
        )
    assert losses[0] == losses[1] > 0


def ctc_model() -> Any:
    """NeMo's CTC model of characters with such an encoder."""
    from nemo.collections.asr.models import EncDecCTCModel

    cfg = OmegaConf.to_container(settings().model, resolve=True)
    assert isinstance(cfg, dict)
    labels = list(" abc")
    decoder = {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "feat_in": cfg["encoder"]["d_model"],
               "num_classes": len(labels), "vocabulary": labels}  # fmt: skip
    kept = {key: cfg[key] for key in ("sample_rate", "preprocessor", "encoder")}
    seed_all(3)
    return EncDecCTCModel(OmegaConf.create({**kept, "labels": labels, "decoder": decoder})).train()
