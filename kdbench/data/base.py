"""What every data set offers: a description, a way to find and check its files, and a way to load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HIDDEN", "DataRef", "Dataset", "Progress", "Split"]

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)`` in bytes or items; called now and then during long work."""

HIDDEN = -100
"""The label of an example whose own is hidden: what :mod:`kdbench.losses` and torch give no cross-entropy."""


class DataRef(msgspec.Struct, frozen=True):
    """Data that was found and checked: everything a stage needs to load it, in any process.

    ``fingerprint`` names the content and is part of every stage's identity; ``path`` is where it lies on this machine
    and is not. ``official`` is False where the checksums are not the published ones, and ``note`` then says why the
    numbers cannot stand beside the paper's. ``load`` is the import path of ``load(ref) -> dict[str, Split]``.
    ``input_shape`` is what networks take; the inputs of a split may be larger images, which are then resized.
    """

    dataset: str
    title: str
    fingerprint: str
    official: bool
    note: str
    path: str
    load: str
    input_shape: tuple[int, int, int]
    num_classes: int
    sizes: dict[str, int]


class Dataset(msgspec.Struct, frozen=True):
    """A data set as plugins publish it (hook ``kdbench_datasets``). Naming it imports neither torch nor numpy.

    ``locate(data_dir, cache, progress) -> DataRef`` finds (or generates, or downloads) and checks the files;
    it is given as an import path so that describing a data set costs nothing. ``archive`` is the file name under which
    a downloaded data set lies in ``cache / id``. ``supplied`` data is never downloaded: the user gives the folder.
    """

    id: str
    title: str
    input_shape: tuple[int, int, int]
    num_classes: int
    sizes: dict[str, int]
    citation: str
    embedded: bool
    locate: str
    archive: str = ""
    supplied: bool = False

    def at_hand(self, cache: Path) -> bool:
        """Whether :attr:`locate` can do without the network and the user: the data is generated, or was downloaded."""
        return self.embedded or (cache / self.id / self.archive).is_file()

    def expected(self) -> DataRef:
        """The published data, described without having it: good for a plan and its price, not for running."""
        return DataRef(
            dataset=self.id,
            title=self.title,
            fingerprint="not fetched",
            official=True,
            note="",
            path="",
            load="",
            input_shape=self.input_shape,
            num_classes=self.num_classes,
            sizes=self.sizes,
        )


class Split(NamedTuple):
    """Inputs ``[N, C, H, W]`` (uint8 images, or float32) and labels ``[N]`` (int64)."""

    inputs: Tensor
    labels: Tensor


Locate = Callable[[Path | None, Path, Progress | None], DataRef]
