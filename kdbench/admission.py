"""Whether a plugin may come in: where it is from, its API level, its hooks, and what its import lacked.

Each function raises, or returns, the error that :mod:`kdbench.plugins` keeps as the plugin's problem.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from kdbench import hookspecs
from kdbench.errors import KdbenchError, unknown

__all__ = ["api_level", "check_hooks", "declared_level", "missing", "origin"]


def origin(entry: EntryPoint) -> tuple[str, str]:
    """Name and version of the entry point's distribution, as far as its metadata can be read."""
    if entry.dist is None:
        return "kdbench", ""
    try:
        return entry.dist.name or entry.name, entry.dist.version or ""
    except Exception:  # what a damaged installation raises differs from one Python to the next
        return entry.name, ""


def api_level(level: Any) -> int:
    """The API level that a plugin was written for: what it says, or the first there was."""
    newest, oldest = hookspecs.API_LEVEL, hookspecs.API_OLDEST
    level = 1 if level is None else level
    if not isinstance(level, int):
        raise KdbenchError(f"KDBENCH_API is {level!r}, which is no API level", cure=f"write KDBENCH_API = {newest}")
    if level > newest:
        raise KdbenchError(f"it needs API level {level}, this kdbench has {newest}", cure="upgrade kdbench")
    if level < oldest:
        raise KdbenchError(
            f"it was written for API level {level}, this kdbench serves {oldest} to {newest}", cure="upgrade the plugin"
        )
    return level


def declared_level(module: str) -> int | None:
    """``KDBENCH_API`` as it stands in the source of a module that does not import; None where it is not found."""
    with contextlib.suppress(Exception):
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(str(spec and spec.origin)).read_bytes())
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(ast.unparse(name) == "KDBENCH_API" for name in node.targets):
                level = ast.literal_eval(node.value)
                return level if isinstance(level, int) else None
    return None


def missing(error: ModuleNotFoundError, module: str, distribution: str) -> BaseException:
    """The error of an import, as what is to be installed where the missing module is not the plugin's own."""
    name = (error.name or "").partition(".")[0]
    if not name or name == module.partition(".")[0]:
        return error
    return KdbenchError(
        f"it needs the module '{error.name}', which is not installed",
        cure=f"install it, for instance by 'pip install {distribution}' with its requirements",
    )


def check_hooks(module: Any) -> None:
    """Refuse what is marked as a hook, or named like one, and is none; wherever in the plugin it was written."""
    known = {name for name in vars(hookspecs) if name.startswith("kdbench_")}
    package = module.__name__.partition(".")[0]
    for name, value in vars(module).items():
        marked = hasattr(value, "kdbench_impl")
        own = (getattr(value, "__module__", None) or "").partition(".")[0] == package
        if not callable(value) or not (marked or (name.startswith("kdbench_") and own)):
            continue
        if name not in known:
            raise unknown("hook", name, known)
        if not marked:
            raise KdbenchError(f"'{name}' is not marked as a hook", cure="put @hookimpl above it")
