"""Clips of the world: how many, of what they are made, and that single frames tell nothing of motion."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import combinations, count

import numpy as np
import pytest
from numpy.typing import NDArray

from kdbench_vidlankd import datasets, world
from kdbench_vidlankd.grammar import ORDERS, PACES
from kdbench_vidlankd.world import FRAMES, MIDDLE, NOUNS, STREAMS, WIDTH, Noun, World

FLAT, MOVING = STREAMS["2d"], STREAMS["3d"]
WORLDS = [World(number) for number in range(2)]


def test_clips_are_as_many_and_as_large_as_the_data_sets_say() -> None:
    made = WORLDS[0]
    assert (FRAMES, WIDTH) == world.CLIP_SHAPE
    for dataset in (datasets.UNSPOKEN, datasets.TEXT):
        assert dataset.input_shape == (1, *world.CLIP_SHAPE)
        assert dataset.num_classes == NOUNS
        for split, clips in (("train", made.train_clips), ("test", made.test_clips)):
            assert clips.shape == (dataset.sizes[split], *world.CLIP_SHAPE)
            assert clips.dtype == np.float32
    assert (FLAT.start, FLAT.stop, MOVING.stop) == (0, MOVING.start, WIDTH)


def test_every_noun_has_as_many_clips() -> None:
    for split, each in (("train", world.TRAIN_CLIPS), ("test", world.TEST_CLIPS)):
        counted = Counter(WORLDS[0].clip_labels(split).tolist())
        assert counted == dict.fromkeys(range(NOUNS), each)


def test_no_test_clip_is_a_training_clip() -> None:
    for made in WORLDS:
        seen = {clip.tobytes() for clip in (*made.train_clips, *made.test_clips)}
        assert len(seen) == len(made.train_clips) + len(made.test_clips)


class Forced:
    """What the times of a clip ask of a generator: one branch, and one of the pairs of times in it."""

    def __init__(self, share: float, place: int) -> None:
        self._share, self._place = share, place
        self.fitting = 0

    def random(self) -> float:
        return self._share

    def integers(self, count: int) -> int:
        self.fitting = count
        return self._place


def law(noun: Noun) -> dict[tuple[int, int], Fraction]:
    """How likely each pair of times is, exactly."""
    middle = Fraction(world.MIDDLE_SHARE)
    found: dict[tuple[int, int], Fraction] = {}
    for share, chance in ((0.0, middle), (1 - 1e-9, 1 - middle)):
        for place in count():
            forced = Forced(share, place)
            try:
                pair = world._times(noun, forced)  # type: ignore[arg-type]
            except IndexError:
                break
            assert pair not in found
            found[pair] = chance / forced.fitting
    return found


def test_events_are_as_far_apart_as_the_pace_says() -> None:
    for noun in WORLDS[0].nouns[:4]:
        times = law(noun)
        assert sum(times.values()) == 1
        gaps = world.GAPS[noun.pace]
        assert set(times) == {pair for pair in combinations(range(FRAMES), 2) if pair[1] - pair[0] in gaps}
    assert max(world.GAPS[PACES.index("faster")]) < min(world.GAPS[PACES.index("slower")])


def test_the_middle_frame_is_that_of_every_noun_of_a_look() -> None:
    """Exactly: each event is in it as often, whatever order and pace are."""
    assert (FRAMES % 2, MIDDLE) == (1, FRAMES // 2)
    for noun in WORLDS[0].nouns[:4]:
        times = law(noun)
        first, second = (sum(chance for pair, chance in times.items() if pair[place] == MIDDLE) for place in (0, 1))
        assert first == second == Fraction(world.MIDDLE_SHARE) / 2
        # Which is why one must not know of a frame at an end: what is in the first one comes first.
        assert sum(chance for pair, chance in times.items() if pair[0] == 0) > 0


PAIRS = [[(first, first + gap) for gap in gaps for first in range(FRAMES - gap)] for gaps in world.GAPS]
MANY = 45
"""Clips that show every pair of times of a fast noun equally often, and of a slow one."""


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float32]:
    """``[nouns, MANY, frames, features]``: clips of world 3 without noise, at all times in turn."""
    assert [MANY % len(pairs) for pairs in PAIRS] == [0, 0]
    numbers = count()
    monkeypatch.setattr(world, "_times", lambda noun, random: PAIRS[noun.pace][next(numbers) % len(PAIRS[noun.pace])])
    monkeypatch.setattr(world, "TRAIN_CLIPS", MANY)
    monkeypatch.setattr(world, "NOISE", 0.0)
    return World(3).train_clips.reshape(NOUNS, MANY, FRAMES, WIDTH)


def frames(clips: NDArray[np.float32]) -> Counter[bytes]:
    """How often each frame occurs, of ``[..., features]``."""
    return Counter(frame.tobytes() for frame in clips.reshape(-1, clips.shape[-1]))


def test_single_frames_of_a_look_are_alike(still: NDArray[np.float32]) -> None:
    for number in range(0, NOUNS, 4):
        found = [frames(clips[..., FLAT]) for clips in still[number : number + 4]]
        assert found[0] == found[1] == found[2] == found[3]
        # Shaking, glowing or neither.
        assert sorted(found[0].values()) == [MANY, MANY, (FRAMES - 2) * MANY]


def test_the_sequence_of_frames_tells_a_look_apart(still: NDArray[np.float32]) -> None:
    for number in range(0, NOUNS, 4):
        whole = [{clip.tobytes() for clip in clips[..., FLAT]} for clips in still[number : number + 4]]
        assert sum(len(clips) for clips in whole) == len(set().union(*whole)) == 2 * sum(map(len, PAIRS))
        # The 3D features tell at the second event, and nowhere else.
        moving = [clips[..., MOVING] for clips in still[number : number + 4]]
        shown = [clips[clips.any(axis=2)] for clips in moving]
        assert [len(each) for each in shown] == [MANY] * 4
        assert [len(frames(each)) for each in shown] == [1] * 4
        assert len(frames(np.stack(shown))) == 4


def test_frames_are_sums_of_directions(still: NDArray[np.float32]) -> None:
    made = World(3)
    direction = made._directions
    assert all(np.allclose(np.linalg.norm(each, axis=1), 1) for each in direction.values())
    for noun in made.nouns[:4]:
        pairs = PAIRS[noun.pace]
        for place, clip in enumerate(still[noun.number]):
            early, late = pairs[(noun.number * MANY + place) % len(pairs)]
            expected = np.zeros((FRAMES, WIDTH))
            expected[:, FLAT] = direction["colour"][noun.colour] + direction["size"][noun.size]
            shaking, glowing = (early, late) if ORDERS[noun.order] == "before" else (late, early)
            expected[shaking, FLAT] += direction["event"][0]
            expected[glowing, FLAT] += direction["event"][1]
            expected[late, MOVING] = world.MOTION * (direction["order"][noun.order] + direction["pace"][noun.pace])
            np.testing.assert_allclose(clip, expected, atol=1e-5)


def test_noise_is_as_strong_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = World(0).train_clips
    monkeypatch.setattr(world, "NOISE", 0.0)
    noise = noisy - World(0).train_clips
    monkeypatch.undo()
    for stream in (FLAT, MOVING):
        assert noise[..., stream].std() == pytest.approx(world.NOISE, rel=0.01)
        assert abs(noise[..., stream].mean()) < 0.01 * world.NOISE
