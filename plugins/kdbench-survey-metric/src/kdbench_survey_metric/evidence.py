"""What finished stages say of their networks: sizes, accuracies, and which test examples they answered correctly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.base import DataRef
from kdbench.errors import StageError
from kdbench.stage import PREDICTIONS, Finished
from kdbench_survey_metric.measured import Accuracy, Size, SizeUnit

__all__ = ["SPLIT", "Labels", "accuracy_of", "by_class", "correct", "labels_of", "majority_of", "size_of"]

SPLIT = "test"

Labels = NDArray[np.int64]

# How a record names the count of each unit (kdbench.training.model.sizes_of).
_COUNTS: dict[SizeUnit, str] = {
    "parameters": "parameters",
    "nonzero parameters": "nonzero_parameters",
    "bytes": "bytes",
    "MACs": "macs",
}


def size_of(stage: Finished, unit: SizeUnit) -> Size | None:
    """Size of the network that the stage left; None where the stage did not count it in that unit."""
    notes = stage.record.notes
    counts: dict[str, Any] = {"parameters": notes.get("parameters"), **notes.get("sizes", {})}
    count = counts.get(_COUNTS[unit])
    return Size(count, unit) if count else None


def accuracy_of(stage: Finished) -> Accuracy | None:
    """Top-1 accuracy on the test split; None where the stage did not measure it."""
    value = stage.record.metrics.get(f"{SPLIT}.accuracy")
    return None if value is None else Accuracy(value, "percent")


def labels_of(data: DataRef, *stages: Finished) -> Labels:
    """Labels ``[N]`` of the test split: from beside the predictions of one of ``stages``, where there are any.

    Else the data is loaded, which imports torch.

    Raises
    ------
    KdbenchError : the data is no longer where it was, or is other data now.
    StageError : the predictions are not those of the record.
    """
    for stage in stages:
        if PREDICTIONS in stage.record.files and "labels" in (answers := stage.arrays(PREDICTIONS)):
            return answers["labels"].astype(np.int64)
    from kdbench.data import load

    labels: Labels = load(data)[SPLIT].labels.numpy().astype(np.int64)
    return labels


def majority_of(labels: Labels) -> Accuracy:
    """Accuracy of always answering the largest class of the split."""
    return Accuracy(100.0 * float(np.bincount(labels).max()) / labels.size, "percent")


def correct(stage: Finished, labels: Labels) -> NDArray[np.bool_] | None:
    """Which test examples ``[N]`` the network answers correctly; None where the stage left no predictions.

    Raises
    ------
    StageError : the predictions are not those of the record, or not of these labels.
    """
    if PREDICTIONS not in stage.record.files:
        return None
    path = stage.folder / PREDICTIONS
    cure = "delete this stage's folder and run again"
    classes = stage.arrays(PREDICTIONS)["classes"]
    if classes.shape != labels.shape:
        raise StageError(f"predictions of {classes.size} examples, {labels.size} labels", where=path, cure=cure)
    right: NDArray[np.bool_] = classes == labels
    recorded = accuracy_of(stage)
    if recorded is not None and abs(100.0 * right.mean() - recorded.value) > 1e-6:
        raise StageError(
            f"the predictions have {100.0 * right.mean():.4f} % right, their record says {recorded}",
            where=path,
            cure="were they made on this test split? " + cure,
        )
    return right


def by_class(right: NDArray[np.bool_], labels: Labels, classes: int) -> tuple[Accuracy | None, ...]:
    """Accuracy on each class, None for a class without test examples."""
    counts = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels, weights=right, minlength=classes)
    return tuple(
        Accuracy(100.0 * float(hit) / int(count), "percent") if count else None
        for hit, count in zip(hits, counts, strict=True)
    )
