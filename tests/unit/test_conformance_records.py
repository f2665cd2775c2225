"""The conformance checks of data and records: silent about what is right, and each fault is named with its cure."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from toy_paper import RECIPE, STUDENT, toy_data, toy_lab, toy_paper

from kdbench.component import pack
from kdbench.data import DATASETS, Split, load
from kdbench.errors import KdbenchError
from kdbench.plan import build_plan
from kdbench.record import Environment, Record
from kdbench.stage import Stage
from kdbench.testing.checks import data, records
from kdbench.training import SGD, AdamW, Milestones, Objective, WarmupLinear

# ------------------------------------------------------------------------------------------------------------- data


def splits(**changes: Any) -> dict[str, Split]:
    inputs = torch.arange(16.0).reshape(8, 1, 1, 2)
    labels = torch.arange(8) % 2
    train, test = Split(inputs[:4], labels[:4]), Split(inputs[4:], labels[4:])
    return {"train": train, "test": test._replace(**changes)}


REF = msgspec.structs.replace(
    DATASETS["mnist1d"].expected(), input_shape=(1, 1, 2), num_classes=2, sizes={"train": 4, "test": 4}
)


def test_data_as_described_give_no_finding() -> None:
    assert data.undescribed(REF, splits()) == []
    assert data.changing(REF, REF) == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"labels": torch.tensor([0, 1, 2, 1])}, "wrong class count: the labels are 0 to 2, described are 2 classes"),
        ({"labels": torch.tensor([0, -1, 0, 1])}, "wrong class count: the labels are -1 to 1"),
        ({"labels": torch.tensor([0.0, 1.0, 0.0, 1.0])}, "labels are torch.float32; they must be int64"),
        ({"labels": torch.tensor([0, 1])}, "[2] labels for inputs of shape [4, 1, 1, 2]"),
        ({"inputs": torch.ones(4, 1, 1, 3)}, "inputs have the shape [1, 1, 3], described is [1, 1, 2]"),
        ({"inputs": torch.full((4, 1, 1, 2), torch.nan)}, "some inputs are not finite"),
        ({"inputs": torch.ones(4, 1, 1, 2).double()}, "inputs must be uint8 or float32, these are float64"),
        ({"inputs": torch.arange(8.0).reshape(4, 1, 1, 2) + 6}, "label leak: 1 of the 4 test inputs"),
    ],
)
def test_data_that_differ_from_their_description_are_named(changes: dict[str, torch.Tensor], finding: str) -> None:
    (found,) = data.undescribed(REF, splits(**changes))
    assert finding in found


def test_a_rare_class_may_be_missing_from_one_split_but_not_from_both() -> None:
    assert data.undescribed(REF, splits(labels=torch.zeros(4, dtype=torch.int64))) == []
    (found,) = data.undescribed(msgspec.structs.replace(REF, num_classes=3), splits())
    assert found.startswith("data set 'mnist1d': wrong class count: the labels are 0 to 1, described are 3 classes")


def test_a_missing_split_another_size_and_another_fingerprint_are_named() -> None:
    assert "has no split 'test'" in data.undescribed(REF, {"train": splits()["train"]})[0]
    larger = msgspec.structs.replace(REF, sizes={"train": 4, "test": 5})
    assert "test: 4 examples, described are 5" in data.undescribed(larger, splits())[0]
    other = msgspec.structs.replace(REF, fingerprint="0" * 64)
    assert "has the fingerprint not fetched, located again 000000000000;" in data.changing(REF, other)[0]


def test_chance_is_the_largest_class_and_five_deviations() -> None:
    labels = load(toy_data())["test"].labels
    share = max(labels.tolist().count(label) for label in range(10)) / 6_000
    assert data.chance(toy_data()) == pytest.approx(100 * (share + 5 * (share * (1 - share) / 6_000) ** 0.5))


# ---------------------------------------------------------------------------------------------------------- records


ENVIRONMENT = Environment(
    kdbench="", commit="", code="", python="", torch="", numpy="", platform="", processor="", cores=1, threads=1,
    device="cpu", ops="",
)  # fmt: skip


def record(**changes: Any) -> Record:
    whole: dict[str, Any] = {
        "hash": "h",
        "label": "imitate seed 0",
        "spec": {},
        "metrics": {"validation.accuracy": 50.0, "test.accuracy": 49.0},
        "curves": {"loss": [2.0, 1.0]},
        "notes": {},
        "files": {"weights.safetensors": "a" * 64},
        "environment": ENVIRONMENT,
        "seconds": 1.0,
        "finished": "",
    }
    return Record(**{**whole, **changes})


def test_records_that_differ_in_time_alone_are_equal() -> None:
    assert records.difference(record(), record(seconds=2.0, finished="later")) == ""


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"metrics": {"validation.accuracy": 51.0}}, "metric 'validation.accuracy' is 50.0, then 51.0"),
        ({"metrics": {"validation.accuracy": 50.0}}, "metric 'test.accuracy' is 49.0, then None"),
        ({"curves": {"loss": [2.0, 1.5]}}, "curve 'loss' has 1.0 at 1, then 1.5"),
        ({"curves": {"loss": [2.0]}}, "curve 'loss' is [2.0, 1.0], then [2.0]"),
        ({"notes": {"chosen": 1}}, "note 'chosen' is None, then 1"),
        (
            {"files": {"weights.safetensors": "b" * 64}},
            "file weights.safetensors has the SHA-256 aaaaaaaaaaaa, then bbb",
        ),
        ({"environment": msgspec.structs.replace(ENVIRONMENT, threads=2)}, "environment 'threads' is 1, then 2"),
        ({"label": "other"}, "field 'label' is 'imitate seed 0', then 'other'"),
    ],
)
def test_the_first_difference_of_two_records_is_named(changes: dict[str, Any], difference: str) -> None:
    other = record(**changes)
    assert records.difference(record(), other).startswith(difference)
    (found,) = records.differences("unseeded", {"h": record()}, {"h": other}, "seed it")
    assert found.startswith("unseeded: stage 'imitate seed 0': ")
    assert found.endswith("; seed it")


def test_a_record_that_is_missing_is_a_difference() -> None:
    (found,) = records.differences("kill and resume", {"h": record()}, {}, "save all")
    assert found == "kill and resume: stage 'imitate seed 0' left no second record; save all"


def test_only_numbers_about_the_test_split_may_change_with_it() -> None:
    once = {"h": record(metrics={"validation.accuracy": 50.0, "test.accuracy": 49.0, "gate.accuracy": 49.0})}
    fine = record(metrics={"validation.accuracy": 50.0, "test.accuracy": 9.0, "gate.accuracy": 9.0}, notes={"n": 1})
    assert records.leaks(once, {"h": fine}) == []
    assert records.leaks(once, {}) == []
    about = {"test_logits.safetensors": "b", "weights.safetensors": "a" * 64}
    named = record(
        metrics={"validation.accuracy": 50.0, "test_margin": 1.0}, curves={"loss": [2.0, 1.0], "test.nll": [1.0]}
    )
    assert records.leaks(once, {"h": msgspec.structs.replace(named, files=about)}) == []
    for changes, what in (
        ({"metrics": {"validation.accuracy": 50.0, "testimony": 1.0}}, "metric 'testimony' is None, then 1.0"),
        ({"metrics": {"validation.accuracy": 40.0}}, "metric 'validation.accuracy' is 50.0, then 40.0"),
        ({"curves": {"loss": [2.0, 0.0]}}, "curve 'loss' has 1.0 at 1, then 0.0"),
        ({"files": {"weights.safetensors": "b"}}, "file 'weights.safetensors' is 'aaa"),
    ):
        (found,) = records.leaks(once, {"h": record(**changes)})
        assert found.startswith("label leak: the test split reaches stage 'imitate seed 0': with other test data ")
        assert what in found


def test_what_an_optimiser_trains_must_not_change_with_the_test_split_either() -> None:
    once = {"h": record(files={})}
    assert records.leaks(once, once, {"h": "a"}, {"h": "a"}) == []
    (found,) = records.leaks(once, once, {"h": "a"}, {"h": "b"})
    assert "stage 'imitate seed 0': with other test data the weights that its optimiser trains are others" in found


def test_a_prediction_that_knows_permuted_labels_is_named() -> None:
    assert records.peeks({"h": record(metrics={"test.accuracy": 11.0}), "i": record(metrics={})}, 12.0) == []
    (found,) = records.peeks({"h": record(metrics={"test.accuracy": 100.0})}, 12.0)
    assert "stage 'imitate seed 0' reaches 100.0 % on a test split with permuted labels" in found


def test_a_slow_smoke_tier_names_its_longest_stage() -> None:
    both = {"h": record(seconds=10.0), "i": record(seconds=60.0, label="slow")}
    assert records.slow(both, 70.0) == []
    assert (
        "takes 70.0 s on one process, allowed are 60: the longest stage is 'slow' (60.0 s)" in records.slow(both, 60)[0]
    )


def test_a_learning_rate_without_effect_is_named() -> None:
    plan = build_plan(toy_lab(toy_paper()), "all")
    done = {key: record(hash=key, label=spec.label) for key, spec in plan.specs.items()}
    asked: list[tuple[str, Any]] = []

    def variant(key: str, change: Any) -> Record:
        asked.append((plan.specs[key].label, dict(change)))
        applied = len(asked) == 1
        return record(files={"weights.safetensors": "b" * 64}) if applied else record()

    (found,) = records.unused_rates(done, plan.specs, set(done), variant)
    assert len(asked) == 2  # one stage for each objective, not one for each network
    assert asked[0][1] == {("recipe", "optimizer", "lr"): 0.025}
    assert found.startswith(
        f"learning rate never applied: stage '{asked[1][0]}' leaves the same weights.safetensors at "
    )
    assert "recipe.optimizer.lr 0.05 and 0.025" in found
    assert records.unused_rates({}, plan.specs, set(done), variant) == []
    assert records.unused_rates(done, plan.specs, set(), variant) == []  # no optimiser made a step
    assert len(asked) == 2


def test_a_stage_that_fails_at_half_its_rate_is_named() -> None:
    plan = build_plan(toy_lab(toy_paper()), "all")

    def variant(key: str, change: Any) -> Record:
        raise KdbenchError("no such luck", where=plan.specs[key].label)

    done = {key: record() for key in plan.specs}
    found = records.unused_rates(done, plan.specs, set(done), variant)
    assert len(found) == 2
    assert "fails at half its learning rate (0.025): no such luck" in found[0]
    key, spec = next(iter(plan.specs.items()))
    other = msgspec.structs.replace(spec, stage=pack(Drops(rate=0.5)))
    # Some rate that cannot be halved, it seems, and not that of an optimiser.
    assert records.unused_rates({key: record()}, {key: other}, {key}, variant) == []


class Drops(Stage, frozen=True):
    """A stage whose rate may be that of its optimiser, or that of anything else."""

    rate: float
    lr: float = 0.0


class Sparse(Objective, frozen=True):
    """An objective with a rate that is no learning rate."""

    rate: float = 0.5


class Tries(Stage, frozen=True):
    """A stage with rates under other names."""

    objective: Objective = Sparse()
    eta: float = 0.1
    step_size: float = 0.0


@pytest.mark.parametrize(
    ("stage", "paths"),
    [
        (Drops(rate=0.5), [("rate",)]),
        (Drops(rate=0.5, lr=0.1), [("lr",)]),
        (Tries(), [("eta",)]),
        (Tries(eta=0.0), []),
        (Tries(eta=0.0, step_size=0.2), [("step_size",)]),
    ],
)
def test_learning_rates_have_several_names(stage: Stage, paths: list[tuple[str, ...]]) -> None:
    assert records.rate_paths(pack(stage)) == paths


def test_a_rate_off_its_schedule_is_named() -> None:
    lab = toy_lab(toy_paper())
    recipe = msgspec.structs.replace(RECIPE, epochs=4, optimizer=SGD(lr=0.1), schedule=Milestones(fractions=(0.5,)))
    spec = lab.train(STUDENT, seed=0, recipe=recipe).spec

    def found(*rates: float) -> list[str]:
        return records.schedules({"h": record(curves={"lr": list(rates)})}, {"h": spec})

    assert found(0.1, 0.1, 0.1 * 0.1, 0.1 * 0.1) == []
    assert "ran epoch 2 at 0.1, its recipe says 0.01 (Milestones, base 0.1)" in found(0.1, 0.1, 0.1, 0.01)[0]
    assert "ran 3 epochs, its recipe has 4" in found(0.1, 0.1, 0.01)[0]
    assert records.schedules({"h": record()}, {"h": spec}) == []


def test_every_optimisers_rate_is_held_against_its_schedule() -> None:
    lab = toy_lab(toy_paper())
    recipe = msgspec.structs.replace(
        RECIPE, epochs=4, optimizer=AdamW(lr=0.01), schedule=WarmupLinear(warmup=0.5), clip=1.0
    )
    spec = lab.train(STUDENT, seed=0, recipe=recipe).spec
    assert records.rate_paths(spec.stage) == [("recipe", "optimizer", "lr")]
    ran = [0.0, 0.005, 0.01, 0.005]
    assert records.schedules({"h": record(curves={"lr": ran})}, {"h": spec}) == []
    (found,) = records.schedules({"h": record(curves={"lr": [0.01] * 4})}, {"h": spec})
    assert "ran epoch 0 at 0.01, its recipe says 0 (WarmupLinear, base 0.01)" in found
