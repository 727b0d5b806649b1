"""What a repeated step starts from."""

from __future__ import annotations

import torch

from nest_ssl.run.floor.state import copied, live_weights, write_weights


def test_a_buffer_that_the_first_forward_makes_stays_when_a_step_is_repeated() -> None:
    """As that of NeMo's convolutional encoders: what is put back was taken before it was there."""
    model = torch.nn.Linear(2, 2)
    saved = copied(live_weights(model))
    model.register_buffer("made", torch.arange(3), persistent=False)
    with torch.no_grad():
        model.weight += 1
        write_weights(model, saved)
    assert torch.equal(model.weight, saved["weight"]) and model.made.tolist() == [0, 1, 2]
