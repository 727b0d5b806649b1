"""What Python calls, on a model that is not ours: exactly the lines of the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nest_ssl
from nest_ssl.base.errors import UserError
from nest_ssl.cli.explain import main as explain
from nest_ssl.recording.ranks import write_ranks
from tests.compare.builder import edit_index

ROOT = Path(__file__).resolve().parents[1]
RECORD, COMPARE = re.findall(
    r"^```\n((?:import nest_ssl|found = ).*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)


class TwoHeads(nn.Module):
    """Nothing like NEST: embeddings, a recurrent network, two outputs of which one is used."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.words, self.rnn, self.head = nn.Embedding(11, 6), nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3)
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.rnn(self.words(inputs))[0][:, -1] * self.scale)


def record(out: str, scale: float = 1.0) -> None:
    torch.manual_seed(0)
    model = TwoHeads(scale)
    loader = [(torch.randint(11, (4, 7)), torch.randint(3, (4,))) for _ in range(3)]
    given = {"optimizer": torch.optim.Adam(model.parameters()), "criterion": nn.CrossEntropyLoss()}
    exec(RECORD.replace("outputs/mine", out), {"model": model, "loader": loader, **given})


def compared(out: str = "outputs/report") -> nest_ssl.Compared:
    names: dict[str, Any] = {"nest_ssl": nest_ssl}
    exec(COMPARE.replace("outputs/report", out), names)
    return names["found"]


def test_the_lines_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    record("outputs/reference")
    record("outputs/mine")
    found = compared()
    assert (found.verdict, found.exit_code, found.first, found.findings) == ("identical", 0, None, [])
    assert repr(found).startswith("<identical: ") and capsys.readouterr().out.strip() == str(found)
    assert {path.name for path in Path("outputs/report").iterdir()} >= {"report.html", "report.md", "report.json"}
    with pytest.raises(UserError, match="a report would be written into a recording"):
        nest_ssl.report(found, "outputs/mine/report")


def test_a_fault_in_such_a_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record("outputs/reference")
    record("outputs/mine", scale=1.5)
    found = compared()
    assert found.verdict == "diverged" and found.first == found.findings[0]
    assert (found.first.moment.step, found.first.address.module) == (0, "head")
    assert "parts from" in repr(found) and "Rung by rung" in str(found) and "| rung |" in found._repr_markdown_()


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Of which the second is another trainer, or not; the lines are the same as for one process."""
    monkeypatch.chdir(tmp_path)
    for side in ("reference", "mine"):
        for rank in range(2):
            own = f"outputs/{side}/rank_{rank}"
            record(own, scale if (side, rank) == ("mine", 1) else 1.0)
            edit_index(Path(own), lambda index, rank=rank: index.update(world_size=2, rank=rank))
        write_ranks(Path("outputs") / side, 2)
    found = compared()
    assert isinstance(found, nest_ssl.ComparedRanks)
    page = Path("outputs/report/report.html").read_text("utf-8")
    for rank in range(2):
        assert f'href="rank_{rank}/report.html"' in page and Path(f"outputs/report/rank_{rank}/report.html").is_file()
    if scale == 1.0:
        assert (found.verdict, found.exit_code, found.first, found.findings) == ("identical", 0, None, [])
        assert repr(found).startswith("<identical: ") and "on 2 ranks" in str(found) and "进程 1</a>" in page
    else:
        assert (found.verdict, [one.verdict for one in found.ranks]) == ("diverged", ["identical", "diverged"])
        assert found.first == found.ranks[1].first == found.findings[0] and "| rank |" in found._repr_markdown_()
        assert repr(found).startswith("<diverged: On rank 1 of 2: ")
    with pytest.raises(UserError, match="would be written into a recording: outputs/mine/report"):
        nest_ssl.report(found, "outputs/mine/report")
    with pytest.raises(UserError, match="one rank is no recording of several: outputs/reference/rank_0"):
        nest_ssl.compare("outputs/reference/rank_0", "outputs/mine")
    with pytest.raises(UserError, match="evidence is not gathered of several processes: outputs/mine. Record both"):
        explain(["--reference", "outputs/reference/rank_0", "--candidate", "outputs/mine"])


def test_arguments_the_other_way_round(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"recording\(out, model\): the model is a str"):
        nest_ssl.recording(nn.Linear(1, 1), str(tmp_path)).__enter__()  # type: ignore[arg-type]


def test_a_room_is_called_before_and_after_it_is_imported() -> None:
    """And the package itself imports nothing that takes time."""
    program = (
        "import sys, nest_ssl; assert 'torch' not in sys.modules; import nest_ssl.recording.layout as files; "
        "assert files is nest_ssl.recording.layout and callable(nest_ssl.recording); "
        "from nest_ssl import compare, report, recording; assert all(map(callable, (compare, report, recording)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="no attribute 'recrod'"):
        nest_ssl.recrod  # noqa: B018


def test_lightnings_callback(tmp_path: Path) -> None:
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    for name in ("one", "other"):
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(torch.ones(4, 2))
        callback = nest_ssl.callback(tmp_path / name, steps=[0, 1], seed=0)
        Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **off).fit(Module(), loader)
    found = nest_ssl.compare(tmp_path / "one", tmp_path / "other")
    assert (found.verdict, found.comparison.reference.index.seed) == ("identical", 0)
