"""Whose fault it is: from what was raised to the plugin whose code raised it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.plugins import PluginInfo, registry

__all__ = ["culprit", "fault"]


def fault(doing: str, error: BaseException, path: str) -> KdbenchError:
    """What a plugin's code raised, as its fault; ``path`` is the import path of what was called."""
    info = registry().at_home(path.partition(":")[0])
    cure = f"a fault of plugin '{info.name}'" if info else None
    return KdbenchError(f"{doing} raised {type(error).__name__}: {error}", where=path, cure=cure)


def culprit(trace: str, paper: str) -> str:
    """The plugin with the innermost frame of a formatted traceback; the paper's own where none has one.

    A stage may be built from several plugins' parts, so that whose paper it is says little about whose code failed.
    """
    known = registry()
    places = {place: info for info in known.plugins[1:] for place in _places(info)}
    for frame in reversed(re.findall(r'^ *File "([^"]+)", line \d+', trace, flags=re.MULTILINE)):
        file = Path(frame)
        for place in (file, *file.parents):
            if place in places:
                return places[place].name
    owner = known.owners.get(("papers", paper))
    return owner.name if owner else ""


def _places(info: PluginInfo) -> list[Path]:
    """The folder of a plugin's package, or its single module."""
    try:
        spec = importlib.util.find_spec(info.module.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    return [Path(folder) for folder in spec.submodule_search_locations or ([spec.origin] if spec.origin else [])]
