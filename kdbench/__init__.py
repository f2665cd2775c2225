"""kdbench: does a knowledge-distillation paper's claim hold when someone else runs it?

``kdbench.reproduce("takd")`` trains what the paper trained and judges its claims. Plugin authors need :data:`hookimpl`,
:class:`Paper` and :class:`Lab`. Importing this package imports neither torch nor pandas.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.api import reproduce
    from kdbench.errors import KdbenchError
    from kdbench.hookspecs import hookimpl
    from kdbench.paper import Paper
    from kdbench.study import Lab

__all__ = ["KdbenchError", "Lab", "Paper", "hookimpl", "reproduce"]

_HOMES = {
    "KdbenchError": "kdbench.errors",
    "Lab": "kdbench.study",
    "Paper": "kdbench.paper",
    "hookimpl": "kdbench.hookspecs",
    "reproduce": "kdbench.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdbench' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
