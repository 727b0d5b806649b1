"""Mistakes end in one line on stderr and the contract's exit code, never in a traceback."""

from __future__ import annotations

import errno

import pytest

from nest_ssl.base.errors import UserError, from_os_error, run_command


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


def test_an_operating_system_refusal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(lambda: _raise(PermissionError(errno.EACCES, "Permission denied", "/root/x"))) == 3
    assert capsys.readouterr().err.startswith("error: permission denied: /root/x. ")


def test_an_interrupt_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(lambda: _raise(KeyboardInterrupt())) == 130
    assert "nothing already written was lost" in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("number", "what"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "read-only"), (errno.EIO, "error")]
)
def test_what_the_system_refuses(number: int, what: str) -> None:
    assert what in str(from_os_error(OSError(number, "Input/output error"), "out/x"))
