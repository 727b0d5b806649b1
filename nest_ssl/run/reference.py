"""Which NeMo a run is to be exact with: `nemo=` names its generation, a release, or the recording of a NeMo trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.recording import layout
from nest_ssl.releases import generation_of


def reference_generation(nemo: Any) -> str:
    """The generation's name, a key of `releases.GENERATIONS`.

    Args:
        nemo: a generation or release (`2.7`, `"2.7"`, `"2.7.3"`; a number too, as Hydra reads `nemo=2.7`), or the
            folder of a recording, which says the release that it was made with.

    Raises:
        UserError: neither, or a recording that does not say.
    """
    if not (isinstance(nemo, str) and (Path(nemo).is_dir() or "/" in nemo or "\\" in nemo)):
        return generation_of(nemo)
    folder = Path(nemo).expanduser()
    several = (folder / layout.RANKS).is_file()  # all ranks are of one release
    index = (folder / layout.rank_folder(0) if several else folder) / layout.INDEX
    fix = "Give nemo= the folder of a finished recording, or a release like 2.7.3."
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        if "generation" in content:
            return generation_of(content["generation"]["name"])
        if content["trainer"]["package"] == "nemo_toolkit":
            return generation_of(content["trainer"]["version"])
    except FileNotFoundError as error:
        where = f"nemo={nemo} has no {layout.INDEX}"
        raise UserError("no recording to take NeMo's release from", where, fix) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # it does not say
    raise UserError("a recording that does not say NeMo's release", str(index), fix)
