"""The stage run for real on tiny networks that are trained here: controls, records, teachers, and kills."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from orth_bench import KD, NONE, RECIPE, SEEN, STUDENT, Bench, Spy
from orth_models import needs_extra
from torch import Tensor, nn

from kdbench import stage as stages
from kdbench.component import pack, unpack
from kdbench.errors import StageError
from kdbench.networks import Network
from kdbench.record import Record
from kdbench.stage import PREDICTIONS, WEIGHTS, Finished, Work, execute, read_record, read_spec
from kdbench.stages import Train
from kdbench.stages.splits import splits_of
from kdbench.store import Store
from kdbench.study import Node
from kdbench.training import CrossEntropy
from kdbench.training.evaluate import evaluate
from kdbench.training.followers import Follower, Fresh
from kdbench.training.model import Normalised, sizes_of
from kdbench_orthogonality import techniques
from kdbench_orthogonality.compress import MASKS, PROGRAM, Compress
from kdbench_orthogonality.networks import SlimPlain
from kdbench_orthogonality.techniques import FakeQuantise, Int8, Prune, Structured, Technique, Untouched

ALL: list[Any] = [
    Untouched(),
    Prune(amount=0.5),
    FakeQuantise(bits=3),
    pytest.param(Structured(ratio=1 / 3), marks=needs_extra),
    pytest.param(Int8(training=False), marks=needs_extra),
]
QAT = pytest.param(Int8(training=True), marks=[needs_extra, pytest.mark.slow])


def named(technique: Technique) -> str:
    return technique.label


class Accompanied(CrossEntropy, frozen=True):
    """Asks for a network that trains along."""

    def follower(self, fresh: Fresh) -> Follower | None:
        fresh()
        return None


class Killed(BaseException):
    """What a kill is to the process that it ends."""


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


@needs_extra
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


def order_of(bench: Bench, node: Node) -> list[list[int]]:
    """Places of every batch, of a stage with a spy that nobody has run."""
    for parent in node.inputs.values():
        bench.run(parent)
    SEEN.clear()
    bench.run(node)
    assert SEEN
    return list(SEEN)


def test_every_technique_and_objective_sees_one_order_of_examples(bench: Bench) -> None:
    recipe = msgspec.structs.replace(RECIPE, ties="last")
    first = order_of(bench, bench.lab.train(STUDENT, seed=0, recipe=recipe, objective=Spy()))
    found = [
        order_of(bench, bench.compressed(technique, recipe, Spy()))
        for technique in (Untouched(), Prune(amount=0.3), FakeQuantise(bits=4))
    ]
    assert found[0] == found[1] == found[2] != first, "the first training had another order"
    again = [
        order_of(bench, bench.compressed(Prune(amount=0.6), recipe, Spy(), bench.compressed(before, NONE, objective)))
        for before, objective in ((Prune(amount=0.4), None), (FakeQuantise(bits=4), KD))
    ]
    assert again[0] == again[1], "after as many techniques, whichever they were"
    assert again[0] not in (found[0], first), "after one technique the order is another"


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


@needs_extra
def test_eight_bits_keep_what_was_pruned(bench: Bench) -> None:
    first = bench.compressed(Prune(amount=0.5))
    pruned = sum(int(mask.sum()) for mask in bench.run(first).tensors(MASKS).values())
    later = bench.run(bench.compressed(Int8(training=False), network=first))
    weights = [each for each in later.tensors(PROGRAM).values() if each.dtype == torch.int8]
    assert sum(int((weight == 0).sum()) for weight in weights) >= pruned
    assert MASKS not in later.record.files


@needs_extra
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


@needs_extra
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


@pytest.mark.parametrize("technique", ALL, ids=named)
def test_a_technique_says_which_library_it_needs_in_which_version(technique: Technique) -> None:
    packages = {"": "", "torch_pruning": "torch-pruning", "torchao": "torchao"}
    package = packages[technique.needs]
    assert technique.made_with == (f"{technique.needs} {version(package)}" if package else "")


def test_a_library_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(techniques, "version", absent)
    assert [each.made_with for each in (Structured(ratio=0.5), Int8(training=False), Prune(amount=0.5))] == [""] * 3


@needs_extra
def test_a_stage_planned_with_another_version_is_another_one_and_fails(bench: Bench) -> None:
    here = Structured(ratio=0.25)
    nodes = {}
    for made_with in ("", here.made_with, "torch_pruning 0.0"):
        stage = Compress(technique=here, recipe=NONE, made_with=made_with)
        nodes[made_with] = bench.lab.stage(stage, seed=0, label=made_with, inputs={"network": bench.student})
    assert len({node.spec.hash for node in nodes.values()}) == 3
    other = nodes.pop("torch_pruning 0.0")
    message = re.escape(f"planned with torch_pruning 0.0, and here is {here.made_with}")
    with pytest.raises(StageError, match=message) as caught:
        bench.run(other)
    assert (caught.value.where, caught.value.cure) == (
        other.spec.label,
        "plan and run in one environment: reproduce again",
    )
    assert read_record(bench.store.stages / other.spec.hash) is None
    one, two = (bench.run(node) for node in nodes.values())
    assert same(one.tensors(WEIGHTS), two.tensors(WEIGHTS))


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


@contextmanager
def killing() -> Iterator[None]:
    """Within, a process ends with its first resumable state."""
    save = Work.save_state

    def save_and_end(work: Work, state: Any) -> None:
        save(work, state)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "STATE_EVERY", 0.0)
        patch.setattr(Work, "save_state", save_and_end)
        yield


@pytest.mark.parametrize("technique", [*ALL, QAT], ids=named)
def test_killed_and_resumed_ends_as_if_undisturbed(bench: Bench, technique: Technique, tmp_path: Path) -> None:
    node = bench.compressed(technique, objective=KD)
    for parent in node.inputs.values():
        bench.run(parent)
    folder = bench.store.prepare(node.spec)
    elsewhere = Store(tmp_path)
    elsewhere.stages.mkdir()
    for parent in node.inputs.values():
        (elsewhere.stages / parent.spec.hash).symlink_to(bench.store.stages / parent.spec.hash)
    other = elsewhere.prepare(node.spec)
    with killing(), pytest.raises(Killed):
        execute(other)
    assert read_record(other) is None
    epoch = torch.load(other / "state.pt", weights_only=True)["epoch"]
    assert epoch == 1
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
