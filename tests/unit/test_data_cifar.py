"""CIFAR from archives and folders, real and generated, whole and damaged."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench import data
from kdbench.data import _files, cifar
from kdbench.data.cifar import CIFAR10, CIFAR100, Layout, locate_cifar10, locate_cifar100
from kdbench.errors import KdbenchError

LAYOUTS = pytest.mark.parametrize("layout", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
LOCATE = {"cifar10": locate_cifar10, "cifar100": locate_cifar100}


def members(layout: Layout, count: int = 3) -> dict[str, bytes]:
    """Files of ``count`` random records each."""
    rng = np.random.default_rng(0)
    out = {}
    for name in layout.members:
        records = rng.integers(0, 256, (count, layout.record), dtype=np.uint8)
        records[:, : layout.label_bytes] %= 10
        if layout is CIFAR100:
            records[:, 1] += 90  # a fine label that no coarse one can be mistaken for
        out[name] = records.tobytes()
    return out


def pack(path: Path, files: Iterable[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def in_folder(layout: Layout, files: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return [(f"{layout.folder}/{name}", content) for name, content in files.items()]


def archive(layout: Layout, folder: Path, suffix: str = ".tar.gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    mode = "w:" + {".tar.gz": "gz", ".tar.xz": "xz", ".tar": ""}[suffix]
    return pack(folder / f"{layout.stem}-binary{suffix}", in_folder(layout, members(layout)), mode)


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# what is found


@LAYOUTS
def test_the_records_are_read_as_published(layout: Layout, tmp_path: Path, cache: Path) -> None:
    archive(layout, tmp_path / "in")
    ref = LOCATE[layout.id](tmp_path / "in", cache, None)
    splits = data.load(ref)
    files = members(layout)
    for split, names in (("train", layout.train), ("test", layout.test)):
        raw = np.frombuffer(b"".join(files[name] for name in names), np.uint8).reshape(-1, layout.record)
        assert ref.sizes[split] == len(raw)
        assert splits[split].inputs.shape == (len(raw), *ref.input_shape)
        assert (splits[split].inputs.dtype, splits[split].labels.dtype) == (torch.uint8, torch.int64)
        # Record 1, channel 2, row 5, column 7, by the published layout.
        assert splits[split].inputs[1, 2, 5, 7] == raw[1, layout.label_bytes + 2 * 1024 + 5 * 32 + 7]
        assert splits[split].labels.tolist() == raw[:, layout.label_bytes - 1].tolist()
    if layout is CIFAR100:
        assert splits["train"].labels.min() >= 90


@LAYOUTS
def test_archive_and_folder_have_one_fingerprint(layout: Layout, tmp_path: Path, cache: Path) -> None:
    for suffix in (".tar.gz", ".tar.xz", ".tar"):
        archive(layout, tmp_path / f"as{suffix}", suffix)
    folder = unpacked(tmp_path / "parent" / layout.folder, members(layout))
    pack(tmp_path / "flat.tar.gz", members(layout).items())
    places = [*tmp_path.glob("as.*"), folder, folder.parent, tmp_path / "flat.tar.gz"]
    refs = [LOCATE[layout.id](place, cache, None) for place in places]
    assert len(refs) == 6
    assert len({ref.fingerprint for ref in refs}) == 1
    assert {(ref.official, ref.note) for ref in refs} == {(False, f"data is not the official {layout.title}")}


def test_other_records_have_another_fingerprint(tmp_path: Path, cache: Path) -> None:
    files = members(CIFAR10)
    first = locate_cifar10(unpacked(tmp_path / "a", files), cache, None)
    files["test_batch.bin"] = files["test_batch.bin"][:-1] + bytes([files["test_batch.bin"][-1] ^ 1])
    assert locate_cifar10(unpacked(tmp_path / "b", files), cache, None).fingerprint != first.fingerprint


def test_official_is_what_has_the_published_md5(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(CIFAR10, tmp_path / "in")
    monkeypatch.setattr(cifar, "CIFAR10", CIFAR10._replace(md5=_files.digests(path, cache).md5))
    ref = locate_cifar10(path, cache, None)
    assert (ref.official, ref.note) == (True, "")
    # The folder it was unpacked into holds the same bytes, but nothing published vouches for a folder.
    assert not locate_cifar10(Path(ref.path), cache, None).official


def test_a_folder_of_the_official_size_is_not_called_official(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / CIFAR10.folder
    folder.mkdir()
    for name in CIFAR10.members:
        with (folder / name).open("wb") as file:
            file.truncate(10_000 * CIFAR10.record)  # sparse: all zeros
    ref = locate_cifar10(folder, cache, None)
    assert ref.sizes == data.dataset("cifar10").sizes
    assert not ref.official
    assert "not known to be the official CIFAR-10" in ref.note


def test_cifar100_is_not_taken_for_cifar10(tmp_path: Path, cache: Path) -> None:
    archive(CIFAR100, tmp_path / "in")
    with pytest.raises(KdbenchError, match="no CIFAR-10 in the data folder"):
        locate_cifar10(tmp_path / "in", cache, None)
    archive(CIFAR10, tmp_path / "in")
    assert locate_cifar10(tmp_path / "in", cache, None).dataset == "cifar10"
    assert locate_cifar100(tmp_path / "in", cache, None).dataset == "cifar100"


def test_the_python_archive_beside_it_is_passed_over(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "in").mkdir()
    pack(tmp_path / "in" / "cifar-10-a-python.tar.gz", [("cifar-10-batches-py/data_batch_1", b"pickle")])
    archive(CIFAR10, tmp_path / "in")
    assert locate_cifar10(tmp_path / "in", cache, None).sizes == {"train": 15, "test": 3}


@LAYOUTS
def test_the_description_names_the_archive_that_is_downloaded(layout: Layout) -> None:
    assert data.dataset(layout.id).archive == layout.url.rpartition("/")[2]


# the cache


def test_an_archive_is_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(CIFAR10, tmp_path / "in")
    steps: list[tuple[str, int, int]] = []
    first = locate_cifar10(path, cache, lambda *step: steps.append(step))
    assert steps == [("unpacking CIFAR-10", done, 6) for done in range(1, 7)]

    def never(*_args: object, **_more: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(tarfile, "open", never)
    monkeypatch.setattr(_files.hashlib, "md5", never)
    assert locate_cifar10(path, cache, None) == first
    assert not list(cache.rglob("*.part"))


def test_a_changed_archive_is_read_again(tmp_path: Path, cache: Path) -> None:
    path = archive(CIFAR10, tmp_path / "in")
    first = locate_cifar10(path, cache, None)
    files = {name: content[: CIFAR10.record] for name, content in members(CIFAR10).items()}
    pack(path, in_folder(CIFAR10, files))
    second = locate_cifar10(path, cache, None)
    assert second.sizes == {"train": 5, "test": 1}
    assert second.path != first.path


@pytest.mark.parametrize("damage", ["changed", "shortened", "missing", "no manifest"])
def test_a_damaged_unpacked_copy_is_unpacked_again(tmp_path: Path, cache: Path, damage: str) -> None:
    path = archive(CIFAR10, tmp_path / "in")
    first = locate_cifar10(path, cache, None)
    victim = Path(first.path) / "data_batch_3.bin"
    whole = victim.read_bytes()
    if damage == "changed":
        victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        os.utime(victim, ns=(0, 0))  # another time of change, even on a coarse clock
    elif damage == "shortened":
        victim.write_bytes(whole[: CIFAR10.record])
    elif damage == "missing":
        victim.unlink()
    else:
        Path(first.path).with_suffix(".json").unlink()
    assert locate_cifar10(path, cache, None) == first
    assert victim.read_bytes() == whole


def test_a_folder_works_without_a_cache_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = unpacked(tmp_path / CIFAR10.folder, members(CIFAR10))
    assert locate_cifar10(folder, tmp_path / "file", None).sizes == {"train": 15, "test": 3}


def test_changed_files_are_not_loaded(tmp_path: Path, cache: Path) -> None:
    folder = unpacked(tmp_path / CIFAR10.folder, members(CIFAR10))
    ref = locate_cifar10(folder, cache, None)
    for size in (3 * CIFAR10.record, 100):
        (folder / "data_batch_2.bin").write_bytes(bytes(size))
        with pytest.raises(KdbenchError, match="changed since they were located"):
            data.load(ref)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(KdbenchError, match="cannot read CIFAR-10"):
        data.load(ref)


# faults


def test_a_folder_that_does_not_exist(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(KdbenchError, match=r"does not exist \[.*nowhere\].*cifar-10-batches-bin"):
        locate_cifar10(tmp_path / "nowhere", cache, None)


@LAYOUTS
def test_an_empty_folder_says_what_was_looked_for(layout: Layout, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(KdbenchError, match=rf"looked for {layout.folder}/ .*{layout.stem}\*\.tar\.gz"):
        LOCATE[layout.id](tmp_path, cache, None)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".tar"])
@pytest.mark.parametrize("keep", [0.5, 0.999, 0.0])
def test_a_truncated_archive(tmp_path: Path, cache: Path, suffix: str, keep: float) -> None:
    path = archive(CIFAR10, tmp_path / "in", suffix)
    raw = path.read_bytes()
    # A tar ends in padding, of which some may be lost without harm: cut into the last file.
    whole = len(raw) if suffix != ".tar" else raw.rindex(members(CIFAR10)["test_batch.bin"][-100:])
    path.write_bytes(raw[: int(whole * keep)])
    with pytest.raises(KdbenchError, match=r"cannot be read.*fetch it again"):
        locate_cifar10(path, cache, None)
    assert not list(cache.rglob("*.bin"))


def test_an_archive_with_a_flipped_bit(tmp_path: Path, cache: Path) -> None:
    path = archive(CIFAR10, tmp_path / "in")
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1  # in gzip's own checksum
    path.write_bytes(raw)
    with pytest.raises(KdbenchError, match="cannot be read"):
        locate_cifar10(path, cache, None)


def test_something_else_under_the_name_of_an_archive(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"<html>404</html>")
    with pytest.raises(KdbenchError, match=r"cannot be read.*\[.*cifar-10-binary\.tar\.gz\]"):
        locate_cifar10(tmp_path, cache, None)


def test_an_archive_with_other_members(tmp_path: Path, cache: Path) -> None:
    path = pack(tmp_path / "cifar-10-python.tar.gz", [("cifar-10-batches-py/data_batch_1", b"pickle")])
    with pytest.raises(KdbenchError, match=r"lacks cifar-10-batches-bin/data_batch_1\.bin and 5 more.*binary version"):
        locate_cifar10(path, cache, None)


def test_an_archive_cannot_write_elsewhere(tmp_path: Path, cache: Path) -> None:
    """Paths that climb, absolute paths and links are members nobody asked for."""
    evil = tmp_path / "evil.bin"
    path = tmp_path / "cifar-10-evil.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("../../../../evil.bin", str(evil), f"../{CIFAR10.folder}/data_batch_1.bin"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        link = tarfile.TarInfo(f"{CIFAR10.folder}/data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        for name, content in list(in_folder(CIFAR10, members(CIFAR10)))[1:]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(KdbenchError, match=r"lacks cifar-10-batches-bin/data_batch_1\.bin \["):
        locate_cifar10(path, cache, None)
    assert not evil.exists()
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("size", [CIFAR10.record - 1, CIFAR10.record + 1, 0])
def test_a_file_that_is_no_whole_number_of_records(tmp_path: Path, cache: Path, size: int) -> None:
    files = {**members(CIFAR10), "data_batch_4.bin": bytes(size)}
    with pytest.raises(KdbenchError, match=rf"data_batch_4\.bin is no file of CIFAR-10 records: {size} bytes.*3073"):
        locate_cifar10(unpacked(tmp_path / "in", files), cache, None)


@LAYOUTS
def test_a_label_out_of_range(layout: Layout, tmp_path: Path, cache: Path) -> None:
    files = members(layout)
    raw = bytearray(files[layout.test[0]])
    raw[layout.record + layout.label_bytes - 1] = 100
    files[layout.test[0]] = bytes(raw)
    with pytest.raises(KdbenchError, match=rf"{layout.test[0]} has the label 100, and {layout.title} has"):
        LOCATE[layout.id](unpacked(tmp_path / "in", files), cache, None)


def test_a_folder_that_lacks_a_file(tmp_path: Path, cache: Path) -> None:
    files = members(CIFAR10)
    del files["test_batch.bin"]
    with pytest.raises(KdbenchError, match=r"CIFAR-10 lacks test_batch\.bin"):
        locate_cifar10(unpacked(tmp_path / "in", files), cache, None)


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "no space left on the disk.*free some space"), (errno.EROFS, "cannot write.*KDBENCH_CACHE")],
)
def test_a_disk_that_refuses(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    path = archive(CIFAR10, tmp_path / "in")

    def refuse(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(_files.shutil, "copyfileobj", refuse)
        with pytest.raises(KdbenchError, match=message):
            locate_cifar10(path, cache, None)
    assert not list(cache.rglob("*.bin"))
    assert locate_cifar10(path, cache, None).sizes == {"train": 15, "test": 3}


def test_an_archive_that_may_not_be_read(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(CIFAR10, tmp_path / "in")

    def refuse(self: Path, *_args: object, **_more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # a mode of 0 would not stop root
    with pytest.raises(KdbenchError, match=r"cannot read CIFAR-10: Permission denied \[.*cifar-10-binary\.tar\.gz\]"):
        locate_cifar10(path, cache, None)


# real images


def test_the_real_subset_loads(cache: Path) -> None:
    shared = os.environ.get("KDBENCH_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(shared) / "cifar-10-subset-binary.tar.xz"
    if not path.is_file():
        pytest.skip("the real CIFAR-10 subset is not here (KDBENCH_SHARED_DATA may name its folder)")
    ref = locate_cifar10(path.parent, cache, None)
    assert ref.sizes == {"train": 8_000, "test": 2_000}
    assert (ref.official, ref.note) == (False, "data is not the official CIFAR-10")
    splits = data.load(ref)
    assert splits["train"].labels.bincount().tolist() == [800] * 10
    assert splits["test"].labels.bincount().tolist() == [200] * 10
    mean, std = data.channel_statistics(splits["train"])
    # Near the constants published for the whole training set.
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.005)
    assert std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.005)
