"""A plugin of tiny papers, each with one fault that only running it shows; installed as ``kdbench_planted``.

Beside its fault a paper has a network trained as it should be, from which the faulty stage takes what it needs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from kdbench import Lab, Paper, hookimpl
from kdbench.networks.base import Cost, Network
from kdbench.paper import Claim, Comparison, Protocol
from kdbench.record import Outcome
from kdbench.stage import Stage, Work
from kdbench.stages import Teacher, Train
from kdbench.study import Measurement, Node
from kdbench.training import SGD, Distillation, Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

RECIPE = Recipe(epochs=2, optimizer=SGD(lr=0.05), statistics="none", holdout=0.1)
OBJECTIVE = Distillation(temperature=4.0, alpha=0.9)
STEPS = 3

calls = 0


class Line(Network, frozen=True):
    """A linear classifier behind batch normalisation."""

    @property
    def name(self) -> str:
        return "planted-line"

    def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        from torch import nn

        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(40), nn.Linear(40, num_classes))

    def cost(self, input_shape: tuple[int, int, int], num_classes: int) -> Cost:
        return Cost(parameters=80 + 41 * num_classes, macs=40 * num_classes)


class Diary(Stage, frozen=True):
    """Adds up random numbers in steps, each after a resumable state, and notes in its folder when it began and where.

    ``forgets`` leaves the sum out of the state; ``states`` is whether it saves any.
    """

    forgets: bool = False
    states: bool = True

    def run(self, work: Work) -> Outcome:
        import torch

        state = work.load_state() or {"step": 0, "total": 0.0}
        with (work.folder / "diary").open("a") as diary:
            diary.write(f"{state['step']}\n")
        total = state.get("total", 0.0)
        for step in range(state["step"], STEPS):
            total += torch.rand((), generator=torch.Generator().manual_seed(work.seed + step)).item()
            if self.states and work.state_due():
                work.save_state({"step": step + 1, **({} if self.forgets else {"total": total})})
        return Outcome(metrics={"test.accuracy": total})


class Draws(Stage, frozen=True):
    """Leaves a number of torch's global generator; ``salt`` keeps equal ones apart."""

    salt: int = 0

    def run(self, work: Work) -> Outcome:
        import torch

        return Outcome(metrics={"test.accuracy": torch.rand(()).item()})


class Number(Stage, frozen=True):
    """Leaves a number that is no function of the stage: how often it was called here, random, or Python's hash."""

    of: Literal["calls", "chance", "hash"]
    salt: int = 0

    def run(self, work: Work) -> Outcome:
        global calls
        calls += 1
        numbers = {"calls": calls, "chance": int.from_bytes(os.urandom(4), "big"), "hash": hash("kdbench") % 1_000}
        return Outcome(metrics={"test.accuracy": float(numbers[self.of])})


class Peeks(Stage, frozen=True):
    """Leaves weights that depend on the test split's labels or inputs."""

    at: Literal["labels", "inputs"]

    def run(self, work: Work) -> Outcome:
        test = work.data()["test"]
        value = test.labels[:100] if self.at == "labels" else test.inputs[:100]
        work.save_tensors("weights.safetensors", {"value": value.clone()})
        return Outcome(metrics={"test.accuracy": 50.0})


class Uses(Stage, frozen=True):
    """Runs its teacher, well or badly."""

    how: Literal["well", "copy", "inputs", "mode", "parameter", "graph", "weights", "file"]

    def run(self, work: Work) -> Outcome:
        import copy

        import torch

        teacher, inputs = work.input("teacher").model(work), work.data()["train"].inputs[:100]
        if self.how == "copy":  # a student that starts from the teacher is free
            student = copy.deepcopy(teacher).train().requires_grad_(True)
            student(inputs).sum().backward()
        if self.how == "inputs":  # a gradient with respect to the inputs leaves the teacher as it is
            teacher(inputs.clone().requires_grad_(True)).sum().backward()
        if self.how == "mode":
            teacher.train()
        if self.how == "parameter":
            teacher.requires_grad_(True)
        if self.how == "graph":
            teacher = _with_graph(teacher)
        with torch.set_grad_enabled(self.how in ("parameter", "graph")):
            logits: Tensor = teacher(inputs)
        if self.how == "weights":
            next(iter(teacher.parameters())).add_(1.0)
        if self.how == "file":
            (work.input("teacher").folder / "weights.safetensors").write_bytes(b"")
        return Outcome(metrics={"test.accuracy": logits.sum().item()})


def _with_graph(model: nn.Module) -> nn.Module:
    """A model with a plain tensor that takes a gradient in the place of a parameter."""
    weight = model.net[2].weight.detach().clone().requires_grad_(True)
    del model.net[2].weight
    model.net[2].weight = weight
    return model


class Adapts(Stage, frozen=True):
    """Runs the network of an input that is no teacher in training mode, for one purpose or another."""

    to: Literal["tune", "estimate", "keep", "prune", "assist"]

    def run(self, work: Work) -> Outcome:
        import torch

        model, inputs = work.input("network").model(work), work.data()["train"].inputs[:100]
        other = torch.nn.Linear(10, 10)
        optimised = model if self.to == "tune" else other
        if self.to == "tune":
            model.requires_grad_(True)
        if self.to == "prune":  # by hand, beside whatever an optimiser does
            next(iter(model.parameters())).mul_(0.5)
        logits: Tensor = other(model.train()(inputs))
        if self.to != "estimate":  # statistics alone, to measure the network with them
            logits.sum().backward()
            torch.optim.SGD(optimised.parameters(), lr=0.01).step()
        if self.to == "keep":
            work.save_tensors("weights.safetensors", model.state_dict())
        return Outcome(metrics={"test.accuracy": logits.sum().item()})


class Copies(Stage, frozen=True):
    """Hands the environment on, in every way that there is, and reads one variable of it."""

    def run(self, work: Work) -> Outcome:
        copies = [{**os.environ}, dict(os.environ), os.environ.copy(), {k: v for k, v in os.environ.items() if v}]
        handed = {**os.environ, "KDBENCH_PLANTED": "1", "PATH": os.environ["PATH"]}
        return Outcome(metrics={"test.accuracy": float(len(copies) + len(handed))})


class Reads(Stage, frozen=True):
    """Reads the environment, in every way that there is."""

    def run(self, work: Work) -> Outcome:
        from os import environ, getenv

        rate = environ.get("KDBENCH_PLANTED_RATE", "1")
        if "KDBENCH_PLANTED_SWITCH" in os.environ or getenv("KDBENCH_PLANTED_NAME"):
            rate = "2"
        os.environ["KDBENCH_PLANTED_WRITTEN"] = "1"  # what is only written, another program may need
        return Outcome(metrics={"test.accuracy": float(rate)})


class Ends(Stage, frozen=True):
    """Does not come to its end."""

    how: Literal["raises", "segfault", "exits", "stands", "orphans"]

    def run(self, work: Work) -> Outcome:
        if self.how == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.how == "exits":
            os._exit(7)
        if self.how == "orphans":
            os.kill(os.getppid(), signal.SIGKILL)
        if self.how in ("stands", "orphans"):
            (work.folder / "pid").write_text(str(os.getpid()))
            signal.pause()
        raise ValueError("broken on purpose")


def sound(lab: Lab, teacher: Node) -> Iterator[Node]:
    yield lab.distil(Line(), teacher, seed=0, recipe=RECIPE, objective=OBJECTIVE)
    yield lab.stage(Diary(), seed=0, label="diary")
    yield lab.stage(Diary(states=False), seed=0, label="diary without states")
    yield lab.stage(Draws(), seed=0, label="draws")


def gated(lab: Lab, teacher: Node) -> Iterator[Node]:
    """A teacher whose gate can only read the test split, and who is just good enough there."""
    recipe = Recipe(epochs=4, optimizer=SGD(lr=0.05), statistics="none")
    able = lab.train(Line(), seed=0, recipe=recipe, label="able")
    gate = lab.stage(Teacher(floor=15.0, cache=True, holdout=0.0), seed=0, label="gate", inputs={"network": able})
    inputs = {"teacher": gate}
    yield lab.stage(Train(network=Line(), recipe=recipe, objective=OBJECTIVE), seed=0, label="taught", inputs=inputs)


def stages(*chosen: Stage) -> Callable[[Lab, Node], Iterator[Node]]:
    def add(lab: Lab, teacher: Node) -> Iterator[Node]:
        for stage in chosen:
            roles = {Uses: "teacher", Adapts: "network"}
            inputs = {roles[type(stage)]: teacher} if type(stage) in roles else {}
            yield lab.stage(stage, seed=0, label=type(stage).__name__.lower(), inputs=inputs)

    return add


USES = ("well", "copy", "inputs", "mode", "parameter", "graph", "weights", "file")
ADAPTS = ("tune", "estimate", "keep", "prune", "assist")
PLANTED = {
    "sound": sound,
    "counter": stages(Number(of="calls"), Number(of="calls", salt=1)),
    "unseeded": stages(Number(of="chance")),
    "hashed": stages(Number(of="hash")),
    "forgetful": stages(Diary(forgets=True)),
    "peeks-labels": stages(Peeks(at="labels")),
    "peeks-inputs": stages(Peeks(at="inputs")),
    "reads": stages(Reads()),
    "copies": stages(Copies()),
    "gated": gated,
    **{f"adapts-{to}": stages(Adapts(to=to)) for to in ADAPTS},
    "raises": stages(Ends(how="raises")),
    "segfault": stages(Ends(how="segfault"), Diary()),
    "exits": stages(Ends(how="exits")),
    "stands": stages(Ends(how="stands")),
    "orphans": stages(Ends(how="orphans")),
    **{f"teacher-{how}": stages(Uses(how=how)) for how in USES},
}


def paper(name: str) -> Paper:
    def study(lab: Lab) -> Iterator[Measurement]:
        teacher = lab.train(Line(), seed=0, recipe=RECIPE)
        yield lab.measure("table1/teacher", teacher.accuracy, seed=0)
        for number, node in enumerate(PLANTED[name](lab, teacher)):
            yield lab.measure(f"table1/{number}", node.accuracy, seed=0)

    return Paper(
        id=name,
        title=f"A toy called {name}",
        authors="Nobody",
        venue="Nowhere",
        year=2026,
        url="https://example.org",
        bibtex="@misc{toy}",
        summary="More is better.",
        datasets=("mnist1d",),
        default_dataset={"smoke": "mnist1d", "laptop": "mnist1d", "full": "mnist1d"},
        protocols=(Protocol(id="written", sentence="as written"), Protocol(id="clean", sentence="as meant")),
        claims=(
            Claim(
                id="C1",
                title="More beats less",
                sentence="More is better.",
                source="Table 1",
                certainty="project",
                core=False,
                gain_margin=0.3,
                alternatives=((Comparison(left="table1/0", right="table1/teacher"),),),
            ),
        ),
        study=study,
    )


@hookimpl
def kdbench_papers() -> Iterator[Paper]:
    for name in PLANTED:
        yield paper(name)
