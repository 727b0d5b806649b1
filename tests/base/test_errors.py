"""Mistakes end in one line on stderr and the contract's exit code, never in a traceback, whatever the terminal is."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from nest_ssl.base.errors import InterruptedRun, UserError, from_os_error, run_command, write_errors


def _exit_code(main: object) -> int:
    with pytest.raises(SystemExit) as stop:
        run_command(main)  # type: ignore[arg-type]
    return int(stop.value.code or 0)


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (4, 4)])
def test_the_commands_own_code(returned: int | None, code: int) -> None:
    assert _exit_code(lambda: returned) == code


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(lambda: _raise(UserError("no such\nmanifest", "a.json", "Run make data."))) == 3
    assert capsys.readouterr().err == "error: no such manifest: a.json. Run make data.\n"


def test_what_would_steer_a_terminal_is_escaped() -> None:
    assert str(UserError("no such file", "a\x1b[31m\x07\x00\ud800\u202e日本", "Check it.")) == (
        "no such file: a\\x1b[31m\\x07\\x00\\ud800\\u202e日本. Check it."
    )


def test_an_operating_system_refusal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(lambda: _raise(PermissionError(errno.EACCES, "Permission denied", "/root/x"))) == 3
    assert capsys.readouterr().err.startswith("error: permission denied: /root/x. ")


def test_no_temporary_folder_says_what_to_do() -> None:
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert "Mount a tmpfs at /tmp" in str(from_os_error(error, "input or output"))


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (InterruptedRun(signal.SIGTERM, Path("last.ckpt")), 143)]
)
def test_an_interrupt_is_one_line(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(lambda: _raise(error)) == code
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and ("saved in last.ckpt" if code == 143 else "nothing already") in printed


def test_an_interrupt_that_an_import_made_something_else_of(capsys: pytest.CaptureFixture[str]) -> None:
    def imports() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RecursionError("maximum recursion depth exceeded") from None

    assert _exit_code(imports) == 130
    assert capsys.readouterr().err.startswith("interrupted (SIGINT)")


@pytest.mark.usefixtures("crashes")
def test_an_error_that_is_its_own_cause_ends() -> None:
    error = ZeroDivisionError("x")
    error.__cause__ = error
    assert _exit_code(lambda: _raise(error)) == 70


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), ImportError("no torch"), MemoryError(), SystemExit(1),
                                   SystemExit("no"), OSError("not the system's"), AssertionError("a\nb")])  # fmt: skip
def test_our_own_mistakes_are_70_and_their_traceback_a_file(
    error: BaseException, crashes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(lambda: _raise(error)) == 70
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and type(error).__name__ in printed
    path = Path(re.search(r"traceback: (\S+)$", printed)[1])  # type: ignore[index]
    assert "test_errors.py" in path.read_text() and type(error).__name__ in path.read_text()
    assert list(crashes.iterdir()) == [path]


def test_a_traceback_that_cannot_be_saved(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: _raise(OSError(errno.EROFS, "read-only")))
    assert _exit_code(lambda: _raise(ZeroDivisionError("x"))) == 70
    assert "NEST_SSL_TRACEBACK=1" in capsys.readouterr().err


@pytest.mark.usefixtures("crashes")
@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("x"), 70), (UserError("a", "b", "C."), 3)])
def test_the_traceback_is_shown_on_demand(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEST_SSL_TRACEBACK", "1")
    assert _exit_code(lambda: _raise(error)) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "a file is where a folder has to be"),
        (errno.EEXIST, "something else is in its place: out/x. Remove it, or choose another folder."),
        (errno.EMFILE, "Raise the limit"),
        (errno.EIO, "error"),
    ],
)
def test_what_the_system_refuses(number: int, what: str) -> None:
    assert what in str(from_os_error(OSError(number, "Input/output error"), "out/x"))


@pytest.mark.parametrize(
    "wording",
    ["basic_ios::clear: iostream error", "[enforce fail at inline_container.cc:672] PytorchStreamWriter failed", ""],
)
def test_every_wording_of_a_full_disk_is_one_line(wording: str, tmp_path: Path) -> None:
    """And no disk is called full that was not looked at: what is free there is said."""
    place = tmp_path / "out/x"
    said = rf"could not write \(.*{place}.* [\d,]+ MB are free"
    with pytest.raises(UserError, match=said) as raised, write_errors(str(place)):
        raise RuntimeError(wording)
    assert "full" not in str(raised.value).replace(str(place), "") and (wording or "RuntimeError") in str(raised.value)


def test_what_torch_has_not_implemented_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="aminmax.*Float8.*A tensor is of a kind") as raised, write_errors("out/x"):
        torch.ones(4).to(torch.float8_e4m3fn).aminmax()
    assert "disk" not in str(raised.value)


# --- a process of its own: what happens to its terminal must not change its code

VERDICT = """
    import sys
    sys.path.insert(0, {root!r})
    from nest_ssl.base.errors import run_command
    def main():
        print('report in 日本 ' + 'x' * 200_000)
        print('and a note', file=sys.stderr)
        print('more')
        return {code}
    run_command(main)
"""
ROOT = str(Path(__file__).resolve().parents[2])


@pytest.mark.parametrize("code", [0, 4])
@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "| head -c 1", "2>&1 | true", ">/dev/full", "2>/dev/full", ""])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_the_terminal_does_not_change_the_code(code: int, shell: str, encoding: str) -> None:
    script = textwrap.dedent(VERDICT.format(root=ROOT, code=code))
    command = f'"$0" -c "$1" {shell} ; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(["bash", "-c", command, sys.executable, script], capture_output=True, env=environment)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    if not shell and encoding == "ascii":
        assert b"\\u65e5\\u672c" in done.stdout and b"more" in done.stdout


def test_a_closed_stdout_is_not_the_next_file(tmp_path: Path) -> None:
    script = VERDICT.replace("print('more')", "f = open(sys.argv[1], 'w'); os.write(1, b'stray'); f.close()")
    script = "import os\n" + textwrap.dedent(script.format(root=ROOT, code=0))
    command = ["bash", "-c", '"$0" -c "$1" "$2" >&-', sys.executable, script, str(tmp_path / "f")]
    assert subprocess.run(command).returncode == 0
    assert (tmp_path / "f").read_text() == ""


def test_ctrl_c_while_modules_are_imported(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("print('importing', flush=True)\nimport time; time.sleep(60)\n")
    script = "import sys; sys.path[:0] = sys.argv[1:]\nfrom nest_ssl.base.errors import run_command\n"
    script += "def main():\n    import slow\nrun_command(main)"
    process = subprocess.Popen(
        [sys.executable, "-c", script, ROOT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == 130 and printed == "interrupted (SIGINT); nothing already written was lost\n"


def test_an_error_raised_from_itself_ends_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        error = UserError("damaged", "a file", "Copy it again.")
        raise error from error

    with pytest.raises(SystemExit, match="3"):
        run_command(fail)
    assert capsys.readouterr().err == "error: damaged: a file. Copy it again.\n"
