"""The data sets: how they are described, found and checked. Importing this module imports neither numpy nor torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench import hookimpl
from kdbench.data.base import DataRef, Dataset, Progress
from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from kdbench.data.base import Split

__all__ = ["HOWTO", "TEXT", "UNSPOKEN", "kdbench_datasets", "load", "locate_features", "locate_texts", "locate_world"]

_SHAPE = (1, 9, 40)  # one channel, frames, features: tests hold it against the world
_NOUNS = 80
_SIZES = {"train": 1_920, "test": 160}

UNSPOKEN = Dataset(
    id="unspoken",
    title="world of unspoken attributes",
    input_shape=_SHAPE,
    num_classes=_NOUNS,
    sizes=_SIZES,
    citation="kdbench-vidlankd: a generator of clips and captions, seeded",
    embedded=True,
    locate="kdbench_vidlankd.datasets:locate_world",
)
TEXT = Dataset(
    id="unspoken-text",
    title="world of unspoken attributes in real text",
    input_shape=_SHAPE,
    num_classes=_NOUNS,
    sizes=_SIZES,
    citation="WikiText-2 (Merity et al. 2016), CoLA, SST-2, RTE (Wang et al., GLUE, 2018), and unspoken's generator",
    embedded=False,
    locate="kdbench_vidlankd.datasets:locate_texts",
    supplied=True,
)
HOWTO = Dataset(
    id="howto100m",
    title="HowTo100M features",
    input_shape=(1, 384, 4_096),  # the most steps of a clip, and the features of each
    num_classes=2,
    sizes={"train": 30_000, "test": 10_000},  # videos of the paper's appendix, and those it holds out
    citation="Miech et al., HowTo100M, ICCV 2019; GLUE (Wang et al. 2018); English text",
    embedded=False,
    locate="kdbench_vidlankd.datasets:locate_features",
    supplied=True,
)


@hookimpl
def kdbench_datasets() -> Iterator[Dataset]:
    yield from (UNSPOKEN, TEXT, HOWTO)


def locate_world(data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    """Nothing to find: the fingerprint is that of world 0, as it is generated here."""
    from kdbench_vidlankd.world import World

    world = World(0)
    digest = hashlib.sha256()
    for lines in (world.text, world.held_text, world.captions):
        digest.update("\n".join(lines).encode())
    for clips in (world.train_clips, world.test_clips):
        digest.update(clips.tobytes())
    return _ref(UNSPOKEN, digest.hexdigest(), "", "")


def locate_texts(data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    """The text data of the user, see :func:`kdbench_vidlankd.texts.find_texts`, for worlds as in ``unspoken``."""
    from kdbench_vidlankd.texts import find_texts

    found = find_texts(data_dir, Path(cache) / TEXT.id, progress)
    world = locate_world(None, cache, progress).fingerprint
    fingerprint = hashlib.sha256(f"{world} {found.fingerprint}".encode()).hexdigest()
    return _ref(TEXT, fingerprint, str(found.folder), found.note)


def locate_features(data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    """The user's features, captions and text, see :func:`kdbench_vidlankd.features.find_features`."""
    from kdbench_vidlankd.features import Clips, find_features

    found = find_features(data_dir, Path(cache) / HOWTO.id, progress)
    sizes = {"train": len(Clips(found.folder).videos), "test": 0}
    ref = _ref(HOWTO, found.fingerprint, str(found.folder), found.note)
    return DataRef(**{name: getattr(ref, name) for name in ref.__struct_fields__ if name != "sizes"}, sizes=sizes)


def load(ref: DataRef) -> dict[str, Split]:
    """The clips of world 0 as images of frames by features, labelled with the numbers of their nouns.

    Studies of this plugin read text as well, and other worlds: :mod:`kdbench_vidlankd.corpus`.

    Raises
    ------
    KdbenchError : of ``howto100m``, whose clips are cut by their captions and do not fit in memory.
    """
    if ref.dataset == HOWTO.id:
        raise KdbenchError(
            f"{ref.title} are read clip by clip", where=ref.path, cure="use kdbench_vidlankd.features.Clips"
        )
    import torch

    from kdbench.data.base import Split
    from kdbench_vidlankd.world import World

    world = World(0)
    clips = {"train": world.train_clips, "test": world.test_clips}
    labels = {"train": world.clip_labels("train"), "test": world.clip_labels("test")}
    return {
        name: Split(torch.from_numpy(each)[:, None], torch.from_numpy(labels[name])) for name, each in clips.items()
    }


def _ref(dataset: Dataset, fingerprint: str, path: str, note: str) -> DataRef:
    return DataRef(
        dataset=dataset.id,
        title=dataset.title,
        fingerprint=fingerprint,
        official=dataset.embedded,
        note=note,
        path=path,
        load="kdbench_vidlankd.datasets:load",
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        sizes=dataset.sizes,
    )
