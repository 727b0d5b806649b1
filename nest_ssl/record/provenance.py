"""Where a recording comes from: versions, host, device, flags, git state. What a person asks first when bits differ."""

from __future__ import annotations

import functools
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
from nest_ssl.record.secrets import masked, masked_command
from nest_ssl.recording.index import Cuda, Device, Git, Host, Threads

ENVIRONMENT_PREFIXES = ("OMP_", "MKL_", "CUBLAS_", "CUDA_", "NCCL_", "TORCH_", "PYTORCH_", "NUMBA_", "PYTHONHASHSEED",
                        "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "THP_", "KMP_", "ATEN_", "DNNL_",
                        "ONEDNN_")  # fmt: skip


def describe_run() -> dict[str, Any]:
    """What the index says about this process and machine; secrets are masked.

    Raises:
        UserError: the facts of the image that this runs in cannot be read.
    """
    container = _container()
    # The words that make was called with; the Makefile exports them.
    make = os.environ.get("NEST_SSL_COMMAND", "").strip() or None
    packages = {**_installed(), "torch": torch.__version__}
    relevant = sorted(n for n in os.environ if n.startswith(ENVIRONMENT_PREFIXES) and n != "TORCH_INDEX")
    cuda = torch.cuda
    gpus = [cuda.get_device_name(index) for index in range(cuda.device_count())]
    cudnn = torch.backends.cudnn
    described = {
        "host": Host(
            system=platform.system(),
            release=platform.release(),
            machine=platform.machine(),
            processor=_processor(),
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            cores=os.cpu_count(),
        ),
        "threads": Threads(
            torch=torch.get_num_threads(),
            interop=torch.get_num_interop_threads(),
            OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", ""),
        ),
        "cuda": Cuda(
            runtime=torch.version.cuda,
            cudnn=cudnn.version() if cudnn.is_available() else None,  # type: ignore[no-untyped-call]
            devices=len(gpus),
            gpus=gpus,
            driver=_driver(),
        ),
        "git": _git(Path(__file__).resolve().parent, (container or {}).get("git_commit")),
    }
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),  # two runs may begin in one second
        "command": masked_command([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "make_command": " ".join(masked_command(make.split(" "))) if make else None,
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "environment": {name: masked(os.environ[name], name) for name in relevant},
        "container": container,
        **{name: facts.model_dump() for name, facts in described.items()},
    }


@functools.cache
def _installed() -> dict[str, str]:
    """Every distribution and its version. Reading hundreds of files takes a second, and a process does not change."""
    described = [distribution.metadata for distribution in importlib.metadata.distributions()]
    return {facts["Name"]: facts["Version"] for facts in described if "Name" in facts and "Version" in facts}


def describe_device(device: torch.device) -> dict[str, Any]:
    """The device that trains."""
    if device.type == "cuda":
        return Device(type="cuda", name=torch.cuda.get_device_name(device), index=device.index or 0).model_dump()
    return Device(type=device.type, name=_processor()).model_dump(exclude_none=True)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux; the platform module's answer is all there is
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    """The NVIDIA driver's version; it belongs to the host, also in a container."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"\b\d+\.[\d.]+\b", text)
    return match[0] if match else None


def _container() -> dict[str, Any] | None:
    """What the image was made of (docker/image_facts.py) and which image it is, as far as its runner says."""
    facts = os.environ.get("NEST_SSL_IMAGE")
    if not facts:
        return None
    try:
        made_of = json.loads(Path(facts).read_text(encoding="utf-8"))
        return {"image": os.environ.get("NEST_SSL_IMAGE_ID") or made_of["name"], **made_of}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("the image's facts cannot be read", facts, "Build the image again: make images.") from error


def _git(folder: Path, image_commit: str | None) -> Git:
    """An image holds no repository, but names the commit that it was built from (`abc123` or `abc123-dirty`)."""
    if image_commit:
        commit, _, dirty = image_commit.partition("-")
        return Git(commit=commit, dirty=bool(dirty))
    answers = []
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", str(folder), *question], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return Git()
        if done.returncode != 0:
            return Git()
        answers.append(done.stdout.strip())
    return Git(commit=answers[0], dirty=bool(answers[1]))
