"""What a recording tells about the container that it was made in, and what it does not tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nest_ssl
from nest_ssl.base.errors import UserError
from nest_ssl.record.provenance import describe_run
from tests.record.test_levels import train

FACTS = {"name": "nest", "base": "a base", "locks": {"nest-cpu.lock": "12ab"}, "git_commit": "34cd-dirty"}


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "image.json"
    path.write_text(json.dumps(FACTS))
    monkeypatch.setenv("NEST_SSL_IMAGE", str(path))
    monkeypatch.delenv("NEST_SSL_IMAGE_ID", raising=False)
    return path


def test_outside_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEST_SSL_IMAGE", raising=False)
    assert describe_run()["container"] is None


def test_the_image_tells_what_it_is_made_of(facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe_run()["container"] == {"image": "nest", **FACTS}
    monkeypatch.setenv("NEST_SSL_IMAGE_ID", "sha256:56ef")
    run = describe_run()
    assert run["container"]["image"] == "sha256:56ef"
    assert run["git"] == {"commit": "34cd", "dirty": True}


def test_facts_that_cannot_be_read(facts: Path) -> None:
    facts.write_text("{")
    with pytest.raises(UserError, match="make images"):
        describe_run()


def test_the_address_of_an_index_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "https://user:password@example.org")
    monkeypatch.setenv("TORCH_LOGS", "dynamo")
    assert "password" not in json.dumps(describe_run())
    assert describe_run()["environment"]["TORCH_LOGS"] == "dynamo"


def test_whether_freed_memory_was_kept_is_recorded_and_no_difference_of_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sets the C library's allocator, or puts another in its place."""
    names = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    train(tmp_path / "one", steps=1)
    values = dict(zip(names, ("glibc.malloc.trim_threshold=131072", "libjemalloc.so", "131072"), strict=True))
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    found, _ = train(tmp_path / "other", steps=1)
    assert values.items() <= found.index.environment.items()
    comparison = nest_ssl.compare(tmp_path / "one", tmp_path / "other").comparison
    notes = [
        note.values
        for rung in comparison.rungs
        for tally in rung.tallies
        for note in tally.notes
        if note.kind == "environment"
    ]
    said = {note["path"]: (note["reference"], note["candidate"]) for note in notes}
    assert comparison.verdict == "identical" and said == {name: ("absent", value) for name, value in values.items()}


def test_the_driver_and_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27": "580.65.06",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build": "550.54.15",
    }
    read = Path.read_text
    for text, version in texts.items():
        monkeypatch.setattr(
            Path, "read_text", lambda self, *a, t=text, **k: t if "nvidia" in str(self) else read(self, *a, **k)
        )
        assert describe_run()["cuda"]["driver"] == version
    assert describe_run()["cuda"]["gpus"] == []
