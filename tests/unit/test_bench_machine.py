"""What is said of the machine, and whether somebody else was using it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from kdbench.bench.machine import Others, machine


def test_the_machine_is_described() -> None:
    here = machine("cpu")
    assert here.environment.threads == torch.get_num_threads()
    assert here.environment.device.startswith("cpu: ")
    assert here.torch_instruction_set == torch.backends.cpu.get_cpu_capability()
    assert here.gpu == {}


def test_variables_of_the_allocator_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "64")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    monkeypatch.setenv("MALICE", "0")
    found = machine("cpu").allocator
    assert (found["MALLOC_TOP_PAD_"], found["THP_MEM_ALLOC_ENABLE"]) == ("64", "1")
    assert "MALICE" not in found


@pytest.mark.skipif(Others().cores() is None, reason="this system does not say how busy its processors are")
def test_other_processes_are_noticed() -> None:
    spin = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as other:
        try:
            time.sleep(0.3)
            others = Others()
            time.sleep(1.0)
            beside = others.cores()
        finally:
            other.kill()
    assert beside is not None
    assert beside > 0.3  # a core of its own, or a share of it where the machine is full


def test_this_process_is_not_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two seconds in which all processors together worked for three, one of them for this process.
    moments = iter([(10.0, 100.0, 5.0), (12.0, 103.0, 6.0)])
    monkeypatch.setattr(Others, "_now", staticmethod(lambda: next(moments)))
    assert Others().cores() == 1.0
    moments = iter([(10.0, 100.0, 5.0), (12.0, 100.9, 6.0)])  # the system's clock is coarser than a process's
    assert Others().cores() == 0.0
    monkeypatch.setattr(Others, "_now", staticmethod(lambda: None))
    assert Others().cores() is None
