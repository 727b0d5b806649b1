"""A user's mistake in one line: what went wrong, where, and what to do; and the exit codes of every command.

Every command ends through `run_command`, so bad input never shows a traceback. Exit codes are the project's contract:
0 done (or identical/equivalent), 1 diverged, 2 inconclusive, 3 bad usage or damaged input, 4 the contract differs,
70 our own mistake, 128 + n stopped by signal n. Whatever happens to the terminal changes none of them.

Only the standard library is imported here: a command must be able to report that an import fails.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

EXIT_OK = 0
EXIT_DIVERGED = 1
EXIT_INCONCLUSIVE = 2
EXIT_BAD_INPUT = 3
EXIT_CONTRACT_DIFFERS = 4
EXIT_CRASHED = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 would mean diverged
EXIT_SIGNAL = 128  # and the signal's number, as shells have it


def visible(text: str) -> str:
    """`text` with what would steer a terminal, break a line or turn the direction of writing shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
        return visible(" ".join(f"{self.what}: {self.where}. {self.fix}".split()))


class InterruptedRun(Exception):
    """A signal stopped the run before it was done.

    Args:
        signal_number: which.
        saved: the checkpoint that training can be resumed from; None where none was written.
    """

    def __init__(self, signal_number: int, saved: Path | None = None) -> None:
        super().__init__(signal_number, saved)
        self.signal_number, self.saved = signal_number, saved

    def __str__(self) -> str:
        kept = f"training is saved in {self.saved}" if self.saved else "nothing already written was lost"
        return f"interrupted ({signal.Signals(self.signal_number).name}); {kept}"


_FIXES = {
    errno.ENOSPC: ("no space left on the disk", "Free some space or choose another output_dir."),
    errno.EDQUOT: ("disk quota exceeded", "Free some space or choose another output_dir."),
    errno.EACCES: ("permission denied", "Choose a folder you may write to, or change its permissions."),
    errno.EPERM: ("permission denied", "Choose a folder you may write to, or change its permissions."),
    errno.EROFS: ("read-only file system", "Choose an output_dir on a writable disk."),
    errno.ENOENT: ("no such file or folder", "Check the path."),
    errno.ENOTDIR: ("a file is where a folder has to be", "Choose another folder."),
    errno.EEXIST: ("something else is in its place", "Remove it, or choose another folder."),
    errno.EMFILE: ("too many open files", "Raise the limit (ulimit -n)."),
}


def from_os_error(error: OSError, where: str) -> UserError:
    """The one-line form of what an operating system refuses when we write or read."""
    if "No usable temporary directory" in str(error):
        return UserError("no usable temporary folder", tempfile.tempdir or "TMPDIR", "Mount a tmpfs at /tmp.")
    what, fix = _FIXES.get(error.errno or 0, (error.strerror or str(error), "Check the path and the disk."))
    return UserError(what, where, fix)


@contextmanager
def write_errors(where: str) -> Iterator[None]:
    """Turns what goes wrong while writing to `where`, a full disk above all, into one line.

    Raises:
        UserError: the operating system refuses, or torch does: its file writer reports what the system refuses, a full
            disk for one, as a RuntimeError in several wordings. So every RuntimeError counts; its own words are kept,
            and how much is free then is said, for that is all that is known. What torch has not implemented is a
            tensor's kind and no disk.
    """
    try:
        yield
    except OSError as error:
        raise from_os_error(error, where) from error
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, NotImplementedError):
            fix = "A tensor is of a kind that torch cannot do this with; leave out its module (exclude=...)."
            raise UserError(f"could not be recorded or written ({reason})", where, fix) from error
        place, known = Path(where).absolute(), ""
        with suppress(OSError, ValueError, StopIteration):  # what was half written may have been removed by now
            found = next(folder for folder in (place, *place.parents) if folder.exists())
            known = f" {shutil.disk_usage(found).free / 1e6:,.0f} MB are free there now."
        fix = f"If that is about the file, check the path and the disk.{known} If about a tensor, leave its module out."
        raise UserError(f"could not write ({reason})", where, fix) from error


# Packages that only an extra of pyproject.toml brings, by the names that are imported.
OF_TRAIN = "lightning hydra omegaconf librosa soundfile jaxtyping deepdiff tensorboard tqdm packaging"
EXTRAS = {
    **dict.fromkeys(OF_TRAIN.split(), "train"),
    **dict.fromkeys(("onnx", "onnxruntime"), "onnx"),
    "wandb": "wandb",
    "cryptography": "sign",
}


def run_command(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and end the process with its exit code; mistakes become one line on stderr.

    `main` should import what takes long itself, so that Ctrl-C meanwhile and a broken package are reported like
    anything else.
    """
    _keep_writing()
    try:
        code = main() or EXIT_OK
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001
        code, line = _describe(error)
        if code in (EXIT_BAD_INPUT, EXIT_CRASHED) and os.environ.get("NEST_SSL_TRACEBACK"):  # to hunt a message itself
            traceback.print_exception(error)
        print(line, end="\n" if line else "", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)


def _describe(error: BaseException) -> tuple[int, str]:
    """Exit code, and the line to print."""
    if isinstance(error, SystemExit) and error.code in (None, EXIT_OK):  # --help
        return EXIT_OK, ""
    if isinstance(error, InterruptedRun):
        return EXIT_SIGNAL + error.signal_number, str(error)
    if any(isinstance(cause, KeyboardInterrupt) for cause in _chain(error)):  # an import may make anything of it
        return EXIT_SIGNAL + signal.SIGINT, str(InterruptedRun(signal.SIGINT))
    if isinstance(error, OSError) and error.errno is not None:
        error = from_os_error(error, str(error.filename or "input or output"))
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("nest_ssl"):
        package = error.name.partition(".")[0]
        wanted = f"'nest_ssl[{EXTRAS[package]}]'" if package in EXTRAS else package
        fix = f"{sys.executable} -m pip install {wanted}"
        error = UserError("a package is not installed that this needs", package, fix)
    if isinstance(error, UserError):
        return EXIT_BAD_INPUT, f"error: {error}"
    text = "".join(traceback.format_exception(error))
    try:
        handle, path = tempfile.mkstemp(prefix="nest-ssl-crash-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
        where = f"Please report it with its traceback: {path}"
    except OSError:
        where = "Its traceback could not be saved; set NEST_SSL_TRACEBACK=1 to see it."
    message = visible(" ".join(str(error)[:200].split())) or "no message"
    return EXIT_CRASHED, f"crash: {type(error).__name__}, which this program did not expect: {message}. {where}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()  # a chain may lead back to itself
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class _Tolerant(io.FileIO):
    """A stream that drops what cannot be written: a reader that has gone must not change the exit code."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _keep_writing() -> None:
    """Make stdout and stderr take anything: closed (``>&-``), a pipe without a reader, a terminal without Unicode."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed: take the number, or the next file opened would be written to by every print
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):  # not one of pytest's
            stream.flush()
            buffered = io.BufferedWriter(_Tolerant(number, "w", closefd=False))
            buffering = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, io.TextIOWrapper(buffered, stream.encoding, "backslashreplace", **buffering))
