"""Speech-like sounds and noises in integer arithmetic: the same samples on every machine, Python and compiler.

A source-filter synthesiser after Klatt (1980), "Software for a cascade/parallel formant synthesizer": a glottal pulse
train through a cascade of four formant resonators for voiced sounds, noise through one resonator for hissing ones. What
would take floating-point `cos` and `exp` is done with integers: cosines from a recurrence, pole radii from a series.

Samples are 16-bit integers at 16 kHz. Fixed-point numbers carry 16 fractional bits unless their name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

RATE = 16_000  # samples per second
FRAME = 80  # samples (5 ms) between two settings of the synthesiser
ONE = 1 << 16  # 1.0 in fixed point

_COS_STEP_HZ = 10
_COS_BITS = 96
_COS_STEP = 79227551616126405505293557636  # cos(2 pi 10 Hz / 16 kHz) with 96 fractional bits

# cos(2 pi f / RATE) for f = 0, 10, ..., 8000 Hz by Chebyshev's recurrence (exact to 1e-15 with 96 bits).
_table = [1 << _COS_BITS, _COS_STEP]
while len(_table) <= RATE // 2 // _COS_STEP_HZ:
    _table.append((2 * _COS_STEP * _table[-1] >> _COS_BITS) - _table[-2])
COSINE = [value >> (_COS_BITS - 16) for value in _table]


class Phone(NamedTuple):
    """A speech sound: loudness of voice and of hiss (256 is full), formants F1 to F3 and centre of the hiss, in Hz."""

    voice: int
    hiss: int
    formants: tuple[int, int, int]
    centre: int = 5000
    shortest_ms: int = 60
    longest_ms: int = 120


VOWELS = (
    Phone(256, 1, (730, 1090, 2440), shortest_ms=90, longest_ms=200),  # father
    Phone(230, 1, (270, 2290, 3010), shortest_ms=80, longest_ms=180),  # see
    Phone(230, 1, (300, 870, 2240), shortest_ms=80, longest_ms=180),  # boot
    Phone(250, 1, (530, 1840, 2480), shortest_ms=80, longest_ms=170),  # bed
    Phone(250, 1, (570, 840, 2410), shortest_ms=90, longest_ms=190),  # bought
    Phone(240, 1, (660, 1720, 2410), shortest_ms=90, longest_ms=190),  # bat
    Phone(200, 1, (500, 1400, 2300), shortest_ms=50, longest_ms=90),  # about
)
CONSONANTS = (
    (Phone(110, 0, (250, 1000, 2200), shortest_ms=60, longest_ms=100),),  # m
    (Phone(110, 0, (250, 1600, 2600), shortest_ms=60, longest_ms=100),),  # n
    (Phone(150, 0, (360, 1300, 2700), shortest_ms=50, longest_ms=90),),  # l
    (Phone(150, 0, (300, 700, 2200), shortest_ms=50, longest_ms=90),),  # w
    (Phone(0, 120, (400, 1600, 2600), 6200, 90, 160),),  # s
    (Phone(0, 110, (400, 1800, 2500), 3200, 90, 160),),  # sh
    (Phone(0, 35, (400, 1200, 2300), 4600, 70, 130),),  # f
    (Phone(90, 60, (300, 1600, 2600), 6000, 60, 110),),  # z
    (Phone(0, 0, (400, 1000, 2300), 3000, 40, 80), Phone(0, 140, (400, 1000, 2300), 1400, 10, 20)),  # p: closure, burst
    (Phone(0, 0, (400, 1700, 2600), 3000, 40, 80), Phone(0, 150, (400, 1700, 2600), 4400, 15, 30)),  # t
    (Phone(0, 0, (300, 1700, 2300), 3000, 40, 70), Phone(0, 150, (300, 1700, 2300), 2000, 15, 35)),  # k
)
PAUSE = Phone(0, 0, (500, 1500, 2500), 3000, 120, 320)


class Dice:
    """A small generator of our own, so that no library can change the corpus (xorshift32, Marsaglia 2003)."""

    def __init__(self, seed: int) -> None:
        self.state = (seed * 2654435761 + 88172645) & 0xFFFFFFFF or 1

    def word(self) -> int:
        """The next 32 bits."""
        x = self.state
        x ^= (x << 13) & 0xFFFFFFFF
        x ^= x >> 17
        x ^= (x << 5) & 0xFFFFFFFF
        self.state = x
        return x

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + (self.word() >> 8) % (high - low + 1)

    def hiss(self) -> int:
        """A sample of white noise, -32768 to 32767."""
        return (self.word() >> 16) - 32768


# --- speech -----------------------------------------------------------------------------------------------------------


def utterance(seed: int, length: int) -> list[int]:
    """`length` samples of something that sounds like speech in an unknown language.

    Args:
        seed: gives the voice, the words and the melody.
        length: number of samples at 16 kHz.
    """
    dice = Dice(seed)
    pitch_hz = dice.between(95, 215)
    formant_scale = ONE * (86 + pitch_hz * 14 // 120) // 100  # higher voices have shorter vocal tracts
    tracks = list(_frames(_words(dice, length), dice, pitch_hz, formant_scale))
    samples = _speak(tracks, dice)[:length]
    loud = _to_peak(samples, dice.between(11_000, 19_000))
    return [s + (dice.hiss() >> 12) for s in loud]  # a room's quiet hiss, so that pauses are not digital silence


def _words(dice: Dice, length: int) -> list[tuple[Phone, int]]:
    """Phones and their lengths in frames, silence at both ends, enough for `length` samples."""
    frames = -(-length // FRAME)
    plan = [(PAUSE, dice.between(16, 36))]
    tail = dice.between(20, 40)
    while sum(count for _, count in plan) < frames - tail:
        for _ in range(dice.between(2, 4)):
            plan += [_timed(part, dice) for part in CONSONANTS[dice.between(0, len(CONSONANTS) - 1)]]
            plan.append(_timed(VOWELS[dice.between(0, len(VOWELS) - 1)], dice))
        if dice.between(0, 2) == 0:
            plan.append(_timed(PAUSE, dice))
    kept, left = [], frames - tail
    for phone, count in plan:
        kept.append((phone, min(count, left)))
        left -= count
        if left <= 0:
            break
    return [*kept, (PAUSE, tail)]


def _timed(phone: Phone, dice: Dice) -> tuple[Phone, int]:
    return phone, max(2, dice.between(phone.shortest_ms, phone.longest_ms) // 5)


class Frame(NamedTuple):
    """The synthesiser's settings for 5 ms."""

    pitch: int  # increment of the 24-bit phase per sample
    voice: int
    hiss: int
    formants: tuple[int, int, int]
    centre: int


def _frames(plan: list[tuple[Phone, int]], dice: Dice, pitch_hz: int, formant_scale: int) -> Iterator[Frame]:
    """One setting every 5 ms; each follows its phone a quarter of the way a frame, which makes the transitions."""
    total = sum(count for _, count in plan)
    voice = hiss = done = 0
    formants = [f * formant_scale >> 16 for f in PAUSE.formants]
    for phone, count in plan:
        accent = dice.between(-12, 14)
        for i in range(count):
            voice += (phone.voice * 16 - voice) >> 2
            hiss += (phone.hiss * 16 - hiss) >> 1
            goals = [f * formant_scale >> 16 for f in phone.formants]
            formants = [now + ((goal - now) >> 2) for now, goal in zip(formants, goals, strict=True)]
            arch = accent * i * (count - i) * 4 // (count * count)  # Hz, up or down and back within a phone
            falling = 12 - 30 * done // total  # Hz, over the utterance
            hertz = pitch_hz + arch + falling + dice.between(-1, 1)
            yield Frame(hertz * (1 << 24) // RATE, voice, hiss, (formants[0], formants[1], formants[2]), phone.centre)
            done += 1


def _speak(tracks: list[Frame], dice: Dice) -> list[int]:
    """The two sources through their filters, one sample after another."""
    out: list[int] = []
    phase = tilted = 0
    f1, f2, f3, f4, hisser = (Resonator() for _ in range(5))
    f4.tune(3500, 250)
    for frame in tracks:
        f1.tune(frame.formants[0], 70)
        f2.tune(frame.formants[1], 100)
        f3.tune(frame.formants[2], 160)
        hisser.tune(frame.centre, 900)
        for _ in range(FRAME):
            phase = (phase + frame.pitch) & 0xFFFFFF
            breath = dice.hiss()
            # The glottal flow's derivative at t of 4096: 2at - 3bt^2 while it is open (60 %), then 0 (KLGLOTT88).
            t = phase >> 12
            glottis = (2 * 2458 * t - 3 * t * t) >> 8 if t < 2458 else 0
            tilted += (glottis + (breath >> 7) - tilted) >> 1
            voiced = f4.step(f3.step(f2.step(f1.step(tilted)))) * frame.voice
            out.append((voiced >> 12) + (hisser.step(breath) * frame.hiss >> 13))
    return out


class Resonator:
    """A two-pole filter with gain 1 at 0 Hz, in fixed point (Klatt 1980, equation 1)."""

    a, b, c = ONE, 0, 0  # until it is tuned
    y1 = y2 = 0

    def tune(self, hertz: int, bandwidth: int) -> None:
        """Centre and 3 dB bandwidth in Hz; the pole radius exp(-pi bandwidth / RATE) by three terms of its series."""
        x = ONE * 355 * bandwidth // (113 * RATE)
        radius = ONE - x + (x * x >> 17)
        self.b = 2 * radius * COSINE[min(hertz // _COS_STEP_HZ, 780)] >> 16
        self.c = -(radius * radius >> 16)
        self.a = ONE - self.b - self.c

    def step(self, x: int) -> int:
        """One sample in, one out."""
        y = (self.a * x + self.b * self.y1 + self.c * self.y2) >> 16
        self.y1, self.y2 = y, self.y1
        return y


# --- noise ------------------------------------------------------------------------------------------------------------


def white_noise(seed: int, length: int) -> list[int]:
    """A flat spectrum."""
    dice = Dice(seed)
    return _to_peak([dice.hiss() for _ in range(length)], 6_000)


def pink_noise(seed: int, length: int) -> list[int]:
    """3 dB less an octave: twelve white noises, each held twice as long as the one before (Voss)."""
    dice = Dice(seed)
    held = [dice.hiss() for _ in range(12)]
    out = []
    for n in range(1, length + 1):
        row = min((n & -n).bit_length() - 1, 11)
        held[row] = dice.hiss()
        out.append(sum(held))
    return _to_peak(out, 9_000, centred=True)


def brown_noise(seed: int, length: int) -> list[int]:
    """6 dB less an octave: white noise added up, with a leak that keeps it near zero."""
    dice = Dice(seed)
    out, level = [], 0
    for _ in range(length):
        level += dice.hiss() - (level >> 7)
        out.append(level)
    return _to_peak(out, 12_000, centred=True)


def machine_noise(seed: int, length: int) -> list[int]:
    """A motor: a 50 Hz buzz and a whine that come and go, over band-passed noise."""
    dice = Dice(seed)
    buzz, whine, band = Resonator(), Resonator(), Resonator()
    buzz.tune(200, 300)
    whine.tune(1250, 40)
    band.tune(2400, 1200)
    out = []
    for n in range(length):
        swell = abs(n % 24_000 - 12_000)  # a triangle of 1.5 s
        pulse = 4_000 if n % 320 < 40 else -571
        hiss = dice.hiss()
        out.append(buzz.step(pulse) + (whine.step(hiss >> 6) * swell >> 14) + (band.step(hiss) >> 6))
    return _to_peak(out, 8_000, centred=True)


# --- levels -----------------------------------------------------------------------------------------------------------


def _to_peak(samples: list[int], peak: int, centred: bool = False) -> list[int]:
    """Scaled so that the largest magnitude is `peak`; without its mean if `centred`."""
    if centred:
        mean = sum(samples) // len(samples)
        samples = [s - mean for s in samples]
    loudest = max(abs(s) for s in samples) or 1
    return [s * peak // loudest for s in samples]
