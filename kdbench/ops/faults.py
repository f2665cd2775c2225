"""Errors for class indices that name no class; every implementation words them alike. Imports torch lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["bad_index", "bad_label"]


def bad_label(label: int, row: int, classes: int) -> KdbenchError:
    """The error for a label outside ``[0, classes)``."""
    return KdbenchError(
        f"label {label} in row {row} is outside [0, {classes})",
        where="kdbench.losses",
        cure="check the number of classes, or mark rows to skip with ignore_index",
    )


def bad_index(indices: Tensor, row: int, classes: int) -> KdbenchError:
    """The error for a row of a sparse teacher's ``[N, K]`` indices, one of which is out of range or there twice."""
    seen: set[int] = set()
    for index in indices[row].tolist():
        if not 0 <= index < classes:
            return KdbenchError(
                f"teacher index {index} in row {row} is outside [0, {classes})",
                where="kdbench.losses",
                cure="check the number of classes, and that the indices belong to this vocabulary",
            )
        if index in seen:
            break
        seen.add(index)
    return KdbenchError(
        f"teacher index {index} is listed twice in row {row}",
        where="kdbench.losses",
        cure="list each class once",
    )
