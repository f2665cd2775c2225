"""Tiny-ImageNet from a miniature of its folder, whole and damaged."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_folder import ANNOTATIONS, GREY, TEST, TRAIN, WNIDS, miniature, save

from kdbench import data
from kdbench.cli.data import command
from kdbench.data import DataRef, tiny_imagenet
from kdbench.errors import KdbenchError


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy for one test, in which it may do damage."""
    return Path(shutil.copytree(original, tmp_path / "in" / original.name))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def locate(folder: Path, cache: Path, progress: data.Progress | None = None) -> DataRef:
    return tiny_imagenet.locate(folder, cache, progress)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)


# what is found


def test_images_and_labels_are_those_of_the_folder(folder: Path, cache: Path) -> None:
    ref = locate(folder, cache)
    assert (ref.dataset, ref.input_shape, ref.num_classes) == ("tiny-imagenet", (3, 32, 32), 3)
    assert ref.sizes == {"train": 3 * TRAIN, "test": TEST}
    splits = data.load(ref)
    for split in splits.values():
        assert split.inputs.shape[1:] == (3, 64, 64)
        assert (split.inputs.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
    classes = sorted(WNIDS)
    files = [folder / "train" / w / "images" / f"{w}_{number}.JPEG" for w in classes for number in range(TRAIN)]
    np.testing.assert_array_equal(splits["train"].inputs.numpy(), np.stack([pixels(file) for file in files]))
    assert splits["train"].labels.tolist() == [0] * TRAIN + [1] * TRAIN + [2] * TRAIN
    files = [folder / "val" / "images" / f"val_{number}.JPEG" for number in range(TEST)]
    np.testing.assert_array_equal(splits["test"].inputs.numpy(), np.stack([pixels(file) for file in files]))
    assert splits["test"].labels.tolist() == [classes.index(WNIDS[number % 3]) for number in range(TEST)]


def test_an_image_in_shades_of_grey_has_three_equal_channels(folder: Path, cache: Path) -> None:
    with Image.open(folder / GREY) as image:
        assert image.mode == "L"
    inputs = data.load(locate(folder, cache))["train"].inputs
    grey = [index for index, image in enumerate(inputs) if (image == image[:1]).all()]
    assert grey == [2]  # the third image of the first class in sorted order


def test_folder_parent_and_copy_have_one_fingerprint_and_one_set_of_arrays(
    folder: Path, cache: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "under another name"))
    refs = [locate(place, cache) for place in (folder, folder.parent, copy)]
    assert refs[0] == refs[1] == refs[2]
    assert len(list(cache.rglob("train_images.npy"))) == 1


def test_hidden_files_of_a_file_manager_are_passed_over(folder: Path, cache: Path) -> None:
    plain = locate(folder, cache)
    (folder / "val" / "images" / "._val_0.JPEG").write_bytes(b"resource fork")
    (folder / "train" / WNIDS[0] / "images" / "._x.JPEG").write_bytes(b"resource fork")
    assert locate(folder, cache) == plain


def test_it_is_never_called_official(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = locate(folder, cache)
    assert not ref.official
    assert ref.note.startswith("data is not the official Tiny-ImageNet (")
    assert "the official validation images" in ref.note
    assert tiny_imagenet._decoder() in ref.note
    assert "libjpeg" in ref.note
    published = msgspec.structs.replace(data.dataset("tiny-imagenet"), sizes=ref.sizes, num_classes=3)
    monkeypatch.setattr(tiny_imagenet, "_FACTS", published)
    whole = locate(folder, cache)
    assert not whole.official
    assert "not known to be the official Tiny-ImageNet: of its unpacked files no checksum was published" in whole.note
    assert whole.fingerprint == ref.fingerprint


# the cache


def test_images_are_decoded_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_imagenet, "_BLOCK", 5)
    steps: list[tuple[str, int, int]] = []
    first = locate(folder, cache, lambda *step: steps.append(step))
    assert steps == [("decoding Tiny-ImageNet", done, 17) for done in (5, 10, 12, 17)]

    def never(path: Path) -> None:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(tiny_imagenet, "_image", never)
    monkeypatch.setattr(tiny_imagenet, "_decoder", lambda: "a later Pillow")  # the arrays are still the earlier one's
    assert locate(folder, cache) == first
    assert not list(cache.rglob("*.part"))


def replaced_image(folder: Path) -> None:
    save(folder / GREY, np.random.default_rng(7))


def another_label(folder: Path) -> None:
    text = (folder / ANNOTATIONS).read_text()
    (folder / ANNOTATIONS).write_text(text.replace(f"val_0.JPEG\t{WNIDS[0]}", f"val_0.JPEG\t{WNIDS[1]}"))


def fewer_images(folder: Path) -> None:
    (folder / GREY).unlink()


@pytest.mark.parametrize("change", [replaced_image, another_label, fewer_images])
def test_a_changed_folder_is_decoded_anew(folder: Path, cache: Path, change: Callable[[Path], None]) -> None:
    first = locate(folder, cache)
    change(folder)
    second = locate(folder, cache)
    assert second.fingerprint != first.fingerprint
    assert second.path != first.path
    data.load(first)
    data.load(second)


def test_a_touched_file_with_the_same_image_keeps_the_fingerprint(folder: Path, cache: Path) -> None:
    first = locate(folder, cache)
    os.utime(folder / GREY, ns=(0, 0))
    seen: list[Any] = []
    assert locate(folder, cache, lambda *step: seen.append(step)) == first
    assert seen  # it was read again


@pytest.mark.parametrize("damage", ["changed", "shortened", "emptied", "missing"])
def test_damaged_arrays_are_not_loaded_and_are_made_anew(folder: Path, cache: Path, damage: str) -> None:
    ref = locate(folder, cache)
    victim = Path(ref.path) / "train_images.npy"
    whole = victim.read_bytes()
    if damage == "changed":
        victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(whole[: len(whole) // 2 if damage == "shortened" else 0])
    if victim.exists():
        os.utime(victim, ns=(0, 0))  # another time of change, even on a coarse clock
    with pytest.raises(KdbenchError, match=r"Tiny-ImageNet.*--data-dir again: it is then decoded anew"):
        tiny_imagenet.load(ref)
    assert locate(folder, cache) == ref
    assert victim.read_bytes() == whole


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "no space left on the disk.*free some space"), (errno.EROFS, "cannot write.*KDBENCH_CACHE")],
)
def test_a_disk_that_refuses(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(tiny_imagenet.os, "fsync", refuse)
        with pytest.raises(KdbenchError, match=message):
            locate(folder, cache)
    assert not list(cache.rglob("*.npy"))
    assert locate(folder, cache).sizes == {"train": 12, "test": 5}


def test_locating_needs_no_torch(folder: Path, cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kdbench.data import tiny_imagenet; "
        "before = 'numpy' in sys.modules or 'PIL' in sys.modules; "
        f"tiny_imagenet.locate(Path({str(folder)!r}), Path({str(cache)!r}), None); "
        "print(before, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False False"


# faults


def test_without_a_folder_the_error_says_what_to_give(cache: Path) -> None:
    with pytest.raises(KdbenchError, match=r"never downloaded.*--data-dir") as caught:
        tiny_imagenet.locate(None, cache, None)
    for part in ("wnids.txt", "train/<wnid>/images/*.JPEG", "val/images/*.JPEG", "val/val_annotations.txt"):
        assert part in str(caught.value)
    assert not cache.exists()


def test_a_folder_that_does_not_exist_or_holds_something_else(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(KdbenchError, match=r"does not exist \[.*nowhere\].*wnids\.txt"):
        locate(tmp_path / "nowhere", cache)
    with pytest.raises(KdbenchError, match=r"no Tiny-ImageNet in the data folder.*tiny-imagenet-200/.*wnids\.txt"):
        locate(tmp_path, cache)


def rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def repaint(**how: Any) -> Callable[[Path], None]:
    return lambda folder: save(folder / "val/images/val_3.JPEG", np.random.default_rng(0), **how)


def as_png(folder: Path) -> None:
    Image.new("RGB", (64, 64)).save(folder / GREY, format="PNG")


def cut_short(folder: Path) -> None:
    (folder / GREY).write_bytes((folder / GREY).read_bytes()[:-300])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no class folder": (
        lambda folder: shutil.rmtree(folder / "train" / WNIDS[2]),
        rf"lacks the folder of the class {WNIDS[2]} of wnids\.txt \[.*{WNIDS[2]}/images\]; unpack",
    ),
    "empty class": (
        lambda folder: [image.unlink() for image in (folder / "train" / WNIDS[2] / "images").iterdir()],
        rf"the folder of the class {WNIDS[2]} of wnids\.txt has no \*\.JPEG",
    ),
    "no classes": (lambda folder: (folder / "wnids.txt").write_text("\n"), r"lists no class \[.*wnids\.txt\]"),
    "a class twice": (rewrite("wnids.txt", WNIDS[0], WNIDS[1]), r"lists a class twice \[.*wnids\.txt\]"),
    "a class that climbs": (rewrite("wnids.txt", WNIDS[0], "../../x"), r"'\.\./\.\./x' is no WordNet id.*wnids\.txt"),
    "no annotations": (lambda folder: (folder / ANNOTATIONS).unlink(), r"lacks val/val_annotations\.txt"),
    "no validation images": (
        lambda folder: shutil.rmtree(folder / "val" / "images"),
        r"lacks the folder of the validation images \[.*val/images\]",
    ),
    "unknown class": (
        rewrite(ANNOTATIONS, f"val_4.JPEG\t{WNIDS[1]}", "val_4.JPEG\tn09999999"),
        r"line 1 of val_annotations\.txt gives val_4\.JPEG the class n09999999, which wnids\.txt lacks",
    ),
    "no tabs": (rewrite(ANNOTATIONS, "\t", " "), r"line 1 of val_annotations\.txt is no annotation: a name and a"),
    "a blank line": (rewrite(ANNOTATIONS, "62\nval_3", "62\n\nval_3"), r"line 2 of val_annotations\.txt is no annot"),
    "annotated twice": (
        rewrite(ANNOTATIONS, "val_1.JPEG", "val_2.JPEG"),
        r"val_annotations\.txt has val_2\.JPEG twice",
    ),
    "annotation without image": (
        lambda folder: (folder / "val/images/val_2.JPEG").unlink(),
        r"val_annotations\.txt has val_2\.JPEG, which val/images lacks",
    ),
    "image without annotation": (
        lambda folder: shutil.copy(folder / "val/images/val_2.JPEG", folder / "val/images/val_9.JPEG"),
        r"val/images has val_9\.JPEG, which val_annotations\.txt lacks",
    ),
    "wide": (repaint(size=(96, 64)), r"val_3\.JPEG has 96x64 pixels, and Tiny-ImageNet has images of 64x64 \[.*val_3"),
    "resized": (repaint(size=(32, 32)), r"val_3\.JPEG has 32x32 pixels.*resized copy"),
    "another format": (as_png, rf"cannot read the image {WNIDS[1]}_2\.JPEG: it is no JPEG \[.*_2\.JPEG\]"),
    "empty image": (
        lambda folder: (folder / GREY).write_bytes(b""),
        r"cannot read the image .*_2\.JPEG: it is no JPEG",
    ),
    "truncated image": (cut_short, r"cannot read the image .*_2\.JPEG: .*truncated.*unpack the archive again"),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_its_place(
    folder: Path, cache: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(KdbenchError, match=message):
        locate(folder, cache)
    assert not list(cache.rglob("*.npy"))
    assert not list(cache.rglob("*.part"))


def test_an_image_that_may_not_be_read(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)  # a mode of 0 would not stop root
    with pytest.raises(KdbenchError, match=r"cannot read the image n01000000_0\.JPEG: Permission denied \["):
        locate(folder, cache)


# the command


def test_the_command_lists_it_and_reads_a_folder(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(cache))
    listed = CliRunner().invoke(command, ["list"]).output
    line = next(line for line in listed.splitlines() if line.startswith("tiny-imagenet"))
    assert line == (
        "tiny-imagenet  Tiny-ImageNet: 200 classes, 100,000 train, 10,000 test; "
        "never downloaded: --data-dir names its folder"
    )
    fetched = CliRunner().invoke(command, ["fetch", "tiny-imagenet"])
    assert isinstance(fetched.exception, KdbenchError)
    assert "never downloaded" in str(fetched.exception)
    for verb, status in (("fetch", 0), ("verify", 1)):
        done = CliRunner().invoke(command, [verb, "tiny-imagenet", "--data-dir", str(folder)])
        assert done.exit_code == status
        assert "Tiny-ImageNet: 12 train, 5 test; data is not the official Tiny-ImageNet" in done.output
