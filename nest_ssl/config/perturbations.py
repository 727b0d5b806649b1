"""The `augmentor` of a data section: what may happen to each utterance, by its name.

Source: NeMo 3.0.0 `nemo.collections.asr.parts.preprocessing.perturb`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator, model_validator

from nest_ssl.base.errors import UserError
from nest_ssl.config.section import Number, Positive, Probability, Section, Unfit, Whole, in_yaml, read, silent


class Perturbation(Section):
    """What all have."""

    prob: Probability  # that it happens to an utterance
    rng: int | None = None  # a seed for the generator of everything, when the loader is built; 0: none


class Gain(Perturbation):
    """Louder or softer."""

    min_gain_dbfs: Number = -10  # dB
    max_gain_dbfs: Number = 10


class Shift(Perturbation):
    """Earlier (above 0) or later; the length stays."""

    min_shift_ms: Number = -5.0
    max_shift_ms: Number = 5.0


class Silence(Perturbation):
    """Silence before and behind; seconds. As in NeMo, the least may be above the most: all between is drawn."""

    min_start_silence_secs: Annotated[Number, Ge(0)] = 0
    max_start_silence_secs: Annotated[Number, Ge(0)] = 0
    min_end_silence_secs: Annotated[Number, Ge(0)] = 0
    max_end_silence_secs: Annotated[Number, Ge(0)] = 0
    value: Number = 0


class WhiteNoise(Perturbation):
    """White noise, at a level in whole dB below `max_level`."""

    rng: Annotated[int, Ge(0), Le(2**32 - 1)] | None = None  # of NumPy's, which takes no other
    min_level: Annotated[Number, Ge(-(2**31))] = -90
    max_level: Annotated[Number, Le(2**31)] = -46

    @model_validator(mode="after")
    def _has_levels(self) -> WhiteNoise:
        if int(self.min_level) >= int(self.max_level):
            raise Unfit(f"no whole dB below max_level {self.max_level}", f"min_level={self.min_level}", "Correct it.")
        return self


class Tempo(Perturbation):
    """Faster or slower, at one of some rates; what has rate 1 stays as it is."""

    min_speed_rate: Annotated[Number, Gt(0)] = 0.9
    max_speed_rate: Annotated[Number, Gt(0)] = 1.1
    num_rates: int = 5  # so many rates; below 0: any

    @model_validator(mode="after")
    def _has_rates(self) -> Tempo:
        if self.num_rates == 0:
            raise Unfit("no rates; NeMo stops at it, too", "num_rates=0", "Give -1 for any rate.")
        return self


class Speed(Tempo):
    """Faster and higher, or slower and lower: resampled."""

    sr: Positive  # Hz, of the audio
    # kaiser_best and kaiser_fast take resampy. NeMo 3.0.0 comes without, and then leaves audio as it is.
    resample_type: Literal["fft", "scipy"]


class TimeStretch(Tempo):
    """Faster or slower at the same pitch: a phase vocoder."""

    n_fft: Annotated[int, Ge(2)] = 512  # of its spectrum; twice as many where audio becomes slower


class Segment(Perturbation):
    """A stretch of so many seconds of the audio; what is shorter stays as it is."""

    ACCEPTED = silent("verbose")
    REFUSED: ClassVar = {"pad_to_duration": "NeMo stops at it, too: it pads by a part of a sample."}

    duration_sec: Annotated[Number, Gt(0)] = 32.0
    min_rms_db: Number | None = None  # drawn again while it is more quiet,
    max_trials: Whole = 10  # so often


NAMES: dict[str, type[Perturbation]] = {
    "gain": Gain,
    "random_segment": Segment,
    "shift": Shift,
    "silence": Silence,
    "speed": Speed,
    "time_stretch": TimeStretch,
    "white_noise": WhiteNoise,
}
OWN_MANIFEST = "reads audio of a manifest of its own, which is not checked or hashed before training: "
NOISE = f"{OWN_MANIFEST}noise_manifest and batch_augmentor mix noise in."
REFUSED = {  # the other names that NeMo's registry has, and why
    "impulse": f"{OWN_MANIFEST}convolve the audio before training.",
    "noise": NOISE,
    "noise_norm": NOISE,
    "rir_noise_aug": NOISE,
    "transcode_aug": "is computed by the program sox, by the codecs of its build: transcode before training.",
}


def _by_name(value: Any) -> Any:
    """The settings of each.

    Raises:
        Unfit: no such perturbation, or none that is offered.
    """
    if value in (None, {}):
        return None
    if not isinstance(value, dict):
        raise Unfit(f"not supported: {in_yaml(value)}", "augmentor", "Give each perturbation by its name.")
    for name in value:
        if name in REFUSED:
            raise Unfit(f"not supported: {in_yaml(name)}", "augmentor", f"It {REFUSED[name]}")
        if name not in NAMES:
            fix = f"Supported: {', '.join(NAMES)}; noise and speakers are mixed in by batch_augmentor."
            raise Unfit(f"not supported: {in_yaml(name)}", "augmentor", fix)
    settings = {}
    for name, each in value.items():
        try:
            settings[name] = read(NAMES[name], each)
        except UserError as error:  # of which section, the one that reads it knows
            raise Unfit(error.what, f"augmentor.{name}.{error.where}".rstrip("."), error.fix) from error
    return settings


Augmentor = Annotated[dict[str, Perturbation] | None, BeforeValidator(_by_name)]
