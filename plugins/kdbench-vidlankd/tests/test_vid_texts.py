"""Real text from folders and archives, whole and damaged, in the plugin's own layout and in GLUE's."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from vid_folder import GLUE, TEXTS, real_archive, write

from kdbench.errors import KdbenchError
from kdbench_vidlankd import texts
from kdbench_vidlankd.texts import FILES, find_texts, glue_task, read_lines, text_task, wikitext


def pack(path: Path, files: Mapping[str, str], inside: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(inside + name)
            info.size = len(content.encode())
            tar.addfile(info, io.BytesIO(content.encode()))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "data", TEXTS)


# what is read


def test_paragraphs_are_read_without_headings_and_marks(folder: Path) -> None:
    assert wikitext(folder, "train") == ["The cat sat .", "1,000 cats sat-on [UNK] ."]
    assert wikitext(folder, "test") == ["The mat ."]


def test_marks_at_the_end_and_what_only_looks_like_a_heading(tmp_path: Path) -> None:
    write(
        tmp_path, {"wikitext2/test.txt": " in 19 @,@ \n = next round \n = A = B \n x = y = \n = = A = \n = = B = = \n"}
    )
    assert wikitext(tmp_path, "test") == ["in 19,", "= next round", "= A = B", "x = y ="]


def test_the_tasks_are_read_as_published(folder: Path) -> None:
    cola, sst2, rte = (text_task(folder, name) for name in ("CoLA", "SST-2", "RTE"))
    assert cola.train == [("the cat sat", None, 1), ("sat the cat", None, 0)]
    assert cola.dev == [("the mat sat", None, 1), ("mat the sat", None, 0), ("a mat", None, 1)]
    assert (cola.classes, cola.pairs, cola.metric, cola.left_out) == (2, False, "matthews", 0)
    assert sst2.train == [("a cat", None, 1), ("a mat", None, 0), ("the mat", None, 0)]
    assert (sst2.dev, sst2.pairs, sst2.metric) == ([("mats", None, 0)], False, "accuracy")
    assert rte.train == [("The cat sat.", "A cat sat.", 0)]
    # A quotation mark is a character like any other.
    assert (rte.dev, rte.pairs, rte.metric) == ([('"The cat.', "A mat.", 1)], True, "accuracy")


def test_the_official_layout_is_read_as_published(tmp_path: Path) -> None:
    write(tmp_path, GLUE)
    tasks = {name: glue_task(tmp_path, name) for name in texts.GLUE}
    assert {name: (task.train[0], task.dev[0]) for name, task in tasks.items()} == {
        "CoLA": (("the cat sat", None, 1), ("a cat", None, 1)),
        "SST-2": (("a cat", None, 1), ("the mat", None, 0)),
        "RTE": (("The cat.", "A cat.", 0), ("The mat.", "A cat.", 1)),
        "QNLI": (("who sat ?", "the cat", 0), ("who sat ?", "the mat", 1)),
        "QQP": (("who sat", "who sat ?", 1), ("who sat", "why", 0)),
        "MNLI": (("the cat", "a mat", 2), ("a", "cat", 1)),
    }
    assert {name: (task.classes, task.pairs) for name, task in tasks.items()} == {
        "CoLA": (2, False),
        "SST-2": (2, False),
        "RTE": (2, True),
        "QNLI": (2, True),
        "QQP": (2, True),
        "MNLI": (3, True),
    }
    assert [name for name, task in tasks.items() if task.metric == "matthews"] == ["CoLA"]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes("\ufeffone\u2028still one \r\n\r\n  \n two\x0cstill\rtwo".encode())
    assert list(read_lines(path)) == ["one\u2028still one", "two\x0cstill\rtwo"]


# what is malformed


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("cola/train.tsv", "a cat\t1\na mat\n", "line 2 of train.tsv has 1 columns, and 2 belong there"),
        ("cola/train.tsv", "a cat\t1\na\tmat\t0\n", "line 2 of train.tsv has 3 columns"),
        (
            "cola/test_idd.tsv",
            "x\ty\na cat\tyes\n",
            "line 2 of test_idd.tsv has the label 'yes', which is none of 0, 1",
        ),
        ("cola/test_ood.tsv", "a cat\t1\n", "test_ood.tsv has no column 'x'"),
        ("sst2/train.tsv", "1\ta cat\n\n0\ta mat\n", "line 2 of train.tsv has 1 columns"),
        ("sst2/test.tsv", "", "test.tsv has no example"),
        ("rte/train.tsv", "", "train.tsv has no column 'sentence1'"),
        ("rte/test.tsv", TEXTS["rte/test.tsv"].split("\n")[0], "test.tsv has no example"),
        ("wordpiece/vocab.txt", "[PAD]\n", "the vocabulary lacks"),
        ("wikitext2/test.txt", " \n = Mats = \n", "wikitext2/test.txt has no paragraph"),
    ],
)
def test_a_malformed_file_is_found_before_any_stage(
    name: str, content: str, fault: str, folder: Path, cache: Path
) -> None:
    write(folder, {name: content})
    with pytest.raises(KdbenchError, match=fault) as caught:
        find_texts(folder, cache, None)
    assert caught.value.where == str(folder / name)


def test_text_that_is_no_text_is_named(folder: Path, cache: Path) -> None:
    (folder / "sst2/train.tsv").write_bytes(b"1\t\xff\n")
    with pytest.raises(KdbenchError, match=r"train.tsv is not UTF-8.*sst2"):
        find_texts(folder, cache, None)


def test_only_the_questions_that_are_published_in_pieces_may_be_cut(tmp_path: Path) -> None:
    write(tmp_path, GLUE)
    lines = GLUE["QQP/train.tsv"].splitlines()
    pieces = ["3\t4\t5\tWho", "is it ?\tWho ?\t1"]
    write(tmp_path, {"QQP/train.tsv": "\n".join([*lines, *pieces, *lines[1:]])})
    task = glue_task(tmp_path, "QQP")
    assert (len(task.train), task.left_out) == (2, 2)
    write(tmp_path, {"QQP/train.tsv": "\n".join([*lines, *pieces * 5, *lines[1:], "one more piece"])})
    with pytest.raises(KdbenchError, match=r"line 14 of train.tsv has 1 columns, and 6 belong there"):
        glue_task(tmp_path, "QQP")
    write(tmp_path, {"QQP/train.tsv": f"{GLUE['QQP/train.tsv']}3\t4\t5\tWho\tis\tit\t1\n"})
    with pytest.raises(KdbenchError, match=r"line 3 of train.tsv has 7 columns, and 6 belong there"):
        glue_task(tmp_path, "QQP")
    write(tmp_path, {"QNLI/train.tsv": GLUE["QNLI/train.tsv"] + "a piece\n"})
    with pytest.raises(KdbenchError, match=r"line 3 of train.tsv has 1 columns, and 4 belong there"):
        glue_task(tmp_path, "QNLI")


def test_unknown_names_are_answered_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(KdbenchError, match=r"unknown task 'SST2'.*did you mean 'SST-2'"):
        text_task(folder, "SST2")
    with pytest.raises(KdbenchError, match=r"unknown task 'RTA'.*did you mean 'RTE'"):
        glue_task(folder, "RTA")
    with pytest.raises(KdbenchError, match=r"unknown split of WikiText-2 'valid'.*known: test, train"):
        wikitext(folder, "valid")


# where it lies


def test_folder_and_archive_have_one_fingerprint(folder: Path, tmp_path: Path, cache: Path) -> None:
    pack(tmp_path / "a" / "any-name.tar.xz", TEXTS)
    pack(tmp_path / "b" / "text.tar.xz", TEXTS, "text/")
    places = [folder, tmp_path / "a" / "any-name.tar.xz", tmp_path / "b", tmp_path / "c"]
    shutil.copytree(folder, tmp_path / "c" / "text")
    found = [find_texts(place, cache, None) for place in places]
    assert len({each.fingerprint for each in found}) == 1
    for each in found:
        assert wikitext(each.folder, "test") == ["The mat ."]
        assert text_task(each.folder, "RTE") == text_task(folder, "RTE")


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_is_read_counts_in_the_fingerprint(name: str, folder: Path, cache: Path) -> None:
    before = find_texts(folder, cache, None).fingerprint
    lines = TEXTS[name].splitlines(keepends=True)
    more = "wug\n" if name == "wordpiece/vocab.txt" else lines[-1]
    write(folder, {name: TEXTS[name] + more})
    assert find_texts(folder, cache, None).fingerprint != before


def test_files_that_are_not_read_do_not_count(folder: Path, cache: Path) -> None:
    before = find_texts(folder, cache, None)
    write(folder, {"README": "more", "rte/dev.tsv": "changed"})
    assert find_texts(folder, cache, None) == before


def test_an_archive_is_unpacked_once_and_mended(tmp_path: Path, cache: Path) -> None:
    archive = pack(tmp_path / "text.tar.xz", TEXTS)
    seen: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append((what, done, total))

    first = find_texts(archive, cache, progress)
    assert seen[-1] == ("unpacking the text data", len(FILES), len(FILES))
    # Nothing but what is read leaves the archive.
    assert sorted(p.relative_to(first.folder).as_posix() for p in first.folder.rglob("*.*")) == sorted(FILES)
    seen.clear()
    assert find_texts(archive, cache, progress) == first
    assert not seen
    (first.folder / "sst2/train.tsv").write_text("1\tanother cat\n")
    assert find_texts(archive, cache, progress) == first
    assert seen
    assert text_task(first.folder, "SST-2").train[0] == ("a cat", None, 1)


def test_nothing_given_says_what_to_give(cache: Path) -> None:
    with pytest.raises(KdbenchError, match=r"never downloaded; give .* --data-dir; it holds wikitext2/valid.txt"):
        find_texts(None, cache, None)


def test_what_is_missing_is_named(folder: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(KdbenchError, match="the data folder does not exist"):
        find_texts(tmp_path / "nowhere", cache, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(KdbenchError, match=r"is not in the data folder.*text.tar.xz or text.tar.gz"):
        find_texts(tmp_path / "empty", cache, None)
    (folder / "rte/test.tsv").unlink()
    with pytest.raises(KdbenchError, match=r"the text data lacks rte/test.tsv "):
        find_texts(folder, cache, None)
    (folder / "wikitext2/valid.txt").unlink()
    with pytest.raises(KdbenchError, match=r"the text data lacks wikitext2/valid.txt and 1 more"):
        find_texts(folder, cache, None)


def test_an_archive_of_something_else_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    some = {name: content for name, content in TEXTS.items() if not name.startswith("cola")}
    with pytest.raises(KdbenchError, match=r"lacks text/cola/train.tsv and 2 more.*it holds wikitext2/valid.txt"):
        find_texts(pack(tmp_path / "text.tar.xz", some), cache, None)
    (tmp_path / "bad.tar.xz").write_bytes(b"no archive")
    with pytest.raises(KdbenchError, match="the archive cannot be read"):
        find_texts(tmp_path / "bad.tar.xz", cache, None)
    assert not [path for path in (cache / "unspoken-text").iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file is in the way")
    with pytest.raises(KdbenchError, match=r"cannot write.*let KDBENCH_CACHE name another place"):
        find_texts(pack(tmp_path / "text.tar.xz", TEXTS), cache, None)


# the real text


def test_the_real_archive_has_the_counts_that_were_published_with_it(cache: Path) -> None:
    found = find_texts(real_archive(), cache, None)
    tasks = {name: text_task(found.folder, name) for name in texts.TEXT_TASKS}
    assert {name: (len(task.train), len(task.dev)) for name, task in tasks.items()} == {
        "CoLA": (8_551, 527 + 516),
        "SST-2": (6_920, 1_821),
        "RTE": (1_244, 1_384),
    }
    assert not set(tasks["RTE"].train) & set(tasks["RTE"].dev)
    for split in texts.WIKITEXT:
        text = wikitext(found.folder, split)
        assert len(text) > 1_500
        assert not any(mark in line for line in text for mark in ("<unk>", "@-@", "@,@", "@.@", " = ="))
    assert "SST-2 has 6,920 and 1,821 whole sentences" in found.note
    assert "RTE has 1,244 and 1,384 pairs of another split than GLUE's" in found.note
