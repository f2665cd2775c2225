"""The stages run for real, on small networks that are trained here on sets of their own: against numpy and by hand."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import scipy.special
from numpy.typing import NDArray
from orth_bench import Workshop

from kdbench.component import pack, unpack
from kdbench.errors import StageError
from kdbench.networks import Plain
from kdbench.record import Record
from kdbench.stage import PREDICTIONS, Work, read_spec
from kdbench.stages.splits import splits_of
from kdbench.study import Node
from kdbench.training import SGD, Distillation, LabelSmoothing, Recipe
from kdbench.training.evaluate import predict
from kdbench.training.recipe import Sample
from kdbench_orthogonality import stages
from kdbench_orthogonality.decomposition import decompose
from kdbench_orthogonality.stages import Decompose, DecomposeMatched, matching_temperature

NET = Plain(size=2, width=0.5)
MEMBERS = 3
EPSILON = 0.5
RECIPE = Recipe(epochs=3, optimizer=SGD(lr=0.1), batch_size=32, statistics="none", holdout=0.2)


def recipe(member: int, holdout: float = RECIPE.holdout) -> Recipe:
    """Of a training set of its own."""
    return msgspec.structs.replace(RECIPE, sample=Sample(size=600, number=member), holdout=holdout)


class Bench(Workshop):
    """Plain networks of training sets of their own."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.plain = [self.lab.train(NET, seed=0, recipe=recipe(member)) for member in range(MEMBERS)]

    def smoothed(self, member: int) -> Node:
        goal = LabelSmoothing(epsilon=EPSILON, over="all")
        return self.lab.train(NET, seed=0, recipe=recipe(member), objective=goal)

    def distilled(self, member: int) -> Node:
        goal = Distillation(temperature=4.0, alpha=0.9)
        return self.lab.distil(NET, self.plain[member], seed=0, recipe=recipe(member), objective=goal)

    def decomposed(self, members: list[Node]) -> Node:
        return self.lab.stage(Decompose(), seed=0, label="decompose", inputs=numbered(members))

    def matched(self, members: list[Node], targets: list[Node]) -> Node:
        inputs = {**numbered(members), **numbered(targets, "target")}
        return self.lab.stage(DecomposeMatched(), seed=0, label="match", inputs=inputs)

    def probabilities(self, node: Node, split: str, member: int = 0, temperature: float = 1.0) -> NDArray[np.float64]:
        finished = self.run(node)
        work = Work(finished.folder, read_spec(finished.folder))
        part = splits_of(work, RECIPE.holdout, sample=recipe(member).sample)[split]
        logits = predict(finished.model(work), part.inputs).double().numpy()
        p: NDArray[np.float64] = scipy.special.softmax(logits / temperature, 1)
        return p

    def confidence(self, node: Node, member: int = 0, temperature: float = 1.0) -> float:
        return float(self.probabilities(node, "validation", member, temperature).max(1).mean())


def numbered(nodes: list[Node], prefix: str = "") -> dict[str, Node]:
    return {f"{prefix}{number}": node for number, node in enumerate(nodes)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def decomposed(bench: Bench) -> Record:
    return bench.run(bench.decomposed(bench.plain)).record


@pytest.fixture(scope="module")
def smoothed(bench: Bench) -> list[Node]:
    return [bench.smoothed(member) for member in range(MEMBERS)]


@pytest.fixture(scope="module")
def distilled(bench: Bench) -> list[Node]:
    return [bench.distilled(member) for member in range(MEMBERS)]


@pytest.fixture(scope="module")
def matched(bench: Bench, smoothed: list[Node], distilled: list[Node]) -> Record:
    return bench.run(bench.matched(smoothed, distilled)).record


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
    turned = bench.run(bench.decomposed(bench.plain[::-1])).record
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


# ---------------------------------------------------------------------------------------------------- DecomposeMatched


def mean_confidence(bench: Bench, nodes: list[Node], temperature: float = 1.0) -> float:
    """Each on the validation split of its own training set."""
    return float(np.mean([bench.confidence(node, member, temperature) for member, node in enumerate(nodes)]))


def test_one_temperature_makes_networks_as_sure_as_the_targets(
    bench: Bench, smoothed: list[Node], distilled: list[Node], matched: Record
) -> None:
    before, target = mean_confidence(bench, smoothed), mean_confidence(bench, distilled)
    assert abs(before - target) > 0.01, "there is something to match"
    temperature = matched.metrics["temperature"]
    assert (temperature < 1) == (before < target)
    assert matched.metrics["validation.target-confidence"] == pytest.approx(target, rel=1e-12)
    assert matched.metrics["validation.confidence"] == pytest.approx(target, abs=1e-9)
    assert mean_confidence(bench, smoothed, temperature) == pytest.approx(target, abs=1e-9)
    assert matched.notes["outside"] == ""
    # Another sample's validation split says something else: a network's own was asked.
    elsewhere = np.mean([bench.confidence(node, 0) for node in distilled])
    assert elsewhere != pytest.approx(target, rel=1e-6)


def test_what_is_decomposed_is_the_test_split_at_that_temperature(
    bench: Bench, smoothed: list[Node], matched: Record
) -> None:
    finished = bench.run(smoothed[0])
    test = Work(finished.folder, read_spec(finished.folder)).data()["test"]
    p = np.stack([bench.probabilities(node, "test", 0, matched.metrics["temperature"]) for node in smoothed])
    expected = decompose(p, test.labels.numpy())
    found = {name.removeprefix("test."): value for name, value in matched.metrics.items() if name.startswith("test.")}
    assert found == pytest.approx(
        {name.replace("_", "-"): value for name, value in expected._asdict().items()}, rel=1e-12
    )
    assert matched.notes == {"networks": MEMBERS, "examples": len(test.labels), "outside": ""}


def test_a_temperature_changes_probabilities_and_no_answer_of_a_network(
    bench: Bench, smoothed: list[Node], matched: Record
) -> None:
    as_they_are = bench.run(bench.decomposed(smoothed)).record
    assert as_they_are.metrics.keys() == matched.metrics.keys() - {
        "temperature",
        "validation.confidence",
        "validation.target-confidence",
    }
    for name in ("test.single", "test.disagreement"):
        assert matched.metrics[name] == as_they_are.metrics[name], name
    for name in ("test.bias", "test.variance", "test.confidence"):
        assert abs(matched.metrics[name] - as_they_are.metrics[name]) > 1e-4, name


def test_networks_matched_with_themselves_stay_as_they_are(bench: Bench, smoothed: list[Node]) -> None:
    found = bench.run(bench.matched(smoothed, smoothed)).record
    assert found.metrics["temperature"] == pytest.approx(1.0, abs=1e-9)
    as_they_are = bench.run(bench.decomposed(smoothed)).record
    assert {name: found.metrics[name] for name in as_they_are.metrics} == pytest.approx(as_they_are.metrics, rel=1e-7)


def test_the_number_of_targets_need_not_be_that_of_the_networks(
    bench: Bench, smoothed: list[Node], distilled: list[Node]
) -> None:
    found = bench.run(bench.matched(smoothed[:2], distilled[:1])).record
    target = bench.confidence(distilled[0], 0)
    assert found.metrics["validation.target-confidence"] == pytest.approx(target, rel=1e-12)
    assert found.notes["networks"] == 2
    assert mean_confidence(bench, smoothed[:2], found.metrics["temperature"]) == pytest.approx(target, abs=1e-9)


@pytest.mark.parametrize(("hardened", "word", "end"), [(True, "above", 0), (False, "below", 1)])
def test_the_nearest_end_is_taken_and_the_gap_is_seen_where_no_temperature_matches(
    bench: Bench, smoothed: list[Node], monkeypatch: pytest.MonkeyPatch, hardened: bool, word: str, end: int
) -> None:
    """On a narrow range: plain networks are surer than smoothed ones, and those less sure."""
    bounds = (-1e-3, 1e-3)
    monkeypatch.setattr(stages, "LOG_TEMPERATURES", bounds)
    first, second = (smoothed, bench.plain) if hardened else (bench.plain, smoothed)
    found = bench.run(bench.matched(first, second)).record
    assert found.notes["outside"] == word
    assert found.metrics["temperature"] == pytest.approx(np.exp(bounds[end]), rel=1e-12)
    target = mean_confidence(bench, second)
    assert found.metrics["validation.target-confidence"] == pytest.approx(target, rel=1e-12)
    reached = mean_confidence(bench, first, found.metrics["temperature"])
    assert found.metrics["validation.confidence"] == pytest.approx(reached, rel=1e-12)
    assert abs(reached - target) > 0.01


LOGITS = np.random.default_rng(0).normal(size=(2, 50, 4)) * 3


@pytest.mark.parametrize("wanted", [0.05, 0.3, 1.0, 2.0, 40.0])
def test_a_temperature_is_found_again(wanted: float) -> None:
    target = scipy.special.softmax(LOGITS / wanted, axis=2).max(2).mean()
    temperature, outside = matching_temperature(list(LOGITS), float(target))
    assert temperature == pytest.approx(wanted, rel=1e-6)
    assert outside == ""


@pytest.mark.parametrize(
    ("factor", "target", "expected"),
    [
        (1.0, 0.24, (np.exp(5.0), "below")),  # of four classes the largest probability is a quarter or more
        (0.001, 0.99, (np.exp(-5.0), "above")),
        (1000.0, 0.26, (np.exp(5.0), "below")),
    ],
)
def test_the_range_of_temperatures_ends(factor: float, target: float, expected: tuple[float, str]) -> None:
    temperature, outside = matching_temperature(list(LOGITS * factor), target)
    assert (pytest.approx(temperature, rel=1e-12), outside) == expected


def test_networks_weigh_the_same_however_many_examples_each_has() -> None:
    few, many = LOGITS[0, :5], LOGITS[1]
    temperature, _ = matching_temperature([few, many], 0.6)
    each = [scipy.special.softmax(logits / temperature, axis=1).max(1).mean() for logits in (few, many)]
    assert np.mean(each) == pytest.approx(0.6, abs=1e-9)


def test_a_network_without_a_validation_split_is_refused_in_words(bench: Bench, smoothed: list[Node]) -> None:
    blind = bench.lab.train(NET, seed=0, recipe=recipe(0, holdout=0.0))
    for members, targets in ((smoothed, [blind]), ([*smoothed[:2], blind], smoothed)):
        with pytest.raises(StageError, match="no validation split says how sure it is") as caught:
            bench.run(bench.matched(members, targets))
        assert "hold out a share" in str(caught.value.cure)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("0", "1"), "no network whose confidence is to be matched"),
        (("0", "1", "target"), "no network whose confidence is to be matched"),
        (("target0", "target1"), "0 networks have no variance"),
        (("0", "target0"), "1 networks have no variance"),
        (("0", "2", "target0"), "the inputs 0, 2 are not numbered 0, 1, ..."),
        (("0", "1", "target1"), "the inputs target1 are not numbered target0, target1, ..."),
    ],
)
def test_networks_that_cannot_be_matched_are_refused(bench: Bench, roles: tuple[str, ...], message: str) -> None:
    inputs = dict(zip(roles, bench.plain, strict=False))
    with pytest.raises(StageError, match=message) as caught:
        bench.run(bench.lab.stage(DecomposeMatched(), seed=0, label="match", inputs=inputs))
    assert caught.value.cure


# ----------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("stage", [Decompose(), DecomposeMatched()], ids=lambda stage: type(stage).__name__)
def test_stages_travel_and_cost_one_forward_pass(bench: Bench, stage: Decompose | DecomposeMatched) -> None:
    assert unpack(pack(stage)) == stage
    macs = NET.cost(bench.lab.data.input_shape, 10).macs
    effort = stage.effort(bench.lab.data, {"0": NET, "1": NET})
    assert effort == (0, 2 * macs * bench.lab.data.sizes["test"])
    assert stage.effort(bench.lab.data, {}) == (0, 0.0)


def test_targets_are_not_counted_as_tested(bench: Bench) -> None:
    two = {"0": NET, "1": NET}
    effort = DecomposeMatched().effort(bench.lab.data, {**two, "target0": NET})
    assert effort == Decompose().effort(bench.lab.data, two)
