"""What was found, part by part, as one JSON file: a part that runs again replaces what it found before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import write_atomically


class Machine(BaseModel):
    """Where a part ran."""

    model_config = ConfigDict(extra="forbid")

    card: str
    driver: str | None
    cuda: str | None
    cudnn: int | None
    torch: str
    numpy: str
    python: str
    cores: int | None
    commit: str | None


class Part(BaseModel):
    """What a part found, when and where.

    Args:
        rows: plain values, each with a `name`; those of a row that could not be had are in its `error`.
        remark: what a person has to say about what was found, shown above it; a part that runs again has none.
        tried: when it was to run again since, and why that gave nothing.
    """

    model_config = ConfigDict(extra="forbid")

    machine: Machine
    day: str
    seconds: float
    command: str
    rows: list[dict[str, Any]]
    remark: str = ""
    tried: str = ""


class Results(BaseModel):
    """All parts."""

    model_config = ConfigDict(extra="forbid")

    schema_name: Literal["nest-ssl-gpu/1"] = Field("nest-ssl-gpu/1", alias="schema")
    parts: dict[str, Part] = {}

    def save(self, path: Path) -> None:
        write_atomically(path, self.model_dump_json(by_alias=True, indent=1) + "\n")


def load_results(path: Path) -> Results:
    """What is in the file; nothing where there is none. What its rows hold is known by the page alone.

    Raises:
        UserError: it is something else.
    """
    if not path.exists():
        return Results()  # type: ignore[call-arg]
    try:
        return Results.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise foreign_results(path) from error


def foreign_results(path: Path) -> UserError:
    """The error that says so."""
    return UserError("not results of this command", str(path), "Name another file with --results, or delete it.")
