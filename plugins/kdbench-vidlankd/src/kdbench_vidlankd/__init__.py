"""VidLanKD for kdbench: video-distilled knowledge transfer to a text-only language model."""

from collections.abc import Iterator

from kdbench import Paper, hookimpl
from kdbench_vidlankd.datasets import kdbench_datasets
from kdbench_vidlankd.study import reproduce

KDBENCH_API = 1

__all__ = ["kdbench_datasets", "kdbench_papers"]


@hookimpl
def kdbench_papers() -> Iterator[Paper]:
    yield Paper.load(__package__, study=reproduce, figures="kdbench_vidlankd.figures:figures")
