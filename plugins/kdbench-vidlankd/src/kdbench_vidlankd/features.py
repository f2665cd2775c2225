"""Clips with captions from a folder of video features, in the way of HowTo100M.

    features/2d/ID.npy   [S, 2048], a row a second: what is seen
    features/3d/ID.npy   [1.5 S, 2048], three rows in two seconds: what moves
    captions.json        {ID: {"start": [...], "end": [...], "text": [...]}}, seconds
    text/train.txt, text/valid.txt, vocab.txt, glue/TASK/train.tsv and dev.tsv

The authors' loader takes missing features for zeros and starts at the first caption of every video. Here whatever does
not fit together is an error that names the clip. Names, captions and the shapes of all files are checked at once; the
numbers themselves where they are read, for nobody reads terabytes to begin with.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from kdbench.data._files import digests
from kdbench.data.base import Progress
from kdbench.errors import KdbenchError
from kdbench_vidlankd.texts import GLUE, Supplied
from kdbench_vidlankd.wordpiece import read_vocabulary

__all__ = ["MOST_STEPS", "TASKS", "TEXT", "VOCABULARY", "WIDTH", "WORDS", "Caption", "Clips", "Span", "find_features"]

TITLE = "the folder of video features"
FOLDER = "howto100m"
WIDTH = 2_048
"""Of a row of either stream."""

RATE = 1.5
"""Rows of the 3D stream a second; the 2D stream has one."""

SLACK = 2
"""Rows by which the two lengths may miss their ratio: each extractor rounds the last second in its own way."""

OVERRUN = 1.0
"""Seconds that a caption may last beyond the features, for the same reason."""

MOST_STEPS = 384
"""Seconds of video that a tower takes at most (official code)."""

WORDS = 126
"""Captions are put together until they have this many words (official code)."""

TEXT = {"train": "text/train.txt", "valid": "text/valid.txt"}
VOCABULARY = "vocab.txt"
TASKS = ("SST-2", "QNLI", "QQP", "MNLI")
"""Tasks in ``glue/``, those that the official code fine-tunes on."""

_STREAMS = {"2d": "2D", "3d": "3D"}
_CAPTIONS = "captions.json"
_AGAIN = "extract its features again, or take the clip out of features/ and captions.json"
_MEND = "mend its captions, or take the clip out of features/ and captions.json"

Stream = Literal["2d", "3d"]
Array = NDArray[np.float32]


class Caption(NamedTuple):
    """What is said from ``start`` to ``end``, seconds."""

    start: float
    end: float
    text: str


class Span(NamedTuple):
    """Captions put together and the video that they run over: ``frames`` ``[T, 4096]`` from second ``start`` on."""

    text: str
    frames: Array
    start: int


class _Entry(msgspec.Struct):
    """A clip in captions.json."""

    start: list[float]
    end: list[float]
    text: list[str]


class Clips:
    """The clips of a folder that was located.

    Attributes
    ----------
    videos : their ids, sorted.

    Raises
    ------
    KdbenchError : the captions cannot be read, or a clip lacks its captions or one of its two files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries = _entries(folder / _CAPTIONS)
        self._sizes = {stream: _sizes(folder / "features" / stream) for stream in _STREAMS}
        self.videos = tuple(sorted(self._entries))
        self._check_names()

    def check(self, progress: Progress | None = None) -> None:
        """Read the captions of every clip and the shapes of its features, not their numbers.

        Raises
        ------
        KdbenchError : of a clip the captions are malformed or last beyond its features, or these have a wrong shape or
            lengths that do not fit.
        """
        for number, video in enumerate(self.videos, 1):
            self.captions(video)
            if progress:
                progress("checking clips", number, len(self.videos))

    def listing(self) -> Iterator[str]:
        """Name and size, bytes, of every file of features."""
        for stream, sizes in self._sizes.items():
            for video in self.videos:
                yield f"features/{stream}/{video}.npy {sizes[video]}"

    def seconds(self, video: str) -> int:
        """S, the length of a clip; errors as :meth:`read`."""
        return len(self._pair(video)[0])

    def read(self, video: str, start: int = 0, stop: int | None = None) -> Array:
        """Features of the seconds ``start`` to ``stop`` (to the end where it is None), ``[T, 4096]``.

        A row is the 2D features of a second and the 3D ones at its middle, between two rows in proportion. Files are
        mapped, and no other rows are read.

        Raises
        ------
        KdbenchError : there is no such clip or second; a file cannot be read; its rows have another width or no
            floating-point numbers; the lengths do not fit; or a row is not finite or all zeros.
        """
        flat, moving = self._pair(video)
        stop = len(flat) if stop is None else stop
        if not 0 <= start < stop <= len(flat):
            what = f"the clip {video!r} has no seconds {start} to {stop}: it has {len(flat)}"
            raise KdbenchError(what, where=self._path("2d", video))
        # Row j of the 3D stream is about the time around (j + .5) / 1.5, that of the 2D stream around j + .5.
        places = np.clip((np.arange(start, stop) + 0.5) * RATE - 0.5, 0, len(moving) - 1)
        below = np.floor(places).astype(np.int64)
        first, last = int(below[0]), min(int(below[-1]) + 1, len(moving) - 1)
        rows = self._numbers("3d", video, moving, first, last + 1)
        share = (places - below).astype(np.float32)[:, None]
        before, after = rows[below - first], rows[np.minimum(below + 1, last) - first]
        return np.concatenate(
            [self._numbers("2d", video, flat, start, stop), before + share * (after - before)], axis=1
        )

    def captions(self, video: str) -> list[Caption]:
        """What is said in a clip, in order.

        Raises
        ------
        KdbenchError : there is no such clip, its captions are malformed, out of order or last beyond its features, or
            these are at fault (see :meth:`read`).
        """
        seconds = self.seconds(video)
        where = self.folder / _CAPTIONS
        try:
            entry = msgspec.json.decode(self._entries[video], type=_Entry)
        except msgspec.MsgspecError as error:
            raise KdbenchError(f"the captions of {video!r} are malformed: {error}", where=where, cure=_MEND) from error
        if not len(entry.start) == len(entry.end) == len(entry.text):
            counts = f"{len(entry.start)} starts, {len(entry.end)} ends and {len(entry.text)} texts"
            raise KdbenchError(f"the captions of {video!r} have {counts}", where=where, cure=_MEND)
        captions = [Caption(*parts) for parts in zip(entry.start, entry.end, entry.text, strict=True)]
        if not any(caption.text.split() for caption in captions):
            raise KdbenchError(f"the captions of {video!r} have no word", where=where, cure=_MEND)
        earliest = 0.0
        for number, (start, end, _) in enumerate(captions):
            fault = ""
            if not earliest <= start <= end:
                fault = "ends before it starts" if start > end else f"starts before {earliest:g} s"
            elif end > seconds + OVERRUN or start >= seconds:
                fault = f"lasts to {end:g} s, and its features to {seconds} s"
            if fault:
                what = f"caption {number} of {video!r} (from {start:g} s) {fault}"
                raise KdbenchError(what, where=where, cure=_MEND)
            earliest = start
        return captions

    def span(self, video: str, random: np.random.Generator | None = None) -> Span:
        """About :data:`WORDS` words of captions, joined by " . ", and the video that they run over.

        Captions that overlap in time may repeat words: what the one ends with and the next begins with is said once.
        The first of them is the clip's first caption, so that a clip has one span (as in the official code), or,
        given ``random``, any that so many words follow. Video is cut at :data:`MOST_STEPS` seconds.

        Raises
        ------
        KdbenchError : the captions are at fault, see :meth:`captions`, or the features, see :meth:`read`.
        """
        captions = self.captions(video)
        fresh = _fresh(captions)
        first = 0 if random is None else int(random.choice(_starts(fresh)))
        said = [captions[first].text.split(), *fresh[first + 1 :]]
        count = _enough([len(words) for words in said])
        start = int(captions[first].start)
        end = max(caption.end for caption in captions[first : first + count])
        stop = min(max(math.ceil(end), start + 1), self.seconds(video), start + MOST_STEPS)
        text = " . ".join(" ".join(words) for words in said[:count] if words)
        return Span(text, self.read(video, start, stop), start)

    # ------------------------------------------------------------------------------------------------------------ files

    def _check_names(self) -> None:
        for stream, name in _STREAMS.items():
            found = self._sizes[stream].keys()
            for video in self.videos:
                if video not in found:
                    what = f"the clip {video!r} has captions and no {name} features"
                    raise KdbenchError(what, where=self._path(stream, video), cure=_AGAIN)
            if strange := sorted(found - self._entries.keys()):
                what = f"the clip {strange[0]!r} has {name} features and no captions"
                raise KdbenchError(what, where=self.folder / _CAPTIONS, cure=_MEND)
        if not self.videos:
            raise KdbenchError("no clip has captions", where=self.folder / _CAPTIONS)

    def _path(self, stream: str, video: str) -> Path:
        return self.folder / "features" / stream / f"{video}.npy"

    def _pair(self, video: str) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """The two files, mapped, of lengths that fit."""
        if video not in self._entries:
            raise KdbenchError(f"there is no clip {video!r}", where=self.folder)
        flat, moving = self._mapped("2d", video), self._mapped("3d", video)
        if abs(len(moving) - RATE * len(flat)) > SLACK:
            lengths = f"{len(flat)} rows of 2D and {len(moving)} of 3D features"
            what = f"the clip {video!r} has {lengths}, which are not 1 to {RATE}"
            raise KdbenchError(what, where=self._path("3d", video), cure=_AGAIN)
        return flat, moving

    def _mapped(self, stream: Stream, video: str) -> NDArray[np.floating]:
        path, of = self._path(stream, video), f"the {_STREAMS[stream]} features of {video!r}"
        try:
            rows: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise KdbenchError(f"cannot read {of}: {error.strerror or error}", where=path, cure=_AGAIN) from error
        except (ValueError, EOFError) as error:
            raise KdbenchError(f"{of} are no array file: {error}", where=path, cure=_AGAIN) from error
        if rows.ndim != 2 or rows.shape[1] != WIDTH or not len(rows):
            shape = f"{list(rows.shape)}, and not [rows, {WIDTH}]"
            raise KdbenchError(f"{of} have the shape {shape}", where=path, cure=_AGAIN)
        if not np.issubdtype(rows.dtype, np.floating):
            raise KdbenchError(f"{of} are no floating-point numbers but {rows.dtype}", where=path, cure=_AGAIN)
        return rows

    def _numbers(self, stream: Stream, video: str, rows: NDArray[np.floating], start: int, stop: int) -> Array:
        found = np.asarray(rows[start:stop], dtype=np.float32)
        finite: NDArray[np.bool_] = np.all(np.isfinite(found), axis=1)
        faulty = ~(finite & np.any(found, axis=1))
        if faulty.any():
            row = int(faulty.argmax())
            fault = "all zeros, which stands for missing features" if finite[row] else "not finite"
            what = f"row {start + row} of the {_STREAMS[stream]} features of {video!r} is {fault}"
            raise KdbenchError(what, where=self._path(stream, video), cure=_AGAIN)
        return found


def find_features(data_dir: Path | None, cache: Path, progress: Progress | None) -> Supplied:
    """The folder of features in ``data_dir``, or in ``howto100m`` in it.

    The fingerprint covers the content of the captions, the vocabulary and the tasks, and of features and text, which
    may be terabytes, the names and sizes alone.

    Raises
    ------
    KdbenchError : nothing was given, a file is missing, or a clip is at fault (see :meth:`Clips.check`).
    """
    if data_dir is None:
        cure = "give the folder with --data-dir; it holds features/2d, features/3d, " + ", ".join(_files())
        raise KdbenchError(f"{TITLE} is never downloaded", cure=cure)
    try:
        folder = _root(Path(data_dir).expanduser()).resolve()
        read_vocabulary(folder / VOCABULARY)
        clips = Clips(folder)
        clips.check(progress)
        digest = hashlib.sha256()
        for line in clips.listing():
            digest.update(f"{line}\n".encode())
        for name in _files():
            path = folder / name
            known = path.stat().st_size if name in TEXT.values() else digests(path, Path(cache)).sha256
            digest.update(f"{name} {known}\n".encode())
    except OSError as error:
        raise KdbenchError(f"cannot read {TITLE}: {error.strerror or error}", where=error.filename) from error
    note = (
        f"features, captions and text are the user's own ({len(clips.videos):,} clips): the authors published none; "
        "features and text are known by their names and sizes, not by their content"
    )
    return Supplied(folder, digest.hexdigest(), note)


def _files() -> list[str]:
    """All files but the features."""
    tables = [table.path for task in TASKS for table in (*GLUE[task].train, *GLUE[task].dev)]
    return [_CAPTIONS, VOCABULARY, *TEXT.values(), *(f"glue/{path}" for path in tables)]


def _root(data_dir: Path) -> Path:
    if not data_dir.exists():
        raise KdbenchError("the data folder does not exist", where=data_dir)
    for folder in (data_dir, data_dir / FOLDER):
        if (folder / _CAPTIONS).is_file():
            break
    else:
        cure = f"the folder, or {FOLDER}/ in it, holds {_CAPTIONS}, features/2d and features/3d"
        raise KdbenchError(f"{TITLE} is not in the data folder", where=data_dir, cure=cure)
    for name in _files():
        if not (folder / name).is_file():
            raise KdbenchError(f"{TITLE} lacks {name}", where=folder / name, cure="it holds " + ", ".join(_files()))
    return folder


def _entries(path: Path) -> dict[str, msgspec.Raw]:
    """Undecoded, so that a fault is found by the clip it is in."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except OSError as error:
        raise KdbenchError(f"cannot read the captions: {error.strerror}", where=path) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        cure = 'it holds {ID: {"start": [...], "end": [...], "text": [...]}}'
        raise KdbenchError(f"the captions are no JSON of clips: {error}", where=path, cure=cure) from error


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the array files by the id of their clip; hidden files are a file manager's own."""
    if not folder.is_dir():
        raise KdbenchError(f"{TITLE} lacks features/{folder.name}", where=folder, cure="it holds ID.npy of every clip")
    with os.scandir(folder) as entries:
        names = {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(".npy")}
    return {name.removesuffix(".npy"): size for name, size in names.items() if not name.startswith(".")}


# ------------------------------------------------------------------------------------------------------------- captions


def _fresh(captions: Sequence[Caption]) -> list[list[str]]:
    """The words of each caption without those that repeat the end of one it overlaps with."""
    fresh: list[list[str]] = []
    for number, caption in enumerate(captions):
        words = caption.text.split()
        repeated = 0
        if number and caption.start < captions[number - 1].end:
            ended = captions[number - 1].text.split()
            lengths = range(min(len(ended), len(words)), 0, -1)
            repeated = next((length for length in lengths if ended[-length:] == words[:length]), 0)
        fresh.append(words[repeated:])
    return fresh


def _starts(fresh: Sequence[Sequence[str]]) -> list[int]:
    """The captions from which on there are words enough; the first one where there are none."""
    ahead = np.cumsum([len(words) for words in reversed(fresh)])[::-1]
    return [number for number, words in enumerate(fresh) if words and ahead[number] >= WORDS] or [0]


def _enough(lengths: Sequence[int]) -> int:
    """How many captions it takes to have :data:`WORDS` words; all where they have fewer."""
    return min(int(np.searchsorted(np.cumsum(lengths), WORDS)) + 1, len(lengths))
