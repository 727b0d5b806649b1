"""The build backend: flit's, and a wheel also holds `conf/`, `data/` and `scripts/`, as `nest_ssl/shipped/`.

`pip wheel .` and `pip install .` call it; an editable install (`make setup`) needs nothing of it, for the folders are
there. Names are those of PEP 517 and PEP 660.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from flit_core import buildapi

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("conf/**/*.yaml", "data/*.sha256", "data/README.md", "scripts/train_*.py")

build_editable = buildapi.build_editable
build_sdist = buildapi.build_sdist
get_requires_for_build_editable = buildapi.get_requires_for_build_editable
get_requires_for_build_sdist = buildapi.get_requires_for_build_sdist
get_requires_for_build_wheel = buildapi.get_requires_for_build_wheel
prepare_metadata_for_build_editable = buildapi.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = buildapi.prepare_metadata_for_build_wheel


def build_wheel(folder: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build the wheel into `folder` from a copy of the package with what it ships; returns its name."""
    into, here = os.path.abspath(folder), os.getcwd()
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary)
        for name in ("pyproject.toml", "LICENSE", "README.md"):
            shutil.copy(ROOT / name, copy)
        shutil.copytree(ROOT / "nest_ssl", copy / "nest_ssl", ignore=shutil.ignore_patterns("__pycache__"))
        for path in (path for pattern in SHIPPED for path in ROOT.glob(pattern)):
            target = copy / "nest_ssl" / "shipped" / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        os.chdir(copy)
        try:
            return str(buildapi.build_wheel(into, config_settings, metadata_directory))
        finally:
            os.chdir(here)
