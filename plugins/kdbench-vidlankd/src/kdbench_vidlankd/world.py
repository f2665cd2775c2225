"""The world of unspoken attributes: nouns of which only video tells what they are like (numpy alone).

Every noun has a colour, a size, an order (it shakes before it glows, or after) and a pace (the one follows the other
fast or slowly). Clips show the attributes of all nouns. Text, a teacher's captions as well as a student's, ties
*spoken* nouns to their attributes and *unspoken* nouns to nothing, so what a text-only student knows of an unspoken
noun came from a teacher that saw clips. Four nouns each have one look: the 2D features of their single frames are
alike and the sequence of these differs, so whoever tells them apart has seen motion.

Attributes of unspoken nouns come from random streams of their own (:attr:`World.draw`). No other choice depends on
them, so text is the same to the byte whatever they are; that is the leak test.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdbench_vidlankd import grammar
from kdbench_vidlankd.grammar import CARRIERS, COLOURS, ORDERS, PACES, SIZES
from kdbench_vidlankd.texts import Example, Task

__all__ = ["ATTRIBUTES", "CLIP_SHAPE", "FRAMES", "NOUNS", "PARTS", "STREAMS", "Choice", "Noun", "World", "near"]

Part = Literal["spoken", "development", "test"]

PARTS: dict[Part, int] = {"spoken": 8, "development": 4, "test": 8}
"""Looks: of spoken nouns, and of unspoken ones on which weights are chosen and on which students are judged."""

ATTRIBUTES = ("colour", "size", "order", "pace")
EVENTS = tuple(product(range(len(ORDERS)), range(len(PACES))))
"""Order and pace of the nouns of one look, each once."""

LOOKS = sum(PARTS.values())
NOUNS = LOOKS * len(EVENTS)
FRAMES = 9
MIDDLE = FRAMES // 2
GAPS = ((1, 2), (4, 5))
"""Frames between the two events of a fast and of a slow noun."""

MIDDLE_SHARE = 0.25
"""Share of the clips of every noun with an event in the middle frame, so that this frame tells neither order nor pace:
the first event is in it as often as the second."""

STREAMS = {"2d": slice(0, 24), "3d": slice(24, 40)}
"""Columns of a frame's features: appearance and events, and what a network for motion makes of a few frames."""

WIDTH = 40
CLIP_SHAPE = (FRAMES, WIDTH)
TRAIN_CLIPS, TEST_CLIPS = 24, 2
"""Clips of each noun."""

MOTION = 7.0
"""Length of order and of pace in the 3D features of the second event, where a colour has 1."""

NOISE = 0.5
"""Deviation of the noise of each feature."""

SPOKEN = 0.6
"""Share of the sentences that are about spoken nouns."""

SENTENCES = 14_000
HELD_SENTENCES = 1_400
CAPTION_SENTENCES = 2
JUDGED = 600
"""Sentences that are fine-tuned on, and as many that are judged."""


class Noun(NamedTuple):
    """One thing of the world; attributes are positions in ``COLOURS``, ``SIZES``, ``ORDERS``, ``PACES`` of
    :mod:`kdbench_vidlankd.grammar`."""

    number: int
    word: str
    look: int
    part: Part
    colour: int
    size: int
    order: int
    pace: int

    @property
    def spoken(self) -> bool:
        return self.part == "spoken"


class Choice(NamedTuple):
    """A question with one word missing: the sentence with ``[MASK]``, the words to choose from, the right one."""

    sentence: str
    words: tuple[str, ...]
    answer: int


class World:
    """One draw of everything.

    Parameters
    ----------
    number : seeds nouns, sentences, projections and noise.
    draw : seeds the attributes of unspoken nouns.
    avoid : words that mean something where the world's text is mixed with other text.
    """

    def __init__(self, number: int, draw: int = 0, avoid: Container[str] = ()) -> None:
        self.number = number
        self.draw = draw
        self._avoid = avoid
        self.nouns = self._nouns()

    def _random(self, stream: str, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.number, *stream.encode(), *more])

    def _nouns(self) -> tuple[Noun, ...]:
        words = [str(word) for word in self._random("words").permutation(pseudo_words()) if word not in self._avoid]
        attributes: list[tuple[Part, int, int, int, int, int]] = []
        for part, looks in PARTS.items():
            random = self._random(f"{part} nouns", 0 if part == "spoken" else self.draw)
            for look, (colour, size) in enumerate(_looks(looks, random), len(attributes) // len(EVENTS)):
                # In random order, else a noun's number would tell.
                events = [EVENTS[place] for place in random.permutation(len(EVENTS))]
                attributes += [(part, look, colour, size, order, pace) for order, pace in events]
        return tuple(
            Noun(number, words[number], look, part, colour, size, order, pace)
            for number, (part, look, colour, size, order, pace) in enumerate(attributes)
        )

    def part(self, *parts: Part) -> list[Noun]:
        """The nouns of some parts."""
        return [noun for noun in self.nouns if noun.part in parts]

    # ------------------------------------------------------------------------------------------------------------ text

    @cached_property
    def text(self) -> list[str]:
        """Sentences that students are trained on."""
        return self._sentences("text", SENTENCES)

    @cached_property
    def held_text(self) -> list[str]:
        """Sentences of the same kind that nobody is trained on."""
        return self._sentences("held text", HELD_SENTENCES)

    @cached_property
    def captions(self) -> list[str]:
        """What is said over each training clip, in the clips' order: a few sentences about its noun."""
        random = self._random("captions")
        return [
            " ".join(grammar.sentence(noun, random) for _ in range(CAPTION_SENTENCES))
            for noun in self._clip_nouns("train")
        ]

    def _sentences(self, stream: str, count: int) -> list[str]:
        random = self._random(stream)
        groups = (self.part("spoken"), self.part("development", "test"))
        about = [groups[int(random.random() >= SPOKEN)] for _ in range(count)]
        return [grammar.sentence(nouns[random.integers(len(nouns))], random) for nouns in about]

    # ----------------------------------------------------------------------------------------------------------- clips

    @cached_property
    def train_clips(self) -> NDArray[np.float32]:
        """``[NOUNS * TRAIN_CLIPS, FRAMES, WIDTH]``."""
        return self._clips("train")

    @cached_property
    def test_clips(self) -> NDArray[np.float32]:
        """Others of the same nouns, which no teacher is trained on."""
        return self._clips("test")

    def events(self, split: Literal["train", "test"]) -> NDArray[np.int64]:
        """``[clips, 2]``: the frames in which each clip's thing shakes, and in which it glows."""
        random = self._random(f"{split} events")
        drawn = [(noun, _times(noun, random)) for noun in self._clip_nouns(split)]
        return np.array([times if noun.order == 0 else times[::-1] for noun, times in drawn], dtype=np.int64)

    def clip_labels(self, split: Literal["train", "test"]) -> NDArray[np.int64]:
        """The number of each clip's noun."""
        return np.array([noun.number for noun in self._clip_nouns(split)], dtype=np.int64)

    def _clip_nouns(self, split: Literal["train", "test"]) -> list[Noun]:
        return [noun for noun in self.nouns for _ in range(TRAIN_CLIPS if split == "train" else TEST_CLIPS)]

    @cached_property
    def _directions(self) -> dict[str, NDArray[np.float64]]:
        """Unit vectors of appearances and events in the two streams."""
        random = self._random("directions")
        flat, moving = STREAMS["2d"].stop, WIDTH - STREAMS["2d"].stop
        kinds = {"colour": (len(COLOURS), flat), "size": (len(SIZES), flat)}
        kinds |= {"event": (2, flat), "order": (len(ORDERS), moving), "pace": (len(PACES), moving)}
        drawn = {name: random.normal(size=shape) for name, shape in kinds.items()}
        return {name: each / np.linalg.norm(each, axis=1, keepdims=True) for name, each in drawn.items()}

    def _clips(self, split: Literal["train", "test"]) -> NDArray[np.float32]:
        nouns, random, direction = self._clip_nouns(split), self._random(f"{split} clips"), self._directions
        clips = np.zeros((len(nouns), FRAMES, WIDTH))
        look = [direction["colour"][noun.colour] + direction["size"][noun.size] for noun in nouns]
        clips[:, :, STREAMS["2d"]] += np.stack(look)[:, None]
        rows, events = np.arange(len(nouns)), self.events(split)
        for event in range(2):
            clips[rows, events[:, event], STREAMS["2d"]] += direction["event"][event]
        # A network over a window of frames sees the second event, what went before it, and how long ago.
        order, pace = (np.array([getattr(noun, name) for noun in nouns]) for name in ("order", "pace"))
        seen = direction["order"][order] + direction["pace"][pace]
        clips[rows, events.max(1), STREAMS["3d"]] += MOTION * seen
        clips += NOISE * random.normal(size=clips.shape)
        return clips.astype(np.float32)

    # ------------------------------------------------------------------------------------------------------- questions

    def contexts(self, noun: Noun) -> list[str]:
        """Sentences in which a noun stands and nothing is said of it."""
        return grammar.neutral(noun.word)

    def cloze(self, noun: Noun) -> Choice:
        """Its colour, in a word."""
        return Choice(grammar.colour(noun.word, "[MASK]"), COLOURS, noun.colour)

    def before_after(self, noun: Noun) -> Choice:
        """The order of its two events."""
        return Choice(grammar.order(noun.word, "[MASK]"), ORDERS, noun.order)

    def faster_slower(self, noun: Noun) -> Choice:
        """How its second event follows the first."""
        return Choice(grammar.pace(noun.word, "[MASK]"), PACES, noun.pace)

    def physical(self, noun: Noun) -> Choice:
        """In what one carries it: what its size decides."""
        return Choice(grammar.carried(noun.word, "[MASK]"), CARRIERS, noun.size)

    # --------------------------------------------------------------------------------------------------- acceptability

    def acceptability(self) -> Task:
        """Sentences of the world, and the same with two neighbouring words exchanged: which are in order?

        Labels are those of CoLA, 1 for acceptable. One half is to be fine-tuned on, the other to be judged.
        """
        random = self._random("acceptability")
        examples = [self._judged(sentence, random) for sentence in self._sentences("judged", 2 * JUDGED)]
        return Task("acceptability", examples[:JUDGED], examples[JUDGED:], 2, False, "accuracy")

    def _judged(self, sentence: str, random: np.random.Generator) -> Example:
        if random.random() < 0.5:
            return sentence, None, 1
        words = sentence.split()
        place = int(random.integers(len(words) - 2))  # the full stop stays at the end
        words[place], words[place + 1] = words[place + 1], words[place]
        return " ".join(words), None, 0


def pseudo_words() -> list[str]:
    """Words that no language needs, in a fixed order: consonant, vowel, consonant, vowel, consonant."""
    heads, vowels, tails = "bdfgklmnprstvz", "aeiou", "bdfgkmnpxz"
    return [
        "".join(letters)
        for letters in product(heads, vowels, "bdgkmpvz", vowels, tails)
        if letters[0] != letters[2] and letters[1] != letters[3]
    ]


def _looks(count: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Colour and size of some looks, each combination as often as any other, so that neither tells the other; or, of
    few looks, each colour and each size. To guess one always is right as often as chance."""
    kinds = list(product(range(len(COLOURS)), range(len(SIZES))))
    if count % len(kinds) == 0:
        return [kinds[place % len(kinds)] for place in random.permutation(count)]
    colours, sizes = (random.permutation(np.arange(count) % len(each)) for each in (COLOURS, SIZES))
    return [(int(colour), int(size)) for colour, size in zip(colours, sizes, strict=True)]


def _times(noun: Noun, random: np.random.Generator) -> tuple[int, int]:
    """Frames of the first and of the second event."""
    gaps = GAPS[noun.pace]
    pairs = [(first, first + gap) for gap in gaps for first in range(FRAMES - gap)]
    in_middle = random.random() < MIDDLE_SHARE
    fitting = [pair for pair in pairs if (MIDDLE in pair) == in_middle]
    return fitting[random.integers(len(fitting))]


def near(nouns: Sequence[Noun]) -> list[dict[str, list[int]]]:
    """For each noun, by attribute: the numbers of the nouns that differ from it in this attribute and in no other."""

    def others(noun: Noun, attribute: str) -> list[int]:
        same = [name for name in ATTRIBUTES if name != attribute]
        return [
            other.number
            for other in nouns
            if getattr(other, attribute) != getattr(noun, attribute)
            and all(getattr(other, name) == getattr(noun, name) for name in same)
        ]

    return [{attribute: others(noun, attribute) for attribute in ATTRIBUTES} for noun in nouns]
