"""Shared data sets, by name. Naming, finding and checking them imports no torch; loading does."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import msgspec

from kdbench import errors
from kdbench.component import load_object
from kdbench.data.base import DataRef, Dataset, Progress, Split
from kdbench.data.splits import channel_statistics, holdout

__all__ = [
    "DATASETS",
    "DataRef",
    "Dataset",
    "Progress",
    "Split",
    "channel_statistics",
    "dataset",
    "default_cache",
    "holdout",
    "load",
]

_GREYDANUS = "Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, ICML 2024"
_KRIZHEVSKY = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"

DATASETS: dict[str, Dataset] = {
    description.id: description
    for description in (
        Dataset(
            id="mnist1d",
            title="MNIST-1D",
            input_shape=(1, 1, 40),
            num_classes=10,
            sizes={"train": 4_000, "test": 6_000},
            citation=_GREYDANUS,
            embedded=True,
            locate="kdbench.data.mnist1d:locate",
        ),
        Dataset(
            id="mnist1d-pool",
            title="MNIST-1D pool",
            input_shape=(1, 1, 40),
            num_classes=10,
            # The generator of mnist1d asked for more, so that training sets can be re-drawn.
            sizes={"train": 54_000, "test": 6_000},
            citation=_GREYDANUS,
            embedded=True,
            locate="kdbench.data.mnist1d:locate_pool",
        ),
        Dataset(
            id="cifar10",
            title="CIFAR-10",
            input_shape=(3, 32, 32),
            num_classes=10,
            sizes={"train": 50_000, "test": 10_000},
            citation=_KRIZHEVSKY,
            embedded=False,
            locate="kdbench.data.cifar:locate_cifar10",
            archive="cifar-10-binary.tar.gz",
        ),
        Dataset(
            id="cifar100",
            title="CIFAR-100",
            input_shape=(3, 32, 32),
            num_classes=100,
            sizes={"train": 50_000, "test": 10_000},
            citation=_KRIZHEVSKY,
            embedded=False,
            locate="kdbench.data.cifar:locate_cifar100",
            archive="cifar-100-binary.tar.gz",
        ),
        Dataset(
            id="tiny-imagenet",
            title="Tiny-ImageNet",
            input_shape=(3, 32, 32),  # what networks see; the images have 64x64 pixels
            num_classes=200,
            # The test split is the official validation images: the official test labels were never published.
            sizes={"train": 100_000, "test": 10_000},
            citation="Le and Yang, Tiny ImageNet Visual Recognition Challenge, CS 231N, 2015",
            embedded=False,
            locate="kdbench.data.tiny_imagenet:locate",
            supplied=True,
        ),
    )
}


def dataset(name: str) -> Dataset:
    """The shared data set of that id.

    Raises
    ------
    KdbenchError : there is none; the message lists them and suggests the nearest.
    """
    try:
        return DATASETS[name]
    except KeyError:
        raise errors.unknown("data set", name, DATASETS) from None


def default_cache() -> Path:
    """The folder for generated, downloaded and unpacked data: ``KDBENCH_CACHE``, or the user's cache folder."""
    if chosen := os.environ.get("KDBENCH_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("kdbench")) / "data"


def load(ref: DataRef) -> dict[str, Split]:
    """The splits ``train`` and ``test`` of data that was located, kept in this process for the next caller.

    The tensors are shared between callers: never change them in place.

    Raises
    ------
    KdbenchError : the files are gone, or are no longer those of ``ref.fingerprint``.
    """
    return dict(_load(msgspec.json.encode(ref)))


# Keyed by the encoded reference, because a DataRef holds a dict and so has no hash. Two: a study uses one data set.
@functools.lru_cache(maxsize=2)
def _load(encoded: bytes) -> dict[str, Split]:
    ref = msgspec.json.decode(encoded, type=DataRef)
    splits: dict[str, Split] = load_object(ref.load)(ref)
    return splits
