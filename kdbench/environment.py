"""Where a number was made: versions, processor, device, and the implementation of the loss."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kdbench.ops import build_info, implementation
from kdbench.record import Environment

__all__ = ["environment", "processor"]


def environment(*, device: str, threads: int, code: str) -> Environment:
    """The environment of this process. Imports torch only to name a device other than the CPU."""
    name = processor() if device == "cpu" else _device(device)
    return Environment(
        kdbench=_version("kdbench"),
        commit=_commit(),
        code=code,
        python=platform.python_version(),
        torch=_version("torch"),
        numpy=_version("numpy"),
        platform=f"{platform.system()}-{platform.machine()}",
        processor=processor(),
        cores=os.cpu_count() or 1,
        threads=threads,
        device=f"{device}: {name}",
        ops=implementation(device.partition(":")[0]),
    )


@cache
def processor() -> str:
    """The processor's model name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def _commit() -> str:
    """The commit of the code that runs: asked of git where the package is a checkout, else what it was built from."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return str(build_info()["commit"])
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device(device: str) -> str:
    import torch

    return str(torch.cuda.get_device_name(device))
