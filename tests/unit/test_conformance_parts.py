"""The conformance checks of losses and networks: silent about what is right, each fault named with its cure."""

from __future__ import annotations

from math import prod
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.nn import functional
from toy_paper import OBJECTIVE, STUDENT, TEACHER

from kdbench.data import DATASETS
from kdbench.losses import kl
from kdbench.networks.base import Cost, Network
from kdbench.paper import ParameterCount
from kdbench.testing.checks import networks, objectives
from kdbench.training import Distillation, Objective, ObjectiveInfo

# ------------------------------------------------------------------------------------------------------- objectives


class Own(Objective, frozen=True):
    """``T^2`` times the divergence; ``fault`` says what is wrong with it."""

    temperature: float = 3.0
    fault: str = ""

    def loss(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        if self.fault == "shape":
            raise IndexError("no such class")
        assert self.fault != "assert", "nothing of the kind"
        if self.fault == "bare":
            raise AssertionError
        student = functional.log_softmax(logits / self.temperature, dim=1)
        given = batch.teacher_logits if self.fault == "graph" else batch.teacher_logits.detach()
        teacher = functional.softmax(given / self.temperature, dim=1)
        divergence = functional.kl_div(student, teacher, reduction="batchmean")
        if self.fault == "mean":  # what torch's reduction of that name still does
            divergence = divergence / logits.shape[1]
        return divergence if self.fault == "power" else self.temperature**2 * divergence

    def reference(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        if self.fault == "circular":
            return self.loss(logits, batch)
        if self.fault == "fused":
            return kl(logits, batch.teacher_logits, temperature=self.temperature) * self.temperature**2
        student, teacher = ((x / self.temperature).softmax(1) for x in (logits, batch.teacher_logits.detach()))
        return self.temperature**2 * (teacher * (teacher / student).log()).sum(1).mean()


class Bare(Objective, frozen=True):
    """Has no reference."""

    def loss(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(logits, batch.labels)


@pytest.mark.parametrize("objective", [OBJECTIVE, Own(), Distillation(temperature=2.0, alpha=0.5, reduction="mean")])
def test_a_faithful_objective_gives_no_finding(objective: Objective) -> None:
    assert objectives.unfaithful(objective, "it", [(4, 10)]) == []


@pytest.mark.parametrize(
    ("objective", "finding"),
    [
        (Own(fault="power"), "At T = 1 it is right: look at the powers of T"),
        (Own(fault="mean"), "is it divided by the classes ('mean' of torch's KLDivLoss)?"),
        (Own(fault="graph"), "a gradient reaches the teacher"),
        (Own(fault="shape"), "cannot be evaluated on logits of (4, 10): IndexError: no such class"),
        (Own(fault="assert"), "cannot be evaluated on logits of (4, 10): AssertionError: nothing of the kind"),
        (Own(fault="bare"), "AssertionError: raise AssertionError (at test_conformance_parts.py:"),
        (Own(fault="circular"), "has a reference() that calls loss(), so that its loss is held against itself"),
        (Own(fault="fused"), "has a reference() that calls kdbench.losses.kl, so"),
        (Bare(), "has no reference(): write the formula in plain torch"),
    ],
)
def test_an_unfaithful_objective_is_named(objective: Objective, finding: str) -> None:
    (found,) = objectives.unfaithful(objective, "objective 'mine'", [(4, 10)])
    assert found.startswith("objective 'mine' ")
    assert finding in found


class Relational(Objective, frozen=True):
    """Distances between pairs, in float32 as much released code has them: of one row there are none."""

    def loss(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return functional.mse_loss(self._distances(logits), self._distances(batch.teacher_logits.detach()))

    def reference(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return (self._distances(logits) - self._distances(batch.teacher_logits.detach())).square().mean()

    @staticmethod
    def _distances(logits: torch.Tensor) -> torch.Tensor:
        apart = (logits[:, None].float() - logits[None].float()).square().sum(2).add(1e-12).sqrt()
        apart = apart[~torch.eye(len(logits), dtype=torch.bool)]
        return apart / apart.mean()


def test_a_loss_of_pairs_in_float32_is_faithful() -> None:
    assert objectives.unfaithful(Relational(), "it", [(rows, 10) for rows in objectives.ROWS]) == []
    (found,) = objectives.unfaithful(Relational(), "it", [(1, 10)])
    assert "is not finite on any of the logits of ((1, 10),), so nothing could be compared" in found


class Weighted(Own, frozen=True):
    """For inputs of one shape and ten classes, at most."""

    length: int = 40

    def loss(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        assert batch.inputs.shape[1:] == (1, 1, self.length)
        return super().loss(logits * torch.ones(10), batch)


def test_an_objective_is_tried_on_the_data_that_it_is_for() -> None:
    assert objectives.unfaithful(Weighted(), "it", [(4, 10)], (1, 1, 40)) == []
    kinds = [((3, 32, 32), 10), ((1, 1, 40), 100), ((1, 1, 40), 10)]
    assert objectives.unfaithful_anywhere(Weighted(), "it", kinds) == []
    (found,) = objectives.unfaithful_anywhere(Weighted(), "it", kinds[1:2])
    assert found.startswith("it cannot be evaluated on logits of (4, 100): RuntimeError: The size of tensor a (100)")
    (found,) = objectives.unfaithful_anywhere(Weighted(fault="power"), "it", kinds)
    assert "4 x 10 float32 logits" in found
    assert "At T = 1 it is right" in found


class Warm(Own, frozen=True):
    """Refuses a temperature of 1."""

    def __post_init__(self) -> None:
        if self.temperature <= 1:
            raise ValueError("temperatures above 1")


def test_a_temperature_that_an_objective_refuses_is_not_asked_of_it() -> None:
    assert objectives.unfaithful(Warm(), "it", [(4, 10)]) == []
    assert "the value is" in objectives.unfaithful(Warm(fault="power"), "it", [(4, 10)])[0]


def test_a_published_objective_must_build_from_its_example() -> None:
    info = ObjectiveInfo(id="kd", title="", source="", create="kdbench.training:Distillation", example={"alpha": 0.5})
    assert "cannot be built from its example {'alpha': 0.5}" in str(objectives.published(info))
    whole = msgspec.structs.replace(info, example={"alpha": 0.5, "temperature": 2.0})
    assert objectives.published(whole) == Distillation(alpha=0.5, temperature=2.0)
    other = msgspec.structs.replace(info, create="kdbench.training:SGD", example={"lr": 0.1})
    assert "is a SGD" in str(objectives.published(other))


# --------------------------------------------------------------------------------------------------------- networks


class Line(Network, frozen=True):
    """A linear classifier with faults on demand."""

    more: int = 0
    claimed: int = 0
    raises: bool = False
    random: bool = False
    length: int = 0

    @property
    def name(self) -> str:
        return "line"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        if self.raises:
            raise RuntimeError("no")
        module = nn.Sequential(nn.Flatten(), nn.Linear(self._inputs(input_shape), num_classes + self.more))
        if self.random:
            nn.init.normal_(module[1].weight, generator=GENERATOR)
        return module

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        return Cost(parameters=(self._inputs(input_shape) + 1) * (num_classes + self.more) + self.claimed, macs=0)

    def _inputs(self, input_shape: tuple[int, int, int]) -> int:
        if self.length:
            return prod(input_shape) if self.length == input_shape[2] else self.length
        return input_shape[2]


GENERATOR = torch.Generator()


@pytest.mark.parametrize("network", [Line(), STUDENT, TEACHER])
def test_a_network_that_fits_gives_no_finding(network: Network) -> None:
    before = torch.get_rng_state()
    assert networks.misfits(network, (1, 1, 40), 10) == []
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("network", "finding"),
    [
        (Line(more=2), "network 'line' gives 12 outputs for 10 classes"),
        (Line(claimed=1), "says that it has 411 trainable parameters for inputs of shape (1, 1, 40), built it has 410"),
        (Line(raises=True), "does not take inputs of shape (1, 1, 40): build() raises RuntimeError: no"),
        (Line(random=True), "is unseeded: built twice under one seed, '1.weight' differs"),
    ],
)
def test_a_network_that_does_not_fit_is_named(network: Network, finding: str) -> None:
    (found,) = networks.misfits(network, (1, 1, 40), 10)
    assert finding in found


class About:
    """A paper on signals, whose plugin publishes networks."""

    data = DATASETS["mnist1d"].expected()

    def __init__(self, *published: Network, siblings: tuple[Any, ...] = ()) -> None:
        self.siblings = lambda: siblings
        self.published_networks = lambda: published
        self.planned_networks = lambda: [STUDENT]
        self.shapes = lambda: [(each.input_shape, each.num_classes) for each in DATASETS.values()]


def test_a_published_network_may_be_for_any_known_data_and_that_of_another_paper_is_its_own_affair() -> None:
    sibling = About()
    sibling.planned_networks = lambda: [Line(length=41)]
    assert networks.networks(About(Line(length=32))) == []  # for images of CIFAR
    (found,) = networks.networks(About(Line(length=32, more=2)))
    assert found.startswith("network 'line' gives 12 outputs for 10 classes")
    (found,) = networks.networks(About(Line(length=41)))
    assert found.startswith("network 'line' does not take inputs of shape (1, 1, 40): its module raises RuntimeError")
    assert networks.networks(About(Line(length=41), siblings=(sibling,))) == []


def test_a_refusal_is_what_the_network_raises() -> None:
    assert networks.refusal(Line(), (1, 1, 40), 10) == ""
    assert networks.refusal(Line(), (3, 32, 32), 10).startswith("its module raises RuntimeError: mat1 and mat2 shapes")


def test_a_published_count_is_held_against_the_built_network() -> None:
    count = ParameterCount(network="line", dataset="mnist1d", parameters=410, certainty="paper", source="Table 9")
    assert networks.uncounted(count, {"line": Line()}) == []
    (found,) = networks.uncounted(msgspec.structs.replace(count, parameters=400), {"line": Line()})
    assert "has 410 trainable parameters on 'mnist1d', published are 400 (Table 9): +10" in found
    assert "no network of that name" in networks.uncounted(count, {})[0]
    nowhere = msgspec.structs.replace(count, dataset="nowhere")
    assert "unknown data set 'nowhere'" in networks.uncounted(nowhere, {"line": Line()})[0]
