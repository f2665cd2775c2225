"""The survey's numbers computed again, and our own experiment: students of five widths under one teacher.

Nothing here trains: every call adds a stage to the plan, and equal stages are trained once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from kdbench.networks import Plain
from kdbench.record import Record
from kdbench.study import Lab, Measurement, Node, Quantity, derive
from kdbench.training import SGD, Distillation, OneCycle, Recipe
from kdbench_survey_metric.stages import (
    Crossover,
    Printed,
    RecomputeGolden,
    RecomputeReductions,
    Reduction,
    Score,
)

__all__ = ["ALPHA", "ALPHAS", "WIDTHS", "objective", "recipe", "reproduce", "student", "teacher"]

ALPHA = 0.5  # of the worked example; the survey's other values, if there are any, were not found
ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
# One on every stretch of alpha between the crossovers of the golden rows, .0954, .2242 and .7052.
GOLDEN_ALPHAS = (0.05, 0.15, 0.5, 0.8)
HALF_A_DIGIT = 0.5e-3  # scores are printed to three decimals
CROSSOVER_TOLERANCE = 1e-3

WIDTHS = {"x0.25": 0.25, "x1": 1.0, "x4": 4.0, "x8": 8.0, "x16": 16.0}
"""Filters of a student, relative to those of the smallest plain network at its teacher's width factor."""

EPOCHS = {"smoke": 2, "laptop": 12, "full": 150}
TEACHER_WIDTH = {"smoke": 0.5, "laptop": 0.5, "full": 1.0}
ARMS = ("plain", "distilled")


def reproduce(lab: Lab) -> Iterator[Measurement]:
    """Arithmetic on what the survey prints, once; the experiment, for every seed."""
    yield from golden(lab)
    yield from reductions(lab)
    for seed in lab.seeds:
        yield from experiment(lab, seed)


def golden(lab: Lab) -> Iterator[Measurement]:
    """The four students whose scores were found in public notes on the paper, and where in alpha they change places."""
    value = _printed(lab)
    names = [cell.split("/")[1] for cell in value if cell.startswith("golden/") and cell.endswith("/DS")]
    pairs = [cell.split("/")[1].split("-") for cell in value if cell.startswith("crossovers/")]
    stage = RecomputeGolden(
        teacher_accuracy=value["golden/teacher/accuracy"],
        students=tuple(
            Printed(
                name=name,
                size=value[f"golden/{name}/size"],
                accuracy=value[f"golden/{name}/accuracy"],
                score=value[f"golden/{name}/DS"],
            )
            for name in names
        ),
        alpha=ALPHA,
        alphas=GOLDEN_ALPHAS,
        crossovers=tuple(
            Crossover(first=first, second=second, alpha=value[f"crossovers/{first}-{second}/alpha"])
            for first, second in pairs
        ),
    )
    node = lab.stage(stage, seed=0, label="recompute the golden rows")
    cells = {f"golden/{name}/DS": f"ds.{name}" for name in names}
    cells |= {f"golden-line/{name}/{alpha:g}": f"ds.{name}.{alpha:g}" for name in names for alpha in GOLDEN_ALPHAS}
    cells |= {f"crossovers/{first}-{second}/alpha": f"crossover.{first}.{second}" for first, second in pairs}
    for cell, metric in cells.items():
        yield _once(lab, cell, node.metric(metric))
    yield from _difference(lab, "golden", node.metric("difference.ds"), HALF_A_DIGIT)
    yield from _difference(lab, "crossovers", node.metric("difference.crossover"), CROSSOVER_TOLERANCE)


def reductions(lab: Lab) -> Iterator[Measurement]:
    """Scores of every row of Table 2, and of the rows of Table 1 that were found; unknown ones are not measured."""
    value = _printed(lab)
    names = [cell.removeprefix("our-ds/").removesuffix("/DS") for cell in lab.paper.reported() if "our-ds/" in cell]
    rows = tuple(
        Reduction(
            name=name,
            size=value.get(f"{name}/dSize"),
            accuracy=value.get(f"{name}/dAcc"),
            score=value.get(f"our-ds/{name}/DS"),
        )
        for name in names
    )
    stage = RecomputeReductions(rows=rows, alpha=ALPHA)
    node = lab.stage(stage, seed=0, label="recompute the scores of Tables 1 and 2")
    for row in rows:
        if row.size is not None and row.accuracy is not None:
            yield _once(lab, f"our-ds/{row.name}/DS", node.metric(f"ds.{row.name}"))
    yield from _difference(lab, "our-ds", node.metric("difference.ds"), HALF_A_DIGIT)


def experiment(lab: Lab, seed: int) -> Iterator[Measurement]:
    """One teacher, five students of its data and recipe, each without it and distilled from it."""
    above = teacher(lab, seed)
    networks = {"teacher": above}
    for name in WIDTHS:
        net = student(lab, name)
        networks[f"plain-{name}"] = lab.train(net, seed=seed, recipe=recipe(lab))
        networks[f"distilled-{name}"] = lab.distil(net, above, seed=seed, recipe=recipe(lab), objective=objective())
    scores = lab.stage(
        Score(students=tuple(WIDTHS), alphas=ALPHAS, alpha=ALPHA),
        seed=seed,
        label=f"score {len(WIDTHS)} students under {above.spec.label.removesuffix(f' seed {seed}')}",
        inputs=networks,
    )
    for cell, metric in _cells(lab.dataset).items():
        yield lab.measure(cell, _or_unknown(scores, metric), seed=seed)
    for row, node in networks.items():  # the networks' own records, so that every installed metric finds them
        yield lab.measure(f"ds/{lab.dataset}/{row}/accuracy", node.accuracy, seed=seed)


def _cells(dataset: str) -> dict[str, str]:
    """The metric of the stage ``Score`` behind every cell of one seed."""
    distilled = [f"distilled-{name}" for name in WIDTHS]
    ds, gain, winner = (f"{table}/{dataset}" for table in ("ds", "gain", "winner"))
    cells: dict[str, str] = {}
    for row in ("teacher", "constant", *(f"plain-{name}" for name in WIDTHS), *distilled):
        cells |= {f"{ds}/{row}/{alpha:g}": f"test.ds.{row}.{alpha:g}" for alpha in ALPHAS}
        cells |= {f"{gain}/{row}/size": f"size.{row}"}
        cells |= {f"{gain}/{row}/{column}": f"test.{column}.{row}" for column in ("chance-adjusted", "worst-class")}
    cells |= {f"{gain}/{row}/{column}": f"test.{column}.{row}" for row in distilled for column in ("dDS", "gap-closed")}
    cells |= {f"opposed/{dataset}/pairs/{other}": f"test.opposed.{other}" for other in ("score", "itself")}
    cells |= {f"{winner}/size/{alpha:g}": f"test.winner-size.{alpha:g}" for alpha in ALPHAS}
    cells |= {f"{winner}/path/{name}": f"test.{name}" for name in ("moves", "moves-to-smaller")}
    return cells | {f"{ds}/constant/accuracy": "test.accuracy.constant"}


def recipe(lab: Lab) -> Recipe:
    """One recipe for teacher and students of every width; on MNIST-1D the clean one of TAKD's plain networks.

    It is written out here because a plugin does not import another. Where the two are equal, so are the hashes of the
    stages, and one store trains them once for both.
    """
    return Recipe(
        epochs=EPOCHS[lab.tier],
        optimizer=SGD(lr=0.05, weight_decay=1e-4),
        schedule=OneCycle(warmup=0.3),
        statistics="none" if lab.dataset == "mnist1d" else "data",  # MNIST-1D is generated with mean 0 and deviation 1
        holdout=0.1,
    )


def objective() -> Distillation:
    """Hinton's loss, as TAKD's clean reading weights it."""
    return Distillation(temperature=4.0, alpha=0.9)


def teacher(lab: Lab, seed: int) -> Node:
    """The largest plain network, from its labels."""
    return lab.train(Plain(size=10, width=TEACHER_WIDTH[lab.tier]), seed=seed, recipe=recipe(lab))


def student(lab: Lab, name: str) -> Plain:
    """The smallest plain network, at the width of that name."""
    return Plain(size=2, width=WIDTHS[name] * TEACHER_WIDTH[lab.tier])


def _printed(lab: Lab) -> dict[str, float]:
    """The numbers of the facts, without the blank cells."""
    return {name: cell.value for name, (cell, _) in lab.paper.reported().items() if cell.value is not None}


def _once(lab: Lab, cell: str, quantity: Quantity) -> Measurement:
    """Arithmetic knows no seeds: it is measured under the first one alone."""
    return lab.measure(cell, quantity, seed=lab.seeds[0])


def _difference(lab: Lab, table: str, largest: Quantity, allowed: float) -> Iterator[Measurement]:
    """The largest difference from a table of the facts, and what its printed digits allow."""
    yield _once(lab, f"{table}/difference/largest", largest)
    yield _once(lab, f"{table}/difference/allowed", derive("allowed", lambda _: allowed, largest))


def _or_unknown(node: Node, metric: str) -> Quantity:
    """A metric that a stage leaves where it is known. Unknown is no failure, and never 0: the cell has no value."""

    def read(records: dict[str, Record]) -> float:
        return records[node.spec.hash].metrics.get(metric, math.nan)

    return Quantity(metric, [node], read)
