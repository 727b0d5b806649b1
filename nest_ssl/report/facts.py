"""What was trained and how to do it again, read from the provenance of the two recordings."""

from __future__ import annotations

import shlex
from typing import Any

from nest_ssl.compare.result import Comparison, LossAccount, Side
from nest_ssl.report.wording import counted

_MAKE = {
    "nemo": "NEMO_VERSION",
    "size": "SIZE",
    "run": "RUN",
    "seed": "SEED",
    "save_steps": "STEPS",
    "batches": "BATCHES",
}
_MAKE_DEFAULTS = {"nemo": "3.0.0", "run": "quick"}
_PLACES = ("output_dir", "overwrite")
_DEVICE = "trainer.accelerator"


def overview(comparison: Comparison) -> str:
    """``Large (113,106,000 parameters), 2 x 3.0 s, cpu, 1 thread, torch 2.13.0 on both sides.``"""
    size = overrides(comparison.reference).get("size", "")
    count = comparison.facts.parameters
    model = f"{count:,} parameters" if count is not None else ""
    parts = [f"{size.capitalize()} ({model})" if size and model else model, comparison.facts.batch]
    parts += [_both(comparison, _device), _both(comparison, _threads)]
    line = ", ".join(part for part in parts if part)
    torch = [_torch(side) for side in (comparison.reference, comparison.candidate)]
    if torch[0] == torch[1]:
        return f"{line}, {torch[0]} on both sides."
    return f"{line}, {torch[0]} against {torch[1]}."


def loss_line(comparison: Comparison) -> str:
    """``Loss over 182 masked frames, 21 of 76 tokens counted.``; empty where the recordings do not allow it."""
    accounts = [account for account in comparison.losses if account.masked_frames and account.counted_tokens]
    if not accounts:
        return ""
    first = accounts[0]
    at = f" at step {first.step}" if len(comparison.losses) > 1 else ""
    return f"Loss{at} over {_pair(first.masked_frames)} masked frames, {_counted(first)} tokens counted." + (
        f" {first.note}" if first.note else ""
    )


def reproduce(comparison: Comparison) -> list[str]:
    """The commands that make this comparison again."""
    ours, theirs = comparison.reference, comparison.candidate
    make = _make_command(ours, theirs)
    if make:
        return [make]
    commands = [_command(side) for side in (ours, theirs)]
    compare = shlex.join(["python", "scripts/compare_outputs.py", "--reference", ours.path, "--candidate", theirs.path])
    return [command for command in [*commands, compare] if command]


def at_commit(comparison: Comparison) -> str:
    """`` at commit 1a2b3c4``, where both sides were run from one."""
    gits = [side.index.get("git") or {} for side in (comparison.reference, comparison.candidate)]
    commits = {git.get("commit") for git in gits}
    commit = commits.pop() if len(commits) == 1 else None
    if not commit:
        return ""
    return f" at commit {commit[:7]}" + (" with local changes" if any(git.get("dirty") for git in gits) else "")


def overrides(side: Side) -> dict[str, str]:
    """The `key=value` arguments of the command that made a recording."""
    arguments = [str(argument).lstrip("+") for argument in side.index.get("command") or []]
    pairs = [argument.partition("=") for argument in arguments if "=" in argument and not argument.startswith("-")]
    return {key: value for key, _, value in pairs}


def _make_command(ours: Side, theirs: Side) -> str:
    names = {side.index["trainer"].get("name"): overrides(side) for side in (ours, theirs)}
    if set(names) != {"nemo", "nest"} or any("size" not in given for given in names.values()):
        return ""
    if any(argument.startswith("-") for side in (ours, theirs) for argument in side.index.get("command") or []):
        return ""  # another config file
    shared = {key: value for key, value in names["nemo"].items() if names["nest"].get(key) == value}
    words = [f"{_MAKE[key]}={shlex.quote(shared[key])}" for key in _MAKE if _shown(key, shared)]
    words += [f"DEVICE={shared[_DEVICE]}"] if shared.get(_DEVICE, "auto") != "auto" else []
    known = {*_MAKE, *_PLACES, _DEVICE}
    extra = {"ARGS": {key: value for key, value in shared.items() if key not in known}}
    for name, given in names.items():
        rest = {key: value for key, value in given.items() if key not in shared and key not in _PLACES}
        extra[f"{str(name).upper()}_ARGS"] = rest
    words += [f"{key}={shlex.quote(_words(given))}" for key, given in extra.items() if given]
    return " ".join(["make align", *words])


def _shown(key: str, shared: dict[str, str]) -> bool:
    return key in shared and shared[key] != _MAKE_DEFAULTS.get(key)


def _words(given: dict[str, str]) -> str:
    return " ".join(shlex.quote(f"{key}={value}") for key, value in given.items())


def _command(side: Side) -> str:
    command = [str(word) for word in side.index.get("command") or []]
    return shlex.join(["python", f"scripts/{command[0]}", *command[1:]]) if command else ""


def _both(comparison: Comparison, read: Any) -> str:
    ours, theirs = read(comparison.reference), read(comparison.candidate)
    return ours if ours == theirs else f"{ours or 'unknown'} against {theirs or 'unknown'}"


def _device(side: Side) -> str:
    device = side.index.get("device") or {}
    kind = str(device.get("type") or "")
    return kind if kind in ("", "cpu") else f"{kind} ({device.get('name')})"


def _threads(side: Side) -> str:
    threads = (side.index.get("threads") or {}).get("torch")
    return counted(threads, "thread") if isinstance(threads, int) else ""


def _torch(side: Side) -> str:
    return f"torch {(side.index.get('packages') or {}).get('torch', 'unknown')}"


def _pair(pair: tuple[int, int] | None) -> str:
    assert pair is not None
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} against {pair[1]:,}"


def _counted(account: LossAccount) -> str:
    return f"{_pair(account.counted_tokens)} of {account.tokens or 0:,}"
