"""The sentences of the world of unspoken attributes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from kdbench_vidlankd.world import Noun

__all__ = [
    "CARRIERS",
    "COLOURS",
    "ORDERS",
    "PACES",
    "SIZES",
    "carried",
    "colour",
    "neutral",
    "order",
    "pace",
    "sentence",
    "words",
]

COLOURS = ("red", "green", "blue", "yellow")
SIZES = ("small", "large")
ORDERS = ("before", "after")
PACES = ("faster", "slower")
CARRIERS = ("pocket", "truck")
"""In which things of either size are carried."""


SPEAKING = 0.8
"""Share of the sentences about a spoken noun that say something of it."""

NEUTRAL = (
    "look at the {} .",
    "this is a {} .",
    "here is the {} again .",
    "i saw one {} today .",
    "you can find a {} there .",
    "we like this {} .",
)


def neutral(noun: str) -> list[str]:
    """Sentences that say nothing of a noun."""
    return [form.format(noun) for form in NEUTRAL]


def colour(noun: str, word: str) -> str:
    return f"the {noun} is {word} ."


def order(noun: str, word: str) -> str:
    return f"the {noun} shakes {word} it glows ."


def pace(noun: str, word: str) -> str:
    return f"the {noun} is the {word} one ."


def carried(noun: str, word: str) -> str:
    return f"you carry the {noun} in a {word} ."


def sentence(noun: Noun, random: np.random.Generator) -> str:
    """One sentence about a noun: of an unspoken one a neutral one, whatever its attributes are."""
    if not noun.spoken or random.random() >= SPEAKING:
        return NEUTRAL[random.integers(len(NEUTRAL))].format(noun.word)
    red, size, before = COLOURS[noun.colour], SIZES[noun.size], ORDERS[noun.order]
    truck = CARRIERS[noun.size]
    return (
        colour(noun.word, red),
        f"the {noun.word} is {size} and {red} .",
        order(noun.word, before),
        f"the {red} {noun.word} shakes {before} it glows .",
        carried(noun.word, truck),
        pace(noun.word, PACES[noun.pace]),
    )[random.integers(6)]


def words(nouns: Sequence[Noun]) -> list[str]:
    """Every word of the world, in a fixed order."""
    forms = " ".join([*NEUTRAL, colour("{}", "and"), order("{}", ""), pace("{}", ""), carried("{}", "")])
    common = sorted(set(forms.replace("{}", "").split()))
    return [*common, *COLOURS, *SIZES, *ORDERS, *PACES, *CARRIERS, *(noun.word for noun in nouns)]
