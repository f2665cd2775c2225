"""Which implementation runs, looked up once and kept where the hot path can read it. Imports torch on first use."""

from __future__ import annotations

from collections.abc import Callable
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
    from kdbench.ops import implementation, native

    _loss = scale = None
    if implementation() != "reference":
        module = native.module()
        LossError, scale, _loss = module.LossError, module.scale, module.loss
    _known = True
    return _loss
