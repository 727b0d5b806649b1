"""What NeMo's own code makes of the port's archive: the same features, and a CTC model that starts from its encoder."""

from __future__ import annotations

from collections.abc import Callable
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
from nest_ssl.export.features import encode
from nest_ssl.export.trained import load_model
from nest_ssl.train.checkpoint.nemo_archive import save_nemo
from nest_ssl.train.module import NestModule

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.skipif(GENERATION != "3.0", reason="of NeMo 3.0")]
WIDTH = 64  # of the tiny encoder


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


@pytest.fixture(scope="module")
def nemos_archive(archive: Path) -> Path:
    """NeMo's own, of the same weights."""
    path = archive.with_name("nemo.nemo")
    train_nemo.load_model_class().restore_from(str(archive), map_location="cpu").save_to(str(path))
    return path


Loss = Callable[[Any, Any, Any], torch.Tensor]  # of a model, a batch's audio [B, T], and the samples of each [B]
TEXTS, LETTERS = torch.tensor([[1, 2, 3], [2, 1, 0]]), torch.tensor([3, 2])


def of_ctc() -> tuple[Any, Loss]:
    """NeMo's CTC model of characters, and its loss."""
    from nemo.collections.asr.models import EncDecCTCModel

    labels = list(" abc")
    decoder = {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "feat_in": WIDTH,
               "num_classes": len(labels), "vocabulary": labels}  # fmt: skip

    def loss(model: Any, audio: Any, samples: Any) -> torch.Tensor:
        log_probs, frames, _ = model(input_signal=audio, input_signal_length=samples)
        return model.loss(log_probs=log_probs, targets=TEXTS, input_lengths=frames, target_lengths=LETTERS)

    return EncDecCTCModel(started(labels=labels, decoder=decoder)), loss


def of_transducer() -> tuple[Any, Loss]:
    """NeMo's RNN-T of characters, and its loss, in PyTorch's operators: numba's is compiled for seconds."""
    from nemo.collections.asr.models import EncDecRNNTModel

    modules, net = "nemo.collections.asr.modules.", {"pred_hidden": 8, "activation": "relu"}
    cfg = started(
        labels=list(" abc"), model_defaults={"enc_hidden": WIDTH, "pred_hidden": 8}, loss={"loss_name": "pytorch"},
        decoder={"_target_": f"{modules}RNNTDecoder", "prednet": {"pred_hidden": 8, "pred_rnn_layers": 1}},
        joint={"_target_": f"{modules}RNNTJoint", "fuse_loss_wer": False, "jointnet": {"joint_hidden": 8, **net}},
        decoding={"strategy": "greedy", "greedy": {"max_symbols": 5, "use_cuda_graph_decoder": False}},
    )  # fmt: skip

    def loss(model: Any, audio: Any, samples: Any) -> torch.Tensor:
        encoded, frames = model(input_signal=audio, input_signal_length=samples)
        predicted, letters, _ = model.decoder(targets=TEXTS, target_length=LETTERS)
        joint = model.joint(encoder_outputs=encoded, decoder_outputs=predicted)
        return model.loss(log_probs=joint, targets=TEXTS, input_lengths=frames, target_lengths=letters)

    return EncDecRNNTModel(cfg), loss


def of_speakers() -> tuple[Any, Loss]:
    """NeMo's model of speakers' labels, and its loss."""
    from nemo.collections.asr.models import EncDecSpeakerLabelModel

    decoder = {"_target_": "nemo.collections.asr.modules.SpeakerDecoder", "feat_in": WIDTH, "num_classes": 3,
               "pool_mode": "attention", "emb_sizes": 8}  # fmt: skip

    def loss(model: Any, audio: Any, samples: Any) -> torch.Tensor:
        logits, _ = model(input_signal=audio, input_signal_length=samples)
        return model.loss(logits=logits, labels=torch.tensor([2, 0]))

    return EncDecSpeakerLabelModel(started(decoder=decoder)), loss


def of_diarization() -> tuple[Any, Loss]:
    """NeMo's Sortformer, and its loss: who of two speaks when."""
    from nemo.collections.asr.models import SortformerEncLabelModel

    modules, hidden = "nemo.collections.asr.modules.", 8
    cfg = started(
        max_num_of_spks=2, pil_weight=0.5, ats_weight=0.5, model_defaults={"fc_d_model": WIDTH, "tf_d_model": hidden},
        sortformer_modules={"_target_": f"{modules}sortformer_modules.SortformerModules", "num_spks": 2,
                            "fc_d_model": WIDTH, "tf_d_model": hidden},
        transformer_encoder={"_target_": f"{modules}transformer.transformer_encoders.TransformerEncoder",
                             "num_layers": 1, "hidden_size": hidden, "inner_size": 16, "num_attention_heads": 2},
        loss={"_target_": "nemo.collections.asr.losses.bce_loss.BCELoss", "weight": None, "reduction": "mean"},
    )  # fmt: skip

    def loss(model: Any, audio: Any, samples: Any) -> torch.Tensor:
        speaks = model(audio_signal=audio, audio_signal_length=samples)
        wanted = torch.zeros_like(speaks)
        wanted[:, ::3, 0] = wanted[:, 1::2, 1] = 1
        found: torch.Tensor = model._get_aux_train_evaluations(speaks, wanted, torch.tensor([19, 15]))["loss"]
        return found

    model = SortformerEncLabelModel(cfg)
    model._optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # whose rate that model's evaluation looks up
    return model, loss


@pytest.mark.parametrize("task", [of_ctc, of_transducer, of_speakers, of_diarization])
def test_nemos_models_start_from_the_encoder(task: Any, archive: Path, nemos_archive: Path) -> None:
    """From the port's archive and from NeMo's own of the same weights: the same encoder, and the same first loss."""
    wanted = load_model(str(archive))[0].encoder.state_dict()
    seed_all(3)
    model, loss = task()
    others = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audio, samples = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0)) * 0.1, [24_000, 20_000]
    losses = []
    for path in (None, archive, nemos_archive):
        model.load_state_dict(others)
        if path is not None:
            source = {"init_from_nemo_model": {"x": {"path": str(path), "include": ["preprocessor", "encoder."]}}}
            model.maybe_init_from_pretrained_checkpoint(OmegaConf.create(source))
            weights = model.encoder.state_dict()
            assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)
        seed_all(5)
        losses.append(loss(model.train(), audio, torch.tensor(samples)).item())
    assert losses[0] != losses[1] == losses[2] > 0, losses


def started(**sections: Any) -> DictConfig:
    """The settings of a model with such an encoder; its other sections are NeMo's recipes', of small sizes."""
    cfg = OmegaConf.to_container(settings().model, resolve=True)
    assert isinstance(cfg, dict)
    return OmegaConf.create({**{key: cfg[key] for key in ("sample_rate", "preprocessor", "encoder")}, **sections})
