"""Print what makes a shell complete the verbs and options of nest-ssl.

eval "$(nest-ssl completion bash)"        # in ~/.bashrc; zsh alike, in ~/.zshrc
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import suppress
from contextvars import copy_context

from nest_ssl.base.arguments import LISTED, Parser

SCRIPT = """{head}_nest_ssl() {{
    local words
    case "${{COMP_CWORD}} ${{COMP_WORDS[1]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _nest_ssl nest-ssl
"""
HEADS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code.

    Raises:
        UserError: bad usage.
    """
    from nest_ssl.cli.main import VERBS

    parser = Parser(description=__doc__)
    parser.add_argument("shell", choices=HEADS)
    shell = parser.parse_args(argv).shell
    cases = [f"    '1 '*) words='{' '.join(VERBS)} --help' ;;"]
    for verb in VERBS:
        listed: list[str] = []
        context = copy_context()
        context.run(LISTED.set, listed)
        with suppress(SystemExit, ModuleNotFoundError):  # of an extra that is not installed
            context.run(importlib.import_module(f"nest_ssl.cli.{verb}").main, ["nest"] if verb == "train" else [])
        more = ["nest", "nemo"] if verb == "train" else list(HEADS) if verb == "completion" else []
        cases.append(f"    *' {verb}') words='{' '.join(dict.fromkeys([*more, *listed]))}' ;;")
    print(SCRIPT.format(head=HEADS[shell], cases="\n".join(cases)), end="")
    return 0
