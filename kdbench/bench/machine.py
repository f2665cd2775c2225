"""Where a comparison is made: hardware, versions, and what else moves its figures. Imports torch; load it lazily."""

from __future__ import annotations

import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from kdbench.bench.outcome import Machine
from kdbench.environment import environment
from kdbench.ops import build_info, native

__all__ = ["Others", "machine"]

_LIBRARIES = ("triton", "liger_kernel")
_ALLOCATOR = ("LD_PRELOAD", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def machine(device: str) -> Machine:
    """This machine as it is now, for figures of ``cpu`` or ``cuda``."""
    return Machine(
        environment=environment(device=device, threads=torch.get_num_threads(), code=""),
        instruction_set=native.instruction_set(),
        torch_instruction_set=torch.backends.cpu.get_cpu_capability(),
        compiler=str(build_info()["compiler"] or ""),
        gpu=_gpu() if device == "cuda" else {},
        libraries=_libraries(),
        huge_pages=_huge_pages(),
        allocator={
            name: value for name, value in os.environ.items() if name in _ALLOCATOR or name.startswith("MALLOC_")
        },
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0,
    )


class Others:
    """How much of the processors is used by anybody else, from its creation to :meth:`cores`."""

    def __init__(self) -> None:
        self.start = self._now()

    def cores(self) -> float | None:
        """The average number of cores; what a hypervisor took away counts too. None where the system does not tell."""
        end = self._now()
        if self.start is None or end is None:
            return None
        elapsed, busy, own = (last - first for first, last in zip(self.start, end, strict=True))
        return max(0.0, busy - own) / elapsed if elapsed > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds: of the clock, of all processors together that were not idle, and of this process."""
        try:
            user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
        except (OSError, ValueError):
            return None
        times = os.times()
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, times.user + times.system


def _gpu() -> dict[str, str]:
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": found.name,
        "compute capability": f"{found.major}.{found.minor}",
        "multiprocessors": str(found.multi_processor_count),
        "memory": f"{found.total_memory / 2**30:.0f} GiB",
        "L2 cache": f"{found.L2_cache_size / 2**20:.0f} MiB",
        "CUDA of torch": str(torch.version.cuda),
        "driver": _driver(),
    }


def _driver() -> str:
    """Version of the kernel's driver, where Linux tells."""
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in line.split() if word[:1].isdigit() and "." in word), "unknown")


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _huge_pages() -> str:
    """The kernel's choice for transparent huge pages: ``always``, ``madvise`` or ``never``."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0] or text.strip()
