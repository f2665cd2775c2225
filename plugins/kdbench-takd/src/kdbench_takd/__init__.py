"""TAKD for kdbench: improved knowledge distillation via teacher assistant (Mirzadeh et al., AAAI 2020)."""

from collections.abc import Iterator

from kdbench import Paper, hookimpl
from kdbench_takd.study import reproduce

KDBENCH_API = 1


@hookimpl
def kdbench_papers() -> Iterator[Paper]:
    yield Paper.load(__package__, study=reproduce)
