"""A user's mistake, told in one line: what went wrong, where, and what to do.

Every command ends through `run_command`, so bad input never shows a traceback. Exit codes are the project's contract:
0 done (or identical/equivalent), 1 diverged, 2 inconclusive, 3 bad usage or damaged input, 4 the contract differs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_OK = 0
EXIT_DIVERGED = 1
EXIT_INCONCLUSIVE = 2
EXIT_BAD_INPUT = 3
EXIT_CONTRACT_DIFFERS = 4
EXIT_SIGNAL = 128  # and the signal's number, as shells have it


class UserError(Exception):
    """Something the user can mend.

    Args:
        what: what is wrong, e.g. ``"no such manifest"``.
        where: the file, line, key or option it is wrong in.
        fix: what to do about it.
    """

    def __init__(self, what: str, where: str, fix: str) -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        line = f"{self.what}: {self.where}. {self.fix}"
        return " ".join(line.split())


class InterruptedRun(Exception):
    """A signal stopped the run before it was done.

    Args:
        signal_number: which.
        saved: the checkpoint that training can be resumed from; None where none was written.
    """

    def __init__(self, signal_number: int, saved: Path | None = None) -> None:
        super().__init__(signal_number, saved)
        self.signal_number, self.saved = signal_number, saved


def from_os_error(error: OSError, where: str) -> UserError:
    """The one-line form of what an operating system refuses when we write or read."""
    fixes = {
        errno.ENOSPC: ("no space left on the disk", "Free some space or choose another output_dir."),
        errno.EDQUOT: ("disk quota exceeded", "Free some space or choose another output_dir."),
        errno.EACCES: ("permission denied", "Choose a folder you may write to, or change its permissions."),
        errno.EPERM: ("permission denied", "Choose a folder you may write to, or change its permissions."),
        errno.EROFS: ("read-only file system", "Choose an output_dir on a writable disk."),
        errno.ENOENT: ("no such file or folder", "Check the path."),
    }
    what, fix = fixes.get(error.errno or 0, (error.strerror or str(error), "Check the path and the disk."))
    return UserError(what, where, fix)


@contextmanager
def told_as_user_error(where: str) -> Iterator[None]:
    """What goes wrong while writing to `where`, a full disk above all, is told in one line.

    Raises:
        UserError: the operating system refuses; torch's own file writer says so with a RuntimeError.
    """
    try:
        yield
    except OSError as error:
        raise from_os_error(error, where) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error) or "enforce fail" in str(error):
            raise UserError(
                "could not write (is the disk full?)", where, "Free some space or choose another disk."
            ) from error
        raise


def run_command(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and end the process with its exit code; mistakes become one line on stderr."""
    try:
        code = main() or EXIT_OK
    except UserError as error:
        code = _tell(error)
    except OSError as error:
        code = _tell(from_os_error(error, str(error.filename or "input or output")))
    except KeyboardInterrupt:
        code = _tell_interrupt(InterruptedRun(signal.SIGINT))
    except InterruptedRun as stop:
        code = _tell_interrupt(stop)
    _flush_stdout()
    sys.exit(code)


def _tell_interrupt(stop: InterruptedRun) -> int:
    name = signal.Signals(stop.signal_number).name
    kept = f"training is saved in {stop.saved}" if stop.saved else "nothing already written was lost"
    print(f"interrupted ({name}); {kept}", file=sys.stderr)
    return EXIT_SIGNAL + stop.signal_number


def _flush_stdout() -> None:
    """A reader that has gone (`... | head`) must not turn the exit code into Python's own 1, which means diverged."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(error: UserError) -> int:
    if os.environ.get("NEST_SSL_TRACEBACK"):  # for us, when an error message itself has to be hunted
        raise error
    print(f"error: {error}", file=sys.stderr)
    return EXIT_BAD_INPUT
