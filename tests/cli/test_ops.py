"""`nest-ssl ops`: what it lists, what it says of two sides, and its exit codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.cli.ops import main
from nest_ssl.record.loop import recording


class Net(nn.Module):
    eps = 1e-5

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.LayerNorm(2, eps=self.eps) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Other(Net):
    eps = 1e-6


def record(folder: Path, kind: type[Net] = Net, operators: bool = True, steps: Sequence[int] = (0,)) -> str:
    """The batch of step n has n + 1 rows."""
    model = kind()
    with recording(folder, model, steps=steps, operators=operators) as r:
        for number in range(max(steps) + 1):
            batch = torch.ones(number + 1, 2)
            r.batch(batch)
            loss = model(batch).sum()
            r.loss(loss)
            loss.backward()
            r.backward_done()
            r.step_done()
    return str(folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> str:
    return record(tmp_path_factory.mktemp("ops") / "one")


def test_list(one: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", one, "--module", "fir*", "--phase", "forward"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "forward   first#0  aten.native_layer_norm.default([1, 2] float32, [2] float32, [2] float32, "
    )
    assert "eps=1e-05)  " in line and "test_ops.py:" in line
    assert main(["list", one]) == 0
    assert {text.split()[0] for text in capsys.readouterr().out.splitlines()} == {"forward", "backward"}


def test_diff(one: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "--reference", one, "--candidate", one]) == 0
    assert capsys.readouterr().out.startswith("Step 0: 11 operators in the reference, 11 operators in the candidate; 0")
    other = record(tmp_path / "other", Other)
    assert main(["diff", "--reference", one, "--candidate", other]) == 1
    text = capsys.readouterr().out
    assert text.startswith("first: forward\n1 given other arguments (~); 0 operators the same\n~ ")
    assert "return self.second(self.first(x))\n      aten.native_layer_norm.default(eps=1e-05 -> 1e-06)\n" in text
    assert "The same changes in 1 call more: second." in text and "second: forward" not in text


def test_a_pattern_that_names_no_module_is_no_answer(one: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["list", one], ["diff", "--reference", one, "--candidate", one]):
        with pytest.raises(UserError, match=r"no such module was called: --module frst. Did you mean first\?"):
            main([*arguments, "--module", "second", "--module", "frst"])
    assert capsys.readouterr().out == ""
    assert main(["diff", "--reference", one, "--candidate", one, "--module", "sec*"]) == 0


def test_the_same_step_of_both_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The candidate's first step runs others; the only one that both recorded is the same."""
    early, late = record(tmp_path / "early", steps=(0, 1)), record(tmp_path / "late", steps=(1, 2))
    assert main(["diff", "--reference", early, "--candidate", late]) == 0
    assert capsys.readouterr().out.startswith("Step 1: ")
    other = record(tmp_path / "other", steps=(2,))
    with pytest.raises(UserError, match=r"no step whose operators both sides have: .*early has those of step 0, 1; "):
        main(["diff", "--reference", early, "--candidate", other])


def test_what_has_no_operators_is_one_line(one: str, tmp_path: Path) -> None:
    bare = record(tmp_path / "bare", operators=False)
    for arguments in (["list", bare], ["diff", "--reference", one, "--candidate", bare], ["list", one, "--step", "3"]):
        with pytest.raises(UserError, match="no operators were recorded.*operators=true"):
            main(arguments)


@pytest.mark.parametrize("arguments", [[], ["lst"], ["list"], ["diff", "--step", "x"]])
def test_bad_usage_is_one_line(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="bad usage"):
        main(arguments)
