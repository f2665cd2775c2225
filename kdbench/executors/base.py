"""The seam between the driver and whatever runs stages."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import msgspec

__all__ = ["Executor", "ExecutorInfo"]


class Executor(Protocol):
    """Runs :func:`kdbench.stage.execute` on folders, somewhere.

    ``slots`` is how many stages it runs at once; the driver keeps that many submitted. The future ends with None when
    the folder has its record, or with the stage's error.
    """

    slots: int

    def submit(self, folder: Path) -> Future[None]:
        """Run the stage in ``folder``."""
        ...

    def close(self) -> None:
        """Stop; whatever still runs is abandoned and resumes in the next run."""
        ...


class ExecutorInfo(msgspec.Struct, frozen=True):
    """An executor as plugins publish it: ``create`` is the import path of ``create(workers, threads) -> Executor``."""

    id: str
    title: str
    create: str
