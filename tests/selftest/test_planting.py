"""An edit of a source line is found exactly once, reaches those who imported the function, and stays in its process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.model.encoder.attention import masked_softmax
from nest_ssl.model.features import NORMALISATIONS
from nest_ssl.selftest.cases import Edit
from nest_ssl.selftest.planted import main
from nest_ssl.selftest.planting import plant


def in_a_fork(work: Callable[[], Any]) -> Any:
    """What it returns there; this process keeps its code."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=lambda: there.send(work()))
    process.start()
    assert here.poll(30)
    found = here.recv()
    process.join()
    return found


def edit(file: str, old: str, new: str) -> Callable[[Callable[[], Any]], Any]:
    def planted(work: Callable[[], Any]) -> Any:
        def both() -> Any:
            plant([Edit(file=file, old=old, new=new)])
            return work()

        return in_a_fork(both)

    return planted


SCORES, MASK = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[False, True]]])


def test_a_function_that_was_imported_before_is_edited_and_only_there() -> None:
    planted = edit("model/encoder/attention.py", ".masked_fill(mask_B1TT, 0.0)", ".masked_fill(mask_B1TT, 7.0)")
    assert planted(lambda: masked_softmax(SCORES, MASK).tolist()) == [[[[1.0, 7.0]]]]
    assert masked_softmax(SCORES, MASK).tolist() == [[[[1.0, 0.0]]]]


def test_a_constant_of_a_module_is_edited() -> None:
    planted = edit("model/encoder/attention.py", "MASKED_SCORE = -10000.0", "MASKED_SCORE = 1.0 + 0.0")
    assert planted(lambda: masked_softmax(SCORES, MASK).tolist()) == [[[[pytest.approx(0.26894143), 0.0]]]]


def test_a_function_behind_a_table_is_edited() -> None:
    planted = edit("model/features.py", "(count_B1 - 1.0)", "count_B1")
    valid, x = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[[0.0, 2.0]]])
    assert planted(lambda: NORMALISATIONS["per_feature"](x, valid, "zero")[0, 0, 1].item()) == pytest.approx(1, 1e-4)


def test_an_attribute_of_a_class_and_a_method_are_edited() -> None:
    def read() -> Any:
        from nest_ssl.model.loss import MLMLoss

        return MLMLoss.no_masked_token

    assert edit("model/loss.py", 'no_masked_token = "nan"', 'no_masked_token = "zero"')(read) == "zero"
    assert read() == "nan"


@pytest.mark.parametrize(
    ("file", "old", "fault"),
    [
        ("model/loss.py", "no such line", "is there 0 times"),
        ("model/loss.py", "self", "times"),
        ("compare/metrics.py", "from __future__ import annotations", "It edits one place of"),
        ("model/loss.py", "Nothing here is", "is there 0 times"),
        ("model/loss.py", "# As indices, found once", "is in no function and no constant"),
    ],
)
def test_what_cannot_be_planted_is_refused(file: str, old: str, fault: str) -> None:
    def refused() -> str:
        try:
            plant([Edit(file=file, old=old, new="# another line")])
        except UserError as error:
            return str(error)
        return ""

    assert fault in in_a_fork(refused)


HALVES = "a linear layer in two halves"
PROGRAM = """
import sys
from nest_ssl.model.encoder.layer import ConformerFeedForward
open(sys.argv[1], "w").write(" ".join(ConformerFeedForward.forward.__code__.co_names))
"""


def test_a_program_runs_with_a_case_planted(tmp_path: Path) -> None:
    script, found = tmp_path / "program.py", tmp_path / "found"
    script.write_text(PROGRAM)
    assert in_a_fork(lambda: main([HALVES, str(script), str(found)])) == 0
    assert "out_features" in found.read_text()


@pytest.mark.parametrize(
    ("words", "message"), [([], "no such case"), (["a linear layer in two halfs"], HALVES), ([HALVES], "no program")]
)
def test_a_case_or_a_program_that_is_not_there_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words)
