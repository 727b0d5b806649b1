"""Which NeMo a run is to be exact with: `nemo=` names its generation, a release, or the recording of a NeMo trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.releases import generation_of

INDEX = "recording.json"


def reference_generation(nemo: Any) -> str:
    """The generation's name, a key of `generations.GENERATIONS`.

    Args:
        nemo: a generation or release (`2.7`, `"2.7"`, `"2.7.3"`; a number too, as Hydra reads `nemo=2.7`), or the
            folder of a recording, which tells the release that it was made with.

    Raises:
        UserError: neither, or a recording that does not tell.
    """
    if isinstance(nemo, str) and (Path(nemo).is_dir() or "/" in nemo or "\\" in nemo):
        return _recorded(Path(nemo))
    return generation_of(nemo)


def _recorded(folder: Path) -> str:
    index = folder / INDEX
    fix = "Give nemo= the folder of a finished recording, or a release like 2.7.3."
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        return generation_of(content["generation"]["name"] if "generation" in content else _release(content["trainer"]))
    except FileNotFoundError as error:
        raise UserError("no recording to take NeMo's release from", f"nemo={folder} has no {INDEX}", fix) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("a recording that does not tell NeMo's release", str(index), fix) from error


def _release(trainer: dict[str, Any]) -> str:
    if trainer["package"] != "nemo_toolkit":
        raise KeyError(trainer["package"])
    return trainer["version"]
