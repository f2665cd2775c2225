"""The 2x2 factorial of distillation and every other technique, and the ensemble view with its controls.

Nothing here trains: every call adds a stage to the plan, and equal stages are trained once. A seed has a training set
and a teacher of its own. Students of a seed share initialisation and order of examples, with and without distillation;
on the ensemble side the arms of one training set do, and training sets have other ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from kdbench.networks import Network
from kdbench.stages import Train
from kdbench.study import Lab, Measurement, Node, Quantity, derive
from kdbench.training import CrossEntropy, Objective, Recipe
from kdbench_orthogonality import techniques
from kdbench_orthogonality.compress import Compress
from kdbench_orthogonality.interaction import CONTROLS, accuracy_interaction, control_of, log_error_interaction
from kdbench_orthogonality.recipes import (
    FILTERS_PRUNED,
    GRID,
    MEMBERS,
    STACKS,
    Method,
    method,
    replaced,
    slope,
    stacked,
)
from kdbench_orthogonality.stages import Decompose, DecomposeMatched
from kdbench_orthogonality.techniques import FakeQuantise, Int8, Prune, Structured, Technique, Untouched

__all__ = ["Bench", "reproduce"]

COMPRESSED: dict[str, Technique] = {
    "none+ft": Untouched(),
    "prune30": Prune(amount=0.3),
    "prune50": Prune(amount=0.5),
    "prune70": Prune(amount=0.7),
    "structured33": Structured(ratio=FILTERS_PRUNED),
    "qat4": FakeQuantise(bits=4),
    "qat3": FakeQuantise(bits=3),
    "qat2": FakeQuantise(bits=2),
    "int8-ptq": Int8(training=False),
    "int8-qat": Int8(training=True),
}
FACTORIAL = {"accuracy": ("CE", "KD"), "front": ("bytes",), "interaction": ("accuracy", "log-error")}
COLUMNS = ("single", "ensemble", "gain", "bias", "variance", "disagreement", "confidence")

MISSING = f"not run: install {techniques.EXTRA}"
NO_DROPOUT = "not run: the ResNets of tier full have no dropout"
ONE_WIDTH = "not run: the ResNets of tier full differ in depth alone"

Pair = tuple[Node, Node]
"""A student trained on the labels, and its twin distilled from the seed's teacher."""


def reproduce(lab: Lab) -> Iterator[Measurement]:
    """Every technique with and without distillation, then the ensemble side, for every seed."""
    for seed in lab.seeds:
        bench = Bench(lab, seed)
        yield from factorial(bench)
        yield from grid(bench)
        yield from orders(bench)
        yield from stacks(bench)
        yield from ensembles(bench)
        yield from resamples(bench)
        yield from augmentation(bench)
        yield from unlabelled(bench)


class Bench:
    """One seed: its training set, its teacher, and students in pairs, without and with distillation."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.seed = seed
        self.method: Method = method(tier=lab.tier, data=lab.data, seed=seed)
        self.plain = CrossEntropy()
        self.distilled = self.method.distillation

    def teacher(self, recipe: Recipe | None = None, network: Network | None = None, restart: int = 1) -> Node:
        """Trained on the labels, plainly: no technique touches the teacher."""
        return self.lab.train(
            network or self.method.nets.teacher, seed=self.seed, recipe=recipe or self.method.recipe, restart=restart
        )

    def scratch(self, network: Network, recipe: Recipe, objective: Objective | None = None, restart: int = 0) -> Node:
        return self.lab.train(network, seed=self.seed, recipe=recipe, objective=objective, restart=restart)

    def taught(
        self,
        network: Network,
        recipe: Recipe,
        objective: Objective | None = None,
        teacher: Node | Sequence[Node] | None = None,
        restart: int = 0,
    ) -> Node:
        return self.lab.distil(
            network,
            teacher or self.teacher(),
            seed=self.seed,
            recipe=recipe,
            objective=objective or self.distilled,
            restart=restart,
        )

    def pair(self, network: Network, recipe: Recipe, teacher: Node | None = None) -> Pair:
        return self.scratch(network, recipe), self.taught(network, recipe, teacher=teacher)

    def compressed(self, student: Node, technique: Technique, *, distil: bool, recipe: Recipe | None = None) -> Node:
        """A trained student, compressed and trained further, on the labels or from the seed's teacher."""
        recipe = recipe or self.method.fine_tuning
        inputs = {"network": student}
        if distil:
            inputs["teacher"] = self.lab.teacher(self.teacher(), recipe)
        objective = self.distilled if distil else self.plain
        return self.lab.stage(
            Compress(technique=technique, recipe=recipe, objective=objective, made_with=technique.made_with),
            seed=self.seed,
            label=f"{technique.label}, then {recipe.epochs} epochs{objective.label}: {_short(student)}",
            inputs=inputs,
            network=student.network,
        )

    def measure(self, table: str, row: str, column: str, quantity: Quantity) -> Measurement:
        return self.lab.measure(f"{table}/{self.lab.dataset}/{row}/{column}", quantity, seed=self.seed)

    def only(self, table: str, column: str, quantity: Quantity) -> Measurement:
        """A cell of a table that has one row."""
        return self.lab.measure(f"{table}/{self.lab.dataset}/{column}", quantity, seed=self.seed)


def factorial(bench: Bench) -> Iterator[Measurement]:
    """The accuracy of every arm without and with distillation, its bytes, and I(X) on both scales."""
    pairs = {"none": trained(bench), **during(bench)}
    for name in COMPRESSED:
        if can(COMPRESSED[name]):
            pairs[name] = after(bench, name, pairs["none"])
        else:
            leave_arm_out(bench.lab, name, MISSING)
    if "dropout" not in pairs:
        leave_arm_out(bench.lab, "dropout", NO_DROPOUT)
    for name, (plain, distilled) in pairs.items():
        yield bench.measure("accuracy", name, "CE", plain.accuracy)
        yield bench.measure("accuracy", name, "KD", distilled.accuracy)
        yield bench.measure("front", name, "bytes", size(distilled, "bytes"))
    for name in (name for name in pairs if name not in CONTROLS):
        four = [node.accuracy for node in (*reversed(pairs[name]), *reversed(pairs[control_of(name)]))]
        yield bench.measure("interaction", name, "accuracy", derive("interaction", accuracy_interaction, *four))
        yield bench.measure("interaction", name, "log-error", derive("interaction", log_error_interaction, *four))
    for scale in ("accuracy", "log-error"):
        yield bench.measure("interaction", "zero", scale, derive("none", lambda _: 0.0, pairs["none"][0].accuracy))


def trained(bench: Bench) -> Pair:
    """The student as it is: the control of everything that is done while a student is trained."""
    return bench.pair(bench.method.nets.student, bench.method.recipe)


def during(bench: Bench) -> dict[str, Pair]:
    """Techniques that are part of the training: another network, other inputs, other labels, more decay."""
    make, nets = bench.method, bench.method.nets
    pairs = {
        "separable": bench.pair(nets.separable, make.recipe),
        "mixup": bench.pair(nets.student, make.mixed("mixup")),
        "cutmix": bench.pair(nets.student, make.mixed("cutmix")),
        "label-smoothing": (
            bench.scratch(nets.student, make.recipe, make.smoothing()),
            bench.taught(nets.student, make.recipe, make.smoothed),
        ),
        "weight-decay": bench.pair(nets.student, make.decayed()),
    }
    return pairs | ({} if nets.dropout is None else {"dropout": bench.pair(nets.dropout, make.recipe)})


def after(bench: Bench, name: str, students: Pair) -> Pair:
    """A technique that is applied to a trained student, which is then trained further as it was before."""
    recipe = replaced(bench.method.fine_tuning, epochs=0) if name == "int8-ptq" else bench.method.fine_tuning
    plain, distilled = (
        bench.compressed(student, COMPRESSED[name], distil=distil, recipe=recipe)
        for student, distil in zip(students, (False, True), strict=True)
    )
    return plain, distilled


def grid(bench: Bench) -> Iterator[Measurement]:
    """Students of other widths and depths under the same teacher."""
    for name, network in bench.method.nets.grid.items():
        plain, distilled = bench.pair(network, bench.method.recipe)
        yield bench.measure("grid", name, "CE", plain.accuracy)
        yield bench.measure("grid", name, "KD", distilled.accuracy)
        yield bench.measure("grid", name, "bytes", size(distilled, "bytes"))
    absent = [name for name in GRID if name not in bench.method.nets.grid]
    leave_out(bench.lab, "grid", absent, ("CE", "KD", "bytes"), ONE_WIDTH)


def orders(bench: Bench) -> Iterator[Measurement]:
    """In which order a student is pruned and distilled, and 3-bit weights in one stage or in two."""
    plain, distilled = trained(bench)
    prune, quantise = COMPRESSED["prune50"], COMPRESSED["qat3"]
    first, second = bench.method.halves()
    halfway = {
        "naive-qat3": bench.compressed(plain, quantise, distil=True, recipe=first),
        "staged-qat3": bench.compressed(plain, quantise, distil=False, recipe=first),
    }
    arms = {
        "prune-KD": bench.compressed(plain, prune, distil=True),
        "KD-prune": bench.compressed(distilled, prune, distil=False),
        "joint": bench.compressed(distilled, prune, distil=True),
        **{arm: bench.compressed(half, quantise, distil=True, recipe=second) for arm, half in halfway.items()},
    }
    for arm, node in arms.items():
        yield bench.only("order", arm, node.accuracy)


def stacks(bench: Bench) -> Iterator[Measurement]:
    """Three techniques and each two of them at nearly equal bytes, all distilled, for the same epochs."""
    prune, quantise = COMPRESSED["structured33"], COMPRESSED["int8-ptq"]
    if not (can(prune) and can(quantise)):
        leave_out(bench.lab, "stack", STACKS, ("accuracy", "bytes"), MISSING)
        return
    for name, network in stacked(bench.lab.tier, bench.lab.data).items():
        node = bench.taught(network, bench.method.recipe)
        further = bench.method.fine_tuning
        if "prune" in STACKS[name]:
            node = bench.compressed(node, prune, distil=True, recipe=further)
            further = replaced(further, epochs=0)
        if "int8" in STACKS[name]:
            node = bench.compressed(node, quantise, distil=True, recipe=further)
        yield bench.measure("stack", name, "accuracy", node.accuracy)
        yield bench.measure("stack", name, "bytes", size(node, "bytes"))


def ensembles(bench: Bench) -> Iterator[Measurement]:
    """Students of independent training sets: on labels, smoothed, under a teacher of that set, under a foreign one."""
    make = bench.method
    foreign = bench.teacher(make.member(MEMBERS), restart=_teachers(MEMBERS))
    arms: dict[str, list[Node]] = {name: [] for name in ("CE", "LS", "KD-own", "KD-fixed")}
    for number in range(MEMBERS):
        for arm, node in members(bench, make.member(number), number, foreign).items():
            arms[arm].append(node)
    yield from decomposed(bench, arms)
    sharpened = {str(number): node for number, node in enumerate(arms["LS"])}
    targets = {f"target{number}": node for number, node in enumerate(arms["KD-own"])}
    node = bench.lab.stage(
        DecomposeMatched(), seed=bench.seed, label="decompose LS as sure as KD-own", inputs={**sharpened, **targets}
    )
    yield from columns(bench, "LS-matched", node)
    yield bench.measure("ensemble", "LS-matched", "matched-confidence", node.metric("validation.confidence"))
    yield bench.measure("ensemble", "LS-matched", "target-confidence", node.metric("validation.target-confidence"))


def members(bench: Bench, recipe: Recipe, number: int, foreign: Node | None = None) -> dict[str, Node]:
    """The students of one training set, and with a foreign teacher those that it teaches, of one initialisation."""
    make, student, restart = bench.method, bench.method.nets.student, number
    own = bench.teacher(recipe, restart=_teachers(number))
    arms = {
        "CE": bench.scratch(student, recipe, restart=restart),
        "LS": bench.scratch(student, recipe, make.smoothing(), restart=restart),
        "KD-own": bench.taught(student, recipe, teacher=own, restart=restart),
    }
    if foreign is not None:
        arms["KD-fixed"] = bench.taught(student, recipe, teacher=foreign, restart=restart)
    return arms


def _teachers(number: int) -> int:
    """The restart of the teacher of a training set: other examples come first than to the set's students."""
    return MEMBERS + 1 + number


def resamples(bench: Bench) -> Iterator[Measurement]:
    """Students of resamples of one training set, and one student of all the teachers that resamples made (bagging)."""
    make, student = bench.method, bench.method.nets.student
    whole = members(bench, make.member(0), 0)
    resampled = [members(bench, make.member(0, bootstrap=number), number) for number in range(MEMBERS)]
    arms = {f"{arm}-boot": [one[f"{arm}{own}"] for one in resampled] for arm, own in (("CE", ""), ("KD", "-own"))}
    yield from decomposed(bench, arms)
    teachers = [one["KD-own"].inputs["teacher"].inputs["network"] for one in resampled]
    bagged = bench.taught(student, make.member(0), make.several, teachers)
    for arm, node in (("KD-bagged", bagged), ("KD-whole", whole["KD-own"]), ("CE-whole", whole["CE"])):
        yield bench.measure("ensemble", arm, "single", node.accuracy)
    ensemble = decomposition(bench, "CE-boot", arms["CE-boot"]).metric("test.ensemble")
    share = derive("recovered", recovered, bagged.accuracy, whole["CE"].accuracy, ensemble)
    yield bench.measure("ensemble", "KD-bagged", "recovered", share)


def recovered(one: float, alone: float, ensemble: float) -> float:
    """The share of what an ensemble gains over a student ``alone`` that ``one`` gains; NaN where it gains nothing."""
    return (one - alone) / (ensemble - alone) if ensemble > alone else math.nan


def decomposition(bench: Bench, name: str, networks: Sequence[Node]) -> Node:
    inputs = {str(number): node for number, node in enumerate(networks)}
    return bench.lab.stage(Decompose(), seed=bench.seed, label=f"decompose {name}", inputs=inputs)


def decomposed(bench: Bench, arms: Mapping[str, Sequence[Node]]) -> Iterator[Measurement]:
    for name, networks in arms.items():
        yield from columns(bench, name, decomposition(bench, name, networks))


def columns(bench: Bench, name: str, node: Node) -> Iterator[Measurement]:
    for column in COLUMNS:
        yield bench.measure("ensemble", name, column, node.metric(f"test.{column}"))


def augmentation(bench: Bench) -> Iterator[Measurement]:
    """The gain of distillation by the size of the training set, and with inputs that move."""
    make, student = bench.method, bench.method.nets.student
    gains = []
    for share in (4, 2, 1):
        recipe = make.of_size(share)
        plain, distilled = bench.pair(student, recipe, teacher=bench.teacher(recipe))
        gains.append(gain(plain, distilled))
        yield bench.measure("augmentation", f"n{make.set_size // share}", "gain", gains[-1])
    yield bench.measure("augmentation", "n", "slope", derive("slope", slope, *gains))
    yield bench.measure("augmentation", "zero", "slope", derive("none", lambda _: 0.0, gains[-1]))
    # What is compared is whole trainings, with their teachers, on inputs that move and on inputs that do not.
    for row, recipe in (("shift-off", make.still()), ("shift-on", make.shifted())):
        pair = bench.pair(student, recipe, teacher=bench.teacher(recipe))
        yield bench.measure("augmentation", row, "gain", gain(*pair))
    yield bench.only("teacher-outputs", "redrawn", bench.taught(student, make.shifted()).accuracy)
    yield bench.only("teacher-outputs", "frozen", frozen(bench, make.shifted()).accuracy)


def frozen(bench: Bench, recipe: Recipe) -> Node:
    """A student whose inputs move while its teacher's outputs stay those of the inputs as they were."""
    teacher = bench.lab.teacher(bench.teacher(), bench.method.still())
    return bench.lab.stage(
        Train(network=bench.method.nets.student, recipe=recipe, objective=bench.distilled),
        seed=bench.seed,
        label=f"distil {bench.method.nets.student.name} from frozen outputs",
        inputs={"teacher": teacher},
        network=bench.method.nets.student,
    )


def unlabelled(bench: Bench) -> Iterator[Measurement]:
    """Further inputs without labels, for as many steps as without; the teacher has seen the labelled half alone."""
    make, student = bench.method, bench.method.nets.student
    teacher = bench.teacher(make.of_size(2))
    yield bench.only("unlabelled", "KD", bench.taught(student, make.without_unlabelled(), teacher=teacher).accuracy)
    yield bench.only("unlabelled", "KD-extra", bench.taught(student, make.with_unlabelled(), teacher=teacher).accuracy)


def leave_out(lab: Lab, table: str, rows: Iterable[str], columns: Iterable[str], reason: str) -> None:
    """Say why cells are not measured, in every claim about them."""
    for row, column in product(rows, columns):
        lab.leave_out(f"{table}/{lab.dataset}/{row}/{column}", reason)


def leave_arm_out(lab: Lab, name: str, reason: str) -> None:
    """The same of everything that the factorial measures of a technique."""
    for table, columns in FACTORIAL.items():
        leave_out(lab, table, [name], columns, reason)


def can(technique: Technique) -> bool:
    """Whether what the technique needs is installed."""
    return not technique.needs or techniques.available()


def gain(plain: Node, distilled: Node) -> Quantity:
    return derive("gain of distillation", lambda kd, ce: kd - ce, distilled.accuracy, plain.accuracy)


def size(node: Node, unit: str) -> Quantity:
    """A size of the network that a stage leaves, from its notes."""
    return Quantity(unit, [node], lambda records: float(records[node.spec.hash].notes["sizes"][unit]))


def _short(node: Node) -> str:
    """A stage's label without its seed."""
    return node.spec.label.rpartition(" seed ")[0]
