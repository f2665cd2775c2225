"""Finished runs without training: accuracies of the factorial, as a run of this paper leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.paper import Claim, Comparison
from kdbench.record import Environment
from kdbench.result import DataUsed, Facts, Request, RunFile, Value, write_run
from kdbench.store import Store

DATASET = "mnist1d-pool"
SEEDS = (0, 1, 2, 3, 4)

_HERE = Environment(
    kdbench="0",
    commit="",
    code="",
    python="",
    torch="",
    numpy="",
    platform="",
    processor="",
    cores=1,
    threads=1,
    device="cpu",
    ops="",
)

Cells = Mapping[str, Sequence[float | None]]
"""Values by cell without its table and data set, for instance ``none/CE``, one for each seed; None where it failed."""

# Of five seeds; the gain of distillation is 1.0 on average without anything.
NONE: Cells = {
    "none/CE": [94.0, 95.0, 94.5, 95.5, 94.0],
    "none/KD": [95.0, 96.1, 95.4, 96.6, 94.9],
}
TUNED: Cells = {
    "none+ft/CE": [94.5, 95.2, 94.8, 95.6, 94.4],
    "none+ft/KD": [95.5, 96.3, 95.7, 96.7, 95.3],
}
PRUNED: Cells = {
    "prune50/CE": [93.0, 93.6, 93.4, 94.0, 92.9],
    "prune50/KD": [94.1, 94.7, 94.3, 95.0, 93.9],
}


def equivalence(claim: str, cell: str, margin: float) -> Claim:
    """A claim that the cell is 0 within a margin, as the facts declare it."""
    zero = f"{cell.rpartition('/')[0].rpartition('/')[0]}/zero/{cell.rpartition('/')[2]}"
    return Claim(
        id=claim,
        title="",
        sentence="",
        source="a test",
        certainty="project",
        gain_margin=9.0,
        alternatives=((Comparison(left=cell, right=zero, relation="equal", margin=margin),),),
    )


def planted(
    *cells: Cells,
    interactions: Cells | None = None,
    claims: Sequence[Claim] = (),
    others: Sequence[Claim] = (),
    seeds: Sequence[int] = SEEDS,
    paper: str = "orthogonality",
) -> RunFile:
    """A run with the accuracies of ``cells`` and, as it measured them itself, ``interactions``."""
    accuracies = {f"accuracy/{DATASET}/{name}": values for each in cells for name, values in each.items()}
    own = {f"interaction/{DATASET}/{name}": values for name, values in (interactions or {}).items()}
    values = tuple(
        Value(cell, seed, "test.accuracy", value, ())
        for cell, numbers in {**accuracies, **own}.items()
        for seed, value in zip(seeds, numbers, strict=True)
    )
    return RunFile(
        id="run-one",
        status="finished",
        request=Request(
            paper=paper,
            tier="laptop",
            dataset=DATASET,
            protocol="clean",
            seeds=tuple(seeds),
            claims="core",
            device="cpu",
            workers=1,
            threads=1,
            executor="inline",
            data_dir=None,
        ),
        facts=Facts(
            title="",
            authors="",
            venue="",
            url="",
            bibtex="",
            protocol="",
            tables=(),
            claims=tuple(claims),
            others=tuple(others),
            deviations=(),
        ),
        data=DataUsed("MNIST-1D pool", "f" * 64, True, "", {"train": 1, "test": 1}),
        environment=_HERE,
        started="",
        values=values,
    )


def stored(store: Store, *cells: Cells, **more: Any) -> str:
    """The same run in a store, by its id."""
    run = planted(*cells, **more)
    write_run(store.runs / run.id, run)
    return run.id
