"""Tiny-ImageNet from the folder that the user has: JPEG images, decoded once into arrays in the cache.

The folder is what the published archive unpacks to; nothing is downloaded. Classes are numbered in the order of their
sorted WordNet ids, images stand in the order of their sorted names. The test split is the official *validation*
images, as everybody uses them: the labels of the official test images were never published.

The pixels of a JPEG file depend a little on the library that decodes it. So the fingerprint covers the decoded pixels
and the labels rather than the files: two machines have one fingerprint only where a network sees the same numbers, and
the note names the library. Arrays that were decoded once are kept, with their fingerprint, when Pillow is upgraded;
they are decoded anew when a file of the folder changes its name, size or time.

The data is never *official*: of the unpacked files no checksum was published. The note says so, or that the folder has
another number of images or classes than the published one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock
import msgspec

from kdbench.data import DATASETS
from kdbench.data._files import digests, writing
from kdbench.data.base import DataRef, Progress, Split
from kdbench.errors import KdbenchError
from kdbench.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["load", "locate"]

FOLDER = "tiny-imagenet-200"
SIDE = 64  # pixels, of every image
HOLDS = "wnids.txt, train/<wnid>/images/*.JPEG, and val/images/*.JPEG with val/val_annotations.txt"

_FACTS = DATASETS["tiny-imagenet"]
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_BLOCK = 250  # images decoded between two calls of progress
_AGAIN = "unpack the archive again"
_LOCATE = "give its folder with --data-dir again: it is then decoded anew"


class Images(NamedTuple):
    """A split as the folder lists it, in the order of its arrays: files, relative to the folder, and their labels."""

    files: list[str]
    labels: list[int]


class Decoded(msgspec.Struct, frozen=True):
    """What one folder was decoded to: holds while its listing and the arrays are what they were."""

    listing: str
    fingerprint: str
    decoder: str
    checksums: list[str]


def locate(data_dir: Path | None, cache: Path, progress: Progress | None) -> DataRef:
    """Tiny-ImageNet in ``data_dir``, which is its folder or holds that as ``tiny-imagenet-200``.

    Raises
    ------
    KdbenchError : no folder was given; it lacks a file; an image cannot be read or has another size than 64x64; or the
        cache cannot be written.
    """
    if data_dir is None:
        raise KdbenchError(
            f"{_FACTS.title} is never downloaded",
            cure=f"give the folder that its archive unpacks to with --data-dir; it holds {HOLDS}",
        )
    try:
        root = _root(Path(data_dir).expanduser()).resolve()
        wnids = _wnids(root)
        listed = {"train": _train(root, wnids), "test": _test(root, wnids)}
        found = _decoded(root, listed, Path(cache), progress)
    except OSError as error:
        raise KdbenchError(f"cannot read {_FACTS.title}: {error.strerror or error}", where=error.filename) from error
    sizes = {split: len(images.files) for split, images in listed.items()}
    return DataRef(
        dataset=_FACTS.id,
        title=_FACTS.title,
        fingerprint=found.fingerprint,
        official=False,
        note=_note(sizes, len(wnids), found.decoder),
        path=str(_folder(Path(cache), found.fingerprint).resolve()),
        load="kdbench.data.tiny_imagenet:load",
        input_shape=_FACTS.input_shape,
        num_classes=len(wnids),
        sizes=sizes,
    )


def load(ref: DataRef) -> dict[str, Split]:
    """Splits with uint8 inputs ``[N, 3, 64, 64]`` and int64 labels ``[N]``.

    Networks see them in 32x32 pixels (``ref.input_shape``): whoever trains crops or resizes.

    Raises
    ------
    KdbenchError : an array is gone from the cache, or the arrays changed since they were located.
    """
    import numpy as np
    import torch

    arrays: dict[str, NDArray[np.generic]] = {}
    for name in _ARRAYS:
        path = Path(ref.path) / f"{name}.npy"
        try:
            # Mapped and copied: the tensors are the process's own, whatever becomes of the file.
            arrays[name] = np.array(np.load(path, mmap_mode="r"))
        except FileNotFoundError as error:
            raise KdbenchError(f"cannot read {ref.title}: {error.strerror}", where=path, cure=_LOCATE) from error
        except (OSError, ValueError, EOFError) as error:
            raise KdbenchError(f"cannot read {ref.title}: {error}", where=path, cure=_LOCATE) from error
    if _fingerprint([_content(array).hexdigest() for array in arrays.values()]) != ref.fingerprint:
        raise KdbenchError(f"the arrays of {ref.title} changed since they were located", where=ref.path, cure=_LOCATE)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {split: Split(tensors[f"{split}_images"], tensors[f"{split}_labels"]) for split in ("train", "test")}


# what the folder holds


def _root(data_dir: Path) -> Path:
    if not data_dir.exists():
        raise KdbenchError("the data folder does not exist", where=data_dir, cure=f"it holds {HOLDS}")
    for folder in (data_dir, data_dir / FOLDER):
        if (folder / "wnids.txt").is_file():
            return folder
    raise KdbenchError(
        f"no {_FACTS.title} in the data folder",
        where=data_dir,
        cure=f"unpack its archive; the folder, or {FOLDER}/ in it, holds {HOLDS}",
    )


def _wnids(root: Path) -> list[str]:
    path = root / "wnids.txt"
    wnids = path.read_text(encoding="utf-8", errors="replace").split()
    # They name folders, so nothing but an id may pass.
    if odd := next((wnid for wnid in wnids if not re.fullmatch(r"n\d{8}", wnid)), None):
        raise KdbenchError(f"{odd!r} is no WordNet id: n and eight digits", where=path, cure=_AGAIN)
    if len(set(wnids)) != len(wnids) or not wnids:
        raise KdbenchError("lists a class twice" if wnids else "lists no class", where=path, cure=_AGAIN)
    return sorted(wnids)


def _train(root: Path, wnids: list[str]) -> Images:
    images = Images([], [])
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        names = _names(folder, f"the class {wnid} of wnids.txt")
        images.files.extend(f"train/{wnid}/images/{name}" for name in names)
        images.labels.extend([label] * len(names))
    return images


def _test(root: Path, wnids: list[str]) -> Images:
    """The official validation images."""
    path = root / "val" / "val_annotations.txt"
    if not path.is_file():
        raise KdbenchError(f"{_FACTS.title} lacks val/val_annotations.txt", where=path, cure=_AGAIN)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    label_of: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if not rest or name in label_of:
            what = f"has {name} twice" if rest else "is no annotation: a name and a WordNet id, parted by a tab"
            raise KdbenchError(f"line {number} of val_annotations.txt {what}", where=path, cure=_AGAIN)
        if wnid not in labels:
            raise KdbenchError(
                f"line {number} of val_annotations.txt gives {name} the class {wnid}, which wnids.txt lacks",
                where=path,
                cure=_AGAIN,
            )
        label_of[name] = labels[wnid]
    names = _names(root / "val" / "images", "the validation images")
    if odd := sorted(set(names) ^ set(label_of)):
        places = ("val/images", "val_annotations.txt")
        has, lacks = places if odd[0] in names else places[::-1]
        raise KdbenchError(f"{has} has {odd[0]}, which {lacks} lacks", where=root / "val", cure=_AGAIN)
    return Images([f"val/images/{name}" for name in names], [label_of[name] for name in names])


def _names(folder: Path, what: str) -> list[str]:
    if not folder.is_dir():
        raise KdbenchError(f"{_FACTS.title} lacks the folder of {what}", where=folder, cure=_AGAIN)
    # Hidden files are a file manager's own: copies made on some systems have one beside every image.
    names = sorted(name for name in os.listdir(folder) if name.endswith(".JPEG") and not name.startswith("."))
    if not names:
        raise KdbenchError(f"the folder of {what} has no *.JPEG", where=folder, cure=_AGAIN)
    return names


# decoding


def _decoded(root: Path, listed: dict[str, Images], cache: Path, progress: Progress | None) -> Decoded:
    """The arrays in the cache, decoded on the first call and whenever folder or arrays are no longer what they were."""
    home = cache / _FACTS.id
    note = home / f"{hashlib.sha256(str(root).encode()).hexdigest()[:24]}.json"
    listing = _listing(root, listed)
    with writing(home), filelock.FileLock(home / ".decode.lock"):
        with suppress(OSError, msgspec.MsgspecError):
            known = msgspec.json.decode(note.read_bytes(), type=Decoded)
            if known.listing == listing and known.checksums == _checksums(cache, known.fingerprint):
                return known
        fingerprint = _decode(root, listed, home, progress)
        found = Decoded(listing, fingerprint, _decoder(), _checksums(cache, fingerprint))
        atomic_write(note, msgspec.json.encode(found))
    return found


def _folder(cache: Path, fingerprint: str) -> Path:
    return cache / _FACTS.id / fingerprint[:24]


def _checksums(cache: Path, fingerprint: str) -> list[str]:
    return [digests(_folder(cache, fingerprint) / f"{name}.npy", cache).sha256 for name in _ARRAYS]


def _listing(root: Path, listed: dict[str, Images]) -> str:
    """Hash of the names, labels, sizes and times of all images."""
    digest = hashlib.sha256()
    for split, images in listed.items():
        for name, label in zip(images.files, images.labels, strict=True):
            stat = os.stat(root / name)
            digest.update(json.dumps([split, name, label, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def _decode(root: Path, listed: dict[str, Images], home: Path, progress: Progress | None) -> str:
    """Decode everything into a folder of its own, all or nothing, and return the fingerprint that names the folder."""
    import numpy as np

    total = sum(len(images.files) for images in listed.values())
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(f"decoding {_FACTS.title}", done, total)

    partial = home / ".decode.part"  # the caller holds a lock: a leftover is a killed run's
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        hashes = []
        for split, images in listed.items():
            labels = np.array(images.labels, dtype="<i8")
            shape = (len(labels), 3, SIDE, SIDE)
            blocks = _pixels(root, images.files, report)
            hashes.append(_write(partial / f"{split}_images.npy", np.dtype(np.uint8), shape, blocks))
            hashes.append(_write(partial / f"{split}_labels.npy", labels.dtype, labels.shape, iter((labels,))))
        fingerprint = _fingerprint(hashes)
        target = home / fingerprint[:24]
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return fingerprint


def _pixels(root: Path, files: list[str], report: Callable[[int], None]) -> Iterator[NDArray[np.uint8]]:
    """Blocks ``[n, 3, 64, 64]`` of decoded images."""
    import numpy as np

    for start in range(0, len(files), _BLOCK):
        block = np.stack([_image(root / name) for name in files[start : start + _BLOCK]])
        yield np.ascontiguousarray(block.transpose(0, 3, 1, 2))
        report(len(block))


def _image(path: Path) -> NDArray[np.uint8]:
    """``[64, 64, 3]``; an image in shades of grey has three equal channels."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("JPEG",)) as image:
            width, height = image.size
            if (width, height) != (SIDE, SIDE):
                raise KdbenchError(
                    f"{path.name} has {width}x{height} pixels, and {_FACTS.title} has images of {SIDE}x{SIDE}",
                    where=path,
                    cure="is it another data set, or a resized copy? " + _AGAIN,
                )
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow's words for a foreign file are little more than its path.
        foreign = isinstance(error, UnidentifiedImageError)
        reason = "it is no JPEG" if foreign else getattr(error, "strerror", None) or error
        raise KdbenchError(f"cannot read the image {path.name}: {reason}", where=path, cure=_AGAIN) from error


def _write(
    path: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...], blocks: Iterator[NDArray[np.generic]]
) -> str:
    """Write blocks as one array file and return the hash of its content."""
    from numpy.lib import format as npy

    digest = _header(dtype, shape)
    # Not through a memory map: a full disk would end the process there instead of raising.
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        for block in blocks:
            file.write(block.data)
            digest.update(block.data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _content(array: NDArray[np.generic]) -> hashlib._Hash:
    digest = _header(array.dtype, array.shape)
    digest.update(array.data)
    return digest


def _header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> hashlib._Hash:
    return hashlib.sha256(f"{dtype.str} {list(shape)}\n".encode())


def _fingerprint(hashes: list[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


# what is said of it


def _decoder() -> str:
    import PIL
    from PIL import features

    turbo = features.version_feature("libjpeg_turbo")
    library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return f"Pillow {PIL.__version__} with {library}"


def _note(sizes: dict[str, int], classes: int, decoder: str) -> str:
    note = f"data is not the official {_FACTS.title}"
    if sizes == _FACTS.sizes and classes == _FACTS.num_classes:
        note = f"data is not known to be the official {_FACTS.title}: of its unpacked files no checksum was published"
    return f"{note} (test images: the official validation images; decoded by {decoder})"
