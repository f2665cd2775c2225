"""What the stages read, from any of the data sets: blocks of text, and captions with their clips.

Imported by running stages alone: torch and tokenizers come with it.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import torch
from tokenizers.normalizers import BertNormalizer
from torch import Tensor

from kdbench.data.base import DataRef
from kdbench.errors import StageError
from kdbench_vidlankd import datasets, features, grammar, texts
from kdbench_vidlankd.texts import Task
from kdbench_vidlankd.wordpiece import (
    SPECIALS,
    Specials,
    blocks,
    build_tokenizer,
    encode,
    pack,
    read_vocabulary,
    specials,
)
from kdbench_vidlankd.world import ATTRIBUTES, TRAIN_CLIPS, World, near

__all__ = ["Clip", "Corpus", "Footage", "corpus"]


NEGATIVES = (*ATTRIBUTES, "colour", "order", "pace")
"""In what near negatives differ: least often in size, which is the easiest to learn."""


class Clip(NamedTuple):
    """Captions and the frames that are shown with them: B blocks of L tokens, T frames of F features.

    ``tokens`` ``[B, L]`` int64, ``attended`` ``[B, L]`` bool, ``frames`` ``[B, T, F]``, ``shown`` ``[B, T]`` bool.
    """

    tokens: Tensor
    attended: Tensor
    frames: Tensor
    shown: Tensor


class Footage(Protocol):
    """Captioned clips to train a teacher on. ``pairs`` are numbers of clips, of frames and captions alike."""

    count: int

    def steps(self, batch: int) -> int:
        """How many batches :meth:`pairs` gives."""

    def pairs(self, batch: int, near: float, random: np.random.Generator) -> list[tuple[list[int], list[int]]]:
        """An epoch: for every batch its two halves, each clip the negative of the one at its place in the other."""

    def read(self, captions: list[int], clips: list[int], random: np.random.Generator | None) -> Clip:
        """The captions of some clips with the frames of the same or of others; ``random`` draws the spans of long
        videos, None takes their beginning."""


class Corpus:
    """Text and clips of one data set and world.

    Attributes
    ----------
    world : the world, or None where the data have none.
    vocabulary : entries of the tokenizer.
    specials : ids of its special entries.
    """

    def __init__(self, ref: DataRef, number: int) -> None:
        self.dataset = ref.dataset
        self.folder = Path(ref.path)
        self.world: World | None = None
        if ref.dataset == datasets.HOWTO.id:
            self.tokenizer = build_tokenizer(self.folder / features.VOCABULARY)
        elif ref.dataset == datasets.TEXT.id:
            known = read_vocabulary(self.folder / texts.VOCABULARY)
            self.world = World(number, avoid=frozenset(known) | self._real_words())
            self.tokenizer = build_tokenizer(known, added=[noun.word for noun in self.world.nouns])
        elif ref.dataset == datasets.UNSPOKEN.id:
            self.world = World(number)
            self.tokenizer = build_tokenizer([*SPECIALS, *grammar.words(self.world.nouns)])
        else:
            raise StageError(f"'{ref.dataset}' has neither text nor clips", cure="use a data set of kdbench-vidlankd")
        self.vocabulary: int = self.tokenizer.get_vocab_size()
        self.specials: Specials = specials(self.tokenizer)

    def text(self, length: int, *, captions: bool = False, most: int | None = None) -> Tensor:
        """Blocks of the text that students are trained on, ``[N, length]`` int64.

        Parameters
        ----------
        captions : adds the text of the teacher's captions.
        most : blocks of the text at most, captions not counted; None is all.
        """
        parts = [torch.cat([self._blocks(lines, length) for lines in self._lines("train")])[:most]]
        if captions:
            parts.append(self._blocks(self._captions(), length))
        return torch.cat(parts)

    def held_text(self, length: int) -> Tensor:
        """Blocks that nobody is trained on, ``[M, length]`` int64."""
        return torch.cat([self._blocks(lines, length) for lines in self._lines("test")])

    def sentences(self, lines: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Single sentences, cut and padded: ids ``[N, length]`` int64, and where they are real tokens (bool)."""
        packed = pack(self.tokenizer, [(line, None) for line in lines], length)
        return torch.from_numpy(packed.ids).long(), torch.from_numpy(packed.attended)

    def id(self, word: str) -> int:
        """Of a word that has one."""
        number: int | None = self.tokenizer.token_to_id(word)
        if number is None:
            raise StageError(f"'{word}' is no entry of the vocabulary", where=self.dataset)
        return number

    def footage(self, length: int) -> Footage:
        """Clips with captions of ``length`` tokens."""
        return WorldFootage(self, length) if self.world else FolderFootage(self, length)

    def task(self, name: str) -> Task:
        """A task to fine-tune on: one of the data set's own, or ``acceptability`` of the world's sentences."""
        if self.world is not None and name == "acceptability":
            return self.world.acceptability()
        if self.dataset == datasets.TEXT.id:
            return texts.text_task(self.folder, name)
        if self.dataset == datasets.HOWTO.id:
            return texts.glue_task(self.folder / "glue", name)
        raise StageError(f"'{self.dataset}' has no task '{name}'", cure="fine-tune on acceptability")

    def _lines(self, split: str) -> list[list[str]]:
        """Text of several sources, which share no block."""
        if self.dataset == datasets.HOWTO.id:
            return [list(texts.read_lines(self.folder / features.TEXT["train" if split == "train" else "valid"]))]
        assert self.world is not None
        own = self.world.text if split == "train" else self.world.held_text
        if self.dataset == datasets.UNSPOKEN.id:
            return [own]
        real = texts.wikitext(self.folder, split)
        # How well real text is known is the question there: the world's sentences are easy and would hide it.
        return [own, real] if split == "train" else [real]

    def _captions(self) -> list[str]:
        if self.world is not None:
            return self.world.captions
        clips = features.Clips(self.folder)
        return [caption.text for video in clips.videos for caption in clips.captions(video)]

    def _blocks(self, lines: list[str], length: int) -> Tensor:
        cut = blocks(encode(self.tokenizer, lines), length, self.specials.cls, self.specials.sep)
        return torch.from_numpy(cut).long()

    def _real_words(self) -> frozenset[str]:
        """Every word of the real text and its tasks: none of them may name a thing of the world."""
        lines = [line for split in texts.WIKITEXT for line in texts.wikitext(self.folder, split)]
        for name in texts.TEXT_TASKS:
            task = texts.text_task(self.folder, name)
            lines += [part for example in (*task.train, *task.dev) for part in example[:2] if part]
        plain = BertNormalizer(lowercase=True).normalize_str("\n".join(lines))
        return frozenset(re.findall("[a-z]+", plain))


class WorldFootage:
    """Clips of the world. Of two clips at the same place of the halves the second is often a near negative."""

    def __init__(self, corpus: Corpus, length: int) -> None:
        assert corpus.world is not None
        self._world = corpus.world
        self._tokens, self._attended = corpus.sentences(self._world.captions, length)
        self._frames = torch.from_numpy(self._world.train_clips)
        self.count = len(self._tokens)

    def steps(self, batch: int) -> int:
        return self.count // (batch // 2)

    def pairs(self, batch: int, near: float, random: np.random.Generator) -> list[tuple[list[int], list[int]]]:
        """Every clip is once in the first half; the share ``near`` of the negatives differs in one attribute alone,
        the others are drawn from all clips."""
        half = batch // 2
        order = random.permutation(self.count)[: self.steps(batch) * half]
        partners = [self._partner(int(clip), near, random) for clip in order]
        return [
            ([int(clip) for clip in order[place : place + half]], partners[place : place + half])
            for place in range(0, len(order), half)
        ]

    def read(self, captions: list[int], clips: list[int], random: np.random.Generator | None) -> Clip:
        frames = self._frames[clips]
        return Clip(self._tokens[captions], self._attended[captions], frames, torch.ones(frames.shape[:2]).bool())

    @cached_property
    def _neighbours(self) -> list[dict[str, list[int]]]:
        return near(self._world.nouns)

    def _partner(self, clip: int, near: float, random: np.random.Generator) -> int:
        if random.random() >= near:
            return int(random.integers(self.count))
        others = self._neighbours[clip // TRAIN_CLIPS][NEGATIVES[random.integers(len(NEGATIVES))]]
        return others[random.integers(len(others))] * TRAIN_CLIPS + int(random.integers(TRAIN_CLIPS))


class FolderFootage:
    """Clips of a folder of features: a span of each video an epoch."""

    def __init__(self, corpus: Corpus, length: int) -> None:
        self._corpus = corpus
        self._length = length
        self._clips = features.Clips(corpus.folder)
        self.count = len(self._clips.videos)

    def steps(self, batch: int) -> int:
        return self.count // batch

    def pairs(self, batch: int, near: float, random: np.random.Generator) -> list[tuple[list[int], list[int]]]:
        """Every video is once in a batch; nothing is known that would make one near to another."""
        order = [int(clip) for clip in random.permutation(self.count)[: self.steps(batch) * batch]]
        half = batch // 2
        return [(order[at : at + half], order[at + half : at + batch]) for at in range(0, len(order), batch)]

    def read(self, captions: list[int], clips: list[int], random: np.random.Generator | None) -> Clip:
        spans = [self._clips.span(self._clips.videos[number], random) for number in captions]
        seen = spans if captions == clips else [self._clips.span(self._clips.videos[n], random) for n in clips]
        tokens, attended = self._corpus.sentences([span.text for span in spans], self._length)
        frames = torch.zeros(len(seen), max(len(span.frames) for span in seen), features.WIDTH * 2)
        shown = torch.zeros(frames.shape[:2]).bool()
        for row, span in enumerate(seen):
            frames[row, : len(span.frames)] = torch.from_numpy(span.frames)
            shown[row, : len(span.frames)] = True
        return Clip(tokens, attended, frames, shown)


def corpus(ref: DataRef, number: int) -> Corpus:
    """The corpus of a data set and world, kept for the next stage of this process."""
    return _corpus(msgspec.json.encode(ref), number)


@lru_cache(maxsize=2)  # keyed by the encoded reference, because a DataRef holds a dict and so has no hash
def _corpus(encoded: bytes, number: int) -> Corpus:
    return Corpus(msgspec.json.decode(encoded, type=DataRef), number)
