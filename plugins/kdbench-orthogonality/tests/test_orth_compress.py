"""The stage run for real on tiny networks that are trained here: controls, records, teachers, and kills."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from kdbench import stage as stages
from kdbench.component import load_object, pack, unpack
from kdbench.data import DataRef, dataset
from kdbench.errors import StageError
from kdbench.networks import Network, Plain
from kdbench.paper import Paper, Protocol
from kdbench.record import Record
from kdbench.stage import PREDICTIONS, WEIGHTS, Finished, Work, execute, read_record, read_spec
from kdbench.stages import Train
from kdbench.stages.splits import splits_of
from kdbench.store import Store
from kdbench.study import Lab, Node
from kdbench.training import SGD, CrossEntropy, Distillation, Objective, Recipe
from kdbench.training.batch import Batch
from kdbench.training.evaluate import evaluate
from kdbench.training.followers import Follower, Fresh
from kdbench.training.model import Normalised, sizes_of
from kdbench.training.recipe import Sample
from kdbench_orthogonality import techniques
from kdbench_orthogonality.compress import MASKS, PROGRAM, Compress
from kdbench_orthogonality.networks import SlimPlain
from kdbench_orthogonality.techniques import FakeQuantise, Int8, Prune, Structured, Technique, Untouched, available

STUDENT, TEACHER = Plain(size=2, width=0.5), Plain(size=4, width=0.5)
RECIPE = Recipe(
    epochs=2, optimizer=SGD(lr=0.05, weight_decay=1e-3), batch_size=64, holdout=0.1, sample=Sample(size=800, number=1)
)
NONE = msgspec.structs.replace(RECIPE, epochs=0)
KD = Distillation(temperature=4.0, alpha=0.9)

extra = pytest.mark.skipif(
    not available(), reason="torch-pruning and torchao are missing: install kdbench-orthogonality[techniques]"
)
ALL: list[Any] = [
    Untouched(),
    Prune(amount=0.5),
    FakeQuantise(bits=3),
    pytest.param(Structured(ratio=1 / 3), marks=extra),
    pytest.param(Int8(training=False), marks=extra),
]
QAT = pytest.param(Int8(training=True), marks=[extra, pytest.mark.slow])


def named(technique: Technique) -> str:
    return technique.label


SEEN: list[list[int]] = []


class Spy(CrossEntropy, frozen=True):
    """Notes the places of every batch."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        SEEN.append(batch.indices.tolist())
        return super().loss(logits, batch)


class Accompanied(CrossEntropy, frozen=True):
    """Asks for a network that trains along."""

    def follower(self, fresh: Fresh) -> Follower | None:
        fresh()
        return None


class Killed(BaseException):
    """What a kill is to the process that it ends."""


class Bench:
    """A store shared by the tests below: each network is trained once, in this process."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.stages.mkdir(parents=True)
        paper = Paper(
            id="toy",
            title="A toy",
            authors="Nobody",
            venue="Nowhere",
            year=2026,
            url="https://example.org",
            bibtex="@misc{toy}",
            summary="Nothing.",
            datasets=("mnist1d",),
            default_dataset={"smoke": "mnist1d"},
            protocols=(Protocol(id="clean", sentence="clean"),),
        )
        data: DataRef = load_object(dataset("mnist1d").locate)(None, Path(os.environ["KDBENCH_CACHE"]), None)
        self.lab = Lab(paper, tier="smoke", protocol="clean", data=data, seeds=(0,), networks={})
        self.student = self.lab.train(STUDENT, seed=0, recipe=RECIPE)
        self.teacher = self.lab.train(TEACHER, seed=0, recipe=RECIPE)

    def run(self, node: Node) -> Finished:
        for parent in node.inputs.values():
            self.run(parent)
        folder = self.store.prepare(node.spec)
        execute(folder)
        return Finished(folder)

    def compressed(
        self,
        technique: Technique,
        recipe: Recipe = RECIPE,
        objective: Objective | None = None,
        network: Node | None = None,
    ) -> Node:
        inputs = {"network": network or self.student}
        if isinstance(objective, Distillation):
            inputs["teacher"] = self.lab.teacher(self.teacher, recipe)
        stage = Compress(technique=technique, recipe=recipe, objective=objective or CrossEntropy())
        return self.lab.stage(stage, seed=0, label=technique.label, inputs=inputs, network=STUDENT)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def rebuilt(finished: Finished) -> tuple[Normalised, dict[str, Any]]:
    """The network from its weights and notes, and the splits that it was trained on."""
    work = Work(finished.folder, read_spec(finished.folder))
    model = finished.model(work)
    assert isinstance(model, Normalised)
    return model, splits_of(work, RECIPE.holdout, sample=RECIPE.sample)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Records


def test_the_control_without_epochs_is_the_identity(bench: Bench) -> None:
    before, after = bench.run(bench.student), bench.run(bench.compressed(Untouched(), NONE))
    assert same(before.tensors(WEIGHTS), after.tensors(WEIGHTS))
    assert same(before.tensors(PREDICTIONS), after.tensors(PREDICTIONS))
    assert after.record.metrics == before.record.metrics
    for name in ("network", "mean", "std", "parameters", "sizes"):
        assert after.record.notes[name] == before.record.notes[name]
    assert after.record.curves == {"loss": [], "lr": []}


def test_the_control_is_trained_further(bench: Bench) -> None:
    before, after = bench.run(bench.student), bench.run(bench.compressed(Untouched()))
    assert not same(before.tensors(WEIGHTS), after.tensors(WEIGHTS))
    assert len(after.record.curves["loss"]) == RECIPE.epochs
    assert after.record.curves["loss"][0] < before.record.curves["loss"][0], "it goes on from where the other ended"


@pytest.mark.parametrize("technique", ALL, ids=named)
def test_a_record_says_what_was_done(bench: Bench, technique: Technique) -> None:
    finished = bench.run(bench.compressed(technique, objective=KD))
    record, notes = finished.record, finished.record.notes
    assert {f"{s}.{m}" for s in ("validation", "test") for m in ("accuracy", "nll", "entropy")} == set(record.metrics)
    assert unpack(notes["technique"]) == technique
    assert unpack(notes["recipe"]) == RECIPE
    assert unpack(notes["objective"]) == KD
    assert notes["before"] == []
    assert notes["parameters"] == notes["sizes"]["parameters"]
    assert set(notes["sizes"]) == {"parameters", "nonzero_parameters", "bytes", "macs"}
    answers = finished.tensors(PREDICTIONS)
    right = (answers["classes"] == answers["labels"]).double().mean().item()
    assert record.metrics["test.accuracy"] == 100 * right


@pytest.mark.parametrize("technique", ALL, ids=named)
def test_a_network_is_rebuilt_from_weights_and_notes(bench: Bench, technique: Technique) -> None:
    finished = bench.run(bench.compressed(technique))
    if not technique.rebuilt:
        assert WEIGHTS not in finished.record.files
        with pytest.raises(StageError):
            rebuilt(finished)
        return
    model, splits = rebuilt(finished)
    found, notes = evaluate(model, splits["test"]), finished.record.notes
    assert {f"test.{name}": value for name, value in found.items()} == {
        name: value for name, value in finished.record.metrics.items() if name.startswith("test.")
    }
    network: Network = unpack(notes["network"])
    cost = network.cost((1, 1, 40), 10)
    sizes = sizes_of(model, network, read_spec(finished.folder).data)
    assert (cost.parameters, cost.macs) == (notes["sizes"]["parameters"], notes["sizes"]["macs"])
    assert sizes["parameters"] == notes["sizes"]["parameters"]
    assert sizes["nonzero_parameters"] == notes["sizes"]["nonzero_parameters"]


@extra
def test_a_slim_network_may_be_cut_trained_and_pruned_again(bench: Bench) -> None:
    first = bench.compressed(Structured(ratio=1 / 3))
    slim = unpack(bench.run(first).record.notes["network"])
    assert slim == SlimPlain(size=2, width=0.5, channels=(5, 5))
    second = bench.run(bench.compressed(Prune(amount=0.5), network=first)).record
    assert unpack(second.notes["network"]) == slim
    assert [unpack(each) for each in second.notes["before"]] == [Structured(ratio=1 / 3)]
    assert second.notes["sizes"]["parameters"] == slim.cost((1, 1, 40), 10).parameters


def test_the_splits_are_those_of_the_recipe(bench: Bench) -> None:
    SEEN.clear()
    bench.run(bench.compressed(Untouched(), objective=Spy()))
    assert sorted(place for batch in SEEN[: len(SEEN) // 2] for place in batch) == list(range(720))


def test_every_technique_and_objective_sees_one_order_of_examples(bench: Bench) -> None:
    orders = []
    for technique in (Untouched(), Prune(amount=0.3), FakeQuantise(bits=4)):
        SEEN.clear()
        bench.run(bench.compressed(technique, objective=Spy(), recipe=msgspec.structs.replace(RECIPE, ties="last")))
        orders.append(list(SEEN))
    SEEN.clear()
    bench.run(bench.lab.train(STUDENT, seed=0, recipe=RECIPE, objective=Spy()))
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] != SEEN, "the first training had another order"


# What was pruned stays pruned


def zeros(finished: Finished) -> dict[str, Tensor]:
    return {
        name.removeprefix("net.").removesuffix(".weight"): weight == 0
        for name, weight in finished.tensors(WEIGHTS).items()
        if name.endswith("weight") and weight.dim() > 1
    }


def test_exactly_the_pruned_weights_are_zero_after_training(bench: Bench) -> None:
    finished = bench.run(bench.compressed(Prune(amount=0.8)))
    masks = finished.tensors(MASKS)
    weights = sum(mask.numel() for mask in masks.values())
    assert same(zeros(finished), masks)
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.8 * weights)
    assert finished.record.notes["findings"]["sparsity"] == pytest.approx(round(0.8 * weights) / weights, abs=1e-12)
    sizes, whole = finished.record.notes["sizes"], bench.run(bench.student).record.notes["sizes"]
    assert sizes["bytes"] == whole["bytes"]
    assert sizes["nonzero_parameters"] == whole["nonzero_parameters"] - round(0.8 * weights)


@pytest.mark.parametrize("then", [Untouched(), FakeQuantise(bits=3), Prune(amount=0.7), Prune(amount=0.3)], ids=named)
def test_a_later_stage_keeps_what_was_pruned(bench: Bench, then: Technique) -> None:
    first = bench.compressed(Prune(amount=0.5))
    masks = bench.run(first).tensors(MASKS)
    later = bench.run(bench.compressed(then, network=first, objective=KD))
    found = zeros(later)
    assert all(found[name][mask].all() for name, mask in masks.items())
    assert [unpack(each) for each in later.record.notes["before"]] == [Prune(amount=0.5)]
    kept = later.tensors(MASKS)
    if then == Prune(amount=0.7):
        assert sum(int(mask.sum()) for mask in kept.values()) > sum(int(mask.sum()) for mask in masks.values())
    else:  # weights that rounding made zero are not pruned ones
        assert same(kept, masks)


@extra
def test_eight_bits_keep_what_was_pruned(bench: Bench) -> None:
    first = bench.compressed(Prune(amount=0.5))
    pruned = sum(int(mask.sum()) for mask in bench.run(first).tensors(MASKS).values())
    later = bench.run(bench.compressed(Int8(training=False), network=first))
    weights = [each for each in later.tensors(PROGRAM).values() if each.dtype == torch.int8]
    assert sum(int((weight == 0).sum()) for weight in weights) >= pruned
    assert MASKS not in later.record.files


@extra
def test_filters_are_not_cut_out_of_a_pruned_network(bench: Bench) -> None:
    node = bench.compressed(Structured(ratio=0.5), network=bench.compressed(Prune(amount=0.5)))
    with pytest.raises(StageError, match="has no place in"):
        bench.run(node)


# Teachers


def test_the_teacher_stays_frozen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = msgspec.structs.replace(RECIPE, epochs=1, augmentation="shift")
    node = bench.compressed(Prune(amount=0.5), recipe, KD)
    for parent in node.inputs.values():
        bench.run(parent)
    given: dict[str, nn.Module] = {}
    original = Finished.model

    def watched(finished: Finished, work: Work) -> nn.Module:
        model = original(finished, work)
        given[finished.record.hash] = model
        return model

    modes: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(Finished, "model", watched)
        original_forward = Normalised.forward

        def forward(model: Normalised, inputs: Tensor) -> Tensor:
            logits = original_forward(model, inputs)
            if model is given.get(node.inputs["teacher"].spec.hash):
                modes.append(model.training or logits.requires_grad)
            return logits

        patch.setattr(Normalised, "forward", forward)
        bench.run(node)
    teacher = given[node.inputs["teacher"].spec.hash]
    assert len(modes) == 12  # 720 examples in batches of 64
    assert not any(modes)
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert same(dict(teacher.state_dict()), bench.run(node.inputs["teacher"]).tensors(WEIGHTS))


def test_distillation_trains_otherwise_than_labels(bench: Bench) -> None:
    one, other = (bench.run(bench.compressed(Prune(amount=0.5), objective=goal)) for goal in (None, KD))
    assert not same(one.tensors(WEIGHTS), other.tensors(WEIGHTS))
    assert same(one.tensors(MASKS), other.tensors(MASKS)), "both start from one pruned network"


# Eight bits


@extra
def test_int8_leaves_a_program_and_counts_convolutions(bench: Bench) -> None:
    finished = bench.run(bench.compressed(Int8(training=False, calibration=100)))
    findings = finished.record.notes["findings"]
    assert findings["quantised convolutions"] == findings["convolutions"] == 2
    assert findings["calibration"] == 100
    stored = finished.tensors(PROGRAM)
    int8 = sum(each.numel() for each in stored.values() if each.dtype == torch.int8)
    cost = STUDENT.cost((1, 1, 40), 10)
    biases, norms = 8 + 8 + 10, 2 * 2 * 8
    assert int8 == cost.parameters - biases - norms
    sizes = finished.record.notes["sizes"]
    assert sizes["bytes"] == int8 + 4 * biases + 4 * (8 + 8 + 10)
    assert sizes["bytes"] < bench.run(bench.student).record.notes["sizes"]["bytes"] / 2
    control = bench.run(bench.compressed(Untouched())).record.metrics["test.accuracy"]
    assert abs(finished.record.metrics["test.accuracy"] - control) < 5, "trained as the control was, then rounded"


@pytest.mark.parametrize("technique", [Structured(ratio=0.5), Int8(training=False)], ids=named)
def test_without_the_extra_the_stage_says_how_to_get_it(
    bench: Bench, technique: Technique, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(techniques, "find_spec", lambda name: None)
    node = bench.compressed(technique, msgspec.structs.replace(RECIPE, batch_size=50))
    with pytest.raises(StageError, match=r'pip install "kdbench-orthogonality\[techniques\]"') as caught:
        bench.run(node)
    assert caught.value.where == node.spec.label


def test_an_objective_with_a_network_of_its_own_is_refused(bench: Bench) -> None:
    with pytest.raises(StageError, match="brings a network that trains along"):
        bench.run(bench.compressed(Untouched(), objective=Accompanied()))


# Kill and resume


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that ends with its first resumable state."""
    save = Work.save_state

    def save_and_end(work: Work, state: Any) -> None:
        save(work, state)
        raise Killed

    monkeypatch.setattr(stages, "STATE_EVERY", 0.0)
    monkeypatch.setattr(Work, "save_state", save_and_end)
    return monkeypatch


@pytest.mark.parametrize("technique", [*ALL, QAT], ids=named)
def test_killed_and_resumed_ends_as_if_undisturbed(
    bench: Bench, technique: Technique, killing: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    node = bench.compressed(technique, objective=KD)
    for parent in node.inputs.values():
        bench.run(parent)
    folder = bench.store.prepare(node.spec)
    elsewhere = Store(tmp_path)
    elsewhere.stages.mkdir()
    for parent in node.inputs.values():
        (elsewhere.stages / parent.spec.hash).symlink_to(bench.store.stages / parent.spec.hash)
    other = elsewhere.prepare(node.spec)
    with pytest.raises(Killed):
        execute(other)
    assert read_record(other) is None
    epoch = torch.load(other / "state.pt", weights_only=True)["epoch"]
    assert epoch == 1
    killing.undo()
    execute(folder)
    execute(other)
    undisturbed, resumed = read_record(folder), read_record(other)
    assert isinstance(undisturbed, Record)
    assert isinstance(resumed, Record)
    assert resumed.content() == undisturbed.content()
    assert resumed.files == undisturbed.files
    assert undisturbed.files
    if isinstance(technique, Int8) and technique.training:
        loss = undisturbed.curves["loss"]
        assert loss[-1] < loss[0]
        findings = undisturbed.notes["findings"]
        assert findings["quantised convolutions"] == findings["convolutions"] == 2


# Plans


def test_effort_is_that_of_training_the_network_it_takes(bench: Bench) -> None:
    data = bench.lab.data
    stage = Compress(technique=Prune(amount=0.5), recipe=RECIPE)
    expected = Train(network=STUDENT, recipe=RECIPE).effort(data, {})
    assert stage.effort(data, {"network": STUDENT}) == expected
    assert expected.steps > 0
    assert unpack(pack(stage)) == stage
