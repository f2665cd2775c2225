"""What the tests of the facts share: the data sets of the paper's tables, and the paths of its Fig. 5."""

from __future__ import annotations

from itertools import combinations

CIFAR = ("cifar10", "cifar100")


def paths(size: int) -> list[str]:
    """Every way from T10 down to a student of ``size``, the direct one first."""
    between = range(8, size, -2)
    chosen = [middle for count in range(len(between) + 1) for middle in combinations(between, count)]
    return ["-".join(map(str, (10, *middle, size))) for middle in chosen]
