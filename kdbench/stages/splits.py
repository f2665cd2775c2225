"""The splits that a stage sees: the data's own, or with a validation split held out of the training one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.stage import Work

if TYPE_CHECKING:
    from kdbench.data.base import Split

__all__ = ["HOLDOUT_SEED", "NOISE_SEED", "splits_of"]

HOLDOUT_SEED = 0
"""The validation split is the same for every seed of a study: seeds vary the training, not the data."""

NOISE_SEED = 0
"""So are the labels that noise replaces."""


def splits_of(work: Work, holdout: float, label_noise: float = 0.0) -> dict[str, Split]:
    """``train``, ``test`` and, with a holdout, ``validation``, on the stage's device.

    ``label_noise`` is the share of the training labels that are replaced, after the holdout: validation and test
    labels are as they were published.
    """
    from kdbench.data import holdout as hold_out
    from kdbench.data.base import Split
    from kdbench.data.noise import symmetric_noise

    data = work.data()
    splits = {"train": data["train"], "test": data["test"]}
    if holdout > 0:
        kept, held = hold_out(data["train"].labels, holdout, HOLDOUT_SEED)
        splits["train"] = Split(data["train"].inputs[kept], data["train"].labels[kept])
        splits["validation"] = Split(data["train"].inputs[held], data["train"].labels[held])
    if label_noise:
        noisy = symmetric_noise(splits["train"].labels, label_noise, work.spec.data.num_classes, NOISE_SEED)
        splits["train"] = splits["train"]._replace(labels=noisy)
    return {name: Split(split.inputs.to(work.device), split.labels.to(work.device)) for name, split in splits.items()}
