"""Files that survive a kill: atomic writes, digests, and clear words when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from kdbench.errors import KdbenchError

__all__ = ["atomic_write", "digest_file", "disk_errors"]


def atomic_write(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either all of it or what it held before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def digest_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(where: Path, place: str = "name another place with --store") -> Iterator[None]:
    """Turn the disk's own refusals (full, read-only, no permission, a file in the way) into errors with a cure.

    ``place`` says how the user names another place.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise KdbenchError("no space left on the disk", where=where, cure=f"free some space, or {place}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise KdbenchError(f"cannot write: {error.strerror}", where=where, cure=place) from error
        raise
