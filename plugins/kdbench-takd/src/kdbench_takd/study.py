"""TAKD: distil a large teacher into a middle-size assistant first, and the assistant into the student.

Nothing here trains: every call adds a stage to the plan, and equal stages are trained once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations

from kdbench.networks import CifarResNet, Network, Plain
from kdbench.study import Lab, Measurement, Node, derive
from kdbench_takd.recipes import RELEASED_SEEDS, Family, Method, Trial, method, more_trials

__all__ = ["reproduce"]

PLAIN_TEACHER, PLAIN_STUDENT, PLAIN_ASSISTANTS = 10, 2, (8, 6, 4)
RESNET_TEACHER, RESNET_STUDENT, RESNET_ASSISTANTS = 110, 8, (56, 32, 20, 14)
TABLE1_ASSISTANT = {"cnn": 4, "resnet": 20}
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


def reproduce(lab: Lab) -> Iterator[Measurement]:
    """Tables 1 to 3 and Figures 2 to 5, with the controls that the paper lacks."""
    # The ResNets are for images: their recipes crop and mirror, which makes another signal of a signal.
    families = ("cnn", "resnet") if lab.tier == "full" and lab.dataset != "mnist1d" else ("cnn",)
    lab.axis("family", *families)
    for seed in lab.seeds:
        plain = Bench(lab, "cnn", seed)
        yield from table1(plain, PLAIN_TEACHER, PLAIN_STUDENT)
        yield from assistants(plain, "table2", PLAIN_TEACHER, PLAIN_STUDENT, PLAIN_ASSISTANTS)
        yield from teacher_sizes(plain)
        yield from student_sizes(plain)
        yield from nearest_assistant(plain, PLAIN_TEACHER, PLAIN_STUDENT, PLAIN_ASSISTANTS)
        yield from paths(plain)
        yield from mechanisms(plain)
        yield from controls(plain)
        if "resnet" in families:
            resnet = Bench(lab, "resnet", seed)
            yield from table1(resnet, RESNET_TEACHER, RESNET_STUDENT)
            yield from assistants(resnet, "table3", RESNET_TEACHER, RESNET_STUDENT, RESNET_ASSISTANTS)
            yield from nearest_assistant(resnet, RESNET_TEACHER, RESNET_STUDENT, RESNET_ASSISTANTS)


class Bench:
    """One family of networks at one seed: ``scratch``, and ``chain`` for any path of teachers."""

    def __init__(self, lab: Lab, family: Family, seed: int) -> None:
        self.lab = lab
        self.family = family
        self.seed = seed
        self.method: Method = method(protocol=lab.protocol, tier=lab.tier, dataset=lab.dataset, family=family)

    def network(self, size: int) -> Network:
        return Plain(size=size, width=self.method.width) if self.family == "cnn" else CifarResNet(depth=size)

    def scratch(self, size: int, restarts: int | None = None) -> Node:
        """Trained on the labels alone, the best of its restarts: NOKD, and the first teacher of every chain."""
        trials = [
            self.lab.train(self.network(size), seed=self.seed, recipe=self.method.recipe, restart=restart)
            for restart in range(restarts or self.method.restarts)
        ]
        return self.lab.choose(trials, by=self.method.chosen_on)

    def distil(self, size: int, teacher: Node, trials: Sequence[Trial] | None = None) -> Node:
        """One step of distillation, the best of its trials."""
        nodes = [
            self.lab.distil(
                self.network(size),
                teacher,
                seed=self.seed,
                recipe=self.method.recipe,
                objective=trial.objective,
                restart=trial.restart,
            )
            for trial in trials or self.method.trials
        ]
        return self.lab.choose(nodes, by=self.method.chosen_on)

    def chain(self, *sizes: int) -> Node:
        """``chain(10, 4, 2)``: 10 from scratch, distilled into 4, distilled into 2."""
        *teachers, size = sizes
        return self.distil(size, self.chain(*teachers)) if teachers else self.scratch(size)

    def accuracy(self, cell: str, node: Node) -> Measurement:
        return self.lab.measure(cell, node.accuracy, seed=self.seed)

    def cell(self, table: str, column: str) -> str:
        return f"{table}/{self.lab.dataset}/{column}"


def table1(bench: Bench, teacher: int, student: int) -> Iterator[Measurement]:
    """Table 1: no distillation, direct distillation, and through the assistant of its caption."""
    table = f"table1/{bench.family}"
    # One stage against the two of TAKD: in the clean reading both arms search as often as those two together.
    scratch = bench.scratch(student, bench.method.nokd_restarts)
    direct = bench.distil(student, bench.scratch(teacher), bench.method.blkd_trials)
    yield bench.accuracy(bench.cell(table, "NOKD"), scratch)
    yield bench.accuracy(bench.cell(table, "BLKD"), direct)
    yield bench.accuracy(bench.cell(table, "TAKD"), bench.chain(teacher, TABLE1_ASSISTANT[bench.family], student))


def assistants(bench: Bench, table: str, teacher: int, student: int, sizes: Sequence[int]) -> Iterator[Measurement]:
    """Tables 2 and 3: the student through each assistant size."""
    for size in sizes:
        yield bench.accuracy(bench.cell(table, f"TA{size}"), bench.chain(teacher, size, student))


def teacher_sizes(bench: Bench) -> Iterator[Measurement]:
    """Fig. 2: the student straight from teachers of growing size."""
    for size in (4, 6, 8, 10):
        yield bench.accuracy(bench.cell("fig2", f"T{size}"), bench.chain(size, PLAIN_STUDENT))


def student_sizes(bench: Bench) -> Iterator[Measurement]:
    """Fig. 3: what the largest teacher gives students of every size, relative to scratch, in percent."""
    for size in (2, 4, 6, 8):
        gain = derive(
            "relative gain",
            lambda distilled, scratch: 100.0 * (distilled - scratch) / scratch,
            bench.chain(PLAIN_TEACHER, size).accuracy,
            bench.scratch(size).accuracy,
        )
        yield bench.lab.measure(bench.cell("fig3", f"S{size}"), gain, seed=bench.seed)


def nearest_assistant(bench: Bench, teacher: int, student: int, sizes: Sequence[int]) -> Iterator[Measurement]:
    """Fig. 4: every size from scratch, and the student through each assistant, by the assistant's gap.

    The gap is that between an assistant's accuracy from scratch and the mean of student and teacher. ``TA-nearest`` has
    the smallest; ``TA-other-1`` and on are the rest, nearest first. Which size that is, each seed says for itself.
    """
    table = f"fig4/{bench.family}"
    for size in (student, *reversed(sizes), teacher):
        yield bench.accuracy(bench.cell(table, f"scratch{size}"), bench.scratch(size))

    by = f"{bench.method.chosen_on}.accuracy"  # naming the nearest is a choice, made where every other one is
    scratch = [bench.scratch(size).metric(by) for size in (student, teacher, *sizes)]
    reached = [bench.chain(teacher, size, student).accuracy for size in sizes]

    def student_of(rank: int, *values: float) -> float:
        low, high, *rest = values
        gaps = [abs(accuracy - (low + high) / 2) for accuracy in rest[: len(sizes)]]
        order = sorted(range(len(sizes)), key=gaps.__getitem__)  # of equals the largest size first, as they are listed
        return rest[len(sizes) + order[rank]]

    for rank in range(len(sizes)):
        name = f"TA-other-{rank}" if rank else "TA-nearest"
        accuracy = derive("test.accuracy", partial(student_of, rank), *scratch, *reached)
        yield bench.lab.measure(bench.cell(table, name), accuracy, seed=bench.seed)


def paths(bench: Bench) -> Iterator[Measurement]:
    """Fig. 5: every way down from the largest teacher, to students of size 2, 4, 6 and 8."""
    for student in (2, 4, 6, 8):
        yield bench.accuracy(bench.cell("fig5", f"NOKD-S{student}"), bench.scratch(student))
        between = [size for size in PLAIN_ASSISTANTS if size > student]
        for count in range(len(between) + 1):
            for middle in combinations(between, count):
                path = (PLAIN_TEACHER, *middle, student)
                yield bench.accuracy(bench.cell("fig5", "-".join(map(str, path))), bench.chain(*path))


def mechanisms(bench: Bench) -> Iterator[Measurement]:
    """Can the student follow its teacher (factor 2), and how soft are a teacher's targets (factor 3)?"""
    recipe = bench.method.recipe
    for name, path in (("T", (10, 2)), ("TA", (10, 4, 2))):
        fit = bench.lab.agreement(bench.chain(*path), bench.chain(*path[:-1]), recipe)
        for split in ("train", "test"):
            for metric in ("kl", "agreement"):
                cell = bench.cell("fit", f"{split}-{metric}/{name}")
                yield bench.lab.measure(cell, fit.metric(f"{split}.{metric}"), seed=bench.seed)
    for size in (4, 6, 8, 10):
        teacher = bench.lab.teacher(bench.scratch(size), recipe)
        yield bench.lab.measure(bench.cell("entropy", f"T{size}"), teacher.metric("train.entropy"), seed=bench.seed)


def controls(bench: Bench) -> Iterator[Measurement]:
    """What else could explain a gain: a tuned temperature, more trials, or simply a second distillation."""
    teacher = bench.scratch(PLAIN_TEACHER)
    tuned = [Trial(bench.method.objective(temperature=t), 0) for t in TEMPERATURES]
    yield bench.accuracy(bench.cell("tuned", "BLKD-tau"), bench.distil(PLAIN_STUDENT, teacher, tuned))
    # TAKD tunes two stages, so direct distillation gets the trials of both; with a clean search it has them already.
    doubled = more_trials(bench.lab.protocol, 2 * len(bench.method.trials))
    yield bench.accuracy(bench.cell("fair", "BLKD-equal-trials"), bench.distil(PLAIN_STUDENT, teacher, doubled))
    # A net born again starts anew: with its teacher's restart it would share that net's initialisation and order.
    anew = [Trial(trial.objective, trial.restart + RELEASED_SEEDS) for trial in bench.method.trials]
    again = bench.distil(PLAIN_STUDENT, bench.chain(PLAIN_TEACHER, PLAIN_STUDENT), anew)
    yield bench.accuracy(bench.cell("fair", "born-again"), again)
