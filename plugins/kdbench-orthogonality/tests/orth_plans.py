"""Plans of the study, and the way through them: from a cell to its stage, and from a student to its teachers."""

from __future__ import annotations

from functools import cache
from typing import Any

from kdbench.api import Prepared, prepare
from kdbench.component import unpack
from kdbench.data import DATASETS
from kdbench.plan import Plan
from kdbench.stages import Train
from kdbench.study import Measurement, Node
from kdbench_orthogonality.recipes import Method, method

DATASET = {"smoke": "mnist1d-pool", "laptop": "mnist1d-pool", "full": "cifar100"}


def planned(tier: str = "laptop", claims: str = "all", seeds: int = 1) -> Prepared:
    """A plan, made once: the same call is answered with the same nodes."""
    return _planned(tier, claims, seeds)


@cache
def _planned(tier: str, claims: str, seeds: int) -> Prepared:
    return prepare("orthogonality", tier=tier, claims=claims, seeds=seeds, device="cpu", fetch=False)


def cell_of(cell: str, tier: str = "laptop") -> str:
    """The whole name of a cell that is given without its data set."""
    table, _, rest = cell.partition("/")
    return f"{table}/{DATASET[tier]}/{rest}"


def node(cell: str, tier: str = "laptop", seed: int | None = None) -> Node:
    return planned(tier, seeds=1 if seed is None else seed + 1).plan.node(cell_of(cell, tier), seed)


def measurement(cell: str, tier: str = "laptop") -> Measurement:
    (found,) = (each for each in planned(tier).plan.measurements if each.cell == cell_of(cell, tier))
    return found


def measured(plan: Plan) -> set[str]:
    return {each.cell for each in plan.measurements}


def pair(name: str, tier: str = "laptop") -> tuple[Node, Node]:
    return node(f"accuracy/{name}/CE", tier), node(f"accuracy/{name}/KD", tier)


def stage(found: Node) -> Any:
    return unpack(found.spec.stage)


def trained(found: Node) -> Train:
    made = stage(found)
    assert isinstance(made, Train)
    return made


def teachers(found: Node) -> list[Node]:
    """The networks that taught a student."""
    return [each.inputs["network"] for role, each in found.inputs.items() if role.startswith("teacher")]


def teacher(found: Node) -> Node:
    (only,) = teachers(found)
    return only


def how() -> Method:
    """Networks and recipes of seed 0 at tier laptop."""
    return method(tier="laptop", data=DATASETS["mnist1d-pool"].expected(), seed=0)
