"""Engines that run stage folders. The seam is one method: submit a folder, get a future."""

from kdbench.executors.base import Executor, ExecutorInfo

__all__ = ["Executor", "ExecutorInfo"]
