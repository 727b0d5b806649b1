"""Which channel is left of a recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.data.channels import refuse_channels
from nest_ssl.data.problems import AudioProblem


@given(
    channels=st.integers(1, 4),
    selector=st.none() | st.integers(-5, 5) | st.just("average") | st.lists(st.integers(0, 4), min_size=1, max_size=2),
)
def test_one_channel_must_be_left(channels: int, selector: Any) -> None:
    signal = np.zeros((7, channels))
    if channels == 1:
        fine = selector in (None, 0, "average")
    elif isinstance(selector, list):
        fine = len(selector) == 1 and selector[0] < channels
    else:
        fine = selector == "average" or (isinstance(selector, int) and -channels <= selector < channels)
    if fine:
        refuse_channels(channels, selector)
        assert selector in (None, "average") or signal[:, selector] is not None
    else:
        with pytest.raises(AudioProblem, match="channel"):
            refuse_channels(channels, selector)
