"""One channel of a recording: which is left after `channel_selector`.

Legend: T samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nest_ssl.data.problems import AudioProblem

Samples = np.ndarray[Any, np.dtype[np.float32]]


def select_channel(samples_TC: Samples, selector: Any) -> Samples:
    """What `selector` leaves of samples [T, C] or [T]; without a selector, all of it.

    Raises:
        AudioProblem: it leaves another number of channels than one.
    """
    if samples_TC.ndim == 1:
        refuse_channels(1, selector)
        return samples_TC
    if selector is None:
        return samples_TC
    refuse_channels(samples_TC.shape[-1], selector)
    if selector == "average":
        averaged: Samples = np.mean(samples_TC, axis=-1)
        return averaged
    return samples_TC[..., selector if isinstance(selector, int) else selector[0]]


def refuse_channels(channels: int, selector: Any) -> None:
    """Training takes one channel: refuse what leaves another number.

    Raises:
        AudioProblem: with the `channel_selector` that would do.
    """
    if channels == 1:
        if selector not in (None, 0, "average"):
            raise AudioProblem(f"one channel, and channel_selector={selector} asks for another", "Set it to null.")
        return
    wanted = selector[0] if isinstance(selector, Sequence) and len(selector) == 1 else selector
    if wanted == "average" or (isinstance(wanted, int) and -channels <= wanted < channels):
        return
    fix = f"Set channel_selector to 0..{channels - 1} or to average."
    raise AudioProblem(f"{channels} channels, and channel_selector={selector} does not leave one", fix)


def choose_files(files: list[str], selector: Any) -> tuple[list[str], Any]:
    """Of several single-channel files, those to read, and what is then left to select.

    Raises:
        AudioProblem: there is no such file.
    """
    if not isinstance(selector, int):
        return files, selector
    if selector >= len(files):
        raise AudioProblem(f"{len(files)} files, and channel_selector={selector}", "Choose a channel that is there.")
    return [files[selector]], None
