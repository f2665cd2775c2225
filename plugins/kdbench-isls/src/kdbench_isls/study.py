"""Self-distillation over generations, label smoothing, Beta smoothing, and the controls that tell them apart.

Nothing here trains: every call adds a stage to the plan, and equal stages are trained once. Generation 0 is trained on
the labels. Every other arm starts from one initialisation and order of examples, that of generation 1, so arms differ
in their targets alone; each later generation starts anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kdbench.networks import Network
from kdbench.study import Lab, Measurement, Node, Quantity, derive
from kdbench.training import Objective
from kdbench_isls.association import partial_rank_correlation
from kdbench_isls.objectives import EntropyPenalty
from kdbench_isls.recipes import GENERATIONS, GRID_A, GRID_ENTROPY, TEMPERATURES, Method, method, networks
from kdbench_isls.stages import Calibrate, TeacherStatistics

__all__ = ["Bench", "reproduce"]

NOISE = {"smoke": ("20",), "laptop": ("20",), "full": ("0",)}
OTHER_NOISE = {"smoke": ("0", "40"), "laptop": ("0", "40"), "full": ()}
STATISTICS = ("uncertainty", "diversity", "variance", "confidence")
OVER_ALL = ("diversity-all", "variance-all")  # wrongly labelled examples included
CALIBRATION = ("nll", "ece", "ece20", "scaled-nll", "scaled-ece")


def reproduce(lab: Lab) -> Iterator[Measurement]:
    """Every arm, for every seed, network and level of label noise."""
    nets = networks(lab.tier, lab.protocol)
    lab.axis("network", *nets)
    levels = (*lab.axis("noise", *NOISE[lab.tier]), *lab.axis("othernoise", *OTHER_NOISE[lab.tier]))
    for seed in lab.seeds:
        for name, network in nets.items():
            for noise in levels:
                bench = Bench(lab, name, network, noise, seed)
                yield from core_arms(bench)
                yield from controls(bench)
                yield from sweep(bench)
                yield from tuned(bench)


class Bench:
    """One network at one level of label noise and one seed: ``trained`` arms, and ``generation`` of a chain."""

    def __init__(self, lab: Lab, name: str, network: Network, noise: str, seed: int) -> None:
        self.lab = lab
        self.row = f"{name}/{lab.dataset}/noise-{noise}"
        self.network = network
        self.seed = seed
        self.method: Method = method(
            protocol=lab.protocol, tier=lab.tier, data=lab.data, network=name, label_noise=int(noise) / 100
        )

    def scratch(self, restart: int = 0) -> Node:
        """Trained on the labels alone: generation 0."""
        return self.lab.train(self.network, seed=self.seed, recipe=self.method.recipe, restart=restart)

    def smoothed(self, objective: Objective) -> Node:
        """An arm without a teacher."""
        return self.lab.train(self.network, seed=self.seed, recipe=self.method.recipe, objective=objective, restart=1)

    def taught(self, objective: Objective, teacher: Node | None = None, restart: int = 1) -> Node:
        """An arm with a teacher, by default generation 0."""
        return self.lab.distil(
            self.network,
            teacher or self.scratch(),
            seed=self.seed,
            recipe=self.method.recipe,
            objective=objective,
            restart=restart,
        )

    def generation(self, number: int, temperature: float) -> Node:
        """Generation ``number`` of the chain at one temperature of every teacher."""
        if number == 0:
            return self.scratch()
        teacher = self.generation(number - 1, temperature)
        return self.taught(self.method.self_distillation(temperature), teacher, restart=number)

    def measure(self, table: str, column: str, quantity: Quantity) -> Measurement:
        return self.lab.measure(f"{table}/{self.row}/{column}", quantity, seed=self.seed)

    def arms(self, arms: dict[str, Node], what: str) -> Iterator[Measurement]:
        """Accuracy, calibration and, where there is a soft target, its mean on the label, of arms trained alike."""
        recipe = self.method.recipe
        calibrated = self.lab.stage(
            Calibrate(holdout=recipe.holdout, label_noise=recipe.label_noise),
            seed=self.seed,
            label=f"calibrate {what}",
            inputs=arms,
        )
        for arm, node in arms.items():
            yield self.measure("accuracy", arm, node.accuracy)
            for table in CALIBRATION:
                yield self.measure(table, arm, calibrated.metric(f"test.{table}.{arm}"))
            if arm not in ("CE", "entropy"):
                yield self.measure("target", arm, node.metric("objective.target"))

    def statistics(
        self, temperature: float, names: Sequence[str], *, tables: str = "", prefix: str = ""
    ) -> Iterator[Measurement]:
        """What the generations of one temperature are like as teachers; ``tables`` ends the tables' names."""
        node = self._as_teachers(temperature)
        for number in range(GENERATIONS + 1):
            for name in names:
                yield self.measure(name + tables, f"{prefix}g{number}", node.metric(f"train.{name}.g{number}"))

    def statistic(self, name: str, number: int, temperature: float) -> Quantity:
        return self._as_teachers(temperature).metric(f"train.{name}.g{number}")

    def _as_teachers(self, temperature: float) -> Node:
        recipe = self.method.recipe
        return self.lab.stage(
            TeacherStatistics(temperature=temperature, holdout=recipe.holdout, label_noise=recipe.label_noise),
            seed=self.seed,
            label=f"statistics of teachers at T {temperature:g}",
            inputs={f"g{number}": self.generation(number, temperature) for number in range(GENERATIONS + 1)},
        )


def core_arms(bench: Bench) -> Iterator[Measurement]:
    """Generations, label smoothing at both matched mean targets, Beta smoothing, and its shares given out by chance."""
    make = bench.method
    generations = {f"SD-g{number}": bench.generation(number, make.temperature) for number in range(1, GENERATIONS + 1)}
    arms = {
        "CE": bench.scratch(),
        "LS": bench.smoothed(make.smoothing()),
        "LS-matched": bench.taught(make.matched()),
        **generations,
        "Beta": bench.smoothed(make.beta()),
        "shuffled": bench.smoothed(make.beta(ranking="none")),
    }
    yield from bench.arms(arms, "core arms")
    yield from bench.statistics(make.temperature, STATISTICS + OVER_ALL)


def controls(bench: Bench) -> Iterator[Measurement]:
    """Other ways to give out the shares, self-distillation without one of its two parts, the entropy penalty."""
    make = bench.method
    arms = {
        "reversed": bench.smoothed(make.beta(ranking="reversed")),
        "student-ranked": bench.smoothed(make.beta(ranking="student")),
        "quantile": bench.smoothed(make.beta(values="quantiles")),
        "SD-flat": bench.taught(make.flat()),
        "SD-permuted": bench.taught(make.self_distillation(confidence="permuted")),
        "entropy": bench.smoothed(EntropyPenalty(weight=GRID_ENTROPY[0])),
    }
    yield from bench.arms(arms, "controls")


def sweep(bench: Bench) -> Iterator[Measurement]:
    """Generations at every temperature: what they are like as teachers, and whether diversity goes with accuracy."""
    teachers = [(number, temperature) for temperature in TEMPERATURES for number in range(GENERATIONS)]
    for temperature in TEMPERATURES:
        yield from bench.statistics(temperature, STATISTICS, tables="-by-T", prefix=f"T{temperature:g}-")
        for number in range(GENERATIONS + 1):
            node = bench.generation(number, temperature)
            yield bench.measure("accuracy-by-T", f"T{temperature:g}-g{number}", node.accuracy)
    students = [bench.generation(number + 1, temperature).accuracy for number, temperature in teachers]
    partial = derive("partial rank correlation", _association, *students, *_of("diversity", bench, teachers),
                     *_of("uncertainty", bench, teachers))  # fmt: skip
    yield bench.measure("association", "partial", partial)


def tuned(bench: Bench) -> Iterator[Measurement]:
    """Every method at the best of four settings by validation accuracy, plain training at the best of four restarts."""
    make = bench.method
    trials = {
        "CE": [bench.scratch(restart) for restart in (0, *range(100, 103))],
        "LS": [bench.smoothed(make.smoothing(a)) for a in GRID_A],
        "entropy": [bench.smoothed(EntropyPenalty(weight=weight)) for weight in GRID_ENTROPY],
        "SD": [bench.generation(1, temperature) for temperature in TEMPERATURES],
        "Beta": [bench.smoothed(make.beta(a)) for a in GRID_A],
    }
    for arm, nodes in trials.items():
        yield bench.measure("tuned", arm, bench.lab.choose(nodes, by="validation").accuracy)


def _of(statistic: str, bench: Bench, teachers: list[tuple[int, float]]) -> list[Quantity]:
    return [bench.statistic(statistic, number, temperature) for number, temperature in teachers]


def _association(*values: float) -> float:
    points = len(values) // 3
    accuracy, diversity, uncertainty = (values[start * points : (start + 1) * points] for start in range(3))
    return partial_rank_correlation(diversity, accuracy, uncertainty) if all(map(math.isfinite, values)) else math.nan
