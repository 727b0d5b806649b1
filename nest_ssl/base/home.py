"""Where the files beside the package are: `conf/`, `data/` and `scripts/`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_SHIPPED = _PACKAGE / "shipped"  # in a wheel; scripts/backend.py puts them there
INSTALLED = _SHIPPED.is_dir()
ROOT = _SHIPPED if INSTALLED else _PACKAGE.parent
# Where something is written by default: in a checkout beside them, else wherever the user is.
WORK = Path() if INSTALLED else ROOT
