"""The conformance kit: what a plugin's own tests call to hold its parts against the framework's promises.

``from kdbench.testing.conformance import *`` is the whole suite, for every installed paper; the fixtures are those of
:mod:`kdbench.testing.plugin`. What is named here raises ``AssertionError`` with a message that says what is wrong,
where and by how much, so it serves any test runner. Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.testing.parity import assert_loss_parity

__all__ = ["assert_loss_parity"]

_HOMES = {"assert_loss_parity": "kdbench.testing.parity"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdbench.testing' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
