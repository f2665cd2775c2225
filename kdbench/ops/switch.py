"""Which implementation runs, looked up once and kept where the hot path can read it. Imports torch on first use."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["LossError", "loss_kernel", "refresh", "scale"]


class _Never(Exception):
    """Raised by nothing; stands in for the compiled module's error where there is no module."""


LossError: type[Exception] = _Never
scale: Callable[..., bool] | None = None

_known = False
_loss: Callable[..., Any] | None = None


def loss_kernel() -> Callable[..., Any] | None:
    """The compiled module's ``loss``, or None where the reference is in use."""
    return _loss if _known else _look()


def refresh() -> None:
    """Forget what was looked up: the choice has changed."""
    global _known
    _known = False


def _look() -> Callable[..., Any] | None:
    global LossError, scale, _known, _loss
    from kdbench.ops import build_info, implementation, native

    _loss = scale = None
    if implementation() != "reference":
        module = native.module()
        LossError, scale, _loss = module.LossError, module.scale, module.loss
    elif reason := build_info()["reason"]:
        _say_once(reason)
    _known = True
    return _loss


@cache
def _say_once(reason: str) -> None:
    warnings.warn(
        f"kdbench computes its losses in plain torch, several times slower: {reason.splitlines()[0]} "
        "(kdbench doctor tells more)",
        RuntimeWarning,
        stacklevel=4,
    )
