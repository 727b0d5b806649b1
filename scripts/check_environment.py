"""Run by an environment's own Python, in .venv or in an image: does it import, is it whole, is it what the locks say?

python check_environment.py nemo|nest [--any-torch] LOCK...    (--any-torch: its build of torch is in no lock)
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from pins import canonical, locked_versions

# Whatever trains imports: setup compiles no byte code but that of these, here.
BOTH = (
    "torch",
    "lightning.pytorch",
    "hydra.compose",
    "pydantic",
    "librosa.filters",
    "soundfile",
    "deepdiff",
    "rich",
    "nest_ssl",
)
SHOWN = ("torch", "lightning", "numpy", "nemo-toolkit")


def main() -> str | None:
    """What is wrong, or None."""
    trainer, *words = sys.argv[1:]
    any_torch = "--any-torch" in words
    locked = locked_versions(*(Path(word) for word in words if word != "--any-torch"))
    for module in (*BOTH, *(["nemo.collections.asr.models"] if trainer == "nemo" else [])):
        importlib.import_module(module)
    if bool(importlib.util.find_spec("nemo")) != (trainer == "nemo"):
        return "NeMo belongs in NeMo's environment, and in no other"

    found = [(canonical(each.metadata["Name"]), each.version) for each in distributions()]
    wrong = [f"{name} {version}" for name, version in found if version not in locked.get(name, {version})]
    strangers = [name for name, _ in found if name not in locked and name != "nest-ssl"]
    if any_torch:
        wrong, strangers = [each for each in wrong if not each.startswith("torch ")], []
    if wrong or strangers:
        return f"not what the locks say: {', '.join(sorted(wrong + strangers))}. Run make locks"
    if len(dict(found)) != len(found):
        return f"twice: {', '.join(sorted({name for name, _ in found if [n for n, _ in found].count(name) > 1}))}"

    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    if check.returncode:
        return f"pip check: {check.stdout.strip()}"
    torch = sys.modules["torch"]
    cuda = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.version.cuda else "no CUDA"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(found) if name in SHOWN)
    print(f"Python {platform.python_version()}, {versions}, {cuda}; {check.stdout.strip()}")
    return None


if __name__ == "__main__":
    sys.exit(main())
