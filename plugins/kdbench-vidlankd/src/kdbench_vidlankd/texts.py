"""Real text that the user supplies: WikiText-2, tasks to fine-tune on, and a WordPiece vocabulary.

Two layouts are read. The *text data* is a folder, or the archive of it, with

    wikitext2/valid.txt, test.txt                one paragraph a line
    cola/train.tsv, test_idd.tsv, test_ood.tsv   sentence, label
    sst2/train.tsv, test.tsv                     label, sentence
    rte/train.tsv, test.tsv                      index, two sentences, label
    wordpiece/vocab.txt                          one entry a line

and the official GLUE folders are ``TASK/train.tsv`` and ``TASK/dev.tsv`` (MNLI: ``dev_matched.tsv``). Columns are
parted by tabs, and quotes mean nothing. In both, the labelled split that no network is trained on is called *dev* here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import filelock

from kdbench import errors
from kdbench.data._files import digests, unpack, writing
from kdbench.data.base import Progress
from kdbench.errors import KdbenchError
from kdbench.files import atomic_write
from kdbench_vidlankd.wordpiece import read_vocabulary

__all__ = [
    "FILES",
    "GLUE",
    "TEXT_TASKS",
    "VOCABULARY",
    "Example",
    "Supplied",
    "Task",
    "find_texts",
    "glue_task",
    "read_lines",
    "text_task",
    "wikitext",
]

TITLE = "the text data"
Metric = Literal["accuracy", "matthews"]
Example = tuple[str, str | None, int]
"""First sentence, the second one of a pair or None, number of the class."""


class Supplied(NamedTuple):
    """Data of the user that was found and checked. ``note`` says how it differs from what is published."""

    folder: Path
    fingerprint: str
    note: str


class Task(NamedTuple):
    """A classification task. Fine-tuned networks are scored on ``dev``, by ``metric``.

    ``left_out`` counts the pieces of lines that hold no example, see :data:`GLUE`.
    """

    name: str
    train: list[Example]
    dev: list[Example]
    classes: int
    pairs: bool
    metric: Metric
    left_out: int = 0


class Table(NamedTuple):
    """A file of one example a line; ``columns`` are the names of all, () where its first line names them."""

    path: str
    sentences: tuple[str, ...]
    label: str
    columns: tuple[str, ...] = ()


class Layout(NamedTuple):
    """How a task is published: its files, and what is written for class 0, 1, ...

    Up to ``cut`` lines of a file may have too few columns; they are passed over and counted.
    """

    train: tuple[Table, ...]
    dev: tuple[Table, ...]
    classes: tuple[str, ...]
    metric: Metric = "accuracy"
    cut: int = 0


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")


def _cola(path: str, *columns: str) -> Table:
    return Table(path, ("sentence",), "label", columns)


def _official(name: str, sentences: tuple[str, ...], label: str, dev: str = "dev") -> tuple[tuple[Table], tuple[Table]]:
    return (Table(f"{name}/train.tsv", sentences, label),), (Table(f"{name}/{dev}.tsv", sentences, label),)


TEXT_TASKS = {
    "CoLA": Layout(
        (_cola("cola/train.tsv", "sentence", "label"),),
        # In and out of the domain of the training sentences: together they are GLUE's dev split.
        (Table("cola/test_idd.tsv", ("x",), "y"), Table("cola/test_ood.tsv", ("x",), "y")),
        _BINARY,
        "matthews",
    ),
    "SST-2": Layout(
        (Table("sst2/train.tsv", ("sentence",), "label", ("label", "sentence")),),
        (Table("sst2/test.tsv", ("sentence",), "label", ("label", "sentence")),),
        _BINARY,
    ),
    # Its own dev split is not used: it is small, and shares a pair with the test split.
    "RTE": Layout(
        (Table("rte/train.tsv", _PAIR, "label"),),
        (Table("rte/test.tsv", _PAIR, "label"),),
        _ENTAILMENT,
    ),
}
"""The tasks of the text data."""

GLUE = {
    "CoLA": Layout(
        (_cola("CoLA/train.tsv", "source", "label", "mark", "sentence"),),
        (_cola("CoLA/dev.tsv", "source", "label", "mark", "sentence"),),
        _BINARY,
        "matthews",
    ),
    "SST-2": Layout(*_official("SST-2", ("sentence",), "label"), _BINARY),
    "RTE": Layout(*_official("RTE", _PAIR, "label"), _ENTAILMENT),
    "QNLI": Layout(*_official("QNLI", ("question", "sentence"), "label"), _ENTAILMENT),
    # Some questions of the first published archive have a line break in them: their lines are in pieces.
    "QQP": Layout(*_official("QQP", ("question1", "question2"), "is_duplicate"), _BINARY, cut=10),
    "MNLI": Layout(
        *_official("MNLI", _PAIR, "gold_label", dev="dev_matched"), ("contradiction", "entailment", "neutral")
    ),
}
"""Tasks in the official GLUE layout."""

WIKITEXT = {"train": "wikitext2/valid.txt", "test": "wikitext2/test.txt"}
"""Trained on is WikiText-2's validation text: its training text is not in the text data."""

VOCABULARY = "wordpiece/vocab.txt"

FILES = (
    *WIKITEXT.values(),
    *(table.path for layout in TEXT_TASKS.values() for table in (*layout.train, *layout.dev)),
    VOCABULARY,
)
"""Files of the text data in the order of its fingerprint; others beside them are not read."""

_ARCHIVES = (".tar.xz", ".tar.gz", ".tgz", ".tar")
_AGAIN = "is it damaged? copy or unpack it again"
_HEADING = re.compile(r"(=(?: =)*) .* \1")
_PARTED = re.compile(r" @([-,.])@(?: |$)")


def find_texts(data_dir: Path | None, cache: Path, progress: Progress | None) -> Supplied:
    """The text data in ``data_dir``: its folder, its archive, or a folder that holds one of them as ``text``.

    An archive is unpacked into ``cache``, all or nothing. The fingerprint covers the content of :data:`FILES`, so
    folder and archive have one. Every file is read here, before any stage relies on it.

    Raises
    ------
    KdbenchError : nothing was given, a file is missing or malformed, or the cache cannot be written.
    """
    if data_dir is None:
        raise KdbenchError(
            f"{TITLE} is never downloaded",
            cure=f"give its folder or its archive with --data-dir; it holds {', '.join(FILES)}",
        )
    cache = Path(cache)
    try:
        folder = _root(Path(data_dir).expanduser(), cache, progress).resolve()
        tasks = [text_task(folder, name) for name in TEXT_TASKS]
        for split, name in WIKITEXT.items():
            if not wikitext(folder, split):
                raise KdbenchError(f"{name} has no paragraph", where=folder / name, cure=_AGAIN)
        read_vocabulary(folder / VOCABULARY)
        fingerprint = hashlib.sha256("".join(_checksums(folder, cache)).encode()).hexdigest()
    except OSError as error:
        raise KdbenchError(f"cannot read {TITLE}: {error.strerror or error}", where=error.filename) from error
    return Supplied(folder, fingerprint, _note(tasks))


def wikitext(folder: Path, split: str) -> list[str]:
    """Paragraphs of WikiText-2 in the text data: ``train`` or ``test`` of :data:`WIKITEXT`.

    Headings (``= ... =``) and blank lines are dropped: they are no sentences. ``<unk>`` becomes ``[UNK]``, one entry of
    the vocabulary in place of four pieces, and what ``@-@``, ``@,@`` and ``@.@`` hold apart (compounds, numbers) is
    joined again.

    Raises
    ------
    KdbenchError : there is no such split, or its file cannot be read.
    """
    if split not in WIKITEXT:
        raise errors.unknown("split of WikiText-2", split, WIKITEXT)
    lines = read_lines(folder / WIKITEXT[split])
    return [_PARTED.sub(r"\1", line).replace("<unk>", "[UNK]") for line in lines if not _HEADING.fullmatch(line)]


def text_task(folder: Path, name: str) -> Task:
    """One of :data:`TEXT_TASKS` from the folder of the text data.

    Raises
    ------
    KdbenchError : there is no such task, or a file is missing or malformed; a malformed line is given by its number.
    """
    return _task(folder, name, TEXT_TASKS)


def glue_task(folder: Path, name: str) -> Task:
    """One of :data:`GLUE` from the folder that holds the folders of the tasks; errors as :func:`text_task`."""
    return _task(folder, name, GLUE)


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text file without the space around them, one at a time; blank ones are passed over.

    Raises
    ------
    KdbenchError : the file cannot be read, or is not UTF-8.
    """
    return (line.strip() for line in _lines(path) if line.strip())


# ---------------------------------------------------------------------------------------------------------------- lines


def _lines(path: Path) -> Iterator[str]:
    """Parted at line feeds alone: some texts have other separators inside a sentence."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except OSError as error:
        raise KdbenchError(f"cannot read {path.name}: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise KdbenchError(f"{path.name} is not UTF-8: {error.reason}", where=path, cure=_AGAIN) from error


def _task(folder: Path, name: str, layouts: dict[str, Layout]) -> Task:
    if name not in layouts:
        raise errors.unknown("task", name, layouts)
    layout = layouts[name]
    read = {
        split: [example for table in tables for example in _examples(folder / table.path, table, layout)]
        for split, tables in (("train", layout.train), ("dev", layout.dev))
    }
    whole = {split: [example for example in examples if example is not None] for split, examples in read.items()}
    left_out = sum(len(read[split]) - len(whole[split]) for split in read)
    pairs = len(layout.train[0].sentences) == 2
    return Task(name, whole["train"], whole["dev"], len(layout.classes), pairs, layout.metric, left_out)


def _examples(path: Path, table: Table, layout: Layout) -> list[Example | None]:
    """The lines of a file; None stands for each of the few that may be cut."""
    lines = enumerate(_lines(path), 1)
    header = table.columns or tuple(next(lines, (1, ""))[1].split("\t"))
    wanted = (*table.sentences, table.label)
    if missing := [column for column in wanted if column not in header]:
        raise KdbenchError(
            f"{path.name} has no column {missing[0]!r}: its first line is {' '.join(header)!r}",
            where=path,
            cure=f"its columns are parted by tabs and named in the first line, {', '.join(wanted)} among them",
        )
    places = [header.index(column) for column in wanted]
    found: list[Example | None] = []
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) < len(header) and found.count(None) < layout.cut:
            found.append(None)
            continue
        if len(fields) != len(header):
            what = f"line {number} of {path.name} has {len(fields)} columns, and {len(header)} belong there"
            raise KdbenchError(what, where=path, cure=_AGAIN)
        *sentences, label = (fields[place] for place in places)
        if label not in layout.classes:
            what = f"line {number} of {path.name} has the label {label!r}, which is none of {', '.join(layout.classes)}"
            raise KdbenchError(what, where=path, cure=_AGAIN)
        found.append((sentences[0], sentences[1] if sentences[1:] else None, layout.classes.index(label)))
    if not any(found):
        raise KdbenchError(f"{path.name} has no example", where=path, cure=_AGAIN)
    return found


# -------------------------------------------------------------------------------------------- where the text data lies


def _root(data_dir: Path, cache: Path, progress: Progress | None) -> Path:
    """The folder of the text data; of an archive, what it was unpacked to."""
    if not data_dir.exists():
        raise KdbenchError("the data folder does not exist", where=data_dir, cure=f"it holds {', '.join(FILES)}")
    if data_dir.is_file():
        return _unpacked(data_dir, cache, progress)
    folders = [folder for folder in (data_dir, data_dir / "text") if any((folder / name).is_file() for name in FILES)]
    if folders:
        if missing := [name for name in FILES if not (folders[0] / name).is_file()]:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise KdbenchError(f"{TITLE} lacks {missing[0]}{more}", where=folders[0], cure=_AGAIN)
        return folders[0]
    for suffix in _ARCHIVES:
        if (archive := data_dir / f"text{suffix}").is_file():
            return _unpacked(archive, cache, progress)
    raise KdbenchError(
        f"{TITLE} is not in the data folder",
        where=data_dir,
        cure=f"looked for {FILES[0]} and the others, in it and in text/, and for text{' or text'.join(_ARCHIVES)}",
    )


def _unpacked(archive: Path, cache: Path, progress: Progress | None) -> Path:
    """The archive's files in the cache, unpacked on the first call and whenever they are no longer what they were."""
    folder = cache / "unspoken-text" / digests(archive, cache).sha256[:24]
    manifest = folder.with_name(f"{folder.name}.json")

    def report(done: int, total: int) -> None:
        if progress:
            progress(f"unpacking {TITLE}", done, total)

    with writing(folder.parent), filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _is_intact(folder, manifest, cache):
            manifest.unlink(missing_ok=True)
            unpack(archive, "text", FILES, folder, report, f"it holds {', '.join(FILES)}, at its top or in text/")
            atomic_write(manifest, json.dumps(_checksums(folder, cache)).encode())
    return folder


def _is_intact(folder: Path, manifest: Path, cache: Path) -> bool:
    try:
        return bool(json.loads(manifest.read_bytes()) == _checksums(folder, cache))
    except (OSError, ValueError):
        return False


def _checksums(folder: Path, cache: Path) -> list[str]:
    return [digests(folder / name, cache).sha256 for name in FILES]


def _note(tasks: list[Task]) -> str:
    size = {task.name: f"{len(task.train):,} and {len(task.dev):,}" for task in tasks}
    return (
        f"text data is a collection of its own: trained on is WikiText-2's validation text; SST-2 has {size['SST-2']} "
        f"whole sentences, where GLUE has phrases too, and is scored on the test split; CoLA has {size['CoLA']} "
        f"sentences, in lower case and tokenised; RTE has {size['RTE']} pairs of another split than GLUE's"
    )
