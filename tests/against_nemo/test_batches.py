"""Our batches against NeMo's, byte for byte and draw for draw, over a table of cases.

Runs in NeMo's environment. Both loaders are built from the same section, walked from the same seeds, and every field of
every batch and the state of every generator afterwards must be the same.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from nest_ssl.config.compose import ROOT
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.data.check import check_dataset
from nest_ssl.data.loader import validation_sections
from nest_ssl.practice.corpus import read_checksums, write_corpus
from nest_ssl.releases import generation

pytestmark = pytest.mark.filterwarnings("ignore")  # NeMo's and its libraries' own

RATE = 16_000
MULTI = "nemo.collections.asr.modules.ssl_modules.MultiSpeakerNoiseAugmentation"
SINGLE = "nemo.collections.asr.modules.ssl_modules.augmentation.SpeakerNoiseAugmentation"
RECIPE = {"_target_": MULTI, "prob": 1.0, "noise_ratio": 0.5, "min_mix_rate": 0.5, "max_mix_rate": 0.5,
          "max_num_segments": 1, "max_num_speakers": 1}  # fmt: skip
NOISE = {"noise_manifest": "noise.json"}
UPPER = {RATE: "PCM_16", 22_050: "PCM_24", 48_000: "PCM_32"}  # rate -> subtype of files named .WAV


# --- the audio --------------------------------------------------------------------------------------------------------


def sound(seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> np.ndarray[Any, Any]:
    """Coloured noise with quiet ends, float64 [T] or [T, C]."""
    draws = np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    samples = np.cumsum(draws, axis=0)
    samples -= np.linspace(0, 1, len(samples))[:, None] * samples[-1]
    samples *= 0.3 / max(1e-9, abs(samples).max())
    quiet = min(len(samples) // 5, rate)
    samples[:quiet] *= 1e-4
    samples[len(samples) - quiet :] *= 1e-4
    return samples[:, 0] if channels == 1 else samples


def write(folder: Path, name: str, lines: list[dict[str, Any]], blank_lines: bool = False) -> str:
    """A manifest of `lines`; its path."""
    text = ("\n\n" if blank_lines else "\n").join(json.dumps(line) for line in lines)
    (folder / name).write_text(text + "\n", encoding="utf-8")
    return str(folder / name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio of all kinds, and a manifest for each case."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "wavs").mkdir()
    _speech(folder)
    _formats(folder)
    _noise(folder)
    return folder


def _speech(folder: Path) -> None:
    lengths = [1.5, 2.0, 1.2, 2.3, 0.4, 1.0]
    plain = []
    for i, seconds in enumerate(lengths):
        soundfile.write(folder / f"wavs/{i}.wav", sound(seconds, i), RATE)
        plain.append({"audio_filepath": f"wavs/{i}.wav", "duration": seconds, "text": "words"})
    write(folder, "plain.json", plain, blank_lines=True)
    write(folder, "other.json", plain[3:])
    write(folder, "even.json", plain[:1] * 4)
    write(folder, "one.json", plain[1:2])
    write(folder, "rounded.json", [{"audio_filepath": "wavs/1.wav", "duration": n / RATE} for n in (20_490, 20_500)])
    write(
        folder, "filename.json", [{"audio_filename": "wavs/1.wav", "duration": None}, {"audio_filename": "wavs/2.wav"}]
    )
    write(folder, "absolute.json", [{"audio_filepath": str(folder / "wavs/0.wav"), "duration": 1.5}])
    cuts = [(0.25, 1.1), (0.3, None), (1e-5, 0.2), (0, 1.0), (1.0, 0.0), (None, 0.7), (1.2345, 0.7655), (0, 2.0001)]
    write(folder, "cuts.json", [{"audio_filepath": "wavs/1.wav", "offset": o, "duration": d} for o, d in cuts])
    soundfile.write(folder / "wavs/zero.wav", np.zeros(20_000), RATE)
    soundfile.write(folder / "wavs/empty.wav", np.zeros(0), RATE)
    soundfile.write(folder / "wavs/long.flac", sound(70.0, 6), RATE)
    write(folder, "long.json", [*plain[:1], {"audio_filepath": "wavs/long.flac", "duration": 70.0}, *plain[1:2]])
    cuts = [(0.5, 65.25), (65.0, None), (10.0, 0.8)]
    write(folder, "long_cut.json", [{"audio_filepath": "wavs/long.flac", "offset": o, "duration": d} for o, d in cuts])
    write(folder, "silence.json", [{"audio_filepath": f"wavs/{n}.wav"} for n in ("zero", "0", "empty")])
    write(folder, "short.json", [{"audio_filepath": f"wavs/{n}.wav"} for n in ("4", "empty", "5")])


def _formats(folder: Path) -> None:
    def add(stem: str, suffix: str, samples: np.ndarray[Any, Any], rate: int = RATE, **how: str) -> dict[str, Any]:
        soundfile.write(folder / f"{stem}.{suffix}", samples, rate, **how)
        return {"audio_filepath": f"{stem}.{suffix}", "duration": round(len(samples) / rate, 3)}

    kinds = [("flac", "PCM_24"), ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", "MPEG_LAYER_III"), ("wav", "PCM_24"),
             ("wav", "PCM_U8"), ("wav", "FLOAT"), ("wav", "ULAW"), ("aiff", "PCM_16")]  # fmt: skip
    lines = [add(f"kind_{sub}", suffix, sound(1.3, 40 + i), subtype=sub) for i, (suffix, sub) in enumerate(kinds)]
    write(folder, "formats.json", lines + [{**line, "offset": 0.31, "duration": 0.9} for line in lines])
    upper = [add(f"upper_{r}", "WAV", 0.01 + sound(1.3001, 60, r), r, subtype=s) for r, s in UPPER.items()]
    write(folder, "upper.json", [*upper, *({**line, "offset": 0.3125, "duration": 0.9004} for line in upper)])
    rates = [8_000, 11_025, 22_050, 44_100, 48_000]
    write(folder, "rates.json", [add(f"rate_{r}", "wav", sound(1.4, r, r), r) for r in rates])
    stereo = [add(f"stereo_{r}", "wav", sound(1.25, r, r, channels=2), r) for r in (RATE, 44_100)]
    write(folder, "stereo.json", stereo)
    write(folder, "three.json", [add("three", "wav", sound(1.1, 3, channels=3), subtype="FLOAT")])
    fade = np.random.default_rng(9).uniform(-1, 1, 4 * RATE) * 10 ** (np.linspace(-75, -45, 4 * RATE) / 20)
    fade[-RATE // 2 :] *= 10 ** (45 / 20)  # crosses trimming's threshold so slowly that one decibel shows
    write(folder, "fade.json", [add("fade", "wav", fade, subtype="PCM_24")])
    write(
        folder,
        "separate.json",
        [{"audio_filepath": ["wavs/0.wav", "wavs/0.wav"]}, {"audio_filepath": ["wavs/1.wav"] * 2}],
    )


def _noise(folder: Path) -> None:
    clips = {"long": 0.02 + sound(7.0, 70), "short": sound(0.6, 71), "mid": sound(2.0, 72), "zero": np.zeros(9_000)}
    clips["balanced"] = np.tile([0.25, -0.25], 30_000)  # loud, and its sum is zero
    clips["falling"] = sound(3.0, 73) - 0.01  # sums are negative: drawn again a hundred times
    lines = []
    for name, samples in clips.items():
        soundfile.write(folder / f"n_{name}.wav", samples, RATE)
        lines.append({"audio_filepath": f"n_{name}.wav", "duration": len(samples) / RATE})
    soundfile.write(folder / "n_stereo.wav", sound(1.5, 74, channels=2), RATE)
    soundfile.write(folder / "n_44k.flac", 0.01 + sound(4.0, 75, 44_100), 44_100)
    (folder / "n_junk.wav").write_bytes(b"not audio at all" * 50)
    (folder / "n_cut.wav").write_bytes((folder / "n_mid.wav").read_bytes()[:20_000])
    write(folder, "noise.json", [*lines[:3], {"audio_filepath": "n_44k.flac", "duration": 4.0}])
    write(
        folder, "noise_whole.json", [{"audio_filepath": "n_long.wav"}, {"audio_filepath": "n_short.wav", "offset": 0.1}]
    )
    write(folder, "noise_zero.json", [lines[3], lines[4], lines[0]])
    write(folder, "noise_falling.json", lines[5:6])
    bad = [{"audio_filepath": f"n_{n}.wav", "duration": 2.0} for n in ("junk", "stereo", "cut", "gone")]
    write(folder, "noise_bad.json", [*bad, lines[2], {"audio_filepath": "n_mid.wav", "duration": "2.0"}])
    write(folder, "noise_hopeless.json", bad[:2])
    write(folder, "nothing.json", [])


# --- the cases --------------------------------------------------------------------------------------------------------

# name -> the section; manifests are names in the corpus.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one sample a batch": {"batch_size": 1},
    "drop_last": {"batch_size": 4, "drop_last": True},
    "shuffle": {"shuffle": True, **NOISE},
    "pin_memory": {"pin_memory": True},
    "model's sample rate": {"sample_rate": None},
    "another sample rate": {"sample_rate": 8000, **NOISE},
    "blank augmentor": {"augmentor": None, "is_tarred": False, "use_lhotse": False},
    "list of manifests": {"manifest_filepath": ["plain.json", "other.json"]},
    "comma list of manifests": {"manifest_filepath": "other.json,plain.json"},
    "comma list of noises": {"noise_manifest": "noise_zero.json,noise.json"},
    "audio_filename, no duration": {"manifest_filepath": "filename.json"},
    "absolute path": {"manifest_filepath": "absolute.json"},
    "offset and duration": {"manifest_filepath": "cuts.json", "batch_size": 3},
    "min_duration": {"min_duration": 1.2},
    "max_duration": {"max_duration": 1.5},
    "very long": {"manifest_filepath": "long.json", "max_duration": 80.0},
    "very long, cut": {"manifest_filepath": "long_cut.json", "max_duration": 80.0, **NOISE},
    "very long, recipe": {"manifest_filepath": "long.json", **NOISE, "batch_augmentor": RECIPE},
    "very long, left out": {"manifest_filepath": "long.json", "max_duration": 60.0},
    "unknown durations stay": {"manifest_filepath": "filename.json,plain.json", "min_duration": 1, "max_duration": 2},
    "short": {"manifest_filepath": "short.json", **NOISE},
    "silence": {"manifest_filepath": "silence.json", "noise_manifest": "noise_zero.json"},
    "formats": {"manifest_filepath": "formats.json", "batch_size": 5},
    "suffix in capitals": {"manifest_filepath": "upper.json"},
    "noise with a suffix in capitals": {"noise_manifest": "upper.json", "sample_rate": 8_000},
    "formats as int": {"manifest_filepath": "formats.json", "batch_size": 5, "int_values": True},
    "rates": {"manifest_filepath": "rates.json", **NOISE},
    "stereo, left": {"manifest_filepath": "stereo.json", "channel_selector": 0},
    "stereo, right": {"manifest_filepath": "stereo.json", "channel_selector": 1},
    "stereo, last": {"manifest_filepath": "stereo.json", "channel_selector": -1},
    "stereo, average": {"manifest_filepath": "stereo.json", "channel_selector": "average"},
    "three channels, average": {"manifest_filepath": "three.json", "channel_selector": "average"},
    "stereo, one-channel list": {"manifest_filepath": "stereo.json", "channel_selector": [1]},
    "mono, average": {"channel_selector": "average"},
    "files of one channel each": {"manifest_filepath": "separate.json", "channel_selector": "average"},
    "one of several files": {"manifest_filepath": "separate.json", "channel_selector": 1, "trim_silence": True},
    "trim": {"trim_silence": True},
    "trim, fading in": {"manifest_filepath": "fade.json", "trim_silence": True},
    "trim, resampled": {"manifest_filepath": "rates.json", "trim_silence": True, "int_values": True},
    "noise added": {**NOISE},
    "noise of unknown length": {"noise_manifest": "noise_whole.json"},
    "noise of sum zero": {"noise_manifest": ["noise_zero.json", "noise.json"]},
    "noise of negative sum": {"noise_manifest": "noise_falling.json", "manifest_filepath": "one.json"},
    "bad noise clips": {"noise_manifest": "noise_bad.json"},
    "hopeless noise": {"noise_manifest": "noise_hopeless.json", "batch_augmentor": RECIPE},
    "no noise clip": {"noise_manifest": "nothing.json", "batch_augmentor": RECIPE},
    "augmentor at rest": {**NOISE, "batch_augmentor": {**RECIPE, "prob": 0.0}},
    "recipe": {**NOISE, "batch_augmentor": RECIPE},
    "recipe as published": {**NOISE, "batch_augmentor": {**RECIPE, "prob": 0.5}, "shuffle": True},
    "recipe, noise only": {**NOISE, "batch_augmentor": {**RECIPE, "noise_ratio": 1.0}},
    "recipe, noise only, no speakers": {
        **NOISE, "batch_augmentor": {**RECIPE, "noise_ratio": 1, "min_num_speakers": 0, "max_num_speakers": 0}},
    "recipe, speech only": {**NOISE, "batch_augmentor": {**RECIPE, "noise_ratio": 0.0}},
    "recipe, batches of one": {**NOISE, "batch_augmentor": RECIPE, "batch_size": 1},
    "recipe, whole utterance": {**NOISE, "batch_augmentor": {**RECIPE, "min_mix_rate": 1, "max_mix_rate": 1}},
    "recipe, a length that float32 rounds": {
        "manifest_filepath": "rounded.json", **NOISE,
        "batch_augmentor": {**RECIPE, "min_mix_rate": 0.7, "max_mix_rate": 0.7}},
    "recipe, silence": {"manifest_filepath": "silence.json", "batch_augmentor": RECIPE},
    "many segments": {**NOISE, "batch_size": 5, "batch_augmentor": {
        "_target_": MULTI, "prob": 0.9, "noise_ratio": 0.4, "min_mix_rate": 0.1, "max_mix_rate": 1.0}},
    "two speakers, four segments": {**NOISE, "batch_size": 6, "batch_augmentor": {
        **RECIPE, "noise_ratio": 0.2, "min_num_segments": 4, "max_num_segments": 4, "min_num_speakers": 2,
        "max_num_speakers": 2}},
    "single": {**NOISE, "batch_augmentor": {"_target_": SINGLE, "prob": 1.0, "noise_ratio": 0.5}},
    "single, half": {**NOISE, "batch_size": 4, "batch_augmentor": {
        "_target_": SINGLE, "prob": 0.7, "noise_ratio": 0.3, "min_mix_rate": 0.5, "max_mix_rate": 0.5}},
    "single, silence": {"manifest_filepath": "silence.json", "batch_augmentor": {"_target_": SINGLE, "prob": 1.0}},
    "gain": {"augmentor": {"gain": {"prob": 0.7, "min_gain_dbfs": -3}}, **NOISE, "batch_augmentor": RECIPE},
    "shift": {"augmentor": {"shift": {"prob": 0.9, "min_shift_ms": -800, "max_shift_ms": 500.5}}},
    "shift by more than there is": {
        "manifest_filepath": "short.json",
        "augmentor": {"shift": {"prob": 1.0, "min_shift_ms": -4000, "max_shift_ms": 4000}}},
    "white noise": {"augmentor": {"white_noise": {"prob": 0.8, "min_level": -40.5, "max_level": -20}}, **NOISE},
    "silence around": {"augmentor": {"silence": {
        "prob": 1, "max_start_silence_secs": 0.5, "min_end_silence_secs": 0.1, "max_end_silence_secs": 0.4,
        "value": 1e-3}}},
    "speed": {"augmentor": {"speed": {"prob": 0.9, "sr": RATE, "resample_type": "fft", "num_rates": 3}}},
    "any speed": {"augmentor": {"speed": {"prob": 1.0, "sr": 8000, "resample_type": "scipy", "num_rates": -1}}},
    "segment": {"augmentor": {"random_segment": {
        "prob": 1.0, "duration_sec": 1.1, "min_rms_db": -22, "verbose": True}}},
    "stretched, of an odd number of samples in the spectrum": {"augmentor": {"time_stretch": {
        "prob": 0.9, "min_speed_rate": 0.5, "max_speed_rate": 2, "num_rates": -1, "n_fft": 301}}},
    "all perturbations": {
        "augmentor": {"silence": {"prob": 0.5, "max_start_silence_secs": 0.2},
                      "white_noise": {"prob": 0.5, "rng": 7}, "shift": {"prob": 0.5}, "gain": {"prob": 0.5, "rng": 3},
                      "speed": {"prob": 0.5, "sr": RATE, "resample_type": "fft"},
                      "random_segment": {"prob": 0.5, "duration_sec": 1.0}},
        "manifest_filepath": "rates.json", "shuffle": True, **NOISE, "batch_augmentor": RECIPE},
    "perturbed in workers": {
        "augmentor": {"white_noise": {"prob": 0.5}, "shift": {"prob": 0.5}}, "num_workers": 2, **NOISE},
    "workers": {**NOISE, "batch_augmentor": RECIPE, "num_workers": 2, "shuffle": True, "batch_size": 3},
}  # fmt: skip
MORE_SEEDS = ("recipe", "many segments", "single", "noise of sum zero", "bad noise clips")


def section_of(case: str, corpus: Path) -> dict[str, Any]:
    """The case as a section of the config, with whole paths."""
    section = {"manifest_filepath": "plain.json", "sample_rate": RATE, "batch_size": 2, "shuffle": False, **CASES[case]}
    return {key: _located(value, corpus) if "manifest" in key else value for key, value in section.items()}


def _located(value: Any, corpus: Path) -> Any:
    if isinstance(value, str):
        return ",".join(str(corpus / part) for part in value.split(","))
    return [_located(part, corpus) for part in value]


# --- the comparison ---------------------------------------------------------------------------------------------------


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def states() -> dict[str, str]:
    """A digest of each generator's state."""
    kinds = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state().numpy()}
    return {name: hashlib.sha256(pickle.dumps(state)).hexdigest() for name, state in kinds.items()}


def walk(build: Callable[[], Any], value: int, epochs: int = 2) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """All batches of some epochs from a seed, and the generators' states before, and after each batch."""
    seed(value)
    loader = build()
    batches, ledger = [], [states()]
    for _ in range(epochs):
        for batch in loader:
            batches.append({field.name: getattr(batch, field.name) for field in fields(batch)})
            ledger.append(states())
    return batches, ledger


def assert_same(reference: list[dict[str, Any]], candidate: list[dict[str, Any]]) -> None:
    assert len(reference) == len(candidate) > 0
    for number, (one, other) in enumerate(zip(reference, candidate, strict=True)):
        assert list(one) == list(other)
        for name, expected in one.items():
            got = other[name]
            if not isinstance(expected, torch.Tensor):
                assert got == expected, (number, name)
                continue
            assert (got.dtype, got.shape, got.stride()) == (expected.dtype, expected.shape, expected.stride()), (
                number,
                name,
            )
            assert got.numpy().tobytes() == expected.numpy().tobytes(), (number, name)


@pytest.mark.parametrize(
    ("case", "value"), [(case, 42) for case in CASES] + [(c, s) for c in MORE_SEEDS for s in (0, 7, 99)]
)
def test_batches_and_draws_are_nemos(
    case: str, value: int, corpus: Path, nemo_model: Any, build_candidate: Any
) -> None:
    section = section_of(case, corpus)
    check_dataset(read(Dataset, section), RATE)
    expected, reference_ledger = walk(
        lambda: nemo_model._setup_dataloader_from_config(OmegaConf.create(section)), value
    )
    got, candidate_ledger = walk(lambda: build_candidate(section), value)
    assert_same(expected, got)
    assert candidate_ledger == reference_ledger


@pytest.mark.parametrize("case", ["plain", "recipe"])
def test_noisy_length_is_the_same_tensor_as_in_nemo(
    case: str, corpus: Path, nemo_model: Any, build_candidate: Any, release: str
) -> None:
    """Which fields are one tensor matters to whoever changes a batch in place."""
    section = section_of(case, corpus)
    batches = [
        next(iter(nemo_model._setup_dataloader_from_config(OmegaConf.create(section)))),
        next(iter(build_candidate(section))),
    ]
    shared = [{n for n in ("audio_len", "noise_len") if getattr(b, n) is b.noisy_audio_len} for b in batches]
    assert shared[0] == shared[1]
    assert bool(shared[0]) == (generation(release).noisy_length == "noise"), "before 2.5 it was a tensor of its own"


def test_validation_loaders_are_nemos(corpus: Path, nemo_model: Any, build_candidate: Any) -> None:
    """A list of manifests gives a loader each in validation, a comma list gives one."""
    paths = [str(corpus / "plain.json"), str(corpus / "other.json")]
    for manifests in (paths[0], paths, ",".join(paths)):
        section = {"manifest_filepath": manifests, "sample_rate": RATE, "batch_size": 2, "shuffle": False}
        nemo_model.setup_multiple_validation_data(OmegaConf.create(section))
        reference = nemo_model._validation_dl
        reference = reference if isinstance(reference, list) else [reference]
        candidate = [build_candidate(part) for part in validation_sections(section)]
        assert len(candidate) == len(reference)
        for one, other in zip(reference, candidate, strict=True):
            assert_same(walk(lambda dl=one: dl, 0, 1)[0], walk(lambda dl=other: dl, 0, 1)[0])


def test_practice_corpus(tmp_path: Path, nemo_model: Any, build_candidate: Any) -> None:
    """The corpus that `make data` writes, with the published recipe."""
    write_corpus(tmp_path / "dummy", read_checksums(ROOT / "data" / "dummy_ssl.sha256"))
    section = {"manifest_filepath": str(tmp_path / "dummy/train_manifest.json"), "batch_size": 4, "shuffle": True,
               "noise_manifest": str(tmp_path / "dummy/noise_manifest.json"), "batch_augmentor": RECIPE}  # fmt: skip
    expected, reference_ledger = walk(lambda: nemo_model._setup_dataloader_from_config(OmegaConf.create(section)), 42)
    got, candidate_ledger = walk(lambda: build_candidate(section), 42)
    assert_same(expected, got)
    assert candidate_ledger == reference_ledger


def test_the_batch_has_nemos_fields() -> None:
    assert [f.name for f in fields(AudioNoiseBatch)] == [
        "sample_id", "audio", "audio_len", "noise", "noise_len", "noisy_audio", "noisy_audio_len"]  # fmt: skip
