"""`docs/example.md` is what the commands print: one line of the port is changed, and NeMo is compared with that.

python tests/against_nemo/test_example.py docs     # in NeMo's environment: writes it and the README's pictures again
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nest_ssl.releases import NEWEST

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "example.md"
FILE = "nest_ssl/model/encoder/layer.py"
BEFORE, AFTER = "self.norm_conv = nn.LayerNorm(d_model)", "self.norm_conv = nn.LayerNorm(d_model, eps=1.1e-5)"
SETTINGS = "size=tiny batches=2 save_steps=0,1"
BEHIND = "\n## "  # the first screen

TEMPLATE = """# One line changed, one command

*Written by `tests/against_nemo/test_example.py`, which also checks it. Numbers are of the machine that wrote it.*

In a copy of the port one line of `{file}` is changed, as a slip of a keyboard would:

```diff
-        {before}
+        {after}
```

Both trainers run (`{settings}`), and then

```
make explain
```

gathers the evidence and writes the report. Its first screen:

{screen}
"""


def changed_port(folder: Path) -> Path:
    """A copy of the port with one other line; data and configuration are this repository's."""
    shutil.copytree(ROOT / "nest_ssl", folder / "nest_ssl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf", "data", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    source = folder / FILE
    text = source.read_text()
    assert text.count(BEFORE) == 1
    source.write_text(text.replace(BEFORE, AFTER))
    return folder


def first_screen(folder: Path, python: str) -> str:
    """Of the report on NeMo and the changed port; `python` runs the commands."""
    port, outputs = changed_port(folder / "port"), folder / "outputs"
    of_port = ["env", f"PYTHONPATH={port}", python]
    for words, name in (([python], "nemo"), (of_port, "nest")):
        call(port, *words, f"scripts/train_{name}.py", *SETTINGS.split(), f"output_dir={outputs / name}")
    sides = [f"--{side}={outputs / name}" for side, name in (("reference", "nemo"), ("candidate", "nest"))]
    pythons = [f"--reference-python={python}", f"--candidate-python={' '.join(of_port)}"]
    said = call(port, python, "scripts/explain.py", *sides, f"--out={outputs / 'report'}", *pythons, code=1)
    assert "explain: no " not in said, said  # every kind of evidence was had
    report = (outputs / "report" / "report.md").read_text()
    return report[: report.index(BEHIND)].strip()


def call(folder: Path, *command: str, code: int = 0) -> str:
    """In the copy's folder: `python -m` looks there first."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def document(folder: Path, python: str = sys.executable) -> str:
    quoted = "\n".join(f"> {line}".rstrip() for line in first_screen(folder, python).splitlines())
    return TEMPLATE.format(file=FILE, before=BEFORE, after=AFTER, settings=SETTINGS, screen=quoted)


def without_numbers(text: str) -> str:
    """What another machine has to write, too."""
    return re.sub(r"\d[\d.,]*(e[+-]\d+)?", "#", text)


def test_the_example_is_what_the_commands_print(release: str, tmp_path: Path, nemo_python: str) -> None:
    if release != NEWEST:
        pytest.skip("the example is of the newest release")
    assert without_numbers(document(tmp_path, nemo_python)) == without_numbers(DOCUMENT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        documents = Path(sys.argv[1])
        (documents / DOCUMENT.name).write_text(document(Path(scratch)), encoding="utf-8")
        report, images = Path(scratch) / "outputs" / "report" / "report.html", documents / "images"
        call(ROOT, sys.executable, "tests/report/browser.py", str(report), str(images))
