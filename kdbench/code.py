"""The version of the code that computes numbers, so that a stage made by other code is never taken for the same.

Hashed are the rooms of kdbench whose code can change a number, the packages that a stage's own components and its
data's loader live in, the sources and flags of the native kernels, and torch's version. Nothing is imported: files are
read as they lie.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["code_version", "modules_of"]

# The files of kdbench that numbers pass through. Plans, stores, verdicts and reports may change without any effect.
ROOMS = ("losses", "ops", "data", "networks", "training", "stages", "stage.py")


def code_version(stage: dict[str, Any], loader: str = "") -> str:
    """Version of all code that a stage runs, 64 bits as hexadecimal.

    Parameters
    ----------
    stage : the packed stage; the packages of all its components count.
    loader : import path of what loads its data, whose package counts too.
    """
    modules = [*modules_of(stage), *([loader.partition(":")[0]] if loader else [])]
    own = sorted({name.partition(".")[0] for name in modules} - {"kdbench"})
    digest = hashlib.sha256(_kdbench().encode())
    for name in own:
        digest.update(_package(name))
    return digest.hexdigest()[:16]


@cache
def _kdbench() -> str:
    from kdbench.ops import build_info, implementation

    root = Path(__file__).parent
    digest = hashlib.sha256()
    for room in ROOMS:
        path = root / room
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    for part in (implementation(), build_info()["sources"], _torch()):
        digest.update(str(part).encode())
    return digest.hexdigest()


@cache
def _package(name: str) -> bytes:
    """Every source file of a plugin's package: a component may call any helper in it."""
    try:
        found = importlib.util.find_spec(name)
        origin, folders = (found.origin, found.submodule_search_locations) if found else (None, None)
    except ValueError:  # __main__ of a script or a notebook has no spec, and not always a file
        origin, folders = getattr(sys.modules[name], "__file__", None), None
    files = sorted(file for folder in folders for file in Path(folder).rglob("*.py")) if folders else []
    digest = hashlib.sha256(name.encode())
    for file in files or ([Path(origin)] if origin else []):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.digest()


def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none"


def modules_of(stage: dict[str, Any]) -> list[str]:
    """The modules in which the components of a packed stage live, each once, outermost first."""
    return list(dict.fromkeys(path.partition(":")[0] for path in _types(stage)))


def _types(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("type"), str) and ":" in value["type"]:
            yield value["type"]
        for item in value.values():
            yield from _types(item)
    elif isinstance(value, list):
        for item in value:
            yield from _types(item)
