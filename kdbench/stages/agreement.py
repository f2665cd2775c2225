"""Measure how well a student mimics a network: top-1 agreement and divergence, on training and test inputs."""

from __future__ import annotations

from kdbench.record import Outcome
from kdbench.stage import Stage, Work
from kdbench.stages.splits import splits_of
from kdbench.training.recipe import Sample

__all__ = ["Agreement"]


class Agreement(Stage, frozen=True):
    """Inputs ``student`` and ``teacher``: two trained nets. ``holdout``, ``sample``: as in the student's recipe."""

    holdout: float
    sample: Sample | None = None

    def run(self, work: Work) -> Outcome:
        from kdbench.training.evaluate import agreement, predict

        student, teacher = work.input("student").model(work), work.input("teacher").model(work)
        metrics = {
            f"{name}.{metric}": value
            for name, split in splits_of(work, self.holdout, sample=self.sample).items()
            for metric, value in agreement(predict(student, split.inputs), predict(teacher, split.inputs)).items()
        }
        return Outcome(metrics=metrics)
