"""The shape of the repository: who may import whom, how long a piece may be, what never goes in."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("nest_ssl", "scripts", "tests") for path in (ROOT / folder).rglob("*.py"))
ELSEWHERE = {".venv", ".git", "outputs", "dummy_ssl"}  # hundred thousand files, which are not ours
KINDS_OF_TEXT = {".py", ".md", ".toml", ".yaml", ".sh", ".txt", ".in"}


def texts() -> Iterator[Path]:
    for folder, inside, names in os.walk(ROOT):
        inside[:] = sorted({*inside} - ELSEWHERE)
        yield from (path for name in sorted(names) if (path := Path(folder, name)).suffix in KINDS_OF_TEXT)


TEXTS = list(texts())


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _trees_go() -> Iterator[None]:
    """They are a million objects."""
    yield
    parsed.cache_clear()


def test_exactly_one_file_imports_nemo() -> None:
    """Besides tests that hold us against it, in its environment."""
    importers = {shown(path) for path in SOURCES if "nemo" in imported(parsed(path))}
    assert {name for name in importers if not name.startswith("tests/against_nemo/")} == {"scripts/train_nemo.py"}


def test_tests_against_nemo_import_nothing_that_older_releases_hide() -> None:
    """NeMo 2.4.1 and 2.7.3 install packages called `scripts` and `tests` of their own."""
    paths = sorted((ROOT / "tests" / "against_nemo").glob("*.py"))
    assert paths
    found = {shown(path): imported(parsed(path)) for path in paths}
    assert {name: names for name, names in found.items() if names & {"scripts", "tests"}} == {}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package and its contracts."""
    shutil.copytree(ROOT / "nest_ssl", tmp_path / "nest_ssl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def broken_contracts(package: Path) -> list[str]:
    """Names of the contracts that import-linter finds broken."""
    lint = (
        f"import sys; sys.path.insert(0, {str(package)!r})\n"
        "from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    )
    wide = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-I", "-c", lint], cwd=package, env=wide, capture_output=True, text=True)
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    broken = re.findall(r"^(.+) BROKEN", done.stdout, re.MULTILINE)
    assert bool(broken) == bool(done.returncode)
    return broken


def test_the_import_contracts_hold(package: Path) -> None:
    assert broken_contracts(package) == []


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("data/audio.py", "from nest_ssl.model import nest", "Imports point down"),
        ("base/errors.py", "import nest_ssl.config.compose", "Imports point down"),
        ("train/optim.py", "import nest_ssl.run.experiment", "Imports point down"),
        ("recording/reader.py", "import nest_ssl.model.nest", "The recorder knows nothing"),
        ("record/structure.py", "import nest_ssl.model.nest", "The recorder knows nothing"),
        ("compare/metrics.py", "import nest_ssl.model.nest", "Comparing and reporting"),
        ("compare/metrics.py", "import nest_ssl.record.observers.calls", "Comparing and reporting"),
        ("report/render/markdown.py", "import lightning", "Comparing and reporting"),
        ("model/nest.py", "import nemo.collections.asr", "The port contains no NeMo"),
    ],
)
def test_a_breach_breaks_a_contract(package: Path, file: str, line: str, contract: str) -> None:
    path = package / "nest_ssl" / file
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert any(name.startswith(contract) for name in broken_contracts(package))


def test_pieces_are_short() -> None:
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") >= 400:
            long.append(f"{shown(path)}: {text.count(chr(10))} lines")
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{shown(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert long == []


def test_no_file_names_the_machine_it_was_written_on() -> None:
    places = re.compile(r"/root/\.|/var/tmp/|/home/|" + "/wo" + "rk/")
    assert [shown(path) for path in TEXTS if path != Path(__file__) and places.search(path.read_text("utf-8"))] == []


def test_line_ends_suit_the_system_that_reads_them() -> None:
    assert [shown(path) for path in TEXTS if b"\r" in path.read_bytes()] == []
    batch_files = list((ROOT / "scripts").glob("*.bat"))
    assert batch_files
    for path in batch_files:
        assert path.read_bytes().count(b"\n") == path.read_bytes().count(b"\r\n")
