"""Where NeMo's numbers changed from one release to the next: each difference has a name, one table says who has which.

Whatever behaves differently, in the model or in the data, takes a `Generation` and asks it for the difference by name;
nothing asks for a version. Found by reading, side by side, NeMo 2.3.3, 2.4.1, 2.5.3, 2.6.2, 2.7.3 and 3.0.0, in
`nemo.collections.asr`: `parts.preprocessing`, `parts.submodules`, `modules`, `losses.ssl_losses`, `data.ssl_dataset`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nest_ssl.base.errors import UserError

# Where a difference takes effect: modules by their names, and the batch before any of them.
BATCH, FEATURES, MASKING, ENCODER = "batch", "preprocessor.featurizer", "mask_processor", "encoder"
SUBSAMPLING = "encoder.pre_encode"


def _named(what: str, where: str) -> Any:
    """What differs, and the module that does it (`batch`: the data, before any module)."""
    return field(metadata={"what": what, "where": where})


@dataclass(frozen=True)
class Generation:
    """The named differences; values are plain, for they go into recordings.

    Raises:
        ValueError: a value that the difference does not have.
    """

    # features
    stft_padding: Literal["reflect", "constant"] = _named(
        "how the signal is padded for the STFT (a pad_mode of torch.stft)", FEATURES
    )
    mask_waveform: bool = _named("whether samples beyond an utterance's end are zeroed after pre-emphasis", FEATURES)
    extra_frames: Literal[0, 1] = _named("frames counted on top of samples // hop", FEATURES)
    std_of_one_frame: Literal["nan", "zero"] = _named(
        "standard deviation by which the only frame of an utterance is normalised", FEATURES
    )
    torchaudio_option: Literal["obeyed", "ignored"] = _named(
        "use_torchaudio: ignored, or computes other features (refused)", FEATURES
    )
    # masking
    block_draw: Literal["whole_batch", "per_utterance"] = _named(
        "whether masked blocks are drawn for the whole batch at once or utterance by utterance", MASKING
    )
    block_count: Literal["numpy", "torch"] = _named(
        "generator of the number of overlapping blocks in an utterance", MASKING
    )
    block_device: Literal["features", "cpu"] = _named(
        "device of the torch generator that places the blocks: the features' or always the CPU's", MASKING
    )
    short_audio_rule: Literal["float32", "float64", "none"] = _named(
        "precision in which an utterance is found too short for overlapping blocks", MASKING
    )
    short_audio_offset: Literal["previous", "zero", "none"] = _named(
        "where the one block of a too short utterance starts (without overlap)", MASKING
    )
    mask_writing: Literal["slices", "indices", "where"] = _named(
        "how the mask vector is put in place (decides the order of its gradient's sum)", MASKING
    )
    float64: Literal["runs", "fails"] = _named(
        "training in float64 (trainer.precision=64-true): runs, or fails as the mask is drawn", MASKING
    )
    # encoder
    unified_contexts: Literal["offered", "unknown"] = _named(
        "att_chunk_context_size, conv_context_style, chunked_limited_with_rc: offered, or refused",
        ENCODER,
    )
    # subsampling
    subsampling_mask: bool = _named(
        "whether frames beyond the utterance are zeroed before every convolution", SUBSAMPLING
    )
    subsampled_length: Literal["int32", "int64"] = _named(
        "integer type of the lengths that subsampling returns", SUBSAMPLING
    )
    # losses
    few_negatives: Literal["repeat", "fail"] = _named(
        "contrastive loss with fewer vectors than it draws: draws some again, or fails", "decoder_losses"
    )
    # data
    augmentation_draws: Literal["python", "numpy"] = _named("generator of the speaker and noise augmentation", BATCH)
    noisy_length: Literal["noise", "audio"] = _named(
        "length given to noisy audio: the noise's after augmentation, or the speech's", BATCH
    )
    far_shift: Literal["clamped", "ignored"] = _named(
        "an augmentor's shift by more than an utterance: by all of it, or none", BATCH
    )
    audio_reader: Literal["soundfile", "pydub"] = _named(
        "what reads audio that soundfile cannot, or whose suffix it does not list: nothing, or pydub", BATCH
    )

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Generation).items():
            choices = get_args(kind) if get_origin(kind) is Literal else (True, False)
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {choices}")


SINCE_2_5 = Generation(
    stft_padding="constant",
    mask_waveform=True,
    extra_frames=0,
    std_of_one_frame="zero",
    torchaudio_option="obeyed",
    block_draw="per_utterance",
    block_count="torch",
    block_device="cpu",
    short_audio_rule="float64",
    short_audio_offset="zero",
    mask_writing="indices",
    float64="fails",
    unified_contexts="unknown",
    subsampling_mask=True,
    subsampled_length="int64",
    few_negatives="fail",
    augmentation_draws="python",
    noisy_length="noise",
    far_shift="ignored",
    audio_reader="pydub",
)
GENERATIONS = {
    "2.4": Generation(
        stft_padding="reflect",
        mask_waveform=False,
        extra_frames=1,
        std_of_one_frame="nan",
        torchaudio_option="obeyed",
        block_draw="per_utterance",
        block_count="numpy",
        block_device="features",
        short_audio_rule="float32",
        short_audio_offset="previous",
        mask_writing="slices",
        float64="runs",
        unified_contexts="unknown",
        subsampling_mask=False,
        subsampled_length="int32",
        few_negatives="fail",
        augmentation_draws="numpy",
        noisy_length="audio",
        far_shift="ignored",
        audio_reader="pydub",
    ),
    "2.6": SINCE_2_5,
    "2.7": replace(SINCE_2_5, torchaudio_option="ignored"),
    "3.0": Generation(
        stft_padding="constant",
        mask_waveform=True,
        extra_frames=0,
        std_of_one_frame="zero",
        torchaudio_option="ignored",
        block_draw="whole_batch",
        block_count="torch",
        block_device="features",
        short_audio_rule="none",
        short_audio_offset="none",
        mask_writing="where",
        float64="runs",
        unified_contexts="offered",
        subsampling_mask=True,
        subsampled_length="int64",
        few_negatives="repeat",
        augmentation_draws="python",
        noisy_length="noise",
        far_shift="clamped",
        audio_reader="soundfile",
    ),
}
NEWEST = "3.0"
# The release that stands for each generation where one has to be installed, and the one that is installed by default.
RELEASES = {"2.4": "2.4.1", "2.6": "2.6.2", "2.7": "2.7.3", "3.0": "3.0.0"}
DEFAULT_RELEASE = RELEASES[NEWEST]

# The first two numbers of a release -> its generation. Releases of one line have the same numbers.
RELEASE_LINES = {"2.3": "2.4", "2.4": "2.4", "2.5": "2.6", "2.6": "2.6", "2.7": "2.7", "3.0": "3.0"}


def generation(name: str) -> Generation:
    """The differences of one generation of NeMo.

    Raises:
        UserError: no such generation.
    """
    if name not in GENERATIONS:
        raise UserError("no such generation of NeMo", repr(name), f"Choose one of: {', '.join(GENERATIONS)}.")
    return GENERATIONS[name]


def generation_of(release: str | float) -> str:
    """The name of the generation that a release of NeMo belongs to: `2.6` for `2.5.3`, `2.6.2`, `2.6` (also a float).

    A release that is not in the table is of the generation of the nearest one that is; see `unlisted`.

    Raises:
        UserError: not a release.
    """
    line = _line(release)
    if line is None:
        known = ", ".join(f"{name}.x" for name in RELEASE_LINES)
        raise UserError("no such generation of NeMo", f"nemo={release}", f"Known: {', '.join(GENERATIONS)} ({known}).")
    wanted = _number(line)
    # Of two that are as near the older one: what is not known yet has happened later.
    return RELEASE_LINES[min(RELEASE_LINES, key=lambda name: (abs(_number(name) - wanted), _number(name)))]


def unlisted(release: str | float) -> str | None:
    """A sentence on a release that is not in the table, which says under what it goes; None for one that is."""
    line = _line(release)
    if line is None or line in RELEASE_LINES:
        return None
    found = f"NeMo {release} is not among the releases that were read ({', '.join(RELEASE_LINES)})"
    return f"{found}: it goes under the nearest generation, {generation_of(release)}, and may differ from it"


def _line(release: str | float) -> str | None:
    found = re.match(r"\d+\.\d+(?=$|[.+]|rc|[ab]\d)", str(release).strip().removeprefix("v"))
    return found[0] if found else None


def _number(line: str) -> int:
    """Lines in their order, such that a whole version is further than any within one."""
    major, minor = line.split(".")
    return 1000 * int(major) + int(minor)


def describe(name: str) -> dict[str, Any]:
    """A generation in plain builtins, for a recording: of each difference its name, what it is, where, and value."""
    values = asdict(generation(name))
    return {
        "name": name,
        "differences": [{"name": f.name, **f.metadata, "value": values[f.name]} for f in fields(Generation)],
    }
