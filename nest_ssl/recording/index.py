"""The index of a recording, `recording.json`: typed, and validated once when it is opened.

Field names are a contract. Everything above reads attributes; nothing above asks whether a field is there.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
StateDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0)]
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
    sha256: Sha256 | None


class DataSection(_Strict):
    """The files of one section of the data, hashed as they were read."""

    manifests: list[Manifest] = []
    audio: dict[str, Sha256 | None] = {}
    noise: dict[str, Sha256 | None] = {}
    audio_hash: str = "full"
    changed: list[str] = []  # files that changed while the run went on


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

    phase: str
    module: str | None = None
    call: Count | None = None
    index: Count | None = None  # of the call in `layer_outputs.pkl`
    event: Count
    generator: str
    draws: Count | None
    before: StateDigest
    after: StateDigest


class TensorEntry(_Strict):
    shape: list[Count]
    dtype: str
    digest: Sha256


class FileEntry(_Strict):
    bytes: Count
    sha256: Sha256
