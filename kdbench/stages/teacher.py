"""Make a trained network a teacher: hold it against its gate, and evaluate it once where its inputs never change."""

from __future__ import annotations

from itertools import count, takewhile
from typing import TYPE_CHECKING

from kdbench.data.base import HIDDEN
from kdbench.errors import StageError
from kdbench.record import Outcome
from kdbench.stage import WEIGHTS, Finished, Stage, Work
from kdbench.stages.splits import splits_of
from kdbench.training.recipe import Recipe, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.training.loop import TeacherLogits

__all__ = ["LOGITS", "Teacher", "teacher_logits"]

LOGITS = "logits.safetensors"


class Teacher(Stage, frozen=True):
    """Gate and, without augmentation, cache. Input ``network``: the trained net.

    Attributes
    ----------
    floor : the accuracy (top-1 %) below which nobody may distil from it; None where no claim is known.
    cache : whether the student will see unchanged inputs, so that the logits of the training split are computed once.
    holdout, label_noise, sample, unlabelled : the student's recipe's, so that both speak of the same training split;
        the network may have been trained on another. Its ``train`` metrics leave out examples with hidden labels.
    """

    floor: float | None
    cache: bool
    holdout: float
    label_noise: float = 0.0
    sample: Sample | None = None
    unlabelled: Sample | None = None

    def run(self, work: Work) -> Outcome:
        from kdbench.training.evaluate import metrics_of, predict

        finished = work.input("network")
        accuracy = _check_gate(finished, self.floor)
        train = splits_of(work, self.holdout, self.label_noise, self.sample, self.unlabelled)["train"]
        model = finished.model(work)
        logits = predict(model, train.inputs)
        if self.cache:
            work.save_tensors(LOGITS, {"train": logits})
        else:
            work.save_tensors(WEIGHTS, model.state_dict())
        labelled = train.labels != HIDDEN
        metrics = {
            f"train.{name}": value for name, value in metrics_of(logits[labelled], train.labels[labelled]).items()
        }
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


def teacher_logits(work: Work, recipe: Recipe) -> TeacherLogits | None:
    """What the inputs ``teacher``, ``teacher1``, ... of a stage say of each batch; None where there is no teacher.

    Cached logits where the teacher's stage left them, the frozen network itself otherwise. Of one teacher they are
    ``[n, C]``, of M > 1 ``[M, n, C]`` in the order of their numbers.

    Raises
    ------
    StageError : logits were cached for inputs that the recipe mixes.
    """
    import torch

    roles = takewhile(work.spec.inputs.__contains__, (f"teacher{number or ''}" for number in count()))
    teachers = [_logits_of(work, role, recipe) for role in roles]
    if len(teachers) < 2:
        return teachers[0] if teachers else None
    return lambda inputs, indices: torch.stack([teacher(inputs, indices) for teacher in teachers])


def _logits_of(work: Work, role: str, recipe: Recipe) -> TeacherLogits:
    import torch

    stage = work.input(role)
    if LOGITS in stage.record.files:
        if recipe.mixing is not None:
            raise StageError(
                f"the teacher's logits are of inputs as they are, and {recipe.mixing.kind} changes them",
                where=stage.record.label,
                cure="let the teacher see what the student sees: lab.teacher(node, recipe), or Teacher(cache=False)",
            )
        table = stage.tensors(LOGITS)["train"].to(work.device)
        return lambda inputs, indices: table[indices]
    model = stage.model(work)

    def live(inputs: Tensor, indices: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(inputs)
        return logits

    return live
