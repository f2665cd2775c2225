"""Plans of the study, and the way through them: from a cell to the network that it is about."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from kdbench.api import Prepared, prepare
from kdbench.component import unpack
from kdbench.plan import Plan
from kdbench.study import Measurement, Node

__all__ = ["DATASET", "PLANS", "PROTOCOLS", "kinds", "measured", "measurement", "network", "planned", "rows", "stage"]

PROTOCOLS = ("clean", "released")
PLANS = [
    ("smoke", "unspoken"),
    ("laptop", "unspoken"),
    ("full", "unspoken"),
    ("smoke", "unspoken-text"),
    ("laptop", "unspoken-text"),
    ("full", "unspoken-text"),
    ("smoke", "howto100m"),
    ("laptop", "howto100m"),
    ("full", "howto100m"),
]
"""Tiers and data sets; the last three have no world."""

DATASET = {"smoke": "unspoken", "laptop": "unspoken", "full": "howto100m"}


def planned(
    tier: str = "laptop", *, dataset: str = "", protocol: str = "clean", claims: str = "all", seeds: int = 1
) -> Prepared:
    """A plan, made once: the same call is answered with the same nodes. Data that are supplied need not be there."""
    return _planned(tier, dataset or DATASET[tier], protocol, claims, seeds)


@cache
def _planned(tier: str, dataset: str, protocol: str, claims: str, seeds: int) -> Prepared:
    return prepare(
        "vidlankd",
        tier=tier,
        dataset=dataset,
        protocol=protocol,
        claims=claims,
        seeds=seeds,
        device="cpu",
        fetch=False,
    )


def measured(plan: Plan) -> set[str]:
    return {each.cell for each in plan.measurements}


def rows(plan: Plan) -> dict[str, dict[str, set[str]]]:
    """Columns of every row of every table."""
    found: dict[str, dict[str, set[str]]] = {}
    for cell in measured(plan):
        table, _, row, column = cell.split("/")
        found.setdefault(table, {}).setdefault(row, set()).add(column)
    return found


def kinds(plan: Plan) -> Counter[str]:
    """How many stages there are of each kind."""
    return Counter(spec.stage["type"].partition(":")[2] for spec in plan.specs.values())


def measurement(prepared: Prepared, cell: str, seed: int = 0) -> Measurement:
    table, _, rest = cell.partition("/")
    whole = f"{table}/{prepared.request.dataset}/{rest}"
    (found,) = (each for each in prepared.plan.measurements if (each.cell, each.seed) == (whole, seed))
    return found


def network(prepared: Prepared, cell: str, seed: int = 0) -> Node:
    """The network whose probe, or loss, a cell is."""
    (node,) = measurement(prepared, cell, seed).quantity.nodes
    return node.inputs["network"]


def stage(node: Node) -> Any:
    return unpack(node.spec.stage)
