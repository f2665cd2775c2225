"""Atomic writes, digests, and the disk's refusals in words."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.files import atomic_write, digest_file, disk_errors


def test_write_and_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


class Break:
    """Raises in the middle: after the bytes went out and before the file gets its name."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *_: Any) -> None:
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_midway_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "record.json"
    atomic_write(path, b"old")
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", Break(error))
    else:
        monkeypatch.setattr(Path, "replace", Break(error))
    with pytest.raises(type(error)):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"], "a partial file stayed behind"


def test_nothing_appears_when_the_first_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", Break(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        atomic_write(tmp_path / "record.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_digest_is_sha256_also_of_more_than_one_block(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    data = bytes(range(256)) * 5000  # above the block of 1 MiB
    path.write_bytes(data)
    assert digest_file(path) == hashlib.sha256(data).hexdigest()
    path.write_bytes(b"")
    assert digest_file(path) == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EACCES, "cannot write"),
        (errno.EPERM, "cannot write"),
        (errno.EROFS, "cannot write"),
    ],
)
def test_disk_errors_name_place_and_cure(tmp_path: Path, number: int, says: str) -> None:
    with pytest.raises(KdbenchError) as caught, disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    text = str(caught.value)
    assert says in text
    assert str(tmp_path) in text
    assert "--store" in text
    assert "\n" not in text


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "absent").read_bytes()
    with pytest.raises(ZeroDivisionError), disk_errors(tmp_path):
        raise ZeroDivisionError
