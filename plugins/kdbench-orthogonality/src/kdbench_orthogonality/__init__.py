"""Orthogonality for kdbench: distillation beside pruning, quantisation, cheap convolution and regularisation."""

from collections.abc import Iterator

from kdbench import Paper, hookimpl
from kdbench_orthogonality.command import kdbench_register_commands
from kdbench_orthogonality.study import reproduce

KDBENCH_API = 1

__all__ = ["kdbench_papers", "kdbench_register_commands"]


@hookimpl
def kdbench_papers() -> Iterator[Paper]:
    yield Paper.load(__package__, study=reproduce, figures="kdbench_orthogonality.figures:figures")
