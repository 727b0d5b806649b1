"""What tests of commands share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from train_nest import NEST

from nest_ssl.cli.explain import main
from nest_ssl.cli.train import train
from tests.cli.explained_pair import TINY, Explain


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """Training in this process sets no allocator for the tests behind it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nest_ssl.cli.train.keep_freed_memory", bool)
        yield


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of the port, of which the second was trained with another epsilon; the third batch is not kept."""
    folder = tmp_path_factory.mktemp("pair")
    reference = [*TINY, f"output_dir={folder / 'nemo'}"]
    assert train(NEST, [*reference, "--then", *TINY, "model.optim.eps=1e-6", f"output_dir={folder / 'nest'}"]) == 0
    return folder


@pytest.fixture
def copied(pair: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair, tmp_path / "pair"))


@pytest.fixture
def explain(python: str) -> Explain:
    """`explain(folder, *options)`: the command's exit code."""

    def call(folder: Path, *options: str) -> int:
        sides = ["--reference", str(folder / "nemo"), "--candidate", str(folder / "nest")]
        pythons = [f"--reference-python={python}", f"--candidate-python={python}"]
        return main([*sides, *pythons, "--out", str(folder / "report"), *options])

    return call
