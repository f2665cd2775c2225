"""A paper in miniature, as a third party would write one: two tiny nets on a slice of MNIST-1D."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdbench.component import load_object
from kdbench.data import DataRef, dataset
from kdbench.networks import Plain
from kdbench.paper import Claim, Comparison, Paper, Protocol, ReportedCell, ReportedTable
from kdbench.record import Outcome
from kdbench.stage import Stage, Work
from kdbench.study import Lab, Measurement
from kdbench.training import SGD, Distillation, Recipe

TEACHER, STUDENT = Plain(size=4, width=0.5), Plain(size=2, width=0.5)
RECIPE = Recipe(epochs=2, optimizer=SGD(lr=0.05), statistics="none", holdout=0.1)
OBJECTIVE = Distillation(temperature=4.0, alpha=0.9)


class Nothing(Stage, frozen=True):
    """A stage without work; ``number`` keeps them apart."""

    number: int

    def run(self, work: Work) -> Outcome:
        return Outcome(metrics={"test.accuracy": float(self.number)})


def study(lab: Lab) -> Iterator[Measurement]:
    """Scratch against distilled."""
    for seed in lab.seeds:
        teacher = lab.train(TEACHER, seed=seed, recipe=RECIPE)
        scratch = lab.train(STUDENT, seed=seed, recipe=RECIPE)
        distilled = lab.distil(STUDENT, teacher, seed=seed, recipe=RECIPE, objective=OBJECTIVE)
        yield lab.measure(f"table1/{lab.dataset}/scratch", scratch.accuracy, seed=seed)
        yield lab.measure(f"table1/{lab.dataset}/distilled", distilled.accuracy, seed=seed)


def toy_paper(study: Callable[[Lab], Iterator[Measurement]] = study, **changes: Any) -> Paper:
    """A paper with one claim; ``changes`` replace its facts."""
    facts: dict[str, Any] = {
        "id": "toy",
        "title": "A toy",
        "authors": "Nobody",
        "venue": "Nowhere",
        "year": 2026,
        "url": "https://example.org",
        "bibtex": "@misc{toy}",
        "summary": "Distillation helps.",
        "datasets": ("mnist1d", "cifar10"),
        "default_dataset": {"smoke": "mnist1d", "laptop": "mnist1d", "full": "cifar10"},
        "protocols": tuple(Protocol(id=name, sentence=name) for name in ("written", "released", "clean")),
        "tables": (
            ReportedTable(
                id="table1",
                title="Table 1",
                metric="top-1 test accuracy",
                unit="%",
                source="Table 1",
                cells=(
                    ReportedCell(cell="table1/cifar10/scratch", value=70.0, certainty="paper", source="Table 1"),
                    ReportedCell(cell="table1/cifar10/distilled", value=72.0, certainty="paper", source="Table 1"),
                ),
            ),
        ),
        "claims": (
            Claim(
                id="C1",
                title="Distillation helps",
                sentence="A distilled student beats one from scratch.",
                source="Table 1",
                certainty="paper",
                core=True,
                gain_margin=0.3,
                value_margin=1.0,
                alternatives=((Comparison(left="table1/{dataset}/distilled", right="table1/{dataset}/scratch"),),),
            ),
        ),
        "study": study,
    }
    return Paper(**{**facts, **changes})


def toy_data() -> DataRef:
    """MNIST-1D in the session's cache."""
    ref: DataRef = load_object(dataset("mnist1d").locate)(None, Path(os.environ["KDBENCH_CACHE"]), None)
    return ref


def toy_lab(paper: Paper | None = None, **changes: Any) -> Lab:
    """A lab for the toy paper; ``changes`` replace its axes."""
    axes: dict[str, Any] = {"tier": "smoke", "protocol": "clean", "data": toy_data(), "seeds": (0,), "networks": {}}
    return Lab(paper or toy_paper(), **{**axes, **changes})
