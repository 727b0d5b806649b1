"""Whatever is wrong with a file of a recording is one line that names the file, and the field where it is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from nest_ssl.base.errors import UserError
from nest_ssl.base.safe_load import READER_ERRORS, first_line

DAMAGED = "damaged recording"
AGAIN = "record it again (make nemo, make nest)."
RERUN = f"Copy it again, or {AGAIN}"
MOST_TEXT = 1 << 28  # bytes of a file that is read as a whole


def read_bytes(path: Path) -> bytes:
    if path.stat().st_size > MOST_TEXT:
        raise ValueError(f"more than {MOST_TEXT:,} bytes")
    return path.read_bytes()


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Whatever goes wrong while `path` is read is damage of it, in one line."""
    try:
        yield
    except UserError as error:
        if error.fix.endswith(AGAIN):
            raise
        raise UserError(DAMAGED, f"{path}: {error.what}", RERUN) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(DAMAGED, f"{path}: {where}: {first['msg']}", RERUN) from error
    except (OSError, *READER_ERRORS) as error:
        raise UserError(DAMAGED, f"{path}: {first_line(error)}", RERUN) from error
