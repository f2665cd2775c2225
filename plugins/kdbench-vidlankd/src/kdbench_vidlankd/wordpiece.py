"""BERT's uncased WordPiece, and token ids as networks take them: blocks of running text, single sentences and pairs.

Nothing here is hand-made where :mod:`tokenizers` has it: normalisation, splitting, cutting and padding are the
library's, so ids are those of ``bert-base-uncased`` for its vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "SPECIALS",
    "Packed",
    "Specials",
    "blocks",
    "build_tokenizer",
    "encode",
    "pack",
    "read_vocabulary",
    "specials",
]

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Entries that every vocabulary has, in the order of :class:`Specials`."""

LONGEST_WORD = 100
"""Characters; a longer word is unknown (as in BERT)."""

_LINES = 4_096  # encoded at a time: text may be larger than memory, its ids are what is kept


class Specials(NamedTuple):
    """Ids of the special entries."""

    pad: int
    unknown: int
    cls: int
    sep: int
    mask: int


class Packed(NamedTuple):
    """Examples cut and padded to one length, N by L.

    ``ids`` int32; ``segments`` int32, 1 for the second sentence of a pair and its [SEP], else 0; ``attended`` bool,
    False for padding.
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int32]
    attended: NDArray[np.bool_]


def read_vocabulary(path: Path) -> list[str]:
    """The entries of a ``vocab.txt``, one a line: an entry's id is the number of the lines before it.

    Raises
    ------
    KdbenchError : the file cannot be read, a line is empty, an entry is there twice, or a special one is missing.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise KdbenchError(f"cannot read the vocabulary: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise KdbenchError(f"the vocabulary is not UTF-8: {error.reason}", where=path) from error
    # Not splitlines: some characters that it parts lines at are entries themselves.
    entries = [entry.removesuffix("\r") for entry in text.removesuffix("\n").split("\n")]
    if "" in entries:
        raise KdbenchError(f"line {entries.index('') + 1} of the vocabulary is empty", where=path, cure=_WHOLE)
    _numbered(entries, path)
    return entries


def build_tokenizer(vocabulary: Sequence[str] | Path, added: Sequence[str] = ()) -> Tokenizer:
    """WordPiece of lower-case words without accents, as ``bert-base-uncased``.

    Single sentences become ``[CLS] a [SEP]``, pairs ``[CLS] a [SEP] b [SEP]`` with segments 0 and 1, unless encoded
    without special tokens.

    Parameters
    ----------
    vocabulary : entries in the order of their ids, or the ``vocab.txt`` that lists them.
    added : words with ids of their own behind the vocabulary. They count as whole words only, so the ids of all other
        words, of longer ones that begin like an added one too, stay what they were.

    Raises
    ------
    KdbenchError : tokenizers is not installed; an entry is there twice, a special one is missing, or an added word is
        in the vocabulary or is not one lower-case word.
    """
    try:
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.models import WordPiece
        from tokenizers.normalizers import BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer
        from tokenizers.processors import TemplateProcessing
    except ImportError as error:
        raise KdbenchError(
            "the package tokenizers is not installed", where="WordPiece", cure="install kdbench-vidlankd[bert]"
        ) from error
    if isinstance(vocabulary, Path):
        vocabulary = read_vocabulary(vocabulary)
    ids = _numbered(vocabulary, "vocabulary")
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    _check_added(tokenizer, added)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in added])
    return tokenizer


def specials(tokenizer: Tokenizer) -> Specials:
    """Ids of the special entries of a tokenizer made by :func:`build_tokenizer`."""
    ids = tokenizer.get_vocab()
    return Specials(*(ids[token] for token in SPECIALS))


def encode(tokenizer: Tokenizer, lines: Iterable[str]) -> NDArray[np.int32]:
    """Ids of running text, ``[T]``: the lines one behind the other, without special tokens between them.

    Lines may come from a file that is larger than memory; the ids, 4 bytes each, are held.
    """
    parts = [np.zeros(0, np.int32)]
    for batch in _batches(lines):
        found = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        parts.append(np.fromiter((number for each in found for number in each.ids), dtype=np.int32))
    return np.concatenate(parts)


def blocks(ids: NDArray[np.int32], length: int, cls: int, sep: int) -> NDArray[np.int32]:
    """Running text cut into ``[CLS] ... [SEP]``, ``[N, length]``; what does not fill the last block is dropped.

    The paper's blocks have 126 tokens and the 2 special ones.

    Raises
    ------
    KdbenchError : a block has no room for a token, or the text does not fill one.
    """
    inner = length - 2
    if inner < 1:
        raise KdbenchError(f"a block of {length} has no room for a token", where="blocks", cure="give 3 or more")
    count = len(ids) // inner
    if not count:
        raise KdbenchError(
            f"{len(ids)} tokens of text do not fill a block of {inner}",
            where="blocks",
            cure="give more text, or shorter blocks",
        )
    out = np.empty((count, length), np.int32)
    out[:, 0], out[:, -1] = cls, sep
    out[:, 1:-1] = ids[: count * inner].reshape(count, inner)
    return out


def pack(tokenizer: Tokenizer, examples: Iterable[tuple[str, str | None]], length: int) -> Packed:
    """Single sentences and pairs for fine-tuning, cut at the longer of two sentences first, padded to ``length``.

    Parameters
    ----------
    tokenizer : left as it is.
    examples : first sentence, and the second of a pair or None; N in all.
    length : tokens with the special ones, L.

    Raises
    ------
    KdbenchError : ``length`` has no room for a token of each sentence.
    """
    texts = [first if second is None else (first, second) for first, second in examples]
    least = 5 if any(isinstance(text, tuple) for text in texts) else 3
    if length < least:
        raise KdbenchError(
            f"a length of {length} has no room for sentences", where="pack", cure=f"give {least} or more"
        )
    # Cutting and padding are settings of the tokenizer, and the caller's own shall not change.
    cutting = type(tokenizer).from_str(tokenizer.to_str())
    cutting.enable_truncation(length, strategy="longest_first")
    cutting.enable_padding(length=length, pad_id=specials(tokenizer).pad, pad_token="[PAD]")
    found = cutting.encode_batch_fast(texts)
    shape = (len(texts), length)
    return Packed(
        np.array([each.ids for each in found], np.int32).reshape(shape),
        np.array([each.type_ids for each in found], np.int32).reshape(shape),
        np.array([each.attention_mask for each in found], np.bool_).reshape(shape),
    )


_WHOLE = "is the file whole? bert-base-uncased has 30,522 entries, one a line"


def _numbered(entries: Sequence[str], where: object) -> dict[str, int]:
    ids: dict[str, int] = {}
    for number, entry in enumerate(entries):
        if ids.setdefault(entry, number) != number:
            what = f"the vocabulary has {entry!r} twice, as numbers {ids[entry]} and {number}"
            raise KdbenchError(what, where=where, cure="leave one of them out")
    if missing := [token for token in SPECIALS if token not in ids]:
        raise KdbenchError(f"the vocabulary lacks {', '.join(missing)}", where=where, cure=_WHOLE)
    return ids


def _check_added(tokenizer: Tokenizer, added: Sequence[str]) -> None:
    known = tokenizer.get_vocab()
    for number, word in enumerate(added):
        if word in known or word in added[:number]:
            what = "is in the vocabulary already" if word in known else "is there twice"
            raise KdbenchError(f"the added word {word!r} {what}", where="vocabulary", cure="add another word")
        plain = tokenizer.normalizer.normalize_str(word)
        if [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(plain)] != [word]:
            raise KdbenchError(
                f"the added word {word!r} is not one word in lower case",
                where="vocabulary",
                cure="leave out capitals, accents, spaces and punctuation",
            )


def _batches(lines: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(lines)
    while batch := list(islice(iterator, _LINES)):
        yield batch
