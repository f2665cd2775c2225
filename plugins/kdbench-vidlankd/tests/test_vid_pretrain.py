"""The two steps as stages: what they leave, the same again and after a kill, and what the arms of a seed share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from vid_bench import TOWER, Bench, Killed, killing, make_recipe, untrained
from vid_folder import howto100m, write
from vid_seen import elsewhere, same_tensors, watch

from kdbench.errors import KdbenchError, StageError
from kdbench.stage import WEIGHTS, Finished, execute, read_record
from kdbench.training.seeds import derive_seed
from kdbench_vidlankd import features
from kdbench_vidlankd.corpus import corpus
from kdbench_vidlankd.datasets import locate_features, locate_world
from kdbench_vidlankd.objectives import CRD, NST, NTXent, Regression, SoftLabel, TokenObjective
from kdbench_vidlankd.pretrain import (
    HEADS,
    VIDEO,
    PretrainStudent,
    PretrainTeacher,
    language_of,
    stage_of,
    video_of,
)
from kdbench_vidlankd.probes import MaskedLoss
from kdbench_vidlankd.tasks import StudentTask
from kdbench_vidlankd.vokens import Vokenize, VokenLabels

for extra in ("transformers", "tokenizers"):
    pytest.importorskip(extra, reason="needs kdbench-vidlankd[bert]")

BLOCK = 16
"""Tokens of a block of text here."""

NST_, CRD_ = NST(weight=20.0), CRD(weight=0.5, negatives=16)
OBJECTIVES: dict[str, tuple[TokenObjective, ...]] = {
    "text": (),
    "nst": (NST_,),
    "crd": (CRD_,),
    "crd both ways": (CRD(weight=0.5, negatives=16, teacher_head=True),),
    "nst+crd": (NST_, CRD_),
    "nt-xent": (NTXent(weight=1.0, temperature=0.07),),
    "soft": (SoftLabel(weight=1.0),),
    "l2": (Regression(weight=1.0),),
    "crd headless": (CRD(weight=0.5, negatives=16, head=False),),
    "voken": (VokenLabels(weight=1.0, count=8),),
}


def make_teacher(**changes: Any) -> PretrainTeacher:
    return msgspec.structs.replace(untrained(), **{"recipe": make_recipe(2), "near": 0.5, "margin": 0.4, **changes})


def make_student(arm: str = "text", **changes: Any) -> PretrainStudent:
    stage = PretrainStudent(tower=TOWER, recipe=make_recipe(2), world=0, length=BLOCK, objectives=OBJECTIVES[arm])
    return msgspec.structs.replace(stage, **changes)


@pytest.fixture(scope="module")
def bench(small_world: None, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("bench")
    return Bench(root, locate_world(None, root, None))


@pytest.fixture(scope="module")
def teacher(bench: Bench) -> Finished:
    return bench.run(make_teacher())


@pytest.fixture(scope="module")
def vokens(bench: Bench, teacher: Finished) -> Finished:
    return bench.run(Vokenize(count=8, world=0, length=BLOCK), teacher=teacher)


@pytest.fixture(scope="module")
def inputs(teacher: Finished, vokens: Finished) -> dict[str, dict[str, Finished]]:
    """What each arm is given."""
    needs: dict[str, dict[str, Finished]] = {"text": {}, "voken": {"vokens": vokens}}
    return {arm: needs.get(arm, {"teacher": teacher}) for arm in OBJECTIVES}


# ------------------------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("arm", ["nst+crd", "crd both ways", "voken"])
def test_a_student_leaves_the_same_bits_twice(
    bench: Bench, inputs: dict[str, dict[str, Finished]], arm: str, tmp_path: Path
) -> None:
    given = inputs[arm]
    one = bench.run(make_student(arm), **given)
    other = elsewhere(bench, tmp_path, *given.values()).run(make_student(arm), **given)
    assert one.record.content() == other.record.content()


def test_a_teacher_leaves_the_same_bits_twice(bench: Bench, teacher: Finished, tmp_path: Path) -> None:
    other = elsewhere(bench, tmp_path).run(make_teacher())
    assert teacher.record.content() == other.record.content()
    assert {WEIGHTS, VIDEO} <= other.record.files.keys()


@pytest.mark.parametrize("arm", ["teacher", "nst", "crd", "crd both ways", "voken"])
def test_killed_and_resumed_is_never_killed(
    bench: Bench, inputs: dict[str, dict[str, Finished]], arm: str, tmp_path: Path
) -> None:
    given = inputs.get(arm, {})
    stage = make_teacher(recipe=make_recipe(3)) if arm == "teacher" else make_student(arm, recipe=make_recipe(3))
    whole = bench.run(stage, **given)
    folder = elsewhere(bench, tmp_path, *given.values()).prepare(stage, **given)
    with killing(), pytest.raises(Killed):
        execute(folder)
    assert (folder / "state.pt").exists()
    assert read_record(folder) is None
    execute(folder)
    assert Finished(folder).record.content() == whole.record.content()


def test_other_seeds_are_other_students(bench: Bench) -> None:
    one, other = (bench.run(make_student(recipe=make_recipe(1)), seed=seed) for seed in (0, 1))
    assert one.record.files != other.record.files


# ------------------------------------------------------------------------------------- what the arms of a seed share


def test_arms_of_a_seed_start_alike_and_read_the_same_masked_blocks_in_the_same_order(
    bench: Bench, inputs: dict[str, dict[str, Finished]], tmp_path: Path
) -> None:
    plain = watch(bench, tmp_path / "plain", make_student())
    assert len(plain.read) == 2 * (len(corpus(bench.data, 0).text(BLOCK)) // 32)
    assert not torch.equal(plain.meant[0], plain.meant[len(plain.meant) // 2]), "every epoch has an order of its own"
    for arm in OBJECTIVES:
        seen = watch(bench, tmp_path / arm, make_student(arm), **inputs[arm])
        assert seen.same_text(plain), arm
        assert same_tensors(seen.start, plain.start), arm


def test_students_of_other_teachers_read_the_same_and_learn_otherwise(
    bench: Bench, teacher: Finished, tmp_path: Path
) -> None:
    other = bench.run(make_teacher(pairing="mismatched"))
    seen = {name: watch(bench, tmp_path / name, make_student("crd"), teacher=each)
            for name, each in {"video": teacher, "mismatched": other}.items()}  # fmt: skip
    assert seen["video"].same_text(seen["mismatched"])
    students = [bench.run(make_student("crd"), teacher=each) for each in (teacher, other)]
    assert students[0].record.files != students[1].record.files


@pytest.mark.parametrize(
    "changes",
    [
        {"pairing": "mismatched"},
        {"contrast": 0.0},
        {"masked": 0.0},
        {"frames": "middle"},
        {"streams": "2d"},
        {"video": msgspec.structs.replace(untrained().video, trained=False)},
        {"video": msgspec.structs.replace(untrained().video, vector="pooler")},
    ],
    ids=str,
)
def test_teachers_of_a_seed_start_alike_and_read_the_same_masked_captions(
    bench: Bench, changes: dict[str, Any], tmp_path: Path
) -> None:
    one = make_recipe(1)
    plain = watch(bench, tmp_path / "plain", make_teacher(recipe=one))
    seen = watch(bench, tmp_path / "other", make_teacher(recipe=one, **changes))
    assert seen.same_text(plain)
    assert same_tensors(seen.start, plain.start)
    # What is drawn is the same too; the tower is shown less of it, and mismatched video is another draw.
    assert all(map(torch.equal, seen.clips, plain.clips)) == ("pairing" not in changes)


# ---------------------------------------------------------------------------------------------------- a frozen teacher


@pytest.mark.parametrize("arm", ["nst", "crd both ways", "soft"])
def test_the_teacher_is_frozen_in_eval_mode_and_ends_as_it_came(
    bench: Bench, teacher: Finished, arm: str, tmp_path: Path
) -> None:
    tasks: list[StudentTask] = []
    step = StudentTask.stepped

    def stepped(task: StudentTask) -> None:
        tasks.append(task)
        step(task)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StudentTask, "stepped", stepped)
        elsewhere(bench, tmp_path, teacher).run(make_student(arm), teacher=teacher)
    tower = tasks[-1]._teacher
    assert tower is not None
    assert tasks[-1]._model.training
    assert not any(module.training for module in tower.modules())
    assert not any(each.requires_grad or each.grad is not None for each in tower.parameters())
    assert same_tensors(tower.weights(), teacher.tensors(WEIGHTS))


# ------------------------------------------------------------------------------------------------ what a teacher leaves


def test_an_untrained_teacher_is_where_teachers_of_the_seed_begin(bench: Bench, tmp_path: Path) -> None:
    found = bench.run(untrained())
    torch.manual_seed(derive_seed(0, "init", "teacher"))
    language = TOWER.build(corpus(bench.data, 0).vocabulary)
    video = untrained().video.build()
    assert same_tensors(found.tensors(WEIGHTS), language.weights())
    assert same_tensors(found.tensors(VIDEO), video.state_dict())
    assert (found.record.metrics, found.record.curves) == ({}, {})
    assert same_tensors(watch(bench, tmp_path, make_teacher()).start, found.tensors(WEIGHTS))


@pytest.mark.parametrize(("left_out", "kept"), [("masked", "contrast"), ("contrast", "masked")])
def test_weight_0_leaves_a_loss_out(bench: Bench, teacher: Finished, left_out: str, kept: str) -> None:
    assert teacher.record.curves.keys() == {"loss", "lr", "gradient", "masked", "contrast"}
    found = bench.run(make_teacher(**{left_out: 0.0}))
    assert found.record.curves.keys() == {"loss", "lr", "gradient", kept}
    assert found.record.curves["loss"] == found.record.curves[kept]
    start = bench.run(untrained())
    moved = not same_tensors(found.tensors(VIDEO), start.tensors(VIDEO))
    assert moved == (kept == "contrast")
    assert not same_tensors(found.tensors(WEIGHTS), start.tensors(WEIGHTS))


def test_a_teacher_without_a_loss_is_an_error_in_words(bench: Bench) -> None:
    with pytest.raises(StageError, match="neither masked words nor video"):
        bench.run(make_teacher(masked=0.0, contrast=0.0))


@pytest.mark.parametrize("vector", ["mean", "pooler"])
def test_as_released_the_video_tower_is_what_it_was_and_the_language_tower_is_trained(
    bench: Bench, vector: Any
) -> None:
    video = msgspec.structs.replace(untrained().video, trained=False, vector=vector)
    stage = make_teacher(video=video, captions="first", near=0.0, margin=1.0)
    found, start = bench.run(stage), bench.run(msgspec.structs.replace(stage, recipe=make_recipe(0)))
    assert same_tensors(found.tensors(VIDEO), start.tensors(VIDEO))
    assert not same_tensors(found.tensors(WEIGHTS), start.tensors(WEIGHTS))
    assert found.record.curves["contrast"][-1] != found.record.curves["contrast"][0]


def test_both_towers_learn(bench: Bench, teacher: Finished) -> None:
    start = bench.run(untrained())
    for name in (WEIGHTS, VIDEO):
        trained, begun = teacher.tensors(name), start.tensors(name)
        assert trained.keys() == begun.keys()
        still = [each for each in trained if torch.equal(trained[each], begun[each])]
        # The video tower is BERT's, and reads none of its one word.
        assert set(still) <= {"net.embeddings.word_embeddings.weight"}, still
    assert teacher.record.curves["masked"][-1] < teacher.record.curves["masked"][0]


# ----------------------------------------------------------------------------------------------------- notes and towers


@pytest.mark.parametrize("arm", ["text", "crd"])
def test_notes_rebuild_the_towers(
    bench: Bench, teacher: Finished, inputs: dict[str, dict[str, Finished]], arm: str
) -> None:
    student = bench.run(make_student(arm), **inputs[arm])
    for finished, stage in ((teacher, make_teacher()), (student, make_student(arm))):
        assert stage_of(finished) == stage
        tower = language_of(finished, bench.work(finished))
        assert same_tensors(tower.weights(), finished.tensors(WEIGHTS))
        assert not tower.training
        assert not any(each.requires_grad for each in tower.parameters())
        states = tower(torch.zeros(2, BLOCK, dtype=torch.int64))
        assert states.shape == (2, BLOCK, TOWER.hidden)
        assert tower.vocabulary(states).shape == (2, BLOCK, corpus(bench.data, 0).vocabulary)
    video = video_of(teacher, bench.work(teacher))
    assert same_tensors(video.state_dict(), teacher.tensors(VIDEO))
    assert not video.training
    assert not any(each.requires_grad for each in video.parameters())
    with pytest.raises(StageError, match="a student has no video tower"):
        video_of(student, bench.work(student))


@pytest.mark.parametrize("arm", OBJECTIVES)
def test_curves_have_every_loss_and_heads_are_kept_where_there_are_any(
    bench: Bench, inputs: dict[str, dict[str, Finished]], arm: str
) -> None:
    found = bench.run(make_student(arm), **inputs[arm])
    values = {"objective", "objective1"} if arm == "nst+crd" else {"objective"} if arm != "text" else set()
    assert found.record.curves.keys() == {"loss", "lr", "gradient", "masked"} | values
    assert found.record.metrics == {
        f"train.{name}": curve[-1] for name, curve in found.record.curves.items() if name != "lr"
    }
    if arm in ("text", "soft", "crd headless", "voken"):
        assert HEADS not in found.record.files
    else:
        parts = {name.split(".")[0] for name in found.tensors(HEADS)}
        assert parts == ({"0", "1"} if arm == "nst+crd" else {"0"})
        assert {name.split(".")[1] for name in found.tensors(HEADS)} == {"head"}


# ------------------------------------------------------------------------------------------- other beginnings and text


def test_a_student_that_starts_from_the_teacher_has_its_weights_before_it_moves(
    bench: Bench, teacher: Finished
) -> None:
    still = bench.run(make_student(recipe=make_recipe(1, rate=1e-30)), start=teacher)
    assert same_tensors(still.tensors(WEIGHTS), teacher.tensors(WEIGHTS))
    moved = bench.run(make_student(recipe=make_recipe(1)), start=teacher)
    assert not same_tensors(moved.tensors(WEIGHTS), teacher.tensors(WEIGHTS))


def test_a_student_of_another_size_cannot_start_from_the_teacher(bench: Bench, teacher: Finished) -> None:
    wide = msgspec.structs.replace(TOWER, hidden=24)
    with pytest.raises(KdbenchError, match="the weights do not fit the language tower"):
        bench.run(make_student(tower=wide), start=teacher)


def test_with_the_captions_text_there_are_more_blocks_and_the_others_stay(bench: Bench, tmp_path: Path) -> None:
    found = corpus(bench.data, 0)
    less, more = found.text(BLOCK), found.text(BLOCK, captions=True)
    assert len(more) > len(less)
    assert torch.equal(more[: len(less)], less)
    seen = {
        captions: watch(bench, tmp_path / str(captions), make_student(captions=captions)) for captions in (False, True)
    }
    assert [len(seen[captions].read) for captions in (False, True)] == [2 * (len(less) // 32), 2 * (len(more) // 32)]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (make_teacher(recipe=make_recipe(1, batch_size=1_000)), "320 clips do not fill a batch of 1000"),
        (make_student(recipe=make_recipe(1, batch_size=10_000)), "blocks of text do not fill a batch of 10000"),
        (make_teacher(recipe=make_recipe(1, batch_size=7)), "a batch of 7 cannot be halved"),
        (make_teacher(recipe=make_recipe(1, batch_size=1)), "a batch of 1 cannot be halved"),
    ],
    ids=["clips", "blocks", "odd", "one"],
)
def test_what_cannot_be_batched_is_an_error_in_words(
    bench: Bench, stage: PretrainTeacher | PretrainStudent, words: str
) -> None:
    with pytest.raises(KdbenchError, match=words):
        bench.run(stage)


# -------------------------------------------------------------------------------------------------- HowTo100M's layout


def test_both_steps_run_on_a_folder_of_features(
    small_world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "WORDS", 2)  # so that a span may begin with any caption
    folder = howto100m(tmp_path / "data")
    write(folder, {"text/train.txt": "the cat sat on a mat .\n" * 30, "text/valid.txt": "a cat sat on the mat .\n" * 9})
    bench = Bench(tmp_path / "store", locate_features(folder, tmp_path / "cache", None))
    recipe = make_recipe(2, batch_size=2)
    teacher = bench.run(msgspec.structs.replace(untrained(features=4_096), recipe=recipe))
    assert teacher.record.curves["contrast"][-1] > 0
    assert corpus(bench.data, 0).vocabulary == teacher.record.notes["vocabulary"] == 15
    student = bench.run(make_student("crd", recipe=recipe, length=8, captions=True), teacher=teacher)
    # Videos that are shown in random spans and from their beginnings.
    first = bench.run(msgspec.structs.replace(untrained(features=4_096), recipe=recipe, captions="first"))
    assert first.record.files != teacher.record.files
    for network in (teacher, student):
        loss = bench.run(MaskedLoss(world=0, length=8), network=network).record
        assert 0 < loss.metrics["test.mlm"] < 10
        assert loss.notes["guessed"] > 0
