"""Files of data sets: checksums that are remembered, a disk that is full in words, and safe unpacking."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import msgspec

from kdbench.errors import KdbenchError
from kdbench.files import atomic_write, disk_errors

__all__ = ["Digests", "WrongMembersError", "digests", "unpack", "writing"]

CHUNK = 1 << 20
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


class WrongMembersError(KdbenchError):
    """The archive is sound and holds something else."""


class Digests(msgspec.Struct, frozen=True):
    """Checksums of one file, valid while its size and time of change stay."""

    path: str
    size: int
    mtime_ns: int
    md5: str
    sha256: str


def digests(path: Path, cache: Path) -> Digests:
    """Checksums of a file; remembered in ``cache``, so that a file that has not changed is not read again."""
    path = path.resolve()
    stat = path.stat()
    note = cache / "checksums" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:24]}.json"
    with suppress(OSError, msgspec.MsgspecError):
        known = msgspec.json.decode(note.read_bytes(), type=Digests)
        if (known.path, known.size, known.mtime_ns) == (str(path), stat.st_size, stat.st_mtime_ns):
            return known
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            md5.update(block)
            sha256.update(block)
    found = Digests(str(path), stat.st_size, stat.st_mtime_ns, md5.hexdigest(), sha256.hexdigest())
    # Remembering only saves time: where the cache cannot be written, it is left.
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(note, msgspec.json.encode(found))
    return found


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make ``folder`` and report a full or read-only disk in words."""
    with disk_errors(folder, place="let KDBENCH_CACHE name another place"):
        folder.mkdir(parents=True, exist_ok=True)
        yield


def unpack(
    archive: Path,
    folder: str,
    names: Sequence[str],
    target: Path,
    progress: Callable[[int, int], None],
    cure: str = "give the binary version of the archive, not the Python or Matlab one",
) -> None:
    """Take the regular files ``folder/name`` (or ``name``) out of a tar archive into ``target``, all or nothing.

    A name may itself have folders. Nothing else leaves the archive, and no path of it is used for writing, so an
    archive made in bad faith can place no file elsewhere. ``cure`` is said of an archive that lacks one of the names.

    Raises
    ------
    KdbenchError : the archive cannot be read to its end, or lacks a member.
    """
    partial = target.with_name(f".{target.name}.part")  # the caller holds a lock: a leftover is a killed run's
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        found = _extract(archive, folder, names, partial, progress)
        if missing := [name for name in names if name not in found]:
            raise WrongMembersError(
                f"the archive lacks {folder}/{missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
                where=archive,
                cure=cure,
            )
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(
    archive: Path, folder: str, names: Sequence[str], target: Path, progress: Callable[[int, int], None]
) -> set[str]:
    found: set[str] = set()
    expected: dict[tuple[str, ...], str] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        expected[(folder, *parts)] = expected[parts] = name
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                wanted = expected.get(PurePosixPath(member.name).parts)
                source = tar.extractfile(member) if wanted and member.isreg() else None
                if wanted is None or source is None:
                    continue
                (target / wanted).parent.mkdir(parents=True, exist_ok=True)
                with source, (target / wanted).open("wb") as file:
                    shutil.copyfileobj(source, file, CHUNK)
                found.add(wanted)
                progress(len(found), len(names))
            # tarfile stops at the tar's own end; the checksum of the compression stands behind it.
            while tar.fileobj and tar.fileobj.read(CHUNK):
                pass
    except _UNREADABLE as error:
        raise _unreadable(archive, error) from error
    except OSError as error:
        # gzip reports a bad checksum as an OSError without a number; a full disk has one.
        if error.errno is None:
            raise _unreadable(archive, error) from error
        raise
    return found


def _unreadable(archive: Path, error: Exception) -> KdbenchError:
    reason = str(error).partition("\n")[0].rstrip(":")  # tarfile lists every format it tried, a line each
    return KdbenchError(
        f"the archive cannot be read: {reason}", where=archive, cure="is the download complete? fetch it again"
    )
