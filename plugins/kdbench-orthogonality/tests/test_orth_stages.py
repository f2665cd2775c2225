"""The stages run for real, on small networks that are trained here on sets of their own: against numpy and by hand."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
import scipy.special
from numpy.typing import NDArray

from kdbench.component import load_object, pack, unpack
from kdbench.data import DataRef, dataset
from kdbench.errors import StageError
from kdbench.networks import Plain
from kdbench.paper import Paper, Protocol
from kdbench.record import Record
from kdbench.stage import PREDICTIONS, WEIGHTS, Finished, Work, execute, read_spec
from kdbench.stages.splits import splits_of
from kdbench.store import Store
from kdbench.study import Lab, Node
from kdbench.training import SGD, Distillation, LabelSmoothing, Objective, Recipe
from kdbench.training.evaluate import predict
from kdbench.training.recipe import Sample
from kdbench_orthogonality.decomposition import decompose
from kdbench_orthogonality.stages import Decompose, MatchConfidence

NET = Plain(size=2, width=0.5)
MEMBERS = 3
EPSILONS = (0.1, 0.5, 0.9)
RECIPE = Recipe(epochs=3, optimizer=SGD(lr=0.1), batch_size=32, statistics="none", holdout=0.2)


def recipe(member: int, holdout: float = RECIPE.holdout) -> Recipe:
    """Of a training set of its own."""
    return msgspec.structs.replace(RECIPE, sample=Sample(size=600, number=member), holdout=holdout)


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
        self.plain = [self.lab.train(NET, seed=0, recipe=recipe(member)) for member in range(MEMBERS)]

    def run(self, node: Node) -> Finished:
        for parent in node.inputs.values():
            self.run(parent)
        folder = self.store.prepare(node.spec)
        execute(folder)
        return Finished(folder)

    def smoothed(self, member: int) -> list[Node]:
        """Trials that are smoothed more and more, on one training set."""
        goals: list[Objective] = [LabelSmoothing(epsilon=epsilon, over="all") for epsilon in EPSILONS]
        return [self.lab.train(NET, seed=0, recipe=recipe(member), objective=goal) for goal in goals]

    def distilled(self, member: int) -> Node:
        goal = Distillation(temperature=4.0, alpha=0.9)
        return self.lab.distil(NET, self.plain[member], seed=0, recipe=recipe(member), objective=goal)

    def matched(self, trials: list[Node], targets: list[Node]) -> Node:
        names = ["target"] if len(targets) == 1 else [f"target{number}" for number in range(len(targets))]
        inputs = {**numbered(trials), **dict(zip(names, targets, strict=True))}
        return self.lab.stage(MatchConfidence(), seed=0, label="match", inputs=inputs, network=NET)

    def probabilities(self, node: Node, split: str, member: int = 0) -> NDArray[np.float64]:
        finished = self.run(node)
        work = Work(finished.folder, read_spec(finished.folder))
        part = splits_of(work, RECIPE.holdout, sample=recipe(member).sample)[split]
        p: NDArray[np.float64] = scipy.special.softmax(predict(finished.model(work), part.inputs).double().numpy(), 1)
        return p

    def confidence(self, node: Node, member: int = 0) -> float:
        return float(self.probabilities(node, "validation", member).max(1).mean())


def numbered(nodes: list[Node]) -> dict[str, Node]:
    return {str(number): node for number, node in enumerate(nodes)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def decomposed(bench: Bench) -> Record:
    inputs = numbered(bench.plain)
    return bench.run(bench.lab.stage(Decompose(), seed=0, label="decompose", inputs=inputs)).record


# ----------------------------------------------------------------------------------------------------------- Decompose


def test_a_decomposition_leaves_the_numbers_of_the_test_split(bench: Bench, decomposed: Record) -> None:
    finished = bench.run(bench.plain[0])
    test = Work(finished.folder, read_spec(finished.folder)).data()["test"]
    p = np.stack([bench.probabilities(node, "test") for node in bench.plain])
    expected = decompose(p, test.labels.numpy())
    assert decomposed.metrics == {
        "test.total": pytest.approx(expected.total, rel=1e-12),
        "test.bias": pytest.approx(expected.bias, rel=1e-12),
        "test.variance": pytest.approx(expected.variance, rel=1e-12),
        "test.plain-bias": pytest.approx(expected.plain_bias, rel=1e-12),
        "test.plain-variance": pytest.approx(expected.plain_variance, rel=1e-12),
        "test.single": expected.single,
        "test.ensemble": expected.ensemble,
        "test.gain": expected.gain,
        "test.disagreement": expected.disagreement,
        "test.confidence": pytest.approx(expected.confidence, rel=1e-12),
    }
    assert decomposed.notes == {"networks": MEMBERS, "examples": len(test.labels)}


def test_a_decomposition_agrees_with_the_records_of_the_training(bench: Bench, decomposed: Record) -> None:
    records = [bench.run(node).record for node in bench.plain]
    accuracies = [record.metrics["test.accuracy"] for record in records]
    assert len(set(accuracies)) == MEMBERS, "networks of different training sets differ"
    assert decomposed.metrics["test.single"] == pytest.approx(np.mean(accuracies), rel=1e-12)
    answers = [finished.arrays(PREDICTIONS)["classes"] for finished in map(bench.run, bench.plain)]
    differ = [(answers[a] != answers[b]).mean() for a in range(MEMBERS) for b in range(a)]
    assert decomposed.metrics["test.disagreement"] == pytest.approx(np.mean(differ), rel=1e-12)
    assert decomposed.metrics["test.variance"] > 0.01


def test_the_order_of_the_networks_changes_nothing_but_rounding(bench: Bench, decomposed: Record) -> None:
    inputs = numbered(bench.plain[::-1])
    turned = bench.run(bench.lab.stage(Decompose(), seed=0, label="decompose", inputs=inputs)).record
    assert turned.hash != decomposed.hash
    assert turned.metrics == pytest.approx(decomposed.metrics, rel=1e-12)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("0",), "1 networks have no variance"),
        ((), "0 networks have no variance"),
        (("0", "2"), "the inputs 0, 2 are not numbered"),
        (("1", "2"), "the inputs 1, 2 are not numbered"),
    ],
)
def test_networks_that_cannot_be_decomposed_are_refused(bench: Bench, roles: tuple[str, ...], message: str) -> None:
    inputs = dict(zip(roles, bench.plain, strict=False))
    with pytest.raises(StageError, match=message) as caught:
        bench.run(bench.lab.stage(Decompose(), seed=0, label="decompose", inputs=inputs))
    assert caught.value.where == "decompose seed 0"
    assert caught.value.cure


# ----------------------------------------------------------------------------------------------------- MatchConfidence


def test_smoothing_makes_networks_less_sure(bench: Bench) -> None:
    """What the trials are made for: their confidences span a range."""
    found = [bench.confidence(node) for node in bench.smoothed(0)]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 0.05


@pytest.mark.parametrize("wanted", range(len(EPSILONS)))
def test_the_trial_nearest_in_confidence_is_kept(bench: Bench, wanted: int) -> None:
    """The target is another trial of the same smoothing, or lies between two: computed here by numpy."""
    trials = bench.smoothed(0)
    confidences = [bench.confidence(trial) for trial in trials]
    node = bench.matched(trials, [trials[wanted]])
    found = bench.run(node)
    original = bench.run(trials[wanted])
    assert found.record.metrics == {
        **original.record.metrics,
        "validation.confidence": pytest.approx(confidences[wanted], rel=1e-12),
        "validation.target-confidence": pytest.approx(confidences[wanted], rel=1e-12),
    }
    assert found.record.notes == {
        **original.record.notes,
        "chosen": wanted,
        "chosen_label": original.record.label,
        "confidences": pytest.approx(confidences, rel=1e-12),
        "outside": "",
    }
    for name in (WEIGHTS, PREDICTIONS):
        assert found.record.files[name] == original.record.files[name]


def test_targets_are_averaged_each_on_the_validation_split_of_its_own_recipe(bench: Bench) -> None:
    targets = [bench.distilled(member) for member in range(MEMBERS)]
    found = bench.run(bench.matched(bench.smoothed(1), targets)).record
    expected = [bench.confidence(node, member) for member, node in enumerate(targets)]
    assert len(set(expected)) == MEMBERS
    assert found.metrics["validation.target-confidence"] == pytest.approx(np.mean(expected), rel=1e-12)
    trials = [bench.confidence(node, 1) for node in bench.smoothed(1)]
    assert found.notes["confidences"] == pytest.approx(trials, rel=1e-12)
    gaps = [abs(confidence - np.mean(expected)) for confidence in trials]
    assert found.notes["chosen"] == gaps.index(min(gaps))
    # Another sample's validation split says something else: theirs is what was asked.
    assert bench.confidence(targets[1], 0) != pytest.approx(expected[1], rel=1e-6)


def test_a_target_beyond_all_trials_is_named(bench: Bench) -> None:
    hard, middle, soft = bench.smoothed(0)
    assert bench.run(bench.matched([middle, soft], [hard])).record.notes["outside"] == "above"
    assert bench.run(bench.matched([hard, middle], [soft])).record.notes["outside"] == "below"


def test_the_first_of_equal_trials_is_kept(bench: Bench) -> None:
    hard, middle, _ = bench.smoothed(0)
    assert bench.run(bench.matched([middle, hard, hard], [hard])).record.notes["chosen"] == 1


def test_the_chosen_network_is_a_network_like_any_other(bench: Bench) -> None:
    """It may be decomposed with others, and teach."""
    node = bench.matched(bench.smoothed(0), [bench.distilled(0)])
    inputs = numbered([node, *bench.plain[1:]])
    record = bench.run(bench.lab.stage(Decompose(), seed=0, label="decompose", inputs=inputs)).record
    accuracies = [bench.run(each).record.metrics["test.accuracy"] for each in inputs.values()]
    assert record.metrics["test.single"] == pytest.approx(np.mean(accuracies), rel=1e-12)
    goal = Distillation(temperature=4.0, alpha=0.5)
    student = bench.run(bench.lab.distil(NET, node, seed=0, recipe=recipe(0), objective=goal)).record
    assert student.metrics["test.accuracy"] > 10


def test_a_network_without_a_validation_split_is_refused_in_words(bench: Bench) -> None:
    blind = bench.lab.train(NET, seed=0, recipe=recipe(0, holdout=0.0))
    with pytest.raises(StageError, match="no validation split says how sure it is") as caught:
        bench.run(bench.matched(bench.smoothed(0), [blind]))
    assert "hold out a share" in str(caught.value.cure)


@pytest.mark.parametrize("roles", [("0", "1"), ("target",)])
def test_trials_and_targets_are_both_needed(bench: Bench, roles: tuple[str, ...]) -> None:
    inputs = dict(zip(roles, bench.plain, strict=False))
    with pytest.raises(StageError, match="cannot be matched with") as caught:
        bench.run(bench.lab.stage(MatchConfidence(), seed=0, label="match", inputs=inputs))
    assert "target0" in str(caught.value.cure)


# ----------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("stage", [Decompose(), MatchConfidence()], ids=lambda stage: type(stage).__name__)
def test_stages_travel_and_cost_one_forward_pass(bench: Bench, stage: Decompose | MatchConfidence) -> None:
    assert unpack(pack(stage)) == stage
    macs = NET.cost(bench.lab.data.input_shape, 10).macs
    effort = stage.effort(bench.lab.data, {"0": NET, "1": NET})
    assert effort == (0, 2 * macs * bench.lab.data.sizes["test"])
    assert stage.effort(bench.lab.data, {}) == (0, 0.0)
