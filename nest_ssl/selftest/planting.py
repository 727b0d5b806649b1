"""Edits of the port's source, put into the functions of a running process; nothing on disk is changed.

A module is compiled again from the edited text, and each of its functions is given the code that it has there: whoever
imported a function or a class before has the edited one. Constants of a module or a class are set again.
"""

from __future__ import annotations

import ast
import importlib
import linecache
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.selftest.cases import Edit

PACKAGE = Path(__file__).resolve().parents[1]
PORT = ("data", "model", "train", "config")  # what may be edited: never what compares


def plant(edits: Sequence[Edit]) -> None:
    """Make the edits in this process; they stay in it.

    Raises:
        UserError: the old text is not there exactly once, or the edit cannot be made in a running process.
    """
    for file, of_file in groupby(sorted(edits, key=lambda edit: edit.file), key=lambda edit: edit.file):
        path = PACKAGE / file
        text = edited = path.read_text("utf-8")
        for edit in of_file:
            if edit.file.split("/")[0] not in PORT or edited.count(edit.old) != 1:
                where = f"{edit.file}: {edit.old!r} is there {edited.count(edit.old)} times"
                raise UserError("a fault that cannot be planted", where, f"It edits one place of {', '.join(PORT)}.")
            edited = edited.replace(edit.old, edit.new)
        module = importlib.import_module("nest_ssl." + file.removesuffix(".py").replace("/", "."))
        done = list(_set_functions(module, *(compile(each, str(path), "exec") for each in (text, edited))))
        done += list(_set_constants(module, ast.parse(text), ast.parse(edited)))
        if not done:
            where = f"{file}: what is edited is in no function and no constant"
            raise UserError("a fault that cannot be planted", where, "Edit another line.")
        lines = edited.splitlines(keepends=True)
        linecache.cache[str(path)] = (len(edited), None, lines, str(path))  # for those who quote a line


def _set_functions(holder: Any, old: CodeType, new: CodeType) -> Iterator[str]:
    """Give the functions in a module or class their new code; yields the names of those that are other ones."""
    before = {code.co_name: code for code in old.co_consts if isinstance(code, CodeType)}
    for code in (code for code in new.co_consts if isinstance(code, CodeType)):
        found = vars(holder).get(code.co_name)
        if isinstance(found, type):
            yield from _set_functions(found, before[code.co_name], code)
            continue
        function: Any = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        if isinstance(function, FunctionType) and not _same(before[code.co_name], code):
            function.__code__ = code
            yield code.co_name


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether they do the same, wherever their lines stand."""
    pairs = zip(one.co_consts, other.co_consts, strict=False)
    consts = all(_same(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else repr(a) == repr(b)
                 for a, b in pairs)  # fmt: skip
    alike = (one.co_code, one.co_names, len(one.co_consts)) == (other.co_code, other.co_names, len(other.co_consts))
    return consts and alike


def _set_constants(holder: Any, old: ast.Module | ast.ClassDef, new: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Set the constants of a module or class whose statements are other ones; yields their names."""
    before = {ast.dump(node) for node in old.body}
    classes = {node.name: node for node in old.body if isinstance(node, ast.ClassDef)}
    for node in (node for node in new.body if ast.dump(node) not in before):
        if isinstance(node, ast.ClassDef) and node.name in classes:
            yield from _set_constants(vars(holder)[node.name], classes[node.name], node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                module = holder if not isinstance(holder, type) else importlib.import_module(holder.__module__)
                setattr(
                    holder, target.id, eval(compile(ast.Expression(node.value), "<constant>", "eval"), vars(module))
                )
                yield target.id
