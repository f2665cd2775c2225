"""WordPiece, blocks of running text, and padded sentences and pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vid_folder import VOCABULARY, real_archive

from kdbench.errors import KdbenchError

pytest.importorskip("tokenizers", reason="needs kdbench-vidlankd[bert]")

from kdbench_vidlankd.wordpiece import (
    SPECIALS,
    blocks,
    build_tokenizer,
    encode,
    pack,
    read_vocabulary,
    specials,
)

LINES = ["The CAT sat on a mat.", "cats, mats", "", "un\u00e9", "caf\u00e9 [MASK] the"]


@pytest.fixture(scope="module")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from kdbench_vidlankd.texts import find_texts

    return find_texts(real_archive(), tmp_path_factory.mktemp("cache"), None).folder


def ids(*tokens: str) -> list[int]:
    return [VOCABULARY.index(token) for token in tokens]


# ids


def test_words_are_split_at_the_longest_entry_first() -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    found = [encode(tokenizer, [line]).tolist() for line in LINES]
    assert found == [
        ids("the", "cat", "sat", "on", "a", "mat", "."),
        ids("cat", "##s", ",", "mat", "##s"),
        [],
        ids("[UNK]"),
        ids("[UNK]", "[MASK]", "the"),
    ]


def test_lines_are_put_one_behind_the_other() -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    together = encode(tokenizer, (line for line in LINES))
    assert together.dtype == np.int32
    assert together.tolist() == [number for line in LINES for number in encode(tokenizer, [line])]
    assert encode(tokenizer, []).shape == (0,)


def test_long_text_is_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    whole = encode(tokenizer, LINES)
    monkeypatch.setattr("kdbench_vidlankd.wordpiece._LINES", 2)
    assert np.array_equal(encode(tokenizer, LINES), whole)


def test_special_entries_are_found_by_name() -> None:
    order = ["the", *reversed(SPECIALS)]
    assert specials(build_tokenizer(order)) == (5, 4, 3, 2, 1)


def test_a_file_is_read_as_its_list(tmp_path: Path) -> None:
    for name, parted in (("unix", "\n"), ("windows", "\r\n")):
        path = tmp_path / f"{name}.txt"
        path.write_bytes(parted.join([*VOCABULARY, "\u2028x"]).encode())
        assert read_vocabulary(path) == [*VOCABULARY, "\u2028x"]
        assert build_tokenizer(path).get_vocab_size() == len(VOCABULARY) + 1


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[PAD]\n\n[UNK]\n", "line 2 of the vocabulary is empty"),
        ("\n".join(VOCABULARY[:3]).encode(), r"the vocabulary lacks \[SEP\], \[MASK\]"),
        ("\n".join([*VOCABULARY, "cat"]).encode(), "'cat' twice, as numbers 6 and 15"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_faulty_vocabulary_is_refused_with_its_file(content: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(KdbenchError, match=fault) as caught:
        build_tokenizer(path)
    assert caught.value.where == str(path)


def test_a_vocabulary_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match=r"cannot read the vocabulary: No such file"):
        build_tokenizer(tmp_path / "vocab.txt")


# added words


def test_added_words_count_whole_and_have_ids_behind_the_vocabulary() -> None:
    tokenizer = build_tokenizer(VOCABULARY, added=["wug", "catsat"])
    assert tokenizer.get_vocab_size() == len(VOCABULARY) + 2
    wug, catsat = len(VOCABULARY), len(VOCABULARY) + 1
    found = encode(tokenizer, ["the Wug, catsat", "wugs catsats mat.wug"]).tolist()
    assert found == [
        *ids("the"), wug, *ids(","), catsat,
        *ids("[UNK]", "[UNK]", "mat", "."), wug,
    ]  # fmt: skip


def test_added_words_leave_the_ids_of_longer_ones() -> None:
    plain, more = build_tokenizer(VOCABULARY), build_tokenizer(VOCABULARY, added=["cats", "ca"])
    assert encode(plain, ["catss cat cass"]).tolist() == encode(more, ["catss cat cass"]).tolist()
    assert encode(plain, ["cats"]).tolist() != encode(more, ["cats"]).tolist()


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        (["wug", "cat"], "'cat' is in the vocabulary already"),
        (["wug", "wug"], "'wug' is there twice"),
        (["Wug"], "not one word in lower case"),
        (["w\u00fag"], "not one word in lower case"),
        (["two words"], "not one word in lower case"),
        (["wug-like"], "not one word in lower case"),
        ([""], "not one word in lower case"),
    ],
)
def test_an_added_word_that_could_not_be_found_again_is_refused(added: list[str], fault: str) -> None:
    with pytest.raises(KdbenchError, match=fault):
        build_tokenizer(VOCABULARY, added=added)


# blocks


def test_blocks_are_filled_and_the_rest_is_dropped() -> None:
    found = blocks(np.arange(10, 18, dtype=np.int32), length=5, cls=2, sep=3)
    assert found.dtype == np.int32
    assert found.tolist() == [[2, 10, 11, 12, 3], [2, 13, 14, 15, 3]]


def test_the_papers_block_has_126_tokens_of_text() -> None:
    assert blocks(np.arange(3 * 126, dtype=np.int32), 128, 2, 3).shape == (3, 128)
    assert blocks(np.arange(3 * 126 - 1, dtype=np.int32), 128, 2, 3).shape == (2, 128)


@pytest.mark.parametrize(("tokens", "length", "fault"), [(9, 2, "no room"), (9, 12, "9 tokens of text do not fill")])
def test_blocks_that_cannot_be_filled_are_refused(tokens: int, length: int, fault: str) -> None:
    with pytest.raises(KdbenchError, match=fault):
        blocks(np.zeros(tokens, np.int32), length, 2, 3)


# sentences and pairs


def test_sentences_and_pairs_are_framed_cut_and_padded() -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    found = pack(tokenizer, [("the cat", None), ("the cat sat on a mat", "a mat"), ("a", "cats sat on")], 8)
    assert found.ids.tolist() == [
        ids("[CLS]", "the", "cat", "[SEP]", "[PAD]", "[PAD]", "[PAD]", "[PAD]"),
        ids("[CLS]", "the", "cat", "sat", "[SEP]", "a", "mat", "[SEP]"),
        ids("[CLS]", "a", "[SEP]", "cat", "##s", "sat", "on", "[SEP]"),
    ]
    assert found.segments.tolist() == [[0] * 8, [0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]]
    assert found.attended.sum(axis=1).tolist() == [4, 8, 8]
    assert (found.ids.dtype, found.segments.dtype, found.attended.dtype) == (np.int32, np.int32, np.bool_)
    # The tokenizer of the caller neither cuts nor pads afterwards.
    assert len(encode(tokenizer, ["the cat sat on a mat " * 3])) == 18


def test_padding_is_the_vocabularys_own() -> None:
    tokenizer = build_tokenizer(["the", *VOCABULARY[4:5], *VOCABULARY[:4]])
    assert pack(tokenizer, [("the", None)], 4).ids.tolist() == [[4, 0, 5, 2]]


def test_no_examples_are_an_empty_array() -> None:
    assert pack(build_tokenizer(VOCABULARY), [], 6).ids.shape == (0, 6)


@pytest.mark.parametrize(("second", "length", "least"), [(None, 2, 3), ("a", 4, 5)])
def test_a_length_without_room_is_refused(second: str | None, length: int, least: int) -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    with pytest.raises(KdbenchError, match=f"give {least} or more"):
        pack(tokenizer, [("the", second)], length)
    assert pack(tokenizer, [("the", second)], least).attended.all()


# the published vocabulary on real text


def test_ids_are_those_of_the_published_tokenizer(text_data: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs kdbench-vidlankd[bert]")
    from kdbench_vidlankd.texts import TEXT_TASKS, VOCABULARY, WIKITEXT, read_lines, text_task

    published = transformers.BertTokenizerFast(str(text_data / VOCABULARY))
    tokenizer = build_tokenizer(text_data / VOCABULARY)
    assert (tokenizer.get_vocab_size(), tuple(specials(tokenizer))) == (30_522, (0, 100, 101, 102, 103))
    lines = [line for name in WIKITEXT.values() for line in list(read_lines(text_data / name))[:400]]
    assert encode(tokenizer, lines).tolist() == [
        number for each in published(lines, add_special_tokens=False)["input_ids"] for number in each
    ]
    for name in TEXT_TASKS:
        examples = [(first, second) for first, second, _ in text_task(text_data, name).train[:300]]
        found = pack(tokenizer, examples, 24)
        firsts, seconds = (list(column) for column in zip(*examples, strict=True))
        expected = published(
            firsts,
            None if seconds[0] is None else seconds,
            truncation="longest_first",
            padding="max_length",
            max_length=24,
        )
        assert found.ids.tolist() == expected["input_ids"]
        assert found.segments.tolist() == expected["token_type_ids"]
        assert found.attended.astype(int).tolist() == expected["attention_mask"]


def test_added_words_leave_real_text_as_it_was(text_data: Path) -> None:
    from kdbench_vidlankd.texts import VOCABULARY, wikitext

    added = ["gomek", "rov", "bigab", "zem"]
    plain, more = build_tokenizer(text_data / VOCABULARY), build_tokenizer(text_data / VOCABULARY, added)
    text = wikitext(text_data, "test")
    assert np.array_equal(encode(plain, text), encode(more, text))
    assert encode(more, ["The Gomek shakes ."]).tolist() == [1996, 30_522, *encode(plain, ["shakes ."])]
