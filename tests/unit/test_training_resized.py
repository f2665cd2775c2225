"""Images larger than networks take: crops and resizing on the way from the data to the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_folder import miniature
from torch import Tensor
from toy_paper import toy_lab, toy_paper

from kdbench.api import Prepared
from kdbench.cli.plan import show_plan
from kdbench.data import DataRef, dataset, load, tiny_imagenet
from kdbench.data.transforms import normalise, random_flip, random_resized_crop, resize
from kdbench.networks import Plain
from kdbench.plan import build_plan
from kdbench.result import Request
from kdbench.stage import WEIGHTS, Finished, Work, execute, read_spec
from kdbench.stages.splits import splits_of
from kdbench.stages.teacher import LOGITS
from kdbench.store import Store
from kdbench.study import Lab, Measurement, Node
from kdbench.training import SGD, Distillation, Recipe, loop
from kdbench.training.batch import Batch
from kdbench.training.evaluate import evaluate, predict
from kdbench.training.model import Normalised, build_model
from kdbench.training.seeds import derive_seed

NETWORK = Plain(size=2, width=0.5)
SEEN: list[Tensor] = []


class Spy(Distillation, frozen=True):
    """Notes the inputs of every batch, and that the teacher saw the same."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        SEEN.append(batch.inputs)
        assert batch.teacher_logits.shape == logits.shape
        return super().loss(logits, batch)


def recipe(augmentation: Any) -> Recipe:
    return Recipe(epochs=2, optimizer=SGD(lr=0.02), batch_size=4, augmentation=augmentation, holdout=0.25)


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> DataRef:
    root = tmp_path_factory.mktemp("tiny")
    return tiny_imagenet.locate(miniature(root / "tiny-imagenet-200"), root / "cache", None)


@pytest.fixture
def lab(ref: DataRef) -> Lab:
    return toy_lab(data=ref)


@pytest.fixture
def runner(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.stages.mkdir(parents=True)
    return store


def run(store: Store, node: Node) -> Finished:
    for parent in node.inputs.values():
        run(store, parent)
    folder = store.prepare(node.spec)
    execute(folder)
    return Finished(folder)


def work_of(finished: Finished) -> Work:
    return Work(finished.folder, read_spec(finished.folder))


@pytest.mark.parametrize(("augmentation", "side"), [("none", 64), ("crop-flip", 64), ("resized-crop-flip", 32)])
def test_a_student_is_distilled_under_every_augmentation(lab: Lab, runner: Store, augmentation: Any, side: int) -> None:
    how = recipe(augmentation)
    teacher = lab.train(NETWORK, seed=0, recipe=how)
    objective = Spy(temperature=2.0, alpha=0.5)
    student = lab.distil(NETWORK, teacher, seed=0, recipe=how, objective=objective, restart=1)
    SEEN.clear()
    finished = run(runner, student)
    assert [tuple(inputs.shape) for inputs in SEEN] == [(4, 3, side, side), (4, 3, side, side), (1, 3, side, side)] * 2
    assert {inputs.dtype for inputs in SEEN} == {torch.uint8}
    # Whoever loads the weights feeds it the images as they are.
    work = work_of(finished)
    splits = splits_of(work, how.holdout)
    assert splits["test"].inputs.shape[2:] == (64, 64)
    for split in ("validation", "test"):
        found = evaluate(finished.model(work), splits[split])
        assert found["accuracy"] == finished.record.metrics[f"{split}.accuracy"]
        assert found["nll"] == pytest.approx(finished.record.metrics[f"{split}.nll"], rel=1e-6)


def test_cached_teacher_logits_are_those_of_the_resized_images(lab: Lab, runner: Store) -> None:
    teacher = run(runner, lab.teacher(lab.train(NETWORK, seed=0, recipe=recipe("none")), recipe("none")))
    work = work_of(teacher)
    net = work.input("network").model(work)
    small = resize(splits_of(work, 0.25)["train"].inputs, (32, 32))
    assert torch.equal(teacher.tensors(LOGITS)["train"], predict(net, small))


def test_two_runs_and_two_epochs_of_crops(lab: Lab, tmp_path: Path) -> None:
    weights = []
    for place in ("a", "b"):
        store = Store(tmp_path / place)
        store.stages.mkdir(parents=True)
        teacher = lab.train(NETWORK, seed=0, recipe=recipe("resized-crop-flip"))
        objective = Spy(temperature=2.0, alpha=0.5)
        SEEN.clear()
        student = lab.distil(
            NETWORK, teacher, seed=0, recipe=recipe("resized-crop-flip"), objective=objective, restart=1
        )
        weights.append(run(store, student).tensors(WEIGHTS))
        first, second = torch.cat(SEEN[:3]), torch.cat(SEEN[3:])
        assert not torch.equal(first.sum((1, 2, 3)).sort().values, second.sum((1, 2, 3)).sort().values)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_batches_are_the_transforms_of_their_own_stream(ref: DataRef) -> None:
    train = load(ref)["train"]
    for size in ((32, 32), None):
        (first, *_) = loop._batches(train, recipe("resized-crop-flip"), None, 7, 2, size)
        stream = torch.Generator().manual_seed(derive_seed(7, "augment", 2))
        cropped = random_resized_crop(train.inputs[first.indices], size or (64, 64), stream)
        assert torch.equal(first.inputs, random_flip(cropped, stream))


# the model


class Passes(torch.nn.Module):
    """Shows what reaches the network."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def test_only_larger_inputs_are_resized() -> None:
    x = torch.randint(0, 256, (5, 3, 64, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]

    def seen(size: tuple[int, int] | None) -> Tensor:
        out: Tensor = Normalised(Passes(), mean, std, size)(x)
        return out

    for size in (None, (64, 48), (64, 64), (100, 100)):
        assert torch.equal(seen(size), normalise(x, mean, std))
    for size in ((32, 32), (64, 32), (32, 48)):
        assert torch.equal(seen(size), normalise(resize(x, size), mean, std))


def test_a_built_model_takes_the_size_of_its_data(ref: DataRef) -> None:
    model = build_model(NETWORK, ref, [0.5] * 3, [0.25] * 3).eval()
    assert model.size == (32, 32)
    images = load(ref)["test"].inputs
    assert torch.equal(predict(model, images), predict(model, resize(images, (32, 32))))


# the plan


def test_a_plan_without_the_folder_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def study(lab: Lab) -> Iterator[Measurement]:
        for arm, augmentation in (("scratch", "none"), ("distilled", "crop-flip")):
            node = lab.train(NETWORK, seed=0, recipe=recipe(augmentation), label=arm)
            yield lab.measure(f"table1/{lab.dataset}/{arm}", node.accuracy, seed=0)

    facts = {
        "datasets": ("tiny-imagenet",),
        "default_dataset": dict.fromkeys(("smoke", "laptop", "full"), "tiny-imagenet"),
    }
    paper = toy_paper(study, **facts)
    lab = toy_lab(paper, tier="full", data=dataset("tiny-imagenet").expected())
    request = Request(
        paper="toy",
        tier="full",
        dataset="tiny-imagenet",
        protocol="clean",
        seeds=(0,),
        claims="core",
        device="cpu",
        workers=1,
        threads=1,
        executor="local",
        data_dir=None,
    )
    show_plan(Console(width=200), Prepared(paper, request, build_plan(lab, "core"), Store(tmp_path)))
    assert "Tiny-ImageNet is not here yet; name its folder with --data-dir" in capsys.readouterr().out
