"""In a finished image: does it import what it is for, is it whole, has it what its lock says?

python docker/prove.py nemo|nest TORCH_VERSION
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys

IMPORTS = {"nemo": ["nemo.collections.asr.models"], "nest": ["librosa", "deepdiff", "jinja2"]}
SHOWN = ("torch", "lightning", "numpy", "nemo_toolkit")


def main() -> str | None:
    """What is wrong, or None."""
    name, torch_version = sys.argv[1:]
    for module in ["torch", "lightning.pytorch", "nest_ssl.run.experiment", *IMPORTS[name]]:
        importlib.import_module(module)
    has_nemo = importlib.util.find_spec("nemo") is not None
    if has_nemo != (name == "nemo"):
        return f"NeMo is {'there' if has_nemo else 'missing'}"
    found = {package: importlib.metadata.version(package) for package in SHOWN[: 4 if has_nemo else 3]}
    if found["torch"] != torch_version:
        return f"torch {found['torch']}, but {torch_version} is locked"
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    if check.returncode:
        return f"pip check: {check.stdout.strip()}"
    torch = sys.modules["torch"]
    cuda = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if torch.version.cuda else "no CUDA"
    versions = ", ".join(f"{package} {version}" for package, version in found.items())
    print(f"  {name}: Python {platform.python_version()}, {versions}, {cuda}; {check.stdout.strip()}")
    return None


if __name__ == "__main__":
    sys.exit(main())
