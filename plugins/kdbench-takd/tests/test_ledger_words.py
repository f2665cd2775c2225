"""The ledger's words against the recipe that a run trains by, at every tier, reading, data set and family."""

from __future__ import annotations

import re
from itertools import pairwise, product
from typing import Any

import pytest

from kdbench.api import prepare
from kdbench.data import dataset as data_set
from kdbench.paper import PROTOCOLS, TIERS, Paper
from kdbench.training import Constant, OneCycle
from kdbench_takd.recipes import RELEASED_GRID, RELEASED_SEEDS, Method, method

# ResNets run at tier full and on images alone.
RUNS = [
    (tier, protocol, dataset, family)
    for tier, protocol, dataset, family in product(
        TIERS, PROTOCOLS, ("mnist1d", "cifar10", "cifar100"), ("cnn", "resnet")
    )
    if family == "cnn" or (tier == "full" and dataset != "mnist1d")
]


class Run:
    """One kind of run: what the ledger says of it, and the method that it trains by."""

    def __init__(self, paper: Paper, tier: str, protocol: str, dataset: str, family: Any) -> None:
        self.tier, self.protocol, self.dataset, self.family = tier, protocol, dataset, family
        self.method: Method = method(protocol=protocol, tier=tier, dataset=dataset, family=family)
        axes = {"dataset": (dataset,), "family": (family,)}
        self.says = {
            line.id: line.text(protocol)
            for line in paper.deviations
            if line.applies(protocol=protocol, tier=tier, dataset=dataset, axes=axes)
        }


@pytest.fixture(params=RUNS, ids="-".join)
def run(paper: Paper, request: pytest.FixtureRequest) -> Run:
    return Run(paper, *request.param)


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:e-\d+)?", text)]


def found(pattern: str, text: str) -> list[float]:
    """The numbers of the one place that the pattern finds."""
    (match,) = re.findall(pattern, text)
    return [float(part) for part in (match if isinstance(match, tuple) else (match,))]


def test_no_line_is_empty(run: Run) -> None:
    assert all(run.says.values())


def test_epochs(run: Run) -> None:
    (line,) = run.says.keys() & {"epochs", "scale-epochs", "scale-epochs-smoke"}
    text = run.says[line]
    if line == "scale-epochs":
        said = found(rf"(\d+) on {'MNIST-1D' if run.dataset == 'mnist1d' else 'CIFAR'}", text)[0]
    else:
        said = numbers(text)[0]
    assert said == run.method.recipe.epochs
    if run.tier != "full":
        assert not [name for name, other in run.says.items() if {150, 160} & set(numbers(other))]


def test_learning_rate(run: Run) -> None:
    recipe = run.method.recipe
    assert ("lr-plain" in run.says, "lr-resnet" in run.says) == (run.family == "cnn", run.family == "resnet")
    if run.family == "cnn":
        text = run.says["lr-plain"]
        assert numbers(text)[0] == recipe.optimizer.lr
        assert ("without decay" in text) is (recipe.schedule == Constant())
        assert ("one cycle" in text) is isinstance(recipe.schedule, OneCycle)
        return
    epochs = range(recipe.epochs)
    trace = [recipe.optimizer.lr * recipe.schedule.factor(e, e / recipe.epochs, recipe.epochs) for e in epochs]
    steps = [epoch for epoch, (before, after) in enumerate(pairwise(trace), 1) if after != before]
    run_as = run.says["lr-resnet"].partition("; meant")[0]  # the released line goes on with what was meant
    assert [n for n in numbers(run_as) if n < 1] == pytest.approx([trace[0], *(trace[step] for step in steps)])
    assert [int(n) for n in re.findall(r"epoch (\d+)", run_as)] == steps


def test_schedule_of_the_clean_plain_nets(run: Run) -> None:
    recipe = run.method.recipe
    assert ("scale-schedule" in run.says) is isinstance(recipe.schedule, OneCycle)
    if isinstance(recipe.schedule, OneCycle):
        text = run.says["scale-schedule"]
        peak, share = found(r"peak (\.\d+) after (\d+) %", text)
        assert (peak, share) == (recipe.optimizer.lr, 100 * recipe.schedule.warmup)
        assert found(r"momentum (\.\d), weight decay (\S+),", text) == [
            recipe.optimizer.momentum,
            recipe.optimizer.weight_decay,
        ]
        # The same wherever it was not tuned, and it says so.
        assert (
            recipe.optimizer.lr
            == method(protocol="clean", tier="laptop", dataset="mnist1d", family="cnn").recipe.optimizer.lr
        )
        assert "kept for CIFAR and for every tier without tuning it there" in text


def test_optimizer_and_weight_decay(run: Run) -> None:
    sgd = run.method.recipe.optimizer
    assert ("no Nesterov" not in run.says["optimizer"]) is sgd.nesterov
    assert found(r"momentum (\.\d)", run.says["optimizer"]) == [sgd.momentum]
    text = run.says["weight-decay"]
    decay, nets = text.split(", ")
    assert nets in ("all nets", "ResNets only")
    assert sgd.weight_decay == (0.0 if nets == "ResNets only" and run.family == "cnn" else float(decay))


def test_batch_and_inputs(run: Run) -> None:
    recipe = run.method.recipe
    assert numbers(run.says["batch"])[0] == recipe.batch_size
    assert ("preprocessing" in run.says) is (recipe.statistics != "none") is (run.dataset != "mnist1d")
    if "preprocessing" in run.says:
        text = run.says["preprocessing"]
        if recipe.statistics == "data":
            assert "of the training images" in text
        elif run.protocol == "written":
            mean, deviation = found(r"\(x - (\.\d)\) / (\.\d)", text)
            assert recipe.statistics == (mean,) * 3 + (deviation,) * 3
        else:
            listed = re.findall(r"(\.\d+)/(\.\d+)/(\.\d+)", text)
            assert recipe.statistics == tuple(float(n) for triple in listed for n in triple)


def test_augmentation(run: Run) -> None:
    name = "augmentation" if run.family == "resnet" else "augmentation-plain"
    assert run.says.keys() & {"augmentation", "augmentation-plain"} == ({name} if run.dataset != "mnist1d" else set())
    augmentation = run.method.recipe.augmentation
    if run.dataset == "mnist1d":
        assert augmentation == "none"
    else:
        assert run.says[name].startswith({"none": "none", "crop-flip": "crop with padding 4 and flip"}[augmentation])


def test_loss(run: Run) -> None:
    (reduction,) = {trial.objective.reduction for trial in (*run.method.trials, *run.method.blkd_trials)}
    assert ("'mean'" in run.says["kd-loss"]) is (reduction == "mean")
    assert ("batch only" in run.says["kd-loss"]) is (run.protocol == "clean")


def test_selection_and_split(run: Run) -> None:
    recipe, text = run.method.recipe, run.says["reported"]
    assert ("last epoch" in text) is (recipe.selection == "last")
    assert ("held out" in text) is (recipe.holdout > 0) is (run.method.chosen_on == "validation")
    if recipe.holdout:
        size = data_set(run.dataset).sizes["train"]
        assert f"{recipe.holdout * size:,.0f} of {size:,}" in text
    else:
        assert recipe.selection == run.method.chosen_on == "test"
        assert "test" in text


@pytest.mark.parametrize("tier", TIERS)
def test_default_seeds(paper: Paper, tier: str) -> None:
    text = Run(paper, tier, "clean", "mnist1d", "cnn").says["seeds"]
    default, smoke = found(r"\((\d) by default, (\d) at smoke\)", text)
    request = prepare("takd", tier=tier, dataset="mnist1d", claims="H11", device="cpu").request
    assert len(request.seeds) == (smoke if tier == "smoke" else default)


def test_width(run: Run) -> None:
    assert ("scale-network" in run.says) is (run.method.width != 1)
    if run.method.width != 1:
        assert "half width" in run.says["scale-network"]
        assert run.method.width == 0.5


def test_one_trial_at_the_cheap_tiers_and_a_search_at_full(run: Run) -> None:
    m = run.method
    assert ("scale-trials" in run.says, "scale-search" in run.says) == (run.tier != "full", run.tier == "full")
    assert (run.says.keys() & {"idle-trials", "tuned-stages"} == set()) is (len(m.trials) == 1) is (run.tier != "full")
    first = m.trials[0].objective
    if run.tier != "full":
        text = run.says["scale-trials"]
        assert text.startswith("one a stage")
        assert found(r"temperature (\d) and lambda (\.\d)", text) == [first.temperature, first.alpha]
        assert len(m.trials) == len(m.blkd_trials) == m.restarts == m.nokd_restarts == 1
        return
    published, clean = run.says["scale-search"].split("; clean: ")
    if run.protocol == "clean":
        assert found(r"^(\d+) settings a stage", clean) == [len(m.trials)]
        weights, temperatures = found(r"lambda (\.\d) or (\.\d)", clean), found(r"ture (\d) or (\d)", clean)
        settings = {(t.objective.alpha, t.objective.temperature) for t in m.trials}
        assert settings == set(product(weights, temperatures))
        assert found(r"and (\d) restarts .* both doubled to (\d) for BLKD and NOKD", clean) == [
            m.restarts,
            len(m.blkd_trials),
        ]
    else:
        assert found(r"\((\.\d), (\d)\)", published) == [first.alpha, first.temperature]
        drawn, space = found(r"(\d+) of the (\d+) drawn", published)
        assert (drawn, space) == (len(m.trials) - 1, len(RELEASED_GRID) * RELEASED_SEEDS)
        assert found(r"and (\d) restarts", published) == [m.restarts]


@pytest.mark.parametrize(("protocol", "family"), list(product(PROTOCOLS, ("cnn", "resnet"))))
def test_budgets_of_the_arms_at_full(paper: Paper, protocol: str, family: str) -> None:
    run = Run(paper, "full", protocol, "cifar100", family)
    m, idle, stages = run.method, run.says["idle-trials"], run.says["tuned-stages"]
    direct, takd = len(m.blkd_trials), 2 * len(m.trials)
    if protocol == "clean":
        assert found(r"^(\d) restarts, .* (\d) for NOKD of Table 1", idle) == [m.restarts, m.nokd_restarts]
        assert found(r"^(\d) trials for NOKD and BLKD of Table 1, .* a stage has (\d)", stages) == [
            direct,
            len(m.trials),
        ]
        assert direct == m.nokd_restarts == takd
    else:
        assert found(r"(\d) (?:distinct ones|restarts) are run", idle) == [m.restarts]
        assert set(numbers(stages)) == {direct, takd}
        assert m.nokd_restarts == m.restarts
        assert m.blkd_trials == m.trials
