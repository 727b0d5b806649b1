"""A warm Python: programs start in a tenth of a second in place of several, each in a process of its own.

A server has imported torch, Lightning and the trainer, and forks for every program, as multiprocessing's forkserver
does for functions. A program gets the caller's arguments, folder, environment and streams. The caller ends with its
exit code and hands SIGINT and SIGTERM on; where the caller is killed, the program is too. What depends on how Python
itself starts (limits, ignored signals, closed streams, the order of imports) is tested with `sys.executable`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRELOADED = ("torch", "lightning.pytorch", "nest_ssl.run.experiment", "nest_ssl.train.module",
             "nest_ssl.record.lightning", "nest_ssl.compare.ladder", "nest_ssl.report.write", "nest_ssl.cli.main",
             "nest_ssl.cli.train", "warmed:warm_up")  # fmt: skip
CLIENT = """\
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
request = {"words": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
answers = server.makefile()
program = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(program, number))
code = int(answers.readline() or 70)
if code < 0:
    if -code != signal.SIGKILL:  # which has no handler
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def warm_python(folder: Path, preloaded: Iterable[str] = PRELOADED, owner: int | None = None) -> Iterator[str]:
    """The path of an executable that is called as Python is (with a script, or `-m`), while the block runs.

    Where processes cannot be forked it is this Python.

    Args:
        folder: for the executable and its socket; where there is one already, it is taken as it is.
        preloaded: names of the modules that programs find imported, or `module:function` of what is called as well.
        owner: id of the process with which it ends, of all that share the folder; this one when None.
    """
    if sys.platform != "linux":  # on macOS, what has imported its frameworks cannot be forked
        yield sys.executable
        return
    place, executable = folder / "server", folder / "python"
    if executable.exists():
        yield str(executable)
        return
    (folder / "client.py").write_text(CLIENT)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__)), str(place), str(owner or os.getpid()), *preloaded]
    # Python asks once whether its streams can seek, and a program's may not: a pipe for all.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, **pipes) as server:  # type: ignore[call-overload]
        assert server.stdin is not None and server.stdout is not None
        said = list(iter(server.stdout.readline, b"ready\n"))
        assert server.poll() is None, b"".join(said)
        executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" -ISE "{folder}/client.py" "{place}" "$@"\n')
        executable.chmod(0o755)
        yield str(executable)
        if owner in (None, os.getpid()):
            server.terminate()
        else:
            server.returncode = 0  # others may still need it, and it needs no end by this process


def serve(place: str, owner: str, *preloaded: str) -> None:
    """Answer callers until the owner has ended."""
    until = os.pidfd_open(int(owner))
    for name in preloaded:
        module, _, function = name.partition(":")
        imported = importlib.import_module(module)
        if function:
            getattr(imported, function)()
    gc.collect()  # what is imported is no garbage: a program need not look through it, which would also copy it
    gc.freeze()
    os.fsync = lambda _: None  # as in the tests' own process
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen(64)
        print("ready", flush=True)
        children = 0
        while True:
            readable, *_ = select.select([listener, until], [], [])
            while children and os.waitpid(-1, 0 if until in readable else os.WNOHANG)[0]:
                children -= 1
            if until in readable:
                return
            caller, _ = listener.accept()
            children += 1
            if os.fork() == 0:
                listener.close()
                os.close(until)
                _attend(caller)
                os._exit(0)
            caller.close()


def _attend(caller: socket.socket) -> None:
    """Run the caller's program and send its process id and its exit code (minus the signal that killed it)."""
    received, streams, *_ = socket.recv_fds(caller, 1 << 20, 3)
    while not received.endswith(b"\n"):
        received += caller.recv(1 << 20)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    program = os.fork()
    if program == 0:
        caller.close()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os._exit(_run(json.loads(received), streams))
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    caller.sendall(b"%d\n" % program)
    if ended not in select.select([caller, ended], [], [])[0]:
        os.kill(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    caller.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _run(request: dict[str, Any], streams: list[int]) -> int:
    """The program in this process; returns its exit code."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # it was looked up in the server's environment
    for written in (sys.stdout, sys.stderr):  # libraries hold these very objects
        written.reconfigure(encoding=os.environ.get("PYTHONIOENCODING", "utf-8"))  # type: ignore[union-attr]
    first, *words = request["words"]
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    try:
        if first == "-m":
            sys.argv = words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *words]
            sys.path.insert(0, str(Path(first).resolve().parent))
            runpy.run_path(first, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for written in (sys.stdout, sys.stderr):
        written.flush()
    return code


if __name__ == "__main__":
    serve(*sys.argv[1:])
