"""One case from beginning to end: make the contenders, check them, time those that are right. Imports torch lazily."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.bench.contender import FLOOR, Case, Contender
from kdbench.bench.outcome import CaseResult, Entry
from kdbench.component import load_object
from kdbench.errors import KdbenchError, unknown
from kdbench.ops import release_memory

if TYPE_CHECKING:
    from kdbench.bench.clock import Subject
    from kdbench.bench.reference import Reference
    from kdbench.bench.subjects import Inputs, LossSubject

__all__ = ["Tell", "check_device", "measure"]

Tell = Callable[[str, float], None]

DEVICES = ("auto", "cpu", "cuda")

# Eager torch was seen to hold 6 matrices of the logits' size at once, besides student, teacher, scratch and one that an
# allocator may keep.
_MATRICES = 10

_CHECKING = 0.3  # of the progress


def check_device(name: str) -> str:
    """``cpu`` or ``cuda`` for ``--device``: ``auto`` is a GPU where there is one.

    Raises
    ------
    KdbenchError : no such device, or torch finds no GPU.
    """
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    if name == "cpu":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise KdbenchError(
            "device 'cuda' cannot be used: torch finds no GPU",
            cure="use --device cpu, or see 'kdbench doctor' for what this installation has",
        )
    return "cpu"


def measure(case: Case, contenders: Iterable[Contender], seconds: float, tell: Tell) -> CaseResult:
    """Check and time ``contenders``, and the floor with them.

    Parameters
    ----------
    case : what they are measured on.
    contenders : one that cannot run, raises or is wrong is reported so and not timed.
    seconds : of timing; see :func:`kdbench.bench.rounds.interleave`.
    tell : is given what is being done and how much of it is done, in [0, 1].
    """
    problem = _too_large(case)
    if problem:
        return CaseResult(case=case, problem=problem)
    import torch

    from kdbench.bench.clock import clock_of
    from kdbench.bench.machine import Others
    from kdbench.bench.reference import reference
    from kdbench.bench.rounds import interleave
    from kdbench.bench.subjects import Copy, Inputs, Tensors

    torch.compiler.reset()  # a function is compiled for a few shapes only, and then no longer at all
    tell("drawing logits", 0.0)
    tensors = Tensors.of(case)
    tell("the float64 reference", 0.0)
    truth = reference(case, tensors.student, tensors.teacher, tensors.labels)
    inputs = Inputs(case, tensors, truth.rows)
    result = CaseResult(case=case)
    ready: dict[str, Subject] = {}
    contenders = list(contenders)
    for index, contender in enumerate(contenders):
        tell(f"checking {contender.id}", _CHECKING * index / len(contenders))
        entry, subject = _checked(contender, case, inputs, truth)
        result.entries.append(entry)
        if subject is not None:
            ready[contender.id] = subject
    ready[FLOOR] = Copy(tensors)
    result.entries.append(Entry(id=FLOOR, title=Copy.title, status="measured"))
    others = Others()
    found = interleave(
        ready, clock_of(case.device), seconds, lambda doing, share: tell(doing, _CHECKING + (1 - _CHECKING) * share)
    )
    result.others = others.cores()
    for name, timings in found.items():
        entry = next(entry for entry in result.entries if entry.id == name)
        entry.time, entry.wall = timings
        if case.device == "cuda":
            entry.peak_bytes = _peak(ready[name])
    result.compare()
    del ready, inputs, tensors, truth
    gc.collect()
    release_memory()  # what kdbench keeps for this case would be missing in the next
    if case.device == "cuda":
        torch.cuda.empty_cache()
    return result


def _checked(contender: Contender, case: Case, inputs: Inputs, truth: Reference) -> tuple[Entry, LossSubject | None]:
    """The contender's entry, and what to time if it is right."""
    from kdbench.bench.subjects import subject_of

    entry = Entry(id=contender.id, title=contender.title, status="measured")
    try:
        reason = load_object(contender.requires)(case) if contender.requires else None
        if reason:
            entry.status, entry.reason = "not available", reason
            return entry, None
        subject = subject_of(contender, case, inputs.tensors)
        errors = truth.judge(*subject.value_and_gradient())
    except Exception as error:  # a contender is somebody's code: whatever it raises is its own failure
        name = "" if isinstance(error, KdbenchError) else f"{type(error).__name__}: "
        entry.status, entry.reason = "failed", (name + str(error)).strip().split("\n")[0]
        inputs.put_right()
        return entry, None
    entry.loss_error, entry.gradient_error = errors.loss, errors.gradient
    changed = inputs.put_right()
    problem = errors.problem or (changed and f"it writes over the {changed} it is given")
    if problem:
        entry.status, entry.reason = "wrong", problem
        return entry, None
    return entry, subject


def _peak(subject: Subject) -> int:
    """Most memory that one call holds on the GPU, above what was held before it."""
    import torch

    subject.prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    subject.call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _too_large(case: Case) -> str:
    need, free = _MATRICES * case.stream, _free_bytes(case.device)
    if free is None or need <= free:
        return ""
    return f"not measured: it needs about {need / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"


def _free_bytes(device: str) -> int | None:
    """Free memory of the device; None where the system does not tell."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None if not hasattr(os, "sysconf") else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
