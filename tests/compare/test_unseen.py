"""What a run could not see stands beside its verdict; what it saw does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.evidence import Margin, Place
from tests.compare.builder import CONFIG, FRAMES, Model, Plan, judge, record
from tests.compare.evidence import explained, write_floor


class WithDropout(Model):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)


class Dropping(WithDropout):
    def forward(self, audio: Tensor, audio_len: Tensor) -> tuple[Tensor, ...]:
        return super().forward(self.drop(audio), audio_len)


def kinds(recording: Path) -> list[str]:
    return [note.kind for note in judge(recording, recording).unseen]


def even(step: int, batch: dict[str, Tensor]) -> None:
    batch["audio_len"] = torch.tensor([FRAMES, FRAMES])


def settings(**sched: Any) -> dict[str, Any]:
    return {**CONFIG, "model": {**CONFIG["model"], "optim": {"sched": sched}}}


def test_padding_is_seen_where_lengths_differ(tmp_path: Path) -> None:
    assert kinds(record(tmp_path / "a", Plan(on_batch=even))) == ["unseen_padding"]
    assert kinds(record(tmp_path / "b", Plan())) == []


def test_dropout_is_seen_where_it_draws(tmp_path: Path) -> None:
    assert kinds(record(tmp_path / "a", Plan(model=WithDropout))) == ["unseen_dropout"]
    assert kinds(record(tmp_path / "b", Plan(model=Dropping))) == []


def test_the_rest_of_a_warm_up(tmp_path: Path) -> None:
    made = record(tmp_path / "a", Plan(config=settings(warmup_steps=25_000)))
    (note,) = judge(made, made).unseen
    assert (note.kind, note.values) == ("unseen_warmup", {"steps": 2, "warmup": 25_000})
    assert kinds(record(tmp_path / "b", Plan(config=settings(warmup_steps=2)))) == []


def test_tokens_that_are_far_from_the_next(tmp_path: Path) -> None:
    made = record(tmp_path / "a", Plan())
    place = Place.of(Address(Kind.OUTPUT, "quantizer", 0))
    for margin, seen in ((1e-3, ["unseen_flips"]), (1e-8, [])):
        write_floor(tmp_path, made, 0, [], [Margin(place=place, index=[0, 0], margin=margin, floor=1e-7)])
        assert [note.kind for note in explained(made, made, tmp_path).unseen] == seen
