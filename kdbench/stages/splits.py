"""The splits that a stage sees: the data's own, or with a validation split held out of the training one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbench.stage import Work
from kdbench.training.recipe import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.data.base import Split

__all__ = ["HOLDOUT_SEED", "NOISE_SEED", "SAMPLE_SEED", "splits_of"]

HOLDOUT_SEED = 0
"""The validation split is the same for every seed of a study: seeds vary the training, not the data."""

NOISE_SEED = 0
"""So are the labels that noise replaces."""

SAMPLE_SEED = 1
"""And the order that samples are cut from: a study that varies the data says so, by their numbers."""


def splits_of(
    work: Work,
    holdout: float,
    label_noise: float = 0.0,
    sample: Sample | None = None,
    unlabelled: Sample | None = None,
) -> dict[str, Split]:
    """``train``, ``test`` and, with a holdout, ``validation``, on the stage's device.

    Parameters
    ----------
    holdout : share of the sample that is held out.
    label_noise : share of the training labels that are replaced, after the holdout: validation and test labels are as
        they were published.
    sample : the part of the published training split that is used; None is all of it. What is trained on is resampled
        last, if at all.
    unlabelled : further examples of it, which follow the labelled ones with the label ``kdbench.data.base.HIDDEN``.

    Raises
    ------
    KdbenchError : the published training split is too small, or nothing would be held out or left.
    """
    import torch

    from kdbench.data import holdout as hold_out
    from kdbench.data.base import HIDDEN, Split
    from kdbench.data.noise import symmetric_noise

    data = work.data()
    train = data["train"] if sample is None else _drawn(data["train"], sample)
    splits = {"test": data["test"]}
    if holdout > 0:
        kept, held = hold_out(train.labels, holdout, HOLDOUT_SEED)
        splits["validation"] = _rows(train, held)
        train = _rows(train, kept)
    if label_noise:
        noisy = symmetric_noise(train.labels, label_noise, work.spec.data.num_classes, NOISE_SEED)
        train = train._replace(labels=noisy)
    if sample is not None:
        train = _resampled(train, sample)
    if unlabelled is not None:
        extra = _resampled(_drawn(data["train"], unlabelled), unlabelled)
        hidden = torch.full_like(extra.labels, HIDDEN)
        train = Split(torch.cat([train.inputs, extra.inputs]), torch.cat([train.labels, hidden]))
    splits = {"train": train, **splits}
    return {name: Split(split.inputs.to(work.device), split.labels.to(work.device)) for name, split in splits.items()}


def _drawn(split: Split, sample: Sample) -> Split:
    from kdbench.data.samples import sample as draw

    return _rows(split, draw(len(split.labels), sample.size, sample.number, SAMPLE_SEED))


def _resampled(split: Split, sample: Sample) -> Split:
    from kdbench.data.samples import resample

    if sample.bootstrap is None:
        return split
    return _rows(split, resample(len(split.labels), (SAMPLE_SEED, sample.number, sample.bootstrap)))


def _rows(split: Split, indices: Tensor) -> Split:
    return split._replace(inputs=split.inputs[indices], labels=split.labels[indices])
