"""The wheel: what it holds, and that the comparer runs with what it declares and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("lightning", "hydra", "omegaconf", "librosa", "soundfile", "wandb", "cryptography")


def needed(package: str, found: dict[str, object] | None = None) -> dict[str, object]:
    """Distributions that a package asks for on this machine without any extra, and what these ask for."""
    from packaging.requirements import Requirement

    found = {} if found is None else found
    for line in distribution(package).requires or ():
        requirement = Requirement(line)
        if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            found[requirement.name] = distribution(requirement.name)
            needed(requirement.name, found)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    (built,) = folder.glob("nest_ssl-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """An environment that holds the wheel and what its metadata ask for: links to what is installed here."""
    folder = wheel.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        metadata = archive.read("nest_ssl-0.1.0.dist-info/METADATA").decode()
    asked = [line for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE) if "extra ==" not in line]
    found: dict[str, object] = {}
    for name in asked:
        found[name] = distribution(name)
        needed(name, found)
    assert not {name.lower() for name in found} & {*HEAVY}
    for one in found.values():
        for file in one.files or ():  # type: ignore[attr-defined]
            top = Path(one.locate_file(file.parts[0]))  # type: ignore[attr-defined]
            if file.parts[0] != ".." and not (site / top.name).exists():
                os.symlink(top, site / top.name)
    return folder / "bin" / "python"


def run(python: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-I", *words], capture_output=True, text=True, cwd=cwd)


def test_it_holds_configuration_data_and_scripts(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = "nest_ssl/shipped/"
    wanted = ["conf/nest_fast-conformer.yaml", "conf/size/tiny.yaml", "data/dummy_ssl.sha256", "scripts/train_nest.py"]
    assert {shipped + name for name in wanted} | {"nest_ssl/py.typed"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "outputs"))]


def test_recording_and_comparing_need_nothing_else(python: Path, tmp_path: Path) -> None:
    program = """
import torch, nest_ssl
for name, bias in ("one", True), ("other", True), ("third", False):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    model.bias.data += 0 if bias else 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with nest_ssl.recording(name, model) as r:
        r.batch(batch := torch.ones(3, 2)); r.loss(loss := model(batch).mean()); loss.backward()
        r.backward_done(); optimizer.step(); r.step_done(optimizer)
found = nest_ssl.compare("one", "other")
nest_ssl.report(found, "report")
assert found.verdict == "identical", found
import os, sys
from nest_ssl.cli.main import main
if (child := os.fork()) == 0:
    sys.argv = ["nest-ssl", "compare", "--reference", "one", "--candidate", "third"]
    main()  # as the installed command, and ends the process
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 1, code
sys.argv = ["nest-ssl", "compare", "--reference", "one", "--candidate", "other"]
main()
raise SystemExit("main came back")
"""
    done = run(python, "-c", program, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr  # others may warn
    assert "train identically" in done.stdout, done.stderr
    nest_ssl = python.with_name("nest-ssl")
    nest_ssl.write_text("from nest_ssl.cli.main import main; main()")
    done = run(python, str(nest_ssl), "train", "nest", "size=tiny", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1) and "pip install 'nest_ssl[train]'" in done.stderr
    done = run(python, str(nest_ssl), "matrix", "--nemo-python", str(python), cwd=tmp_path)
    assert done.returncode == 3 and (tmp_path / "outputs" / "matrix").is_dir(), done.stderr
    assert not [*python.parents[1].glob("lib/python*/site-packages/outputs")]
    done = run(python, str(nest_ssl), "data", cwd=tmp_path)
    assert done.returncode == 0 and len([*(tmp_path / "data" / "dummy_ssl").rglob("*.wav")]) == 16, done.stderr


def test_help_answers_at_once(python: Path, tmp_path: Path) -> None:
    program = "import sys; from nest_ssl.cli.main import dispatch; dispatch(['--help']); print(*sys.modules)"
    modules = run(python, "-c", program, cwd=tmp_path).stdout.split()
    assert "argparse" in modules and not {"torch", "numpy", "yaml", "pydantic"} & {*modules}
