"""What can be wrong with an audio file, and how far that goes.

| raised               | speech          | with bad_audio=skip | noise                              |
|----------------------|-----------------|---------------------|------------------------------------|
| `AudioProblem`       | stops, one line | left out            | another clip is drawn, as in NeMo  |
| `UnfitAudio`         | stops, one line | left out            | stops: NeMo would train on it      |
| `ReaderProblem`      | stops, one line | stops               | stops                              |
"""

from __future__ import annotations

from nest_ssl.base.errors import UserError
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import NoiseClip


class AudioProblem(Exception):
    """What is wrong with an audio file and what to do about it; who reads the file knows where it was named."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what, self.fix = what, fix


class UnfitAudio(AudioProblem):
    """It can be decoded, to something that ruins training without a word: NaN, or hours from a second."""


class ReaderProblem(AudioProblem):
    """What keeps us from reading any such file, and is not the file's fault: a decoder missing, no file handle left."""


class BadAudio(UserError):
    """An utterance that cannot be used because of its own audio."""


def as_user_error(problem: AudioProblem, line: Entry | NoiseClip) -> UserError:
    """A file's problem, with the line of the manifest that names the file."""
    of_an_utterance = isinstance(line, Entry) and not isinstance(problem, ReaderProblem)
    kind = BadAudio if of_an_utterance else UserError
    return kind(problem.what, f"{line.audio_file} ({line.place})", problem.fix)
