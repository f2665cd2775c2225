"""Clips that tokens find: recall by hand on planted vectors, chance, heads, and the picture's numbers."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vid_bench import TOWER, Bench, make_recipe, untrained
from vid_folder import howto100m
from vid_planted import Planted

from kdbench.errors import StageError
from kdbench.stage import Finished, execute
from kdbench_vidlankd import pretrain, retrieval
from kdbench_vidlankd.corpus import Corpus, corpus
from kdbench_vidlankd.datasets import UNSPOKEN, locate_features
from kdbench_vidlankd.objectives import CRD, NST, Regression, SoftLabel, TokenObjective
from kdbench_vidlankd.pretrain import HEADS, PretrainStudent, language_of, video_of
from kdbench_vidlankd.retrieval import RANKS, Retrieve, chance
from kdbench_vidlankd.world import FRAMES, TEST_CLIPS

for extra in ("transformers", "tokenizers"):
    pytest.importorskip(extra, reason="needs kdbench-vidlankd[bert]")

BLOCK, NOUNS = 16, 32
GALLERY = NOUNS * TEST_CLIPS


@pytest.fixture(scope="module")
def bench(small_world: None, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), UNSPOKEN.expected())


@pytest.fixture(scope="module")
def found(bench: Bench) -> Corpus:
    return corpus(bench.data, 0)


@pytest.fixture(scope="module")
def teacher(bench: Bench) -> Finished:
    return bench.run(untrained())


def student(bench: Bench, teacher: Finished, *objectives: TokenObjective) -> Finished:
    stage = PretrainStudent(tower=TOWER, recipe=make_recipe(1), world=0, length=BLOCK, objectives=objectives)
    return bench.run(stage, teacher=teacher)


class Clips:
    """A video tower that gives vectors in the gallery's order, and every frame the noun's own."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def __call__(self, frames: Tensor, shown: Tensor | None) -> Tensor:
        assert len(frames) == len(self.vectors)
        return self.vectors

    def each_frame(self, frames: Tensor) -> Tensor:
        return self.vectors[0].expand(len(frames), frames.shape[1], -1)


def retrieved(bench: Bench, teacher: Finished, found: Corpus, cosines: Tensor, root: Path) -> Any:
    """The record where noun i and clip j have ``cosines[i, j]``."""
    assert found.world is not None
    vectors = torch.zeros(80, NOUNS)
    for place, noun in enumerate(found.world.part("test")):
        vectors[noun.number, place] = 7.0  # whatever its length
    store = Bench(root, bench.data)
    (store.store.stages / teacher.folder.name).symlink_to(teacher.folder, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "language_of", lambda finished, work: Planted(found, vectors))
        patch.setattr(pretrain, "video_of", lambda finished, work: Clips(cosines.T.contiguous()))
        return store.run(Retrieve(world=0), teacher=teacher, network=teacher).record


def test_the_gallery_is_in_the_order_of_the_nouns(found: Corpus) -> None:
    """What the tests below take for granted."""
    assert found.world is not None
    own = [number for number in found.world.clip_labels("test") if found.world.nouns[number].part == "test"]
    assert own == [noun.number for noun in found.world.part("test") for _ in range(TEST_CLIPS)]


def test_recall_is_that_of_planted_ranks(bench: Bench, teacher: Finished, found: Corpus, tmp_path: Path) -> None:
    """The best clip of noun i has rank i, so one noun has a clip first, and five one among the first five."""
    cosines = torch.zeros(NOUNS, GALLERY)
    for noun in range(NOUNS):
        own = [TEST_CLIPS * noun + place for place in range(TEST_CLIPS)]
        others = [clip for clip in range(GALLERY) if clip not in own]
        ranked = [*others[:noun], own[1], *others[noun:], own[0]]
        cosines[noun, ranked] = torch.linspace(1.0, -1.0, GALLERY)
    record = retrieved(bench, teacher, found, cosines, tmp_path)
    assert record.metrics == {"test.recall1": 100.0 / NOUNS, "test.recall5": 500.0 / NOUNS}
    assert record.notes["gallery"] == GALLERY


def test_recall_of_random_vectors_is_that_of_sorted_lists(
    bench: Bench, teacher: Finished, found: Corpus, tmp_path: Path
) -> None:
    cosines = torch.randn(NOUNS, GALLERY, generator=torch.Generator().manual_seed(3))
    record = retrieved(bench, teacher, found, cosines, tmp_path)
    for k in RANKS:
        hits = 0
        for noun, row in enumerate(cosines.tolist()):
            nearest = sorted(range(GALLERY), key=lambda clip: -row[clip])[:k]
            hits += any(clip // TEST_CLIPS == noun for clip in nearest)
        assert record.metrics[f"test.recall{k}"] == 100.0 * hits / NOUNS
    assert 0 < record.metrics["test.recall5"] < 50


def test_who_knows_finds_every_clip(bench: Bench, teacher: Finished, found: Corpus, tmp_path: Path) -> None:
    cosines = torch.eye(NOUNS).repeat_interleave(TEST_CLIPS, dim=1)
    record = retrieved(bench, teacher, found, cosines, tmp_path)
    assert record.metrics == {"test.recall1": 100.0, "test.recall5": 100.0}


# ------------------------------------------------------------------------------------------------------------- chance


def test_chance_is_the_share_of_all_orders() -> None:
    for own, gallery in ((1, 4), (2, 5), (3, 5)):
        for k in range(1, gallery + 1):
            orders = list(permutations(range(gallery)))
            hits = sum(any(clip < own for clip in order[:k]) for order in orders)
            assert chance(k, own=own, gallery=gallery) == pytest.approx(100.0 * hits / len(orders))


@pytest.mark.parametrize("k", RANKS)
def test_chance_is_what_random_orders_have(k: int) -> None:
    random = np.random.default_rng(0)
    hits = [(random.permutation(GALLERY)[:k] < TEST_CLIPS).any() for _ in range(20_000)]
    # Three deviations at the most.
    assert chance(k, own=TEST_CLIPS, gallery=GALLERY) == pytest.approx(100.0 * np.mean(hits), abs=0.8)


# -------------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    "objectives",
    [
        (SoftLabel(weight=1.0),),
        (NST(weight=1.0),),
        (CRD(weight=1.0, negatives=8, head=False), SoftLabel(weight=1.0)),
    ],
    ids=["soft", "nst", "crd"],
)
def test_a_student_without_a_head_is_an_error_in_words(
    bench: Bench, teacher: Finished, objectives: tuple[TokenObjective, ...]
) -> None:
    network = student(bench, teacher, *objectives)
    with pytest.raises(StageError, match="the student has no head that maps its states to the teacher's"):
        bench.run(Retrieve(world=0), teacher=teacher, network=network)


@pytest.mark.parametrize("before", [(), (SoftLabel(weight=1.0),)], ids=["first", "second"])
def test_the_first_head_that_there_is_is_the_one_that_was_trained(
    bench: Bench, teacher: Finished, before: tuple[TokenObjective, ...]
) -> None:
    from kdbench_vidlankd.distilling import DistillationHead

    network = student(bench, teacher, *before, CRD(weight=1.0, negatives=8), Regression(weight=1.0))
    tensors = network.tensors(HEADS)
    number = len(before)
    assert {name.split(".")[0] for name in tensors} == {str(number), str(number + 1)}
    expected = DistillationHead(TOWER.hidden)
    prefix = f"{number}.head."
    expected.load_state_dict({name.removeprefix(prefix): each for name, each in tensors.items() if prefix in name})
    states = torch.randn(4, TOWER.hidden)
    head = retrieval._head(network, bench.work(network))
    assert torch.equal(head(states), expected(states))
    assert not any(each.requires_grad for each in head.parameters())


def test_a_teacher_is_asked_without_a_head(bench: Bench, teacher: Finished) -> None:
    states = torch.randn(4, TOWER.hidden)
    found = retrieval._head(teacher, bench.work(teacher))(states)
    torch.testing.assert_close(found, states / states.norm(dim=1, keepdim=True))


def test_a_students_video_tower_cannot_be_asked(bench: Bench, teacher: Finished) -> None:
    network = student(bench, teacher, Regression(weight=1.0))
    with pytest.raises(StageError, match="a student has no video tower"):
        bench.run(Retrieve(world=0), teacher=network, network=network)


# ------------------------------------------------------------------------------------------------------- whole stages


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_recall_and_picture_by_hand(bench: Bench, teacher: Finished, found: Corpus, whose: str) -> None:
    network = teacher if whose == "teacher" else student(bench, teacher, Regression(weight=1.0))
    record = bench.run(Retrieve(world=0), teacher=teacher, network=network).record
    work = bench.work(network)
    language, video, head = language_of(network, work), video_of(teacher, work), retrieval._head(network, work)
    world = found.world
    assert world is not None
    nouns = world.part("test")
    labels = world.clip_labels("test")
    gallery = [(labels[row], video(torch.from_numpy(world.test_clips[row])[None])[0].detach())
               for row in range(len(labels)) if world.nouns[labels[row]].part == "test"]  # fmt: skip
    hits = dict.fromkeys(RANKS, 0)
    for noun in nouns:
        states = []
        for sentence in world.contexts(noun):
            tokens, attended = found.sentences([sentence], 16)
            place = tokens[0].tolist().index(found.id(noun.word))
            states.append(head(language(tokens, attended))[0, place].detach())
        query = torch.stack(states).mean(0)
        ranked = sorted(gallery, key=lambda each: -float(query @ each[1]))
        for k in RANKS:
            hits[k] += any(number == noun.number for number, _ in ranked[:k])
    assert record.metrics == {f"test.recall{k}": 100.0 * hits[k] / NOUNS for k in RANKS}

    picture = record.notes["picture"]
    assert picture["words"] == ["[CLS]", *world.contexts(nouns[0])[0].split(), "[SEP]"]
    assert len(picture["cosines"]) == len(picture["words"])
    assert {len(row) for row in picture["cosines"]} == {FRAMES}
    assert all(-1.0 <= value <= 1.0 for row in picture["cosines"] for value in row)
    tokens, attended = found.sentences([world.contexts(nouns[0])[0]], len(picture["words"]))
    clip = torch.from_numpy(world.test_clips[list(labels).index(nouns[0].number)])[None]
    expected = head(language(tokens, attended))[0] @ video.each_frame(clip)[0].T
    torch.testing.assert_close(torch.tensor(picture["cosines"]), expected.detach(), rtol=0, atol=2e-6)


def test_data_without_a_world_are_an_error_in_words(small_world: None, tmp_path: Path) -> None:
    folder = howto100m(tmp_path / "data")
    bench = Bench(tmp_path / "store", locate_features(folder, tmp_path / "cache", None))
    with pytest.raises(StageError, match="'howto100m' has no nouns to find clips of"):
        execute(bench.prepare(Retrieve(world=0)))
