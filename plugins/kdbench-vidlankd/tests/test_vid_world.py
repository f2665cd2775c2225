"""The world of unspoken attributes: balance, looks, words, questions, and what a seed decides."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest

from kdbench_vidlankd import grammar, world
from kdbench_vidlankd.grammar import CARRIERS, COLOURS, ORDERS, PACES, SIZES
from kdbench_vidlankd.probes import PROBES
from kdbench_vidlankd.world import ATTRIBUTES, NOUNS, PARTS, Noun, Part, World, near

WORLDS = [World(number) for number in range(5)]


VALUES = {"colour": COLOURS, "size": SIZES, "order": ORDERS, "pace": PACES}


def attributes(noun: Noun) -> tuple[int, ...]:
    return tuple(getattr(noun, name) for name in ATTRIBUTES)


def looks(made: World) -> list[tuple[Noun, ...]]:
    """The nouns of each look."""
    return [made.nouns[at : at + 4] for at in range(0, NOUNS, 4)]


# nouns


@pytest.mark.parametrize("made", WORLDS, ids=lambda made: str(made.number))
def test_parts_are_balanced(made: World) -> None:
    assert [noun.number for noun in made.nouns] == list(range(NOUNS))
    for part, number in PARTS.items():
        nouns = made.part(part)
        assert len(nouns) == 4 * number
        for name in ATTRIBUTES:
            counted = Counter(getattr(noun, name) for noun in nouns)
            assert counted == dict.fromkeys(range(len(VALUES[name])), len(nouns) // len(VALUES[name]))
    everything = set(product(*(range(len(VALUES[name])) for name in ATTRIBUTES)))
    for part in ("spoken", "test"):
        assert Counter(map(attributes, made.part(part))) == dict.fromkeys(everything, 1)


def test_guessing_is_right_as_often_as_the_probes_say() -> None:
    made = WORLDS[0]
    asked = {"colour-cloze": made.cloze, "physical": made.physical}
    asked |= {"before-after": made.before_after, "faster-slower": made.faster_slower}
    assert PROBES.keys() == {*asked, *ATTRIBUTES}
    for part in ("development", "test"):
        nouns = made.part(part)
        for name, chance in PROBES.items():
            if name in asked:
                choices = [asked[name](noun) for noun in nouns]
                answers, possible = [choice.answer for choice in choices], len(choices[0].words)
            else:
                answers, possible = [getattr(noun, name) for noun in nouns], len(VALUES[name])
            # Whatever one answers always, it is right as often.
            assert {100 * answers.count(answer) / len(answers) for answer in range(possible)} == {chance}


@pytest.mark.parametrize("made", WORLDS, ids=lambda made: str(made.number))
def test_nouns_of_a_look_differ_in_their_events_alone(made: World) -> None:
    for number, nouns in enumerate(looks(made)):
        assert {(noun.look, noun.part, noun.colour, noun.size) for noun in nouns} == {
            (number, nouns[0].part, nouns[0].colour, nouns[0].size)
        }
        assert {(noun.order, noun.pace) for noun in nouns} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes many worlds cheap: their words are not looked at."""
    monkeypatch.setattr(world, "pseudo_words", lambda: [f"word{number}" for number in range(NOUNS)])


@pytest.mark.usefixtures("few_words")
def test_which_noun_of_a_look_has_which_events_is_drawn() -> None:
    worlds = [World(number) for number in range(40)]
    for part in PARTS:
        for place in range(4):
            for name in ("order", "pace"):
                drawn = [getattr(noun, name) for made in worlds for noun in made.part(part)[place::4]]
                assert abs(np.mean(drawn) - 0.5) < 4 * 0.5 / len(drawn) ** 0.5


@pytest.mark.usefixtures("few_words")
def test_development_tells_nothing_of_the_test() -> None:
    """Their attributes are drawn apart, so that what is chosen on the one is not chosen on the other."""
    draws = [World(0, draw=draw) for draw in range(200)]
    for name in ATTRIBUTES:
        first, second = (
            np.array([[getattr(noun, name) for noun in made.part(part)[::4]] for made in draws])
            for part in ("development", "test")
        )
        alike = (first[:, :, None] == second[:, None, :]).mean(axis=0)
        chance = 1 / len(VALUES[name])
        assert np.abs(alike - chance).max() < 4.5 * (chance * (1 - chance) / len(draws)) ** 0.5


def test_near_nouns_are_those_that_differ_in_one_attribute() -> None:
    nouns = WORLDS[0].nouns
    found = near(nouns)
    assert len(found) == NOUNS
    for noun, others in zip(nouns, found, strict=True):
        expected: dict[str, list[int]] = {name: [] for name in ATTRIBUTES}
        for other in nouns:
            differing = [name for name in ATTRIBUTES if getattr(noun, name) != getattr(other, name)]
            if len(differing) == 1:
                expected[differing[0]].append(other.number)
        assert others == expected
        assert all(others.values())
    for number, same in enumerate(looks(WORLDS[0])):
        for noun in same:
            alike = {4 * number + place for place in range(4)}
            assert len(alike & set(found[noun.number]["order"])) == len(alike & set(found[noun.number]["pace"])) == 1


def test_near_nouns_of_a_few_by_hand() -> None:
    few = [(0, 0, 0, 0), (0, 0, 1, 0), (3, 0, 0, 0), (3, 1, 0, 0), (0, 0, 0, 0), (0, 0, 1, 1)]
    found = near([Noun(number, "bodak", 0, "spoken", *values) for number, values in enumerate(few)])
    assert found[0] == {"colour": [2], "size": [], "order": [1], "pace": []}
    assert found[3] == {"colour": [], "size": [2], "order": [], "pace": []}
    assert found[5] == {"colour": [], "size": [], "order": [], "pace": [1]}


# words


@pytest.mark.parametrize("made", WORLDS, ids=lambda made: str(made.number))
def test_every_noun_has_a_word_of_its_own(made: World) -> None:
    words = [noun.word for noun in made.nouns]
    assert len(set(words)) == NOUNS
    entries = grammar.words(made.nouns)
    assert len(entries) == len(set(entries))


def test_pseudo_words_are_words_that_no_sentence_has() -> None:
    known = world.pseudo_words()
    assert len(set(known)) == len(known) > 10 * NOUNS
    assert not set(known) & set(grammar.words([]))
    assert all(word.isascii() and word.islower() and word.isalpha() for word in known)


def test_words_that_mean_something_are_avoided() -> None:
    meant = {noun.word for noun in WORLDS[0].nouns[::3]}
    other = World(0, avoid=meant)
    assert not meant & {noun.word for noun in other.nouns}
    assert len({noun.word for noun in other.nouns}) == NOUNS
    # The rest of the world is what it was.
    assert [noun._replace(word="") for noun in other.nouns] == [noun._replace(word="") for noun in WORLDS[0].nouns]
    assert np.array_equal(other.test_clips, WORLDS[0].test_clips)


def test_every_word_of_the_world_is_in_its_list() -> None:
    made = WORLDS[0]
    known = set(grammar.words(made.nouns))
    asked = (made.cloze, made.physical, made.before_after, made.faster_slower)
    questions = [ask(noun).sentence for noun in made.nouns for ask in asked]
    contexts = [sentence for noun in made.nouns for sentence in made.contexts(noun)]
    judged = [example[0] for example in (*made.acceptability().train, *made.acceptability().dev)]
    lines = [*made.text, *made.held_text, *made.captions, *contexts, *judged]
    assert {word for line in lines for word in line.split()} == known
    assert {word for line in questions for word in line.split()} <= known | {"[MASK]"}


# sentences


def test_counts_of_sentences() -> None:
    made = WORLDS[0]
    assert (len(made.text), len(made.held_text)) == (world.SENTENCES, world.HELD_SENTENCES)
    assert len(made.captions) == len(made.train_clips)
    assert all(caption.count(" .") == world.CAPTION_SENTENCES for caption in made.captions)
    spoken = {noun.word for noun in made.part("spoken")}
    share = np.mean([bool(spoken & set(line.split())) for line in made.text])
    deviation = (world.SPOKEN * (1 - world.SPOKEN) / world.SENTENCES) ** 0.5
    assert abs(share - world.SPOKEN) < 4 * deviation


def test_what_is_said_of_spoken_nouns_is_true() -> None:
    made = WORLDS[0]
    nouns = {noun.word: noun for noun in made.nouns}
    said = 0
    for line in (*made.text, *made.held_text, *made.captions):
        words = set(line.split())
        (noun,) = (nouns[word] for word in words if word in nouns)
        for values, own in (
            (COLOURS, noun.colour),
            (SIZES, noun.size),
            (ORDERS, noun.order),
            (PACES, noun.pace),
            (CARRIERS, noun.size),
        ):
            told = words & set(values)
            assert told <= {values[own]}
            said += len(told)
    assert said > world.SENTENCES * world.SPOKEN * grammar.SPEAKING


def test_captions_are_about_the_noun_of_their_clip() -> None:
    made = WORLDS[0]
    words = {noun.word for noun in made.nouns}
    told = [set(caption.split()) & words for caption in made.captions]
    assert told == [{made.nouns[number].word} for number in made.clip_labels("train")]


# questions


@pytest.mark.parametrize("part", PARTS)
def test_answers_are_right(part: Part) -> None:
    made = WORLDS[1]
    for noun in made.part(part):
        cloze, physical = made.cloze(noun), made.physical(noun)
        order, pace = made.before_after(noun), made.faster_slower(noun)
        assert (cloze.words, cloze.words[cloze.answer]) == (COLOURS, COLOURS[noun.colour])
        assert order.words[order.answer] == ("before", "after")[noun.order]
        assert pace.words[pace.answer] == ("faster", "slower")[noun.pace]
        assert physical.words[physical.answer] == {"small": "pocket", "large": "truck"}[SIZES[noun.size]]
        for choice in (cloze, physical, order, pace):
            assert choice.sentence.split().count("[MASK]") == choice.sentence.split().count(noun.word) == 1
        assert all(sentence.split().count(noun.word) == 1 for sentence in made.contexts(noun))


def test_questions_are_asked_as_sentences_are_said() -> None:
    made = WORLDS[1]
    said = set(made.text)
    for ask in (made.cloze, made.physical, made.before_after, made.faster_slower):
        answered = [choice.sentence.replace("[MASK]", choice.words[choice.answer]) for choice in map(ask, made.nouns)]
        for noun, sentence in zip(made.nouns, answered, strict=True):
            assert (sentence in said) == noun.spoken


def test_judged_sentences_are_whole_or_have_two_words_exchanged() -> None:
    task = WORLDS[0].acceptability()
    assert (task.classes, task.pairs, task.metric, task.left_out) == (2, False, "accuracy", 0)
    assert len(task.train) == len(task.dev) == world.JUDGED
    said = set(WORLDS[0].text)
    heads = {line.split()[0] for line in said}
    for sentence, second, label in (*task.train, *task.dev):
        words = sentence.split()
        assert second is None
        assert words[-1] == "."
        swaps = [[*words[:at], words[at + 1], words[at], *words[at + 2 :]] for at in range(len(words) - 2)]
        if label:
            assert words[0] in heads
        else:
            assert sentence not in said
            assert any(" ".join(swap) in said for swap in swaps) or words[0] not in heads
    share = np.mean([label for *_, label in (*task.train, *task.dev)])
    assert abs(share - 0.5) < 4 * (0.25 / (2 * world.JUDGED)) ** 0.5


# seeds


def digest(made: World) -> str:
    found = hashlib.sha256(repr(made.nouns).encode())
    for lines in (made.text, made.held_text, made.captions, [repr(made.acceptability())]):
        found.update("\n".join(lines).encode())
    for clips in (made.train_clips, made.test_clips):
        found.update(clips.tobytes())
    return found.hexdigest()


def test_one_number_is_one_world() -> None:
    assert digest(World(2)) == digest(World(2))


def test_worlds_differ_in_everything() -> None:
    for one, other in combinations(WORLDS[:3], 2):
        assert [noun.word for noun in one.nouns] != [noun.word for noun in other.nouns]
        for part in PARTS:
            assert [*map(attributes, one.part(part))] != [*map(attributes, other.part(part))]
        assert one.text != other.text
        assert one.captions != other.captions
        for mine, theirs in zip(one._directions.values(), other._directions.values(), strict=True):
            assert not np.any(mine == theirs)


def test_what_is_read_first_changes_nothing() -> None:
    forwards, backwards = World(4), World(4)
    streams = ("text", "held_text", "captions", "train_clips", "test_clips")
    one = [getattr(forwards, name) for name in streams]
    other = [getattr(backwards, name) for name in reversed(streams)][::-1]
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
