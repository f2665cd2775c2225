"""Runs stages in this process, one after the other: for debugging and for notebooks."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from kdbench.stage import execute

__all__ = ["InlineExecutor"]


class InlineExecutor:
    """``submit`` returns when the stage has run."""

    slots = 1

    def __init__(self, workers: int = 1, threads: int = 1) -> None:
        pass

    def submit(self, folder: Path) -> Future[None]:
        future: Future[None] = Future()
        try:
            execute(folder)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass
