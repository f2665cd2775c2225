"""The paper: its facts, the study that reproduces it, and the figures of a run."""

from __future__ import annotations

from collections.abc import Iterator

from kdbench import Paper, hookimpl
from kdbench_survey_metric.study import reproduce

__all__ = ["kdbench_papers"]


@hookimpl
def kdbench_papers() -> Iterator[Paper]:
    yield Paper.load(__package__, study=reproduce, figures="kdbench_survey_metric.figures:figures")
