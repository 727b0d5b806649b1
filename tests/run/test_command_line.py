"""A misspelt key of a command line is refused before the configuration is composed, in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.config.strict import read_config
from nest_ssl.run.command_line import read_command_line


@pytest.mark.parametrize(
    "word",
    ["siz=tiny", "+siz=tiny", "++sead=7", " siz =3", "modle.optim.lr=1", "gpus=2", "xyzzy=1", "a/b=3", "hydra.x=1",
     "~siz", "siz", "=3", "model.optim.lrr=1", "seed=abc", "size=huge",
     "init_from_pretrained_model=x", "trainers={a: 1}", "model.optim={lrr: 1}"],
)  # fmt: skip
def test_the_same_words_as_of_the_composed_configuration(word: str) -> None:
    said = []
    for read in (read_config, lambda words: read_command_line("nest", words)):
        with pytest.raises(UserError) as refused:
            read(["size=tiny", word] if not word.startswith("size") else [word])
        said.append(str(refused.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("key", ["siz", "+sead", "modle.optim.lr", "gpus"])
def test_it_is_refused_before_anything_is_composed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nest_ssl.config.strict.compose", lambda *_: pytest.fail("composed"))
    with pytest.raises(UserError, match="unknown key"):
        read_command_line("nest", [f"{key}=1"])


def test_a_key_that_another_one_refers_to_is_the_authors_own() -> None:
    assert (
        read_command_line("nest", ["size=tiny", "mine=8", "model.quantizer.code_dim=${mine}"]).model.quantizer.code_dim
        == 8
    )


def test_another_file_has_keys_of_its_own(tmp_path: Path) -> None:
    """What is an unknown key there is said with the file and the line, of the file's own keys first."""
    name = "mine.yaml"
    (tmp_path / name).write_text("sead: 7\nmodel: {}\ntrainer: {}\n")
    with pytest.raises(UserError, match=r"unknown key: sead \(.*mine.yaml, line 1\)"):
        read_command_line("nest", ["--config-path", str(tmp_path), "--config-name", name, "siz=1"])
