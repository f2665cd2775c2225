"""The one error that users see: what went wrong, where, and what cures it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["KdbenchError", "StageError", "unknown"]


class KdbenchError(Exception):
    """A fault that the user can act on; the command line prints it as one line, without a traceback.

    Parameters
    ----------
    what : the fault, in one clause.
    where : the file, plugin, stage or option that it concerns.
    cure : what the user can do about it.
    """

    def __init__(self, what: str, *, where: object = None, cure: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.cure = cure
        super().__init__(what, self.where, cure)

    def __str__(self) -> str:
        text = self.what
        if self.where:
            text += f" [{self.where}]"
        if self.cure:
            text += f"; {self.cure}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.cure))


class StageError(KdbenchError):
    """A stage could not finish: a loss that is not finite, a teacher below its gate, a missing input.

    ``trace`` is the traceback from the worker, shown with ``--debug``.
    """

    trace: str = ""


def _rebuild(kind: type[KdbenchError], what: str, where: str | None, cure: str | None) -> KdbenchError:
    return kind(what, where=where, cure=cure)


def unknown(noun: str, name: str, known: Iterable[str]) -> KdbenchError:
    """The error for a name that does not exist: lists what exists and suggests the nearest."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    cure = f"did you mean '{near[0]}'? " if near else ""
    cure += f"known: {', '.join(names)}" if names else "none is installed"
    return KdbenchError(f"unknown {noun} '{name}'", cure=cure)
