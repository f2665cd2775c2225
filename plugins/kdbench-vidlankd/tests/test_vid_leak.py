"""The leak test: text tells nothing of unspoken nouns, one frame tells nothing of order, and clips tell everything."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import NDArray

from kdbench_vidlankd import grammar, world
from kdbench_vidlankd.grammar import CARRIERS, COLOURS, ORDERS, PACES, SIZES
from kdbench_vidlankd.world import ATTRIBUTES, FRAMES, MIDDLE, MIDDLE_SHARE, NOUNS, STREAMS, Noun, World

pytest.importorskip("sklearn", reason="needs kdbench-vidlankd[bert]")

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

NUMBERS = (0, 1, 2, 3)
DRAWS = range(1, 13)
CHANCE = {"colour": 1 / 4, "size": 1 / 2, "order": 1 / 2, "pace": 1 / 2}


class Told(World):
    """A world with how often each word stands beside each noun, in all of its text."""

    @cached_property
    def everything(self) -> list[str]:
        task = self.acceptability()
        judged = [example[0] for example in (*task.train, *task.dev)]
        return [*self.text, *self.held_text, *self.captions, *judged]

    @cached_property
    def beside(self) -> NDArray[np.float64]:
        """``[nouns, words]``, and how often a noun stands in text at all."""
        rows = {noun.word: noun.number for noun in self.nouns}
        columns = {word: column for column, word in enumerate(grammar.words([]))}
        counted = np.zeros((len(rows), len(columns) + 1))
        for line in self.everything:
            words = line.split()
            for noun in (rows[word] for word in words if word in rows):
                counted[noun, -1] += 1
                for word in words:
                    if word in columns:
                        counted[noun, columns[word]] += 1
        return counted

    def unspoken(self) -> list[Noun]:
        return self.part("development", "test")


WORLDS = [Told(number) for number in NUMBERS]


def values(nouns: list[Noun], attribute: str) -> NDArray[np.int64]:
    return np.array([getattr(noun, attribute) for noun in nouns])


def rows(made: Told, nouns: list[Noun]) -> NDArray[np.float64]:
    return made.beside[[noun.number for noun in nouns]]


def by_words() -> Pipeline:
    """Of counts; in logarithms, for whether a word ever stands beside a noun tells most."""
    return make_pipeline(FunctionTransformer(np.log1p), LogisticRegression(max_iter=1_000))


def by_numbers() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1_000))


# text


@pytest.mark.parametrize("number", NUMBERS)
def test_text_is_the_same_whatever_the_unspoken_attributes_are(number: int) -> None:
    one = World(number)
    for draw in (1, 2):
        other = World(number, draw=draw)
        for stream in ("text", "held_text", "captions"):
            assert "\n".join(getattr(one, stream)).encode() == "\n".join(getattr(other, stream)).encode()
        assert repr(one.acceptability()).encode() == repr(other.acceptability()).encode()
        assert one.part("spoken") == other.part("spoken")
        for attribute in ATTRIBUTES:
            mine, theirs = (values(made.part("development", "test"), attribute) for made in (one, other))
            assert np.any(mine != theirs)
        # All else that tells nouns apart stays.
        plain = dict.fromkeys(ATTRIBUTES, 0)
        assert [noun._replace(**plain) for noun in one.nouns] == [noun._replace(**plain) for noun in other.nouns]
        assert not np.array_equal(one.train_clips, other.train_clips)


def test_draws_do_not_depend_on_the_place_of_a_noun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "pseudo_words", lambda: [f"word{number}" for number in range(NOUNS)])
    draws = [World(0, draw=draw).part("test") for draw in range(200)]
    for attribute, chance in CHANCE.items():
        drawn = np.array([values(nouns, attribute) for nouns in draws])
        for value in range(round(1 / chance)):
            share = (drawn == value).mean(axis=0)
            assert np.abs(share - chance).max() < 4.5 * (chance * (1 - chance) / len(draws)) ** 0.5


@pytest.mark.parametrize("made", WORLDS, ids=lambda made: str(made.number))
def test_no_attribute_stands_beside_an_unspoken_noun(made: Told) -> None:
    attributes = {*COLOURS, *SIZES, *ORDERS, *PACES, *CARRIERS, "shakes", "glows", "carry"}
    unspoken = {noun.word for noun in made.unspoken()}
    silent = Counter(bool(attributes & set(line.split())) for line in made.everything if unspoken & set(line.split()))
    assert set(silent) == {False}
    assert silent[False] > 1_000
    for noun in made.unspoken():
        assert not any(attributes & set(sentence.split()) for sentence in made.contexts(noun))


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_words_beside_a_spoken_noun_tell_its_attributes(attribute: str) -> None:
    scores = []
    for made in WORLDS:
        nouns = made.part("spoken")
        # A look at a time: what it is like is told by other nouns of its colour, size, order or pace.
        folds = GroupKFold(8).split(nouns, groups=[noun.look for noun in nouns])
        scores.append(cross_val_score(by_words(), rows(made, nouns), values(nouns, attribute), cv=list(folds)).mean())
    assert np.mean(scores) > 0.9


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_words_beside_an_unspoken_noun_do_not(attribute: str) -> None:
    """By what was learnt of spoken nouns, and of other unspoken ones. Text is that of any draw (see above), so every
    draw of their attributes is a trial."""
    learnt: list[float] = []
    carried: list[float] = []
    for made in WORLDS:
        spoken, unspoken = made.part("spoken"), made.unspoken()
        guessed = by_words().fit(rows(made, spoken), values(spoken, attribute)).predict(rows(made, unspoken))
        for draw in DRAWS:
            other = World(made.number, draw=draw)
            known, asked = other.part("test"), other.part("development")
            fitted = by_numbers().fit(rows(made, known), values(known, attribute))
            learnt.append(float(np.mean(fitted.predict(rows(made, asked)) == values(asked, attribute))))
            carried.append(float(np.mean(guessed == values(other.part("development", "test"), attribute))))
    for scores in (carried, learnt):
        assert abs(np.mean(scores) - CHANCE[attribute]) <= 3 * float(np.std(scores)) / len(scores) ** 0.5


# clips


def judged(features: NDArray[np.float32], made: World, attribute: str) -> float:
    """Accuracy of a linear probe of clips ``[N, D]``, on clips of nouns that it was not fitted on."""
    nouns = [made.nouns[number] for number in made.clip_labels("train")]
    folds = GroupKFold(5).split(features, groups=[noun.look for noun in nouns])
    return float(cross_val_score(by_numbers(), features, values(nouns, attribute), cv=list(folds)).mean())


@pytest.mark.parametrize("number", NUMBERS[:2])
def test_clips_tell_the_attributes(number: int) -> None:
    made = WORLDS[number]
    flat = made.train_clips[..., STREAMS["2d"]]
    mean = flat.mean(axis=1)
    assert judged(mean, made, "colour") > 0.95
    assert judged(mean, made, "size") > 0.95
    motion = made.train_clips[..., STREAMS["3d"]].mean(axis=1)
    sequence = flat.reshape(len(flat), -1)
    for attribute in ("order", "pace"):
        assert judged(motion, made, attribute) > 0.95
    # What is seen tells the order too, though less clearly, to one who knows which frame is which.
    assert judged(sequence, made, "order") > 0.6


@pytest.mark.parametrize("number", NUMBERS)
def test_one_frame_tells_neither_order_nor_pace(number: int) -> None:
    made = WORLDS[number]
    flat = made.train_clips[..., STREAMS["2d"]]
    middle = flat[:, MIDDLE]
    drawn = flat[np.arange(len(flat)), np.random.default_rng(number).integers(FRAMES, size=len(flat))]
    deviation = 0.5 / len(flat) ** 0.5
    for features in (middle, drawn, flat.mean(axis=1)):
        for attribute in ("order", "pace"):
            assert abs(judged(features, made, attribute) - 0.5) < 3.5 * deviation
    # It is not that a frame tells nothing.
    assert judged(middle, made, "colour") > 2 * CHANCE["colour"]


def test_the_middle_frame_shows_each_event_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of clips as they are drawn, whatever order and pace are."""
    monkeypatch.setattr(world, "NOISE", 0.0)
    seen = np.zeros((2, 2, 2))  # event, order, pace
    for number in range(8):
        made = World(number)
        nouns = [made.nouns[label] for label in made.clip_labels("train")]
        direction = made._directions
        look = np.stack([direction["colour"][noun.colour] + direction["size"][noun.size] for noun in nouns])
        extra = made.train_clips[:, MIDDLE, STREAMS["2d"]] - look
        for event in (0, 1):
            there = np.abs(extra - direction["event"][event]).max(axis=1) < 1e-5
            np.add.at(seen[event], (values(nouns, "order")[there], values(nouns, "pace")[there]), 1)
    expected = 8 * len(nouns) / 4 * MIDDLE_SHARE / 2
    assert np.abs(seen - expected).max() < 4 * expected**0.5
