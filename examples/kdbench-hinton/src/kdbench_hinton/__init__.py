"""Hinton, Vinyals, Dean 2015 for kdbench: facts, study, and label smoothing as an objective for any study."""

from collections.abc import Iterator

from kdbench import Paper, hookimpl

from kdbench_hinton.objectives import kdbench_objectives
from kdbench_hinton.study import reproduce

KDBENCH_API = 1

__all__ = ["kdbench_objectives", "kdbench_papers"]


@hookimpl
def kdbench_papers() -> Iterator[Paper]:
    yield Paper.load(__package__, study=reproduce)
