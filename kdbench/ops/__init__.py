"""The kernels behind :mod:`kdbench.losses`: which implementation runs, and why.

The layers: :mod:`kdbench.ops.native` (the only caller of the compiled module), :mod:`kdbench.ops.reference` (the same
in plain torch), :mod:`kdbench.ops.autograd` (the choice between them, and differentiation) and
:mod:`kdbench.ops.compiled` (the operators that ``torch.compile`` sees). Importing this page imports neither torch nor
the compiled module, so that ``kdbench doctor`` can ask it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from kdbench.errors import KdbenchError, unknown

__all__ = ["Implementation", "build_info", "forced", "implementation", "release_memory"]

Implementation = Literal["cpu", "cuda", "reference"]

_CHOICES = ("auto", "native", "reference")

_forced: str | None = None


def implementation(device: str = "cpu") -> Implementation:
    """What computes the losses of tensors on a device of this type.

    ``cpu`` and ``cuda`` are the compiled kernels, ``reference`` is plain torch. Tensors of another type or device
    always go to the reference. The environment variable ``KDBENCH_OPS`` (``auto``, ``native``, ``reference``), read
    once, or :func:`forced` decides otherwise.

    Raises
    ------
    KdbenchError : ``KDBENCH_OPS`` names no implementation, or ``native`` where the compiled kernels are missing.
    """
    choice = _forced or _from_environment()
    if choice == "reference":
        return "reference"
    reason = _why_unusable()
    if reason is None:
        return _native_on(device)
    if choice == "native":
        raise KdbenchError(
            f"KDBENCH_OPS=native, but the native kernels cannot be used: {reason}",
            where="kdbench.ops",
            cure="reinstall kdbench with a C++ compiler and KDBENCH_REQUIRE_EXT=1, or unset KDBENCH_OPS",
        )
    return "reference"


@contextmanager
def forced(choice: Literal["native", "reference"], *, isa: str | None = None) -> Iterator[None]:
    """Inside the block, losses are computed by that implementation; for tests and comparisons. Not thread-safe.

    Parameters
    ----------
    isa : with ``native``, the CPU kernels of that instruction set (``avx512``, ``avx2``, ``generic``).

    Raises
    ------
    KdbenchError : an unknown choice, or an instruction set that is not in this build or not on this machine.
    """
    global _forced
    if choice not in _CHOICES:
        raise unknown("implementation", choice, _CHOICES)
    from kdbench.ops import native, switch

    before = _forced, native.instruction_set()
    if isa is not None:
        try:
            native.module().force_isa(isa)
        except ValueError as error:
            raise KdbenchError(str(error), where="kdbench.ops") from None
    _forced = choice
    switch.refresh()
    try:
        yield
    finally:
        _forced = before[0]
        if isa is not None:
            native.module().force_isa(before[1])
        switch.refresh()


def release_memory() -> None:
    """Return the buffers that were kept for the next large gradient to the system."""
    if implementation() != "reference":
        from kdbench.ops import native

        native.module().pool_trim()


@cache
def _from_environment() -> str:
    choice = os.environ.get("KDBENCH_OPS") or "auto"
    if choice not in _CHOICES:
        raise unknown("implementation in KDBENCH_OPS", choice, _CHOICES)
    return choice


def _native_on(device: str) -> Implementation:
    if device == "cpu":
        return "cpu"
    if device == "cuda":
        from kdbench.ops import native

        if native.has_cuda():
            return "cuda"
    return "reference"


def build_info() -> dict[str, Any]:
    """What was built, for what, what is used here, and why not more.

    Returns
    -------
    dict
        ``built`` (bool), ``reason`` (str or None: why the compiled kernels cannot be used), ``compiler`` (str or
        None), ``openmp`` (bool or None: whether they can use several threads), ``instruction_sets`` (list of str: those
        that the CPU kernels were built for), ``instruction_set`` (str or None: the one in use; known once torch is
        imported), ``cuda`` (dict or None: ``nvcc`` version, ``archs`` as compute capabilities times ten, and what ptxas
        reported: ``kernels``, ``most_registers``, ``spilled_bytes``), ``cuda_reason`` (str or None: why there are no
        CUDA kernels), ``path`` (str or None: the compiled file), ``sources`` (str: version of the kernels' sources),
        ``commit`` (str: what the package was built from, with a ``+`` behind it where the tree held more). A module
        that lies there but does not load is found out only once torch is imported.
    """
    record = _build_record()
    reason = _why_unusable()
    path = _module_path()
    known = record if path else {}
    return {
        "built": path is not None,
        "reason": reason,
        "compiler": known.get("compiler"),
        "openmp": known.get("openmp"),
        "instruction_sets": known.get("instruction_sets", []),
        "instruction_set": _instruction_set() if reason is None else None,
        "cuda": known.get("cuda"),
        "cuda_reason": known.get("cuda_reason"),
        "path": path,
        "sources": known.get("sources", ""),
        "commit": record.get("commit", ""),
    }


def _instruction_set() -> str | None:
    if "torch" not in sys.modules:
        return None
    from kdbench.ops import native

    return native.instruction_set()


def _why_unusable() -> str | None:
    if _module_path() is None:
        reason = _build_record().get("reason")
        return str(reason) if reason else "the package was not built (no compiled file, no record of a build)"
    # Loading the module brings OpenMP along, and torch must come first for the two to share one runtime.
    if "torch" in sys.modules:
        from kdbench.ops import native

        return native.load_failure()
    return None


@cache
def _module_path() -> str | None:
    spec = importlib.util.find_spec("kdbench.ops._native")
    return None if spec is None else spec.origin


@cache
def _build_record() -> dict[str, Any]:
    try:
        record = json.loads((Path(__file__).parent / "_build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
