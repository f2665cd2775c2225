"""How a plugin writes its study: straight-line Python that calls stages lazily and yields measurements.

    def reproduce(lab):
        for seed in lab.seeds:
            teacher = lab.train("plain10", seed=seed, recipe=RECIPE)
            student = lab.distil("plain2", teacher, seed=seed, recipe=RECIPE, objective=KD)
            yield lab.measure("table1/cnn/cifar10/BLKD", student.accuracy, seed=seed)

Nothing is trained here: every call adds a node, and equal nodes are one node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, Literal

import msgspec

from kdbench.code import code_version
from kdbench.component import load_object, pack
from kdbench.data.base import DataRef
from kdbench.errors import KdbenchError, unknown
from kdbench.networks.base import Network
from kdbench.paper import Paper
from kdbench.record import Record
from kdbench.stage import Spec, Stage
from kdbench.stages import Agreement, Choose, Teacher, Train
from kdbench.training import CrossEntropy, Objective, ObjectiveInfo, Recipe

__all__ = ["Lab", "Measurement", "Node", "Quantity", "derive"]


class Quantity:
    """A number that will exist once its stages have run: a metric of one stage, or a function of quantities."""

    def __init__(self, name: str, nodes: Sequence[Node], read: Callable[[dict[str, Record]], float]) -> None:
        self.name = name
        self.nodes = tuple(nodes)
        self.read = read


def derive(name: str, function: Callable[..., float], *quantities: Quantity) -> Quantity:
    """A quantity computed from others once all of them are known, for instance a relative gain."""
    nodes = [node for quantity in quantities for node in quantity.nodes]
    return Quantity(name, nodes, lambda records: function(*(quantity.read(records) for quantity in quantities)))


class Node:
    """A stage that is planned, not run: the handle that a study passes on as teacher, trial or measured network."""

    def __init__(self, spec: Spec, network: Network | None, inputs: dict[str, Node]) -> None:
        self.spec = spec
        self.network = network
        self.inputs = inputs

    def metric(self, name: str) -> Quantity:
        """A metric of the stage's record, for instance ``test.nll`` or ``train.entropy``."""

        def read(records: dict[str, Record]) -> float:
            found = records[self.spec.hash].metrics
            if name not in found:
                error = unknown("metric", name, found)
                raise KdbenchError(error.what, where=self.spec.label, cure=error.cure)
            return found[name]

        return Quantity(name, [self], read)

    @property
    def accuracy(self) -> Quantity:
        """Top-1 accuracy on the test split, percent."""
        return self.metric("test.accuracy")


class Measurement(msgspec.Struct, frozen=True):
    """One seed's value of one cell."""

    cell: str
    seed: int
    quantity: Quantity


class Lab:
    """What a study is given: the axes of this run, and the calls that add stages.

    Attributes
    ----------
    seeds : the seeds to repeat everything for.
    tier, protocol, dataset : the run's axes, as words.
    data : the data found for this run.
    """

    def __init__(
        self,
        paper: Paper,
        *,
        tier: str,
        protocol: str,
        data: DataRef,
        seeds: Sequence[int],
        networks: dict[str, Network],
        objectives: dict[str, ObjectiveInfo] | None = None,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self.paper = paper
        self.tier = tier
        self.protocol = protocol
        self.data = data
        self.dataset = data.dataset
        self.seeds = tuple(seeds)
        self.device = device
        self.threads = threads
        self.networks = networks
        self.objectives = objectives or {}
        self.axes: dict[str, tuple[str, ...]] = {"dataset": (data.dataset,)}
        self.left_out: dict[str, str] = {}
        self._nodes: dict[str, Node] = {}

    def axis(self, name: str, *values: str) -> tuple[str, ...]:
        """Declare an axis that cell names in claims mention as ``{name}``, with its values in this run."""
        self.axes[name] = values
        return values

    def leave_out(self, cell: str, reason: str) -> None:
        """Say why a cell that claims compare is not measured here, for instance which library is missing.

        Such a claim is ``not tested``, with the reason, and nothing of it is planned.
        """
        self.left_out[cell] = reason

    def train(
        self,
        network: str | Network,
        *,
        seed: int,
        recipe: Recipe,
        objective: Objective | None = None,
        restart: int = 0,
        label: str | None = None,
    ) -> Node:
        """Train a network without a teacher: on cross-entropy with the labels, or on another ``objective``.

        Parameters
        ----------
        restart : numbers repeated trials of one seed. The weights at the start are fixed by seed, restart and the
            network's name, the order of examples by seed and restart: equal ones are equal whatever the objective.
        label : what the stage is called in plans and progress; by default it is made of the parameters.
        """
        net = self._network(network)
        goal = objective or CrossEntropy()
        stage = Train(network=net, recipe=recipe, objective=goal, restart=restart)
        label = label or f"train {net.name}{goal.label}{_trial(restart)}"
        return self.stage(stage, seed=seed, label=label, network=net)

    def distil(
        self,
        student: str | Network,
        teacher: Node | Sequence[Node],
        *,
        seed: int,
        recipe: Recipe,
        objective: Objective,
        restart: int = 0,
        label: str | None = None,
    ) -> Node:
        """Train ``student`` from ``teacher``, a node that leaves a network. The teacher is gated first, and frozen.

        ``restart`` and ``label`` as for :meth:`train`. Where the recipe's ``holdout`` is not the teacher's own, what is
        held out of the student's training was seen by the teacher: choose nothing on it. Of several teachers each is
        gated, and the objective sees the logits of all (see :class:`kdbench.training.EnsembleDistillation`).

        Raises
        ------
        KdbenchError : there is no teacher, or there are several and the objective takes one.
        """
        net = self._network(student)
        stage = Train(network=net, recipe=recipe, objective=objective, restart=restart)
        teachers = [teacher] if isinstance(teacher, Node) else list(teacher)
        if not teachers:
            raise KdbenchError(
                "there is no teacher to distil from", where=label or f"lab.distil({net.name})", cure="use lab.train"
            )
        if len(teachers) > 1 and not objective.several_teachers:
            raise KdbenchError(
                f"{type(objective).__name__} takes one teacher, and {len(teachers)} were given",
                where=label or f"lab.distil({net.name})",
                cure="use EnsembleDistillation, or another objective whose several_teachers is true",
            )
        inputs = {f"teacher{place or ''}": self.teacher(each, recipe) for place, each in enumerate(teachers)}
        label = label or f"distil {net.name} from {_chains(teachers)}{objective.label}{_trial(restart)}"
        return self.stage(stage, seed=seed, inputs=inputs, label=label, network=net)

    def objective(self, name: str, **parameters: Any) -> Objective:
        """The objective that some plugin publishes under ``name``, with these parameters.

        Raises
        ------
        KdbenchError : there is none of that name, or the parameters are not its own.
        """
        if name not in self.objectives:
            raise unknown("objective", name, self.objectives)
        info = self.objectives[name]
        try:
            made: Objective = load_object(info.create)(**parameters)
        except TypeError as error:
            raise KdbenchError(f"objective '{name}': {error}", where=info.create) from error
        return made

    def teacher(self, node: Node, recipe: Recipe) -> Node:
        """The node as a teacher under ``recipe``: gated, and its training logits cached if inputs never change."""
        assert node.network is not None, "only a stage that leaves a network can teach"
        # Claimed accuracies are those of nets trained on the labels. A distilled assistant is part of what the method
        # yields, good or bad: dropping its bad seeds would flatter the method.
        gate = None
        if _from_scratch(node):
            gate = self.paper.gate(node.network.name, dataset=self.dataset, tier=self.tier, protocol=self.protocol)
        stage = Teacher(
            floor=None if gate is None else gate.claimed - gate.tolerance,
            cache=recipe.inputs_never_change,
            holdout=recipe.holdout,
            label_noise=recipe.label_noise,
            sample=recipe.sample,
            unlabelled=recipe.unlabelled,
        )
        return self.stage(
            stage,
            seed=node.spec.seed,
            inputs={"network": node},
            label=f"teacher {_chain(node)}",
            network=node.network,
        )

    def choose(self, trials: Sequence[Node], *, by: Literal["validation", "test"], label: str | None = None) -> Node:
        """The best of several trials by one split's accuracy, the first of equals; one trial is itself.

        The node leaves the chosen network, with its record's metrics, and may teach. Which trial it was stands in the
        record's notes: ``chosen`` (its position), ``chosen_label`` and ``scores``.

        Raises
        ------
        KdbenchError : there is no trial.
        """
        if not trials:
            raise KdbenchError("there is no trial to choose from", where=label or "lab.choose")
        if len(trials) == 1:
            return trials[0]
        inputs = {str(number): trial for number, trial in enumerate(trials)}
        label = label or f"best of {len(trials)} by {by}: {_common([trial.spec.label for trial in trials])}"
        return self.stage(
            Choose(by=by), seed=trials[0].spec.seed, inputs=inputs, label=label, network=trials[0].network
        )

    def agreement(self, student: Node, teacher: Node, recipe: Recipe) -> Node:
        """How well ``student`` mimics ``teacher`` on training and test inputs; ``recipe`` is the student's."""
        return self.stage(
            Agreement(holdout=recipe.holdout, sample=recipe.sample),
            seed=student.spec.seed,
            inputs={"student": student, "teacher": teacher},
            label=f"agreement {_chain(student)} with {_chain(teacher)}",
        )

    def stage(
        self,
        stage: Stage,
        *,
        seed: int,
        label: str,
        inputs: dict[str, Node] | None = None,
        network: Network | None = None,
    ) -> Node:
        """Add any stage; an equal one that is already there is returned instead."""
        packed = pack(stage)
        spec = Spec(
            stage=packed,
            seed=seed,
            tier=self.tier,
            device=self.device,
            threads=self.threads,
            code=code_version(packed, self.data.load),
            data=self.data,
            inputs={role: node.spec.hash for role, node in (inputs or {}).items()},
            label=f"{label} seed {seed}",
        )
        return self._nodes.setdefault(spec.hash, Node(spec, network, inputs or {}))

    def measure(self, cell: str, quantity: Quantity, *, seed: int) -> Measurement:
        """One seed's value of a cell; what a study yields."""
        return Measurement(cell, seed, quantity)

    def _network(self, network: str | Network) -> Network:
        if isinstance(network, Network):
            return network
        if network not in self.networks:
            raise unknown("network", network, self.networks)
        return self.networks[network]


def _chain(node: Node) -> str:
    """``plain10-plain4``: the way knowledge took to this node."""
    name = node.network.name if node.network is not None else node.spec.label
    source = node.inputs.get("teacher") or node.inputs.get("0")
    if source is None:
        return name
    if "teacher" in node.inputs:
        teachers = [stage for role, stage in node.inputs.items() if role.startswith("teacher")]
        return f"{_chains([stage.inputs['network'] for stage in teachers])}-{name}"
    return _chain(source)


def _chains(nodes: Sequence[Node]) -> str:
    """The same of a teacher, or how many teachers there are."""
    return _chain(nodes[0]) if len(nodes) == 1 else f"{len(nodes)} teachers"


def _from_scratch(node: Node) -> bool:
    return "teacher" not in node.inputs and all(_from_scratch(parent) for parent in node.inputs.values())


def _common(labels: Sequence[str]) -> str:
    """What the labels of several trials begin with, without the setting and the trial that tell them apart."""
    columns = zip(*(label.partition(" seed ")[0] for label in labels), strict=False)
    common = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    if common.count("(") > common.count(")"):
        common = common.rpartition("(")[0]
    return common.removesuffix(" trial ").strip()


def _trial(restart: int) -> str:
    return f" trial {restart + 1}" if restart else ""
