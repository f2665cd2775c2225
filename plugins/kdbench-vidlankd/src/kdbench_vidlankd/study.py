"""Two steps and their controls: teachers on captioned clips, students on text, and what each knows.

Nothing here trains: every call adds a stage to the plan, and equal stages are trained once. Every seed has a world of
its own. All students of a seed start from the same weights and read the same masked blocks in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from msgspec.structs import replace as replaced

from kdbench.stage import Stage
from kdbench.study import Lab, Measurement, Node, Quantity, derive
from kdbench.training import Recipe
from kdbench_vidlankd.finetune import FineTune
from kdbench_vidlankd.objectives import TokenObjective
from kdbench_vidlankd.pretrain import PretrainStudent, PretrainTeacher
from kdbench_vidlankd.probes import PROBES, MaskedLoss, Probe
from kdbench_vidlankd.recipes import DISTILLED_STEP, GRID, VOKENS, Method, method
from kdbench_vidlankd.retrieval import RANKS, Retrieve, chance
from kdbench_vidlankd.vokens import Vokenize, VokenLabels

__all__ = ["Bench", "reproduce"]

TASKS = {"unspoken": (), "unspoken-text": ("CoLA", "SST-2", "RTE"), "howto100m": ("SST-2", "QNLI", "QQP", "MNLI")}
"""What students are fine-tuned on, besides acceptability."""

TEACHERS = ("mlm-only", "contrastive-only", "single-frame", "frozen", "2d", "random")
"""Other teachers of a CRD student."""

EXTRA = "not run: install kdbench-vidlankd[bert]"
NO_WORLD = "not run: HowTo100M has no nouns whose attributes are known"
NO_TASK = "not run: {dataset} has no such task"
NOT_RELEASED = "not run: the released code has no such arm that runs"


def reproduce(lab: Lab) -> Iterator[Measurement]:
    """Every arm of every seed; and of what is not measured here, why."""
    measured: set[str] = set()
    if all(find_spec(name) for name in ("transformers", "tokenizers", "sklearn")):
        for seed in lab.seeds:
            for measurement in _arms(Bench(lab, seed)):
                measured.add(measurement.cell)
                yield measurement
        reason = _reason
    else:
        reason = _not_installed
    for cell in _compared(lab):
        if cell not in measured:
            lab.leave_out(cell, reason(cell, lab))


class Bench:
    """One seed: its world, its teachers and its students."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.seed = seed
        self.method: Method = method(tier=lab.tier, dataset=lab.dataset, protocol=lab.protocol)
        self.has_world = lab.dataset != "howto100m"
        self.world = seed if self.has_world else 0

    def teacher(self, kind: str = "video") -> Node:
        """A video-text teacher, whole or with something changed or missing."""
        make = self.method
        stage = PretrainTeacher(
            language=make.tower,
            video=make.video,
            recipe=make.teaching,
            world=self.world,
            length=make.caption,
            contrast=make.contrast,
            margin=make.margin,
            near=make.near,
            captions="first" if make.released else "random",
        )
        changes: dict[str, dict[str, object]] = {
            "video": {},
            "mismatched": {"pairing": "mismatched"},
            "mlm-only": {"contrast": 0.0},
            "contrastive-only": {"masked": 0.0},
            "single-frame": {"frames": "middle"},
            "2d": {"streams": "2d"},
            "frozen": {"video": replaced(make.video, trained=False)},
            "random": {"recipe": replaced(make.teaching, epochs=0)},
        }
        return self._stage(replaced(stage, **changes[kind]), f"teacher {kind}")

    def text_only(self, recipe: Recipe | None = None, *, captions: bool = False, start: Node | None = None) -> Node:
        """A student without a teacher."""
        label = "student on text" + (" and captions" if captions else "") + (" from the teacher" if start else "")
        stage = self._student(recipe or self.method.baseline, (), captions=captions)
        return self._stage(stage, label, {"start": start} if start else {})

    def student(self, *objectives: TokenObjective, teacher: Node | None = None, of: str = "video") -> Node:
        """A student distilled from a teacher's text tower."""
        label = f"student by {' + '.join(each.label for each in objectives)} of {of}"
        stage = self._student(self.method.learning, objectives)
        return self._stage(stage, label, {"teacher": teacher or self.teacher(of)})

    def vokens(self, count: int) -> Node:
        """A student that names each token's nearest clip."""
        made = self._stage(
            Vokenize(count=count, world=self.world, length=self.method.block, blocks=self.method.blocks),
            f"{count} vokens",
            {"teacher": self.teacher()},
        )
        stage = self._student(self.method.learning, (VokenLabels(weight=1.0, count=count),))
        return self._stage(stage, f"student by {count} vokens", {"vokens": made})

    def _student(
        self, recipe: Recipe, objectives: tuple[TokenObjective, ...], *, captions: bool = False
    ) -> PretrainStudent:
        make = self.method
        return PretrainStudent(
            tower=make.tower,
            recipe=recipe,
            world=self.world,
            length=make.block,
            objectives=objectives,
            captions=captions,
            blocks=make.blocks,
        )

    # ----------------------------------------------------------------------------------------------------- what is read

    def probes(self, arm: str, node: Node) -> Iterator[Measurement]:
        """What a network knows of unspoken nouns."""
        if self.has_world:
            probe = self._probe(node)
            for column in PROBES:
                yield self.measure("probe", arm, column, probe.metric(f"test.{column}"))

    def grounded(self, kind: str) -> Iterator[Measurement]:
        """The same of a teacher, and how alike its tokens are."""
        if self.has_world:
            probe = self._probe(self.teacher(kind))
            for column in PROBES:
                yield self.measure("teacher", kind, column, probe.metric(f"test.{column}"))
            yield self.measure("teacher", kind, "collapse", probe.metric("collapse"))

    def harm(self, arm: str, node: Node) -> Iterator[Measurement]:
        """How well a network knows text."""
        make = self.method
        stage = MaskedLoss(world=self.world, length=make.block, blocks=make.held)
        yield self.measure(
            "text", arm, "mlm", self._stage(stage, f"masked loss: {arm}", {"network": node}).metric("test.mlm")
        )

    def tuned(self, arm: str, node: Node) -> Iterator[Measurement]:
        """Fine-tuned on acceptability and the data set's own tasks; which runs collapsed is measured as well."""
        tasks = [("text", "acceptability")] if self.has_world else []
        for table, task in [*tasks, *(("glue", task) for task in TASKS[self.lab.dataset])]:
            stage = FineTune(task=task, recipe=self.method.tuning, world=self.world, length=self.method.sentence)
            tuned = self._stage(stage, f"fine-tune on {task}: {arm}", {"network": node})
            yield self.measure(table, arm, task, tuned.metric("test.score"))
            yield self.measure(table, arm, f"{task}-collapsed", tuned.metric("test.collapsed"))

    def development(self, arm: str, node: Node) -> Measurement:
        """Colour on development nouns: what weights are chosen by."""
        return self.measure("weights", arm, "colour", self._probe(node).metric("development.colour"))

    def retrieval(self, arm: str, node: Node, teacher: Node) -> Iterator[Measurement]:
        """Whether a noun finds its clips."""
        stage = Retrieve(world=self.world)
        found = self._stage(stage, f"retrieve: {arm}", {"network": node, "teacher": teacher})
        for rank in RANKS:
            yield self.measure("retrieval", arm, f"recall{rank}", found.metric(f"test.recall{rank}"))

    def measure(self, table: str, row: str, column: str, quantity: Quantity) -> Measurement:
        return self.lab.measure(f"{table}/{self.lab.dataset}/{row}/{column}", quantity, seed=self.seed)

    def _probe(self, node: Node) -> Node:
        stage = Probe(world=self.world, length=self.method.block)
        return self._stage(stage, f"probe: {node.spec.label.rpartition(' seed ')[0]}", {"network": node})

    def _stage(self, stage: Stage, label: str, inputs: dict[str, Node] | None = None) -> Node:
        return self.lab.stage(stage, seed=self.seed, label=label, inputs=inputs)


def _arms(bench: Bench) -> Iterator[Measurement]:
    yield from core(bench)
    if not bench.method.released:
        yield from objectives(bench)
        yield from teachers(bench)
        yield from controls(bench)
        yield from weights(bench)


def core(bench: Bench) -> Iterator[Measurement]:
    """Text alone, NST and CRD of the video teacher, the same of mismatched video; and what guessing gives."""
    make = bench.method
    arms = {"text": bench.text_only()}
    for name in ("nst", "crd"):
        arms[name] = bench.student(make.objective(name))
        arms[f"{name}-mismatched"] = bench.student(make.objective(name), of="mismatched")
    for arm, node in arms.items():
        yield from bench.probes(arm, node)
        yield from bench.harm(arm, node)
        yield from bench.tuned(arm, node)
    for kind in ("video", "mismatched"):
        yield from bench.grounded(kind)
    if bench.has_world:
        known = bench._probe(arms["text"]).metric("test.colour")
        for column, share in PROBES.items():
            yield bench.measure("probe", "chance", column, derive("chance", lambda _, share=share: share, known))


def objectives(bench: Bench) -> Iterator[Measurement]:
    """The other objectives, the forms of the released code, and no head."""
    make = bench.method
    arms = {name: bench.student(make.objective(name)) for name in ("soft", "l2", "nt-xent")}
    arms["nst+crd"] = bench.student(make.objective("nst"), make.objective("crd"))
    for name in ("nst-released", "nt-xent-released"):
        arms[name] = bench.student(make.objective(name))
    for name in ("nst", "crd"):
        arms[f"{name}-headless"] = bench.student(make.objective(name, head=False))
    for arm, count in VOKENS.items():
        if count <= bench.lab.data.sizes["train"]:
            arms[arm] = bench.vokens(count)
    for arm, node in arms.items():
        yield from bench.probes(arm, node)
        yield from bench.harm(arm, node)


def teachers(bench: Bench) -> Iterator[Measurement]:
    """CRD students of other teachers, and an NST student of one that has not been trained."""
    make = bench.method
    for kind in TEACHERS:
        yield from bench.grounded(kind)
        yield from bench.probes(f"crd-{kind}", bench.student(make.objective("crd"), of=kind))
    yield from bench.probes("nst-random", bench.student(make.objective("nst"), of="random"))


def controls(bench: Bench) -> Iterator[Measurement]:
    """More text, more steps, the teacher itself, the teacher trained further; and retrieval."""
    make = bench.method
    arms = {
        "text-compute": bench.text_only(make.longer(DISTILLED_STEP)),
        "text+captions": bench.text_only(captions=True),
        "teacher": bench.teacher(),
        "teacher-then-text": bench.text_only(start=bench.teacher()),
    }
    for arm, node in arms.items():
        yield from bench.probes(arm, node)
        yield from bench.harm(arm, node)
    if bench.has_world:
        student = bench.student(make.objective("crd"))
        yield from bench.retrieval("crd", student, bench.teacher())
        yield from bench.retrieval("teacher", bench.teacher(), bench.teacher())
        known = bench._probe(student).metric("test.colour")
        for rank in RANKS:
            guess = chance(rank, own=2, gallery=64)
            yield bench.measure("retrieval", "chance", f"recall{rank}", derive("chance", lambda _, g=guess: g, known))


def weights(bench: Bench) -> Iterator[Measurement]:
    """Every objective at the weights of the grid, judged on development nouns, in the first worlds alone."""
    if bench.has_world and bench.seed in bench.lab.seeds[:SWEPT]:
        for name, grid in GRID.items():
            for weight in grid:
                student = bench.student(bench.method.objective(name, weight=weight))
                yield bench.development(f"{name}@{weight:g}", student)


SWEPT = 2
"""Seeds whose weights are swept."""


def _compared(lab: Lab) -> list[str]:
    """Every cell that a claim compares in this run."""
    cells = [cell for claim in lab.paper.claims for each in claim.instances(lab.axes) for cell in each.cells()]
    return list(dict.fromkeys(cells))


def _reason(cell: str, lab: Lab) -> str:
    table = cell.partition("/")[0]
    if table == "glue":
        return NO_TASK.format(dataset=lab.data.title)
    if lab.dataset == "howto100m" and table in ("probe", "retrieval", "teacher", "weights"):
        return NO_WORLD
    if cell.endswith("/acceptability"):
        return NO_TASK.format(dataset=lab.data.title)
    return NOT_RELEASED


def _not_installed(cell: str, lab: Lab) -> str:
    return EXTRA
