"""What the tests of the study share: plans of every kind, made once, and how to read them."""

from __future__ import annotations

from collections import Counter
from functools import cache

from kdbench.api import Prepared, prepare
from kdbench.component import unpack
from kdbench.stage import Spec
from kdbench.study import Node


@cache
def planned(
    tier: str = "laptop", protocol: str = "clean", claims: str = "all", dataset: str | None = None, seeds: int = 1
) -> Prepared:
    return prepare(
        "takd",
        tier=tier,
        dataset=dataset,
        protocol=protocol,
        claims=claims,
        seeds=seeds,
        device="cpu",
        fetch=False,
    )


def kind(spec: Spec) -> str:
    return str(spec.stage["type"]).partition(":")[2]


def kinds(prepared: Prepared) -> Counter[str]:
    return Counter(map(kind, prepared.plan.specs.values()))


def node_of(prepared: Prepared, cell: str, position: int = 0) -> Node:
    (measurement,) = (m for m in prepared.plan.measurements if m.cell == cell)
    return measurement.quantity.nodes[position]


@cache  # a search of 120 trials at every step has 120 ways up for each of them
def sizes(node: Node) -> tuple[int, ...]:
    """The way knowledge took to a network, read off the stages: (10, 4, 2). Trials of one arm agree on it."""
    if kind(node.spec) == "Choose":
        (way,) = {sizes(trial) for trial in node.inputs.values()}
        return way
    network = unpack(node.spec.stage["network"])
    size = getattr(network, "size", None) or network.depth
    teacher = node.inputs.get("teacher")
    return (*sizes(teacher.inputs["network"]), size) if teacher else (size,)
