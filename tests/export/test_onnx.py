"""An encoder as ONNX computes what torch's does, of batches and lengths that were not traced; or it is not written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.cli.export import main
from nest_ssl.config.compose import compose
from nest_ssl.export import onnx as exporting
from nest_ssl.export.onnx import NAME, batch_of, difference, write_onnx
from nest_ssl.export.trained import load_model
from nest_ssl.train.checkpoint.nemo_archive import save_nemo
from nest_ssl.train.module import NestModule

ONE_LAYER = ["size=tiny", "model.train_ds=null", "model.validation_ds=null", "model.encoder.n_layers=1"]


def archive_of(folder: Path, *overrides: str) -> str:
    """Of an encoder as trained ones are: biases and statistics are no zeros."""
    torch.manual_seed(1)
    model = NestModule(compose([*ONE_LAYER, "model.encoder.pos_emb_max_len=200", *overrides]).model)
    for name, tensor in model.encoder.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand_like(tensor) * 0.2
            tensor.add_(noise if "running_var" in name else noise - 0.1)
    save_nemo(model, folder / "a.nemo")
    return str(folder / "a.nemo")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return archive_of(tmp_path_factory.mktemp("archive"))


class LastIsNaN:
    """A session that has lost the last utterance of a batch."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, *given: Any) -> list[Any]:
        outputs, lengths = self._session.run(*given)
        outputs[-1] = float("nan")
        return [outputs, lengths]


def test_onnxruntime_computes_the_same(
    archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding, for unequal lengths; a weight of another model is seen, and that encoder is not written."""
    import onnxruntime

    assert main([archive, "--to", "onnx", "--out", str(tmp_path / "out")]) == 0
    assert "for up to 1,600 frames of features an utterance; onnxruntime's encodings differ by at most" in (
        capsys.readouterr().out
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]
    session = onnxruntime.InferenceSession(tmp_path / "out" / NAME)
    encoder = load_model(archive)[0].encoder
    assert difference(encoder, session, batch_of((800, 17, 256), 80)) < 1e-5
    with torch.no_grad():
        encoder.layers[0].self_attn.linear_pos.weight.mul_(1.1)
    assert difference(encoder, session, batch_of((800, 17, 256), 80)) > 1e-3
    assert difference(encoder, LastIsNaN(session), batch_of((64, 40), 80)) == float("inf")
    with pytest.raises(Exception, match="onnxruntime"):  # longer than its table of positions
        difference(encoder, session, batch_of((1_608,), 80))

    def export_again(*given: object, **settings: object) -> None:
        shutil.copy(tmp_path / "out" / NAME, str(given[2]))

    monkeypatch.setattr(exporting.torch.onnx, "export", export_again)
    monkeypatch.setattr(exporting, "NEAR", 1e-9)
    with pytest.raises(UserError, match="an encoder that cannot be written as ONNX: .*its encodings differ by"):
        write_onnx(archive, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_absolute_positions_and_a_limited_context(tmp_path: Path) -> None:
    settings = ["model.encoder.self_attention_model=abs_pos", "model.encoder.att_context_size=[10,5]"]
    worst, longest = write_onnx(archive_of(tmp_path, *settings), tmp_path / "out")
    assert worst < 1e-5 and longest == 1600


POOLED = [f"model.encoder.reduction{key}" for key in ("=pooling", "_position=-1", "_factor=2")]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.encoder.self_attention_model=rel_pos_local_attn", "model.encoder.att_context_size=[16,16]"],
         "a.nemo: self_attention_model=rel_pos_local_attn"),
        (["model.encoder.pos_emb_max_len=9"], "a.nemo: positions for 72 frames, too few to be compared"),
        (POOLED, "its encodings differ by inf there"),  # of an utterance of one frame: rounded to another length
    ],
)  # fmt: skip
def test_what_onnx_does_not_have_is_refused(
    tmp_path: Path, overrides: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=f"an encoder that cannot be written as ONNX: .*{said}"):
        write_onnx(archive_of(tmp_path, *overrides), tmp_path / "out")
    assert not list(tmp_path.glob("out/*")) and not capfd.readouterr().out
