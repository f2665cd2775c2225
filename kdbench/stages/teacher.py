"""Make a trained network a teacher: hold it against its gate, and evaluate it once where its inputs never change."""

from __future__ import annotations

from kdbench.errors import StageError
from kdbench.record import Outcome
from kdbench.stage import WEIGHTS, Finished, Stage, Work
from kdbench.stages.splits import splits_of

__all__ = ["LOGITS", "Teacher"]

LOGITS = "logits.safetensors"


class Teacher(Stage, frozen=True):
    """Gate and, without augmentation, cache. Input ``network``: the trained net.

    Attributes
    ----------
    floor : the accuracy (top-1 %) below which nobody may distil from it; None where no claim is known.
    cache : whether the student will see unchanged inputs, so that the logits of the training split are computed once.
    holdout, label_noise : the recipe's, so that teacher and student speak of the same training split.
    """

    floor: float | None
    cache: bool
    holdout: float
    label_noise: float = 0.0

    def run(self, work: Work) -> Outcome:
        from kdbench.training.evaluate import metrics_of, predict

        finished = work.input("network")
        accuracy = _check_gate(finished, self.floor)
        splits = splits_of(work, self.holdout, self.label_noise)
        model = finished.model(work)
        logits = predict(model, splits["train"].inputs)
        if self.cache:
            work.save_tensors(LOGITS, {"train": logits})
        else:
            work.save_tensors(WEIGHTS, model.state_dict())
        metrics = {f"train.{name}": value for name, value in metrics_of(logits, splits["train"].labels).items()}
        return Outcome(metrics={**metrics, "gate.accuracy": accuracy}, notes=finished.record.notes)


def _check_gate(finished: Finished, floor: float | None) -> float:
    # Where a validation split exists the gate uses it: the test split is for the verdict alone.
    metrics = finished.record.metrics
    accuracy = metrics.get("validation.accuracy", metrics["test.accuracy"])
    if floor is not None and accuracy < floor:
        raise StageError(
            f"teacher gate: {finished.record.label} reached {accuracy:.2f} %, below the {floor:.2f} % it must have "
            "before anyone distils from it",
            cure="look at its training curve: a student of a broken teacher says nothing about the method",
        )
    return accuracy
