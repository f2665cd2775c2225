"""Batches of the two steps: what is shown, what is the negative of what, and the losses by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from vid_bench import TOWER, make_recipe, untrained
from vid_folder import howto100m

from kdbench.data.base import DataRef
from kdbench_vidlankd import features
from kdbench_vidlankd.corpus import Clip, Corpus, FolderFootage, WorldFootage, corpus
from kdbench_vidlankd.datasets import UNSPOKEN, locate_features
from kdbench_vidlankd.objectives import NST, Regression, SoftLabel
from kdbench_vidlankd.pretrain import PretrainStudent, PretrainTeacher
from kdbench_vidlankd.tasks import Learner, Page, Scene, StudentTask, TeacherTask, Towers, shown_frames
from kdbench_vidlankd.world import ATTRIBUTES, FRAMES, STREAMS, WIDTH

for extra in ("transformers", "tokenizers"):
    pytest.importorskip(extra, reason="needs kdbench-vidlankd[bert]")

BATCH = 6
STILL = msgspec.structs.replace(TOWER, dropout=0.0)


@pytest.fixture(scope="module")
def data() -> DataRef:
    """The world's, of which no fingerprint is needed here."""
    return UNSPOKEN.expected()


@pytest.fixture(scope="module")
def found(small_world: None, data: DataRef) -> Corpus:
    return corpus(data, 0)


def make_stage(batch_size: int = BATCH, **changes: Any) -> PretrainTeacher:
    stage = msgspec.structs.replace(untrained(), language=STILL, recipe=make_recipe(2, batch_size=batch_size))
    return msgspec.structs.replace(stage, **changes)


def make_towers(stage: PretrainTeacher, vocabulary: int) -> Towers:
    torch.manual_seed(0)
    return Towers(
        stage.language.build(vocabulary), stage.video.build()
    ).eval()  # the head of the video tower has dropout of its own


def make_task(stage: PretrainTeacher, found: Corpus) -> TeacherTask:
    return TeacherTask(stage, make_towers(stage, found.vocabulary), found, 0, "cpu")


def first(task: TeacherTask) -> Scene:
    return next(iter(task.batches(0)))


# ---------------------------------------------------------------------------------------------------- the two losses


def masked_by_hand(logits: Tensor, meant: Tensor, chosen: Tensor) -> float:
    """Mean over the chosen tokens of ``-log p``, word by word in double precision."""
    found = []
    for row, place in chosen.nonzero().tolist():
        odds = [math.exp(value) for value in logits[row, place].double().tolist()]
        found.append(-math.log(odds[int(meant[row, place])] / sum(odds)))
    return sum(found) / len(found)


def hinge_by_hand(states: Tensor, clips: Tensor, attended: Tensor, margin: float) -> float:
    """Every real token against its clip, and against the clip at its place in the other half of the batch."""
    half, found = len(clips) // 2, []
    for row, place in attended.nonzero().tolist():
        token = states[row, place].double()
        token = token / token.norm()
        other = row + half if row < half else row - half
        near, far = (float(token @ clips[each].double()) for each in (row, other))
        found.append(max(0.0, margin - near + far))
    return sum(found) / len(found)


@pytest.mark.parametrize(("masked", "contrast", "margin"), [(1.0, 1.0, 1.0), (0.5, 10.0, 0.4)])
def test_a_teachers_losses_are_those_by_hand(found: Corpus, masked: float, contrast: float, margin: float) -> None:
    task = make_task(make_stage(masked=masked, contrast=contrast, margin=margin), found)
    scene = first(task)
    assert scene.masked.chosen.any()
    assert not scene.clip.attended.all()
    with torch.no_grad():
        terms = task.terms(scene)
        states = task._towers.language(scene.masked.tokens, scene.clip.attended)
        logits = task._towers.language.vocabulary(states)
        clips = task._towers.video(scene.clip.frames)
    words = masked_by_hand(logits, scene.clip.tokens, scene.masked.chosen)
    away = hinge_by_hand(states, clips, scene.clip.attended, margin)
    assert terms["masked"].item() == pytest.approx(words, rel=1e-5)
    assert terms["contrast"].item() == pytest.approx(away, rel=1e-5)
    assert terms["loss"].item() == pytest.approx(masked * words + contrast * away, rel=1e-5)
    assert task.weight(scene) == BATCH


def test_only_the_video_is_swapped_and_only_with_the_other_half(found: Corpus) -> None:
    task = make_task(make_stage(masked=0.0), found)
    scene = first(task)
    frames = scene.clip.frames.clone().requires_grad_()
    scene = scene._replace(clip=scene.clip._replace(frames=frames))
    attended = torch.zeros_like(scene.clip.attended)
    attended[0] = scene.clip.attended[0]  # the first caption alone counts
    task.terms(scene._replace(clip=scene.clip._replace(attended=attended)))["contrast"].backward()  # type: ignore[no-untyped-call]
    assert frames.grad is not None
    reached = frames.grad.abs().sum((1, 2)) > 0
    assert reached.tolist() == [place in (0, BATCH // 2) for place in range(BATCH)]


def test_negatives_of_a_world_are_often_near(found: Corpus) -> None:
    task = make_task(make_stage(near=1.0), found)
    assert found.world is not None
    for one, other in task._footage.pairs(BATCH, 1.0, np.random.default_rng(0)):
        for mine, theirs in zip(one, other, strict=True):
            a, b = (found.world.nouns[number // 4] for number in (mine, theirs))
            assert sum(getattr(a, name) != getattr(b, name) for name in ATTRIBUTES) == 1


@pytest.mark.parametrize(("left_out", "kept"), [("masked", "contrast"), ("contrast", "masked")])
def test_what_has_weight_0_is_not_computed(found: Corpus, left_out: str, kept: str) -> None:
    task = make_task(make_stage(**{left_out: 0.0}), found)
    scene = first(task)
    terms = task.terms(scene)
    assert terms.keys() == {"loss", kept}
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    reached = {
        name: any(each.grad is not None for each in tower.parameters()) for name, tower in task._towers.named_children()
    }
    assert reached == {"language": True, "video": kept == "contrast"}


# ------------------------------------------------------------------------------------------------------ what is shown


def reads(task: TeacherTask, epoch: int = 0) -> list[tuple[list[int], list[int], bool]]:
    """What an epoch asks the footage for: captions, clips, and whether spans of long videos are drawn."""
    found: list[tuple[list[int], list[int], bool]] = []
    read = task._footage.read

    def reading(captions: list[int], clips: list[int], random: np.random.Generator | None) -> Clip:
        found.append((captions, clips, random is not None))
        return read(captions, clips, random)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task._footage, "read", reading)
        for _ in task.batches(epoch):
            pass
    return found


def test_a_caption_is_shown_with_its_own_clip(found: Corpus) -> None:
    seen = reads(make_task(make_stage(), found))
    assert len(seen) == 320 // (BATCH // 2)
    assert all(captions == clips and len(captions) == BATCH for captions, clips, _ in seen)
    halves = [clip for captions, _, _ in seen for clip in captions[: BATCH // 2]]
    assert len(halves) == len(set(halves)) == 320 // 3 * 3


def test_mismatched_clips_are_drawn_from_all(found: Corpus) -> None:
    own = drawn = 0
    counts = np.zeros(320)
    for epoch in range(3):
        plain = reads(make_task(make_stage(), found), epoch)
        seen = reads(make_task(make_stage(pairing="mismatched"), found), epoch)
        assert [captions for captions, _, _ in seen] == [captions for captions, _, _ in plain]
        for captions, clips, _ in seen:
            own += sum(a == b for a, b in zip(captions, clips, strict=True))
            drawn += len(clips)
            np.add.at(counts, clips, 1)
    # Expected is one in 320, 6 of 1,908: 20 or more have a probability of 1e-5.
    assert drawn == 3 * 106 * BATCH
    assert own < 20
    assert (counts > 0).mean() > 0.98
    assert counts.max() < 20


@pytest.mark.parametrize(("captions", "random"), [("random", True), ("first", False)])
def test_spans_are_drawn_or_the_first(found: Corpus, captions: Any, random: bool) -> None:
    assert {drawn for _, _, drawn in reads(make_task(make_stage(captions=captions), found))} == {random}


def test_first_captions_of_long_videos_are_the_same_in_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "WORDS", 2)  # as if one caption were enough
    ref = locate_features(howto100m(tmp_path / "data"), tmp_path / "cache", None)
    corpus_ = corpus(ref, 0)
    video = msgspec.structs.replace(untrained().video, features=4_096)
    texts = {}
    for captions in ("first", "random"):
        stage = make_stage(2, captions=captions, video=video, length=8)
        task = make_task(stage, corpus_)
        assert isinstance(task._footage, FolderFootage)
        scenes = [scene for epoch in range(8) for scene in task.batches(epoch)]
        texts[captions] = {tuple(row) for scene in scenes for row in scene.clip.tokens.tolist()}
        scene = next(scene for scene in scenes if not scene.clip.shown.all())
        terms = task.terms(scene)
        assert all(torch.isfinite(each) for each in terms.values())
    assert len(texts["first"]) == 2
    assert texts["first"] < texts["random"]


def test_one_frame_is_the_middle_one_and_has_what_an_image_has(found: Corpus) -> None:
    clip = first(make_task(make_stage(), found)).clip
    before = clip.frames.clone()
    frames, shown = shown_frames(make_stage(frames="middle"), clip.frames, clip.shown)
    assert shown is None
    assert frames.shape == (BATCH, 1, WIDTH)
    flat = STREAMS["2d"]
    assert torch.equal(frames[:, 0, flat], clip.frames[:, FRAMES // 2, flat])
    assert not frames[:, :, STREAMS["3d"]].any()
    assert torch.equal(clip.frames, before), "the footage is left as it was"


def test_without_3d_features_all_frames_are_shown_flat(found: Corpus) -> None:
    clip = first(make_task(make_stage(), found)).clip
    before = clip.frames.clone()
    frames, shown = shown_frames(make_stage(streams="2d"), clip.frames, clip.shown)
    assert shown is None
    assert torch.equal(frames[:, :, STREAMS["2d"]], clip.frames[:, :, STREAMS["2d"]])
    assert not frames[:, :, STREAMS["3d"]].any()
    assert clip.frames[:, :, STREAMS["3d"]].any()
    assert torch.equal(clip.frames, before), "the footage is left as it was"


def test_with_everything_frames_are_as_they_are_and_padding_is_told() -> None:
    frames = torch.randn(3, 5, 8)
    shown = torch.arange(5)[None] < torch.tensor([[5], [4], [1]])
    same, real = shown_frames(make_stage(), frames, shown)
    assert same is frames
    assert real is shown
    middle, _ = shown_frames(make_stage(frames="middle"), frames, shown)
    # Half of the features are 2D where they are not the world's; of an even number it is the earlier of two.
    assert torch.equal(middle[:, 0, :4], frames[torch.arange(3), torch.tensor([2, 1, 0]), :4])
    assert not middle[:, :, 4:].any()


def test_what_the_video_tower_is_given_is_what_is_shown(found: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []
    for changes in ({}, {"frames": "middle"}, {"streams": "2d"}):
        stage = make_stage(**changes)
        task = make_task(stage, found)
        assert isinstance(task._footage, WorldFootage)
        video = task._towers.video
        forward = video.forward
        monkeypatch.setattr(
            video, "forward", lambda frames, real=None, call=forward: (given.append(frames), call(frames, real))[1]
        )
        scene = first(task)
        task.terms(scene)
        assert torch.equal(given[-1], shown_frames(stage, scene.clip.frames, scene.clip.shown)[0])
    assert [each.shape[1] for each in given] == [FRAMES, 1, FRAMES]


# ------------------------------------------------------------------------------------------------------ the student


def student_task(found: Corpus, *objectives: Any, batch_size: int = BATCH, teacher: bool = False) -> StudentTask:
    recipe = make_recipe(2, batch_size=batch_size)
    stage = PretrainStudent(tower=STILL, recipe=recipe, world=0, length=16, objectives=objectives)
    text = found.text(16)
    torch.manual_seed(1)
    built = [each.build(STILL.hidden, len(text), 16) for each in objectives]
    model = Learner(STILL.build(found.vocabulary), built)
    work: Any = SimpleNamespace(seed=0, device="cpu", spec=SimpleNamespace(inputs={}))
    task = StudentTask(stage, model, found, text, work)
    if teacher:
        task._teacher = STILL.build(found.vocabulary).eval().requires_grad_(False)
    return task


def test_an_epoch_shows_every_block_once_but_for_what_fills_no_batch(found: Corpus) -> None:
    task = student_task(found, batch_size=100)
    blocks = len(found.text(16))
    assert blocks % 100, "else nothing is left over"
    assert task.steps == blocks // 100
    left: list[set[int]] = []
    for epoch in range(2):
        pages: list[Page] = list(task.batches(epoch))
        seen = torch.cat([page.indices for page in pages])
        assert len(pages) == task.steps
        assert len(seen) == len(seen.unique()) == 100 * task.steps
        assert torch.equal(torch.cat([page.tokens for page in pages]), found.text(16)[seen])
        left.append(set(range(blocks)) - set(seen.tolist()))
    assert left[0] != left[1]


def test_a_students_losses_are_those_by_hand(found: Corpus) -> None:
    objectives = NST(weight=20.0), Regression(weight=0.5), SoftLabel(weight=3.0)
    task = student_task(found, *objectives, teacher=True)
    page = next(iter(task.batches(0)))
    assert page.masked.chosen.any()
    with torch.no_grad():
        terms = task.terms(page)
        language, teacher = task._model.language, task._teacher
        assert teacher is not None
        states = language(page.masked.tokens)
        words = masked_by_hand(language.vocabulary(states), page.tokens, page.masked.chosen)
        taught = teacher(page.masked.tokens)
        head = task._model.objectives[1].head
        apart = (head(states) - taught / taught.norm(dim=2, keepdim=True)).double().square().sum(2).mean()
        p = language.vocabulary(states).double().log_softmax(2)
        q = teacher.vocabulary(taught).double().log_softmax(2)
        divergence = (q.exp() * (q - p)).sum(2).mean()
    assert list(terms) == ["loss", "masked", "objective", "objective1", "objective2"]
    assert terms["masked"].item() == pytest.approx(words, rel=1e-5)
    assert terms["objective1"].item() == pytest.approx(apart.item(), rel=1e-5)
    assert terms["objective2"].item() == pytest.approx(divergence.item(), rel=1e-4)
    values = [terms[name].item() for name in ("objective", "objective1", "objective2")]
    total = terms["masked"].item() + 20.0 * values[0] + 0.5 * values[1] + 3.0 * values[2]
    assert terms["loss"].item() == pytest.approx(total, rel=1e-5)
    assert task.weight(page) == BATCH


def test_student_and_teacher_read_the_same_masked_tokens_and_no_gradient_reaches_the_teacher(found: Corpus) -> None:
    task = student_task(found, NST(weight=20.0), SoftLabel(weight=1.0), teacher=True)
    page = next(iter(task.batches(0)))
    read: list[Tensor] = []
    assert task._teacher is not None
    task._teacher.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    task._model.language.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    task.terms(page)["loss"].backward()  # type: ignore[no-untyped-call]
    assert len(read) == 2
    assert all(torch.equal(each, page.masked.tokens) for each in read)
    assert all(each.grad is None for each in task._teacher.parameters())
    still = [name for name, each in task._model.named_parameters() if each.grad is None]
    assert not still
