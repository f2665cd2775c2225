"""The kernels behind :mod:`kdbench.losses`: which implementation runs, and why.

Three layers: :mod:`kdbench.ops.native` (the only caller of the compiled module), :mod:`kdbench.ops.reference` (the
same in plain torch) and :mod:`kdbench.ops.autograd` (differentiation on top of either). Importing this page imports
neither torch nor the compiled module, so that ``kdbench doctor`` can ask it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal

from kdbench.errors import KdbenchError, unknown

__all__ = ["Implementation", "build_info", "implementation"]

Implementation = Literal["cpu", "reference"]

_CHOICES = ("auto", "cpu", "reference")


def implementation() -> Implementation:
    """What computes the losses of float32 and float64 tensors on the CPU.

    ``cpu`` is the compiled kernel, ``reference`` plain torch. Tensors of another type or device always go to the
    reference. The environment variable ``KDBENCH_OPS`` (``auto``, ``cpu``, ``reference``) forces one.

    Raises
    ------
    KdbenchError : ``KDBENCH_OPS`` names no implementation, or ``cpu`` where the kernel is missing.
    """
    choice = os.environ.get("KDBENCH_OPS") or "auto"
    if choice not in _CHOICES:
        raise unknown("implementation in KDBENCH_OPS", choice, _CHOICES)
    if choice == "reference":
        return "reference"
    reason = _why_unusable()
    if reason is None:
        return "cpu"
    if choice == "cpu":
        raise KdbenchError(
            f"KDBENCH_OPS=cpu, but the native kernels cannot be used: {reason}",
            where="kdbench.ops",
            cure="reinstall kdbench with a C++ compiler and KDBENCH_REQUIRE_EXT=1, or unset KDBENCH_OPS",
        )
    return "reference"


def build_info() -> dict[str, Any]:
    """What was built, and why not.

    Returns
    -------
    dict
        ``built`` (bool), ``reason`` (str or None: why the compiled kernels cannot be used), ``compiler`` (str or
        None), ``openmp`` (bool or None: whether they can use several threads), ``path`` (str or None: the compiled
        file), ``sources`` (str: version of the kernels' sources), ``commit`` (str: what the package was built from,
        with a ``+`` behind it where the tree held more). A module that lies there but does not load is found out only
        once torch is imported.
    """
    record = _build_record()
    reason = _why_unusable()
    path = _module_path()
    return {
        "built": path is not None,
        "reason": reason,
        "compiler": record.get("compiler") if path else None,
        "openmp": record.get("openmp") if path else None,
        "path": path,
        "sources": record.get("sources", "") if path else "",
        "commit": record.get("commit", ""),
    }


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
