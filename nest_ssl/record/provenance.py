"""Where a recording comes from: versions, host, device, flags, git state. What a person asks first when bits differ."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from nest_ssl.base.errors import UserError

ENVIRONMENT_PREFIXES = ("OMP_", "MKL_", "CUBLAS_", "CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "NUMBA_", "PYTHONHASHSEED",
                        "MALLOC_", "THP_", "KMP_", "ATEN_", "DNNL_", "ONEDNN_")  # fmt: skip


def describe_run() -> dict[str, Any]:
    """Everything about this process and machine that the index of a recording tells."""
    container = _container()
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": _packages(),
        "host": _host(),
        "threads": _threads(),
        "environment": _environment(),
        "cuda": _cuda(),
        "git": _git(Path(__file__).resolve().parent, (container or {}).get("git_commit")),
        "container": container,
    }


def _environment() -> dict[str, str]:
    """What can change numbers. Not the address of a package index, which may hold a password."""
    names = sorted(name for name in os.environ if name.startswith(ENVIRONMENT_PREFIXES) and name != "TORCH_INDEX")
    return {name: os.environ[name] for name in names}


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
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"runtime": torch.version.cuda, "cudnn": cudnn, "devices": len(gpus), "gpus": gpus, "driver": _driver()}


def _driver() -> str | None:
    """The NVIDIA driver's version; it belongs to the host, also in a container."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"\b\d+\.[\d.]+\b", text)
    return match[0] if match else None


def _container() -> dict[str, Any] | None:
    """What the image was made of (docker/image_facts.py) and which image it is, as far as its runner told."""
    facts = os.environ.get("NEST_SSL_IMAGE")
    if not facts:
        return None
    try:
        made_of = json.loads(Path(facts).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("the image's facts cannot be read", facts, "Build the image again: make images.") from error
    return {"image": os.environ.get("NEST_SSL_IMAGE_ID") or made_of["name"], **made_of}


def _git(folder: Path, image_commit: str | None) -> dict[str, Any]:
    """An image holds no repository, but tells the commit that it was built from (`abc123` or `abc123-dirty`)."""
    if image_commit:
        commit, _, dirty = image_commit.partition("-")
        return {"commit": commit, "dirty": bool(dirty)}
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
