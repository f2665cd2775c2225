"""Pick the best of several trials by one declared split: what hyper-parameter search comes down to."""

from __future__ import annotations

from typing import Literal

from kdbench.record import Outcome
from kdbench.stage import PREDICTIONS, WEIGHTS, Stage, Work

__all__ = ["Choose"]


class Choose(Stage, frozen=True):
    """Inputs ``0``, ``1``, ...: the trials. The first of equals wins. ``by``: the split whose accuracy decides."""

    by: Literal["validation", "test"]

    def run(self, work: Work) -> Outcome:
        trials = [work.input(str(number)) for number in range(len(work.spec.inputs))]
        scores = [trial.record.metrics[f"{self.by}.accuracy"] for trial in trials]
        chosen = scores.index(max(scores))
        record = trials[chosen].record
        for name in (WEIGHTS, PREDICTIONS):
            if name in record.files:  # a stage of a plugin may leave no predictions
                work.save_tensors(name, trials[chosen].tensors(name))
        notes = {**record.notes, "chosen": chosen, "chosen_label": record.label, "scores": scores}
        return Outcome(metrics=record.metrics, notes=notes)
