"""Which NeMo is meant by `nemo=`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.run.command_line import read_command_line
from nest_ssl.run.reference import reference_generation


def recording(folder: Path, **index: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "recording.json").write_text(json.dumps(index))
    return str(folder)


@pytest.mark.parametrize(
    ("override", "name"),
    [(None, "3.0"), ("nemo=2.4", "2.4"), ("nemo=2.7", "2.7"), ("++nemo=2.7.3", "2.7"), ("nemo='2.6'", "2.6"),
     ("nemo=3.0", "3.0")],
)  # fmt: skip
def test_the_resolved_configuration_has_the_generations_name(override: str | None, name: str) -> None:
    assert read_command_line("nest", ["size=tiny", *([override] if override else [])]).nemo == name


def test_a_recording_beside_the_config_is_no_group_of_hydras(tmp_path: Path) -> None:
    OmegaConf.save({"model": {"a": 1}, "trainer": {}}, tmp_path / "theirs.yaml")
    recording(tmp_path / "nemo")
    assert compose(["nemo=2.4"], tmp_path, "theirs").nemo == "2.4"
    assert compose(["nemo=runs/a=b,c"], tmp_path, "theirs").nemo == "runs/a=b,c"


def test_nemos_own_config_means_the_newest(tmp_path: Path) -> None:
    OmegaConf.save({"model": {"a": 1}, "trainer": {}}, tmp_path / "theirs.yaml")
    assert compose([], tmp_path, "theirs").nemo == "3.0"


@pytest.mark.parametrize("typo", ["2,7", "27", "newest", "nemo3"])
def test_a_typo_is_told(typo: str) -> None:
    with pytest.raises(UserError, match=r"no such generation of NeMo: nemo=.*Known: 2\.4, 2\.6, 2\.7, 3\.0"):
        read_command_line("nest", ["size=tiny", f"nemo={typo}"])


@pytest.mark.parametrize(("version", "name"), [("2.4.1", "2.4"), ("2.7.3", "2.7"), ("3.0.0", "3.0")])
def test_a_recording_of_nemo_tells_its_release(tmp_path: Path, version: str, name: str) -> None:
    folder = recording(tmp_path / "nemo", trainer={"package": "nemo_toolkit", "version": version})
    assert reference_generation(folder) == name
    assert read_command_line("nest", ["size=tiny", f"nemo={folder}"]).nemo == name


def test_of_several_ranks_the_first_says_it(tmp_path: Path) -> None:
    recording(tmp_path / "rank_0", trainer={"package": "nemo_toolkit", "version": "2.4.1"})
    (tmp_path / "ranks.json").touch()
    assert reference_generation(str(tmp_path)) == "2.4"


def test_a_folder_may_be_named_without_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording(tmp_path / "theirs", trainer={"package": "nemo_toolkit", "version": "2.4.1"})
    monkeypatch.chdir(tmp_path)
    assert reference_generation("theirs") == "2.4"


def test_a_recording_of_the_port_tells_what_it_was_exact_with(tmp_path: Path) -> None:
    trainer = {"package": "nest-ssl", "version": "0.1.0"}
    assert reference_generation(recording(tmp_path / "nest", trainer=trainer, generation={"name": "2.7"})) == "2.7"


@pytest.mark.parametrize(
    "index",
    [{}, {"trainer": {"package": "nest-ssl", "version": "0.1.0"}}, {"trainer": {"package": "nemo_toolkit"}},
     {"trainer": "nemo"}, {"generation": None}, {"generation": {"name": "x"}}],
)  # fmt: skip
def test_a_recording_that_does_not_tell(tmp_path: Path, index: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"does not say NeMo's release: .*recording\.json|no such generation"):
        reference_generation(recording(tmp_path / "a", **index))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_a_damaged_recording(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recording.json").write_bytes(content)
    with pytest.raises(UserError, match="does not say NeMo's release"):
        reference_generation(str(tmp_path))


def test_no_recording_there(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match="no recording to take NeMo's release from"):
            reference_generation(str(folder))
