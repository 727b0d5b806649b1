"""The index of a recording, `recording.json`, and its other files of plain facts: typed, and validated when opened.

Field names are a contract. Everything above reads attributes; nothing above asks whether a field is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nest_ssl.base.renaming import COMPILED

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{1,128}$")]  # of whatever kind another trainer takes
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
StateDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
FileName = Annotated[
    str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*){0,3}$", max_length=200)
]  # below the recording's folder
Count = Annotated[int, Field(ge=0, lt=2**63)]
WorldSize = Annotated[int, Field(ge=1, le=1_000_000)]
Boundary = Literal["batch_ready", "forward_done", "backward_done", "step_done"]
Generators = dict[str, StateDigest]  # of each generator its state
Scalar = str | int | float | bool | None


class _Strict(BaseModel):
    """No conversion between types, no unknown key, no change once read."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Trainer(_Strict):
    name: str
    package: str
    version: str
    model_class: str = Field(alias="class")


class Host(_Strict):
    system: str = ""
    release: str = ""
    machine: str = ""
    processor: str = ""
    cpu_capability: str = ""
    cores: int | None = None


class Threads(_Strict):
    torch: int | None = None
    interop: int | None = None
    OMP_NUM_THREADS: str = ""


class Cuda(_Strict):
    runtime: str | None = None
    cudnn: int | None = None
    devices: Count = 0
    gpus: list[str] = []
    driver: str | None = None


class Device(_Strict):
    type: str = ""
    name: str = ""
    index: Count | None = None


DEVICES = ("cpu", "cuda", "mps", "xpu")  # kinds, as torch spells them


def of_another_kind(one: str, other: str) -> bool:
    """Whether these are two kinds of device for certain: what is not said, or not known, excuses nothing."""
    return one != other and one in DEVICES and other in DEVICES


class Git(_Strict):
    commit: str | None = None
    dirty: bool | None = None


class Source(_Strict):
    """The file that a module's class came from, below its package."""

    file: str
    sha256: Sha256


class NamedDifference(_Strict):
    """One named difference of a generation of NeMo, see `nest_ssl.releases`."""

    name: str
    what: str
    where: str
    value: Scalar


class Generation(_Strict):
    name: str
    differences: list[NamedDifference] = []


class Manifest(_Strict):
    name: str
    sha256: Hash | None


class DataSection(_Strict):
    """The files of one section of the data, hashed as they were read; None for one that could not be.

    `content` is one hash over what is read, in order, independent of names and folders. `changed` names files that were
    others when the run ended.
    """

    manifests: list[Manifest] = []
    audio: dict[str, Hash | None] = {}
    audio_hash: Literal["full", "sampled"] = "full"
    content: Hash | None = None
    changed: list[str] = []
    noise: DataSection | None = None


class SkippedFile(_Strict):
    audio: str | list[str]
    manifest: str
    line: Count
    reason: str


class Skipped(_Strict):
    """Audio that could not be used and was left out (`bad_audio=skip`)."""

    utterances: Count
    files: list[SkippedFile]


class Data(_Strict):
    train: DataSection | None = None
    validation: DataSection | None = None
    skipped: Skipped | None = None


class ResumedFrom(_Strict):
    checkpoint: str
    batches: Count
    steps: Count


class Step(_Strict):
    epoch: Count
    batch: Count
    optimizer_stepped: bool
    calls: Count


class DrawEntry(_Strict):
    """What one stage drew from one generator.

    `phase` is a `Phase` by its name in lower case, or ``training_step`` (before the model's forward) or ``loss`` (after
    it). `event` is how many starts and ends of calls came before the draw was complete. `draws` counts 32-bit words.
    """

    phase: str = Field(pattern=r"^[a-z_]+$")
    module: str | None = None
    call: Count | None = None
    index: Count | None = None  # of the call in `layer_outputs.pkl`
    event: Count
    generator: str
    draws: Count | None
    before: StateDigest
    after: StateDigest


class StepRandom(_Strict):
    """`rng.json` of a step: states of generators at its boundaries, and who drew; None where no account was kept.

    `fetch` are the states from which the batch was made.
    """

    states: dict[Boundary, Generators]
    fetch: Generators | None = None
    loader_workers: Count | None = None
    ledger: list[DrawEntry] | None = None


class Scheduler(_Strict):
    """A learning-rate schedule after a step: its class and what it says of itself, in plain values."""

    scheduler_class: str = Field(alias="class")
    state: dict[str, Any]


class StepFacts(_Strict):
    """`facts.json` of a step.

    Args:
        training: modules whose mode at the start of the step was not that of `model_structure.pkl`, and this mode.
        gradients_before: of each trained parameter what its ``.grad`` held when backward began: None, ``"zero"``, or
            the digest of what was there; None as a whole where backward never began.
        shared: fields of the batch, by their paths, that lie in the same memory, in groups.
        edited: fields of the batch that were others at the end of the forward.
        schedulers: as the step left them.
    """

    training: dict[str, bool] = {}
    gradients_before: dict[str, Literal["zero"] | Sha256 | None] | None = None
    shared: list[list[str]] = []
    edited: list[str] = []
    schedulers: list[Scheduler] = []


class TensorEntry(_Strict):
    shape: list[Count]
    dtype: str
    digest: Sha256


class FileEntry(_Strict):
    bytes: Count
    sha256: Sha256


class ModuleEntry(_Strict):
    name: str
    module_class: str = Field(alias="class")
    training: bool


class ParameterEntry(_Strict):
    name: str
    shape: list[Count]
    dtype: str
    requires_grad: bool


class BufferEntry(_Strict):
    name: str
    shape: list[Count]
    dtype: str
    persistent: bool


class Structure(_Strict):
    """`model_structure.pkl`. The root module has the empty name.

    `shared` are names of parameters and buffers that lie in the same memory, in groups; None: not recorded.
    """

    modules: list[ModuleEntry] = []
    parameters: list[ParameterEntry] = []
    buffers: list[BufferEntry] = []
    shared: list[list[str]] | None = None


class Level(_Strict):
    record: Literal["digest", "operators", "boundaries", "modules"]
    include: list[str] = []
    exclude: list[str] = []

    def chosen(self, names: Sequence[str], lists: Collection[str]) -> frozenset[str] | None:
        """Which of these modules have their calls recorded, besides the model's own; None: all.

        What torch.compile wraps goes by its own name as well, without the wrapper's.

        Args:
            lists: those of them that are an `nn.ModuleList`.
        """
        if self.record != "boundaries" and not self.include and not self.exclude:
            return None
        plain = {name: ".".join(part for part in name.split(".") if part != COMPILED) for name in names}
        blocks = {plain[name] for name in lists}

        def fits(name: str, patterns: Sequence[str]) -> bool:
            return any(fnmatchcase(each, pattern) for each in (name, plain[name]) for pattern in patterns)

        found = list(names)
        if self.include:
            found = [name for name in found if fits(name, self.include)]
        elif self.record == "boundaries":
            found = [n for n in found if "." not in plain[n] or plain[n].rpartition(".")[0] in blocks]
        return frozenset(name for name in found if not fits(name, self.exclude))


class Index(_Strict):
    """`recording.json`. What is not known has the default.

    `weights_at_end` are digests of parameters and buffers when training ended, behind the last validation.
    """

    schema_name: Literal["nest-ssl-recording/1", "nest-ssl-recording/2"] = Field(alias="schema")
    trainer: Trainer
    imported: list[str] | None = None  # of what was no recorder's: what it has, see `importing`
    level: Level | None = None  # of what is recorded of a step; None: of all
    created: str = ""
    command: list[str] = []
    make_command: str | None = None
    duration_s: float = 0
    seed: Scalar = None
    world_size: WorldSize = 1
    rank: Count | None = None  # which of several processes this is the recording of, see `ranks`
    generation: Generation | None = None
    init_from: dict[str, Sha256 | None] = {}
    resumed_from: ResumedFrom | None = None
    data: Data = Data()
    flags: dict[str, Scalar] = {}
    weights_at_end: dict[str, Sha256] = {}
    python: str = ""
    packages: dict[str, str] = {}
    sources: dict[str, Source] = {}
    git: Git = Git()
    container: dict[str, Scalar | dict[str, Scalar]] | None = None
    host: Host = Host()
    device: Device = Device()
    cuda: Cuda = Cuda()
    threads: Threads = Threads()
    environment: dict[str, str] = {}
    steps: dict[Count, Step] = {}
    calls: dict[Count, list[str]] = {}  # of each step, ``module#call`` in the order of their starts
    rng: dict[str, Generators] = {}  # at moments before the steps
    ledger: list[DrawEntry] | None = None  # of what is drawn before the steps
    tensors: dict[FileName, dict[str, TensorEntry]] = {}
    files: dict[FileName, FileEntry]
    sha256: Sha256 | None = None  # of the rest, see `sealed`


class RankEntry(_Strict):
    """The folder of one rank's recording, and the hash of its `recording.json`."""

    folder: FileName
    sha256: Sha256


class Ranks(_Strict):
    """`ranks.json`: the recordings of all processes of one run, by rank."""

    schema_name: Literal["nest-ssl-ranks/1"] = Field(alias="schema")
    world_size: WorldSize
    ranks: list[RankEntry]
    sha256: Sha256 | None = None  # of the rest, see `sealed`


def canonical(index: Mapping[str, Any]) -> bytes:
    """The index without its own checksum, as bytes that do not depend on how it is laid out."""
    rest = {key: value for key, value in index.items() if key != "sha256"}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()


def sealed(index: Mapping[str, Any]) -> dict[str, Any]:
    """The index with its checksum as the last key."""
    content = canonical(index)
    return {**{k: v for k, v in index.items() if k != "sha256"}, "sha256": hashlib.sha256(content).hexdigest()}
