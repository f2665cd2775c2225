"""Tiny-ImageNet in miniature: three classes, a few JPEGs, one of them in shades of grey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n03000000", "n01000000", "n02000000")  # as published, wnids.txt is not sorted
TRAIN, TEST = 4, 5  # images of a class, and in all
GREY = f"train/{WNIDS[1]}/images/{WNIDS[1]}_2.JPEG"
ANNOTATIONS = "val/val_annotations.txt"


def save(path: Path, rng: np.random.Generator, *, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> None:
    """A smooth random picture: noise of single pixels is what JPEG keeps worst."""
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).convert(mode).save(path, format="JPEG", quality=95)


def miniature(folder: Path) -> Path:
    """The folder as its archive unpacks, with an unlabelled test split that nobody reads."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    for wnid in WNIDS:
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for number in range(TRAIN):
            name = f"{wnid}_{number}.JPEG"
            save(images / name, rng, mode="L" if GREY.endswith(name) else "RGB")
        (images.parent / f"{wnid}_boxes.txt").write_text("")
    images = folder / "val" / "images"
    images.mkdir(parents=True)
    lines = []
    for number in range(TEST):
        save(images / f"val_{number}.JPEG", rng)
        lines.append(f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t32\t44\t62\n")
    (folder / ANNOTATIONS).write_text("".join(reversed(lines)))
    (folder / "test" / "images").mkdir(parents=True)
    (folder / "test" / "images" / "test_0.JPEG").write_bytes(b"of no meaning")
    return folder
