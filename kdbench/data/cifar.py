"""CIFAR-10 and CIFAR-100 from the official *binary* archives, downloaded or from a local copy.

A record is one label byte (CIFAR-10) or a coarse and a fine label byte (CIFAR-100, of which the fine one is used) and
3,072 pixel bytes, channel-major. A local copy is an archive whose name starts with ``cifar-10`` or ``cifar-100``, or
the folder unpacked from it. The fingerprint covers the records alone, so folder and archive agree.

Data is *official* where the archive has the published MD5. Of unpacked files no checksum was ever published, so a
folder is never called official, even with the official sizes; its note says which of the two is the case.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock

from kdbench.data import DATASETS
from kdbench.data._download import download
from kdbench.data._files import WrongMembersError, digests, unpack, writing
from kdbench.data.base import DataRef, Progress, Split
from kdbench.errors import KdbenchError
from kdbench.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CIFAR10", "CIFAR100", "Layout", "load", "locate_cifar10", "locate_cifar100"]

PIXELS = 3 * 32 * 32
_ARCHIVES = (".tar.gz", ".tgz", ".tar.xz", ".tar")


class Layout(NamedTuple):
    """How one of the two data sets is published. ``label_bytes`` lead a record; the last of them is the label."""

    id: str
    stem: str
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int

    @property
    def title(self) -> str:
        return DATASETS[self.id].title

    @property
    def members(self) -> tuple[str, ...]:
        """The files of records in the order of the fingerprint."""
        return self.train + self.test

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return self.label_bytes + PIXELS


CIFAR10 = Layout(
    id="cifar10",
    stem="cifar-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    label_bytes=1,
)
CIFAR100 = Layout(
    id="cifar100",
    stem="cifar-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    label_bytes=2,
)


def locate_cifar10(data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    """CIFAR-10 in ``data_dir`` (a folder or an archive), or downloaded into ``cache`` where that is None."""
    return _locate(CIFAR10, data_dir, cache, progress)


def locate_cifar100(data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    """CIFAR-100 in ``data_dir`` (a folder or an archive), or downloaded into ``cache`` where that is None."""
    return _locate(CIFAR100, data_dir, cache, progress)


def load(ref: DataRef) -> dict[str, Split]:
    """Splits with uint8 inputs ``[N, 3, 32, 32]`` and int64 labels ``[N]``.

    Raises
    ------
    KdbenchError : a file is gone, or the files changed since they were located.
    """
    import numpy as np
    import torch

    layout = {"cifar10": CIFAR10, "cifar100": CIFAR100}[ref.dataset]
    files: dict[str, NDArray[np.uint8]] = {}
    for name in layout.members:
        path = Path(ref.path) / name
        try:
            files[name] = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise KdbenchError(f"cannot read {layout.title}: {error.strerror}", where=path) from error
    if _fingerprint([hashlib.sha256(file.data).hexdigest() for file in files.values()]) != ref.fingerprint:
        raise KdbenchError(f"the files of {layout.title} changed since they were located", where=ref.path)
    splits: dict[str, Split] = {}
    for split, names in (("train", layout.train), ("test", layout.test)):
        records = [files[name].reshape(-1, layout.record) for name in names]
        images = np.concatenate([part[:, layout.label_bytes :] for part in records])
        labels = np.concatenate([part[:, layout.label_bytes - 1] for part in records])
        splits[split] = Split(torch.from_numpy(images).view(-1, 3, 32, 32), torch.from_numpy(labels.astype(np.int64)))
    return splits


def _locate(layout: Layout, data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    cache = Path(cache)
    try:
        if data_dir is None:
            archive = _fetch(layout, cache, progress)
            return _describe(layout, _unpacked(layout, archive, cache, progress), cache, archive)
        return _find(layout, Path(data_dir).expanduser(), cache, progress)
    except OSError as error:
        raise KdbenchError(f"cannot read {layout.title}: {error.strerror or error}", where=error.filename) from error


def _fetch(layout: Layout, cache: Path, progress: Progress | None) -> Path:
    archive = cache / layout.id / layout.url.rpartition("/")[2]
    with writing(archive.parent), filelock.FileLock(archive.with_name(".download.lock")):
        if not (archive.is_file() and digests(archive, cache).md5 == layout.md5):
            download(layout.url, archive, layout.md5, layout.title, progress)
    return archive


def _find(layout: Layout, data_dir: Path, cache: Path, progress: Progress | None) -> DataRef:
    """The folder of records if there is one, else the first archive that holds them."""
    looked_for = f"{layout.folder}/ with {layout.members[0]} in it, or an archive {layout.stem}*.tar.gz or .tar.xz"
    if not data_dir.exists():
        raise KdbenchError("the data folder does not exist", where=data_dir, cure=f"it may hold {looked_for}")
    for folder in (data_dir, data_dir / layout.folder):
        if (folder / layout.members[0]).is_file():
            return _describe(layout, folder, cache, None)
    wrong: WrongMembersError | None = None
    for archive in _archives(layout, data_dir):
        try:
            return _describe(layout, _unpacked(layout, archive, cache, progress), cache, archive)
        except WrongMembersError as error:  # the Python version of the archive may lie beside the binary one
            wrong = wrong or error
    if wrong:
        raise wrong
    raise KdbenchError(f"no {layout.title} in the data folder", where=data_dir, cure=f"looked for {looked_for}")


def _archives(layout: Layout, data_dir: Path) -> Iterator[Path]:
    """A file is taken by its word; in a folder, names that start with the stem, the official name first."""
    if data_dir.is_file():
        yield data_dir
        return
    official = layout.url.rpartition("/")[2]
    for path in sorted(data_dir.iterdir(), key=lambda path: (path.name != official, path.name)):
        # The digit matters: cifar-100 starts with cifar-10 too.
        if re.match(rf"{layout.stem}(?!\d)", path.name) and path.name.endswith(_ARCHIVES) and path.is_file():
            yield path


def _unpacked(layout: Layout, archive: Path, cache: Path, progress: Progress | None) -> Path:
    """The archive's records in the cache, unpacked on the first call and whenever they are no longer what they were."""
    folder = cache / layout.id / digests(archive, cache).sha256[:24]
    manifest = folder.with_name(f"{folder.name}.json")

    def report(done: int, total: int) -> None:
        if progress:
            progress(f"unpacking {layout.title}", done, total)

    with writing(folder.parent), filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _is_intact(layout, folder, manifest, cache):
            manifest.unlink(missing_ok=True)
            unpack(archive, layout.folder, layout.members, folder, report)
            atomic_write(manifest, json.dumps(_checksums(layout, folder, cache)).encode())
    return folder


def _is_intact(layout: Layout, folder: Path, manifest: Path, cache: Path) -> bool:
    try:
        return bool(json.loads(manifest.read_bytes()) == _checksums(layout, folder, cache))
    except (OSError, ValueError):
        return False


def _checksums(layout: Layout, folder: Path, cache: Path) -> list[str]:
    return [digests(folder / name, cache).sha256 for name in layout.members]


def _fingerprint(sha256: list[str]) -> str:
    return hashlib.sha256("".join(sha256).encode()).hexdigest()


def _describe(layout: Layout, folder: Path, cache: Path, archive: Path | None) -> DataRef:
    facts = DATASETS[layout.id]
    counts = {path: _count(layout, folder / path, facts.num_classes) for path in layout.members}
    sizes = {
        "train": sum(counts[name] for name in layout.train),
        "test": sum(counts[name] for name in layout.test),
    }
    official = archive is not None and digests(archive, cache).md5 == layout.md5
    note = "" if official else f"data is not the official {layout.title}"
    if archive is None and sizes == facts.sizes:
        note = f"data is not known to be the official {layout.title}: an unpacked folder has no published checksum"
    return DataRef(
        dataset=layout.id,
        title=layout.title,
        fingerprint=_fingerprint(_checksums(layout, folder, cache)),
        official=official,
        note=note,
        path=str(folder.resolve()),
        load="kdbench.data.cifar:load",
        input_shape=facts.input_shape,
        num_classes=facts.num_classes,
        sizes=sizes,
    )


def _count(layout: Layout, path: Path, num_classes: int) -> int:
    """Records in one file, whose size and labels are checked here, before any stage relies on them."""
    import numpy as np

    if not path.is_file():
        raise KdbenchError(f"{layout.title} lacks {path.name}", where=path.parent, cure="unpack the archive again")
    count, rest = divmod(path.stat().st_size, layout.record)
    if rest or not count:
        raise KdbenchError(
            f"{path.name} is no file of {layout.title} records: {path.stat().st_size} bytes, "
            f"and a record has {layout.record}",
            where=path,
            cure="is it truncated, or the other CIFAR? fetch the archive again",
        )
    records = np.memmap(path, dtype=np.uint8, mode="r", shape=(count, layout.record))
    highest = int(records[:, layout.label_bytes - 1].max())
    if highest >= num_classes:
        raise KdbenchError(
            f"{path.name} has the label {highest}, and {layout.title} has {num_classes} classes",
            where=path,
            cure="is it damaged, or the other CIFAR? fetch the archive again",
        )
    return count
