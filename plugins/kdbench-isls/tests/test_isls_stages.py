"""The stages run for real, on small networks that are trained here: against the same numbers computed by numpy."""

from __future__ import annotations

import os
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from numpy.typing import NDArray

from kdbench.component import load_object, pack, unpack
from kdbench.data import DataRef, dataset
from kdbench.errors import KdbenchError
from kdbench.networks import Plain
from kdbench.paper import Paper, Protocol
from kdbench.record import Record
from kdbench.stage import Finished, Stage, Work, execute, read_spec
from kdbench.stages.splits import splits_of
from kdbench.store import Store
from kdbench.study import Lab, Node
from kdbench.training import SGD, Recipe
from kdbench.training.evaluate import predict
from kdbench_isls.calibration import fit_temperature
from kdbench_isls.dispersion import diversity
from kdbench_isls.stages import Calibrate, TeacherStatistics

SMALL, LARGE = Plain(size=2, width=0.5), Plain(size=4, width=0.5)
RECIPE = Recipe(epochs=2, optimizer=SGD(lr=0.05), statistics="none", holdout=0.1, label_noise=0.2)
ROLES = {"CE": SMALL, "SD-T1.5-g1": LARGE}


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
        self.nets = {role: self.lab.train(net, seed=0, recipe=RECIPE) for role, net in ROLES.items()}

    def run(self, node: Node) -> Finished:
        for parent in node.inputs.values():
            self.run(parent)
        folder = self.store.prepare(node.spec)
        execute(folder)
        return Finished(folder)

    def measured(self, stage: Stage) -> Record:
        return self.run(self.lab.stage(stage, seed=0, label="measure", inputs=self.nets)).record

    def logits(self, role: str, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """What a network answers on a split, and the split's labels, noise and all."""
        finished = self.run(self.nets[role])
        work = Work(finished.folder, read_spec(finished.folder))
        part = splits_of(work, RECIPE.holdout, RECIPE.label_noise)[split]
        return predict(finished.model(work), part.inputs).double().numpy(), part.labels.numpy()

    def labels(self, split: str, label_noise: float) -> NDArray[np.int64]:
        """The labels of a split at another level of noise."""
        folder = self.run(self.nets["CE"]).folder
        found: NDArray[np.int64] = splits_of(Work(folder, read_spec(folder)), RECIPE.holdout, label_noise)[
            split
        ].labels.numpy()
        return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def calibrated(bench: Bench) -> Record:
    return bench.measured(Calibrate(holdout=0.1, label_noise=0.2))


@pytest.fixture(scope="module")
def spread(bench: Bench) -> Record:
    return bench.measured(TeacherStatistics(temperature=4.0, holdout=0.1, label_noise=0.2))


def nll(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> float:
    log_p = scipy.special.log_softmax(logits / temperature, axis=1)
    return float(-log_p[np.arange(len(labels)), labels].mean())


def binned(
    logits: NDArray[np.float64], labels: NDArray[np.int64], bins: int, temperature: float = 1.0
) -> tuple[float, dict[str, list[float]]]:
    """The released rule: percent, and the sums of every bin."""
    p = scipy.special.softmax(logits / temperature, axis=1)
    confidence, correct = p.max(1), p.argmax(1) == labels
    edges = np.linspace(0, 1, bins + 1)
    inside = [(confidence > low) & (confidence <= high) for low, high in pairwise(edges)]
    gaps = [abs(confidence[each].sum() - correct[each].sum()) for each in inside]
    sums = {
        "count": [float(each.sum()) for each in inside],
        "confidence": [float(confidence[each].sum()) for each in inside],
        "correct": [float(correct[each].sum()) for each in inside],
    }
    return 100 * sum(gaps) / len(labels), sums


@pytest.mark.parametrize("role", ROLES)
def test_calibration_leaves_the_numbers_of_the_test_split(bench: Bench, calibrated: Record, role: str) -> None:
    test, validation = bench.logits(role, "test"), bench.logits(role, "validation")
    found = {name.removesuffix(f".{role}"): value for name, value in calibrated.metrics.items() if name.endswith(role)}
    temperature = found["temperature"]
    tensors = [torch.from_numpy(each) for each in validation]
    assert temperature == pytest.approx(fit_temperature(*tensors).temperature, rel=1e-6)
    for other in (0.98, 1.02):
        assert nll(*validation, temperature) < nll(*validation, other * temperature)
    assert found == {
        "temperature": temperature,
        "test.accuracy": pytest.approx(100 * (test[0].argmax(1) == test[1]).mean()),
        "test.nll": pytest.approx(nll(*test, 1.0), rel=1e-9),
        "test.ece": pytest.approx(binned(*test, 15)[0], abs=1e-9),
        "test.ece20": pytest.approx(binned(*test, 20)[0], abs=1e-9),
        "test.scaled-nll": pytest.approx(nll(*test, temperature), rel=1e-9),
        "test.scaled-ece": pytest.approx(binned(*test, 15, temperature)[0], abs=1e-9),
    }


@pytest.mark.parametrize("role", ROLES)
def test_calibration_keeps_the_reliability_diagram(bench: Bench, calibrated: Record, role: str) -> None:
    _, sums = binned(*bench.logits(role, "test"), 15)
    for name, expected in sums.items():
        assert calibrated.curves[f"test.reliability.{role}.{name}"] == pytest.approx(expected, abs=1e-9)
    assert sum(calibrated.curves[f"test.reliability.{role}.count"]) == bench.lab.data.sizes["test"]
    assert len(calibrated.curves) == 3 * len(ROLES)


def test_calibration_agrees_with_the_record_of_the_training(bench: Bench, calibrated: Record) -> None:
    for role, node in bench.nets.items():
        trained = bench.run(node).record
        assert calibrated.metrics[f"test.accuracy.{role}"] == trained.metrics["test.accuracy"]
        assert calibrated.metrics[f"test.nll.{role}"] == pytest.approx(trained.metrics["test.nll"], rel=1e-12)


def test_calibration_notes_how_it_was_measured(calibrated: Record) -> None:
    assert calibrated.notes == {
        "bins": [15, 20],
        "temperature at a bound": {},
        "torchmetrics": version("torchmetrics"),
    }


def test_a_fit_at_its_bound_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation labels that are what the network answers: no temperature is low enough."""
    split = splits_of

    def answered(work: Work, holdout: float, label_noise: float) -> dict[str, Any]:
        splits = split(work, holdout, label_noise)
        classes = predict(work.input("CE").model(work), splits["validation"].inputs).argmax(1)
        return {**splits, "validation": splits["validation"]._replace(labels=classes)}

    monkeypatch.setattr("kdbench_isls.stages.splits_of", answered)
    # Another holdout makes it another stage, whose record is not there yet.
    record = bench.measured(Calibrate(holdout=0.05, label_noise=0.2))
    assert record.notes["temperature at a bound"] == {"CE": "lower"}
    assert record.metrics["temperature.CE"] == pytest.approx(np.exp(-5))
    assert record.metrics["temperature.SD-T1.5-g1"] > 0.01


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1])
def test_calibration_without_a_validation_split_is_refused_in_words(holdout: float) -> None:
    with pytest.raises(KdbenchError, match="no validation split to fit a temperature on") as caught:
        Calibrate(holdout=holdout, label_noise=0.0)
    assert caught.value.where == "Calibrate"
    assert "hold out a share" in str(caught.value.cure)


def described(logits: NDArray[np.float64], labels: NDArray[np.int64], ending: str) -> dict[str, Any]:
    p = scipy.special.softmax(logits / 4.0, axis=1)
    confidence = p[np.arange(len(labels)), labels]
    expected = diversity(confidence, 5)
    return {
        f"train.uncertainty{ending}": pytest.approx(scipy.stats.entropy(p, axis=1).mean(), rel=1e-9),
        f"train.diversity{ending}": pytest.approx(expected.entropy, abs=1e-6),
        f"train.floored{ending}": expected.floored,
        f"train.variance{ending}": pytest.approx(confidence.var(), rel=1e-9),
        f"train.confidence{ending}": pytest.approx(confidence.mean(), rel=1e-9),
    }


@pytest.mark.parametrize("role", ROLES)
def test_teachers_are_measured_on_rightly_labelled_examples_and_on_all(bench: Bench, spread: Record, role: str) -> None:
    logits, labels = bench.logits(role, "train")
    right = labels == bench.labels("train", 0.0)
    assert (len(labels), right.sum()) == (3600, 2880)
    found = {name.removesuffix(f".{role}"): value for name, value in spread.metrics.items() if name.endswith(role)}
    assert found == described(logits[right], labels[right], "") | described(logits, labels, "-all")
    assert 0 < found["train.uncertainty"] < np.log(10)


def test_without_noise_every_example_is_rightly_labelled(bench: Bench) -> None:
    record = bench.measured(TeacherStatistics(temperature=4.0, holdout=0.1, label_noise=0.0))
    assert record.notes["rightly labelled"] == record.notes["examples"] == 3600
    for role in ROLES:
        for name in ("uncertainty", "diversity", "floored", "variance", "confidence"):
            assert record.metrics[f"train.{name}.{role}"] == record.metrics[f"train.{name}-all.{role}"]


def test_noise_and_temperature_make_a_teacher_another_one(bench: Bench, spread: Record) -> None:
    clean = bench.measured(TeacherStatistics(temperature=4.0, holdout=0.1, label_noise=0.0)).metrics
    sharp = bench.measured(TeacherStatistics(temperature=1.0, holdout=0.1, label_noise=0.2)).metrics
    noisy = spread.metrics
    for role in ROLES:
        # The networks learnt something: they give a replaced label less than the one it stands for.
        assert noisy[f"train.confidence-all.{role}"] < clean[f"train.confidence-all.{role}"]
        assert noisy[f"train.confidence-all.{role}"] < noisy[f"train.confidence.{role}"]
        assert noisy[f"train.uncertainty-all.{role}"] == clean[f"train.uncertainty.{role}"], "this is not about labels"
        assert sharp[f"train.uncertainty.{role}"] < noisy[f"train.uncertainty.{role}"]


def test_neighbours_are_those_asked_for(bench: Bench, spread: Record) -> None:
    stage = TeacherStatistics(temperature=4.0, holdout=0.1, label_noise=0.2, neighbours=50)
    record = bench.measured(stage)
    assert record.metrics["train.diversity.CE"] != spread.metrics["train.diversity.CE"]
    assert record.metrics["train.diversity.CE"] == pytest.approx(spread.metrics["train.diversity.CE"], abs=0.1)
    assert record.notes == {"distance floor": 1e-10, "examples": 3600, "rightly labelled": 2880}


def test_what_no_teacher_can_be_measured_at_is_refused() -> None:
    with pytest.raises(KdbenchError, match=r"temperature 0\.0 is not a positive number"):
        TeacherStatistics(temperature=0.0, holdout=0.1, label_noise=0.0)
    with pytest.raises(KdbenchError, match="0 neighbours are none"):
        TeacherStatistics(temperature=1.0, holdout=0.1, label_noise=0.0, neighbours=0)


STAGES = [
    Calibrate(holdout=0.25, label_noise=0.2),
    TeacherStatistics(temperature=1.5, holdout=0.25, label_noise=0.2),
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_stages_travel_and_every_field_counts(stage: Stage) -> None:
    assert unpack(pack(stage)) == stage
    for field in stage.__struct_fields__:
        other = msgspec.structs.replace(stage, **{field: getattr(stage, field) * 2})
        assert pack(other) != pack(stage), field


def test_effort_is_one_forward_pass_of_every_network(bench: Bench) -> None:
    macs = sum(net.cost((1, 1, 40), 10).macs for net in ROLES.values())
    calibrate, statistics = (stage.effort(bench.lab.data, ROLES) for stage in STAGES)
    sizes = bench.lab.data.sizes
    assert calibrate == (0, macs * (sizes["train"] / 4 + sizes["test"]))
    assert statistics == (0, macs * sizes["train"] * 3 / 4)
    assert STAGES[0].effort(bench.lab.data, {}) == (0, 0.0)
