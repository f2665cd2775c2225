"""Small folders in the two layouts that the plugin reads: the text data, and HowTo100M's features with captions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdbench_vidlankd.features import Clips

WIDTH = 2_048

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    ".",
    "##s",
    ",",
    "un",
]

TEXTS = {
    "wikitext2/valid.txt": " \n = Cats = \n \n The cat sat . \n = = Mats = = \n 1 @,@ 000 cats sat @-@ on <unk> . \n",
    "wikitext2/test.txt": " \n = Mats = \n The mat . \n",
    "cola/train.tsv": "the cat sat\t1\nsat the cat\t0\n",
    "cola/test_idd.tsv": "x\ty\nthe mat sat\t1\n",
    "cola/test_ood.tsv": "x\ty\nmat the sat\t0\na mat\t1\n",
    "sst2/train.tsv": "1\ta cat\n0\ta mat\n0\tthe mat\n",
    "sst2/test.tsv": "0\tmats\n",
    "rte/train.tsv": "index\tsentence1\tsentence2\tlabel\n4\tThe cat sat.\tA cat sat.\tentailment\n",
    "rte/dev.tsv": "index\tsentence1\tsentence2\tlabel\n5\tA mat.\tA cat.\tnot_entailment\n",
    "rte/test.tsv": 'index\tsentence1\tsentence2\tlabel\n6\t"The cat.\tA mat.\tnot_entailment\n',
    "wordpiece/vocab.txt": "\n".join(VOCABULARY) + "\n",
}
"""Of the text data, by path."""

_MNLI = "index\tpromptID\tpairID\tgenre\tbp1\tbp2\tp1\tp2\tsentence1\tsentence2\tlabel1"
_PARSED = "0\t1\t1n\tfiction\t(\t(\t(\t("
GLUE = {
    "CoLA/train.tsv": "gj04\t1\t\tthe cat sat\ngj04\t0\t*\tsat the\n",
    "CoLA/dev.tsv": "gj04\t1\t\ta cat\n",
    "SST-2/train.tsv": "sentence\tlabel\na cat\t1\na mat\t0\n",
    "SST-2/dev.tsv": "sentence\tlabel\nthe mat\t0\n",
    "RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tThe cat.\tA cat.\tentailment\n",
    "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tThe mat.\tA cat.\tnot_entailment\n",
    "QNLI/train.tsv": "index\tquestion\tsentence\tlabel\n0\twho sat ?\tthe cat\tentailment\n",
    "QNLI/dev.tsv": "index\tquestion\tsentence\tlabel\n0\twho sat ?\tthe mat\tnot_entailment\n",
    "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\twho sat\twho sat ?\t1\n",
    "QQP/dev.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\twho sat\twhy\t0\n",
    "MNLI/train.tsv": f"{_MNLI}\tgold_label\n{_PARSED}\tthe cat\ta mat\tneutral\tneutral\n",
    "MNLI/dev_matched.tsv": f"{_MNLI}\tlabel2\tgold_label\n{_PARSED}\ta\tcat\tneutral\tentailment\tentailment\n",
}
"""The official layout, by path."""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Write files, with their folders, and return ``folder``."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return folder


def ramp(rows: int, rate: float) -> NDArray[np.float32]:
    """Rows that hold the time of their middle, seconds, in every column."""
    times = (np.arange(rows) + 0.5) / rate
    return np.repeat(times.astype(np.float32)[:, None], WIDTH, axis=1)


def clip(folder: Path, video: str, seconds: int, moving: int | None = None) -> None:
    """Write the two files of a clip, whose rows are their times."""
    moving = round(1.5 * seconds) if moving is None else moving
    for stream, rows in (("2d", ramp(seconds, 1)), ("3d", ramp(moving, 1.5))):
        save(folder, stream, video, rows)


def save(folder: Path, stream: str, video: str, rows: NDArray[Any]) -> Path:
    path = folder / "features" / stream / f"{video}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, rows)
    return path


def said(*captions: tuple[float, float, str]) -> dict[str, list[Any]]:
    """Captions as the JSON has them."""
    start, end, text = (list(column) for column in zip(*captions, strict=True))
    return {"start": start, "end": end, "text": text}


def write_captions(folder: Path, captions: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.json").write_text(json.dumps(captions))


def one(folder: Path, seconds: int = 8, moving: int | None = None, captions: Any = None) -> Clips:
    """A folder of one clip, "aa"."""
    clip(folder, "aa", seconds, moving)
    write_captions(folder, {"aa": captions or said((0, 1, "the cat"))})
    return Clips(folder)


def howto100m(folder: Path) -> Path:
    """A whole folder: two clips with captions, text, a vocabulary and the GLUE tasks."""
    clip(folder, "aa", 8)
    clip(folder, "bb", 5)
    write_captions(
        folder, {"aa": said((0, 3.5, "the cat sat"), (3, 7, "on a mat")), "bb": said((1.5, 4, "a cat on the mat"))}
    )
    write(folder / "glue", GLUE)
    text = {"text/train.txt": "the cat sat .\n", "text/valid.txt": "a mat .\n", "vocab.txt": "\n".join(VOCABULARY)}
    return write(folder, text)


def real_archive() -> Path:
    """The archive with real text, where this machine has it; else the test is skipped."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    archive = Path(os.environ.get("KDBENCH_SHARED_DATA", beside)) / "text.tar.xz"
    if not archive.is_file():
        pytest.skip("no real text: set KDBENCH_SHARED_DATA to a folder with text.tar.xz")
    return archive
