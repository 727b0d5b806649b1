"""Where a recording comes from: versions, host, device, flags, git state. What a person asks first when bits differ."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ENVIRONMENT_PREFIXES = ("OMP_", "MKL_", "CUBLAS_", "CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "NUMBA_", "PYTHONHASHSEED",
                        "MALLOC_", "THP_", "KMP_", "ATEN_", "DNNL_", "ONEDNN_")  # fmt: skip


def describe_run() -> dict[str, Any]:
    """Everything about this process and machine that the index of a recording tells."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": _packages(),
        "host": _host(),
        "threads": _threads(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT_PREFIXES)},
        "cuda": _cuda(),
        "git": _git(Path(__file__).resolve().parent),
        "container": None,
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "index": device.index or 0}
    return {"type": device.type, "name": _processor()}


def _packages() -> dict[str, str]:
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    found["torch"] = torch.__version__
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _host() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
    }


def _threads() -> dict[str, Any]:
    return {
        "torch": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux; the platform module's answer is all there is
    return platform.processor() or platform.machine()


def _cuda() -> dict[str, Any]:
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {"runtime": torch.version.cuda, "cudnn": cudnn, "devices": torch.cuda.device_count()}


def _git(folder: Path) -> dict[str, Any]:
    commit = _git_says(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git_says(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git_says(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
