"""Finished runs without training: what every arm knows, as a run of this paper leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kdbench.paper import Claim
from kdbench.record import Environment, Record
from kdbench.result import DataUsed, Facts, Reproduction, Request, RunFile, Value, write_run
from kdbench_vidlankd.probes import PROBES
from kdbench_vidlankd.readings import GROUPS
from kdbench_vidlankd.recipes import GRID

__all__ = ["DATASET", "GUESSING", "SEEDS", "Cells", "everything", "leave_picture", "run_of", "spread"]

DATASET = "unspoken"
SEEDS = (0, 1, 2, 3, 4)

Cells = Mapping[str, Sequence[float | None]]
"""Values by cell without the data set, for instance ``probe/crd/colour``, one for each seed; None where it failed."""

HERE = Environment(
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
NO_HARM = Claim(id="no-harm", title="", sentence="", source="a test", certainty="project", gain_margin=0.05)

GUESSING = ("text", "crd-mlm-only", "text-compute", "text+captions")
STEPS = (-1.0, 0.5, 0.0, -0.5, 1.0)


def spread(mean: float, step: float = 2.0) -> list[float]:
    """Five seeds about a mean, the first the lowest."""
    return [mean + step * place for place in STEPS]


def everything() -> dict[str, list[float]]:
    """What a run of all claims measures: arms that have seen video know everything, the others guess."""
    cells: dict[str, list[float]] = {}
    arms = [arm for members in GROUPS.values() for arm in members]
    for number, arm in enumerate(arms):
        guesses = arm in GUESSING or arm.endswith(("-mismatched", "-random"))
        for place, (column, chance) in enumerate(PROBES.items()):
            known = chance + (0.0 if guesses else (92.0 - chance) * (1.0 - 0.1 * place))
            cells[f"probe/{arm}/{column}"] = spread(known + number % 5)
        if arm not in GROUPS["teachers"]:
            cells[f"text/{arm}/mlm"] = spread(1.40 + 0.01 * (number % 7) + 0.4 * (arm == "teacher"), 0.01)
    for kind, known in (("video", 95.0), ("mismatched", 25.0)):
        cells |= {f"teacher/{kind}/{column}": spread(known) for column in PROBES}
    cells |= {f"probe/chance/{column}": [chance] * 5 for column, chance in PROBES.items()}
    for arm, (first, fifth) in {"crd": (60.0, 85.0), "teacher": (70.0, 95.0)}.items():
        cells |= {f"retrieval/{arm}/recall1": spread(first), f"retrieval/{arm}/recall5": spread(fifth)}
    cells |= {"retrieval/chance/recall1": [3.125] * 5, "retrieval/chance/recall5": [14.93] * 5}
    for name in ("soft", "nst"):
        for place, weight in enumerate(GRID[name]):
            cells[f"weights/{name}@{weight:g}/colour"] = spread(40.0 + 20.0 * place)[:2]
    return cells


def run_of(
    folder: Path,
    cells: Cells,
    *,
    seeds: Sequence[int] = SEEDS,
    claims: Sequence[Claim] = (NO_HARM,),
    tier: str = "laptop",
) -> Reproduction:
    """A finished run of ``cells``. The stage of a value is its row and seed, as in ``retrieval-crd-0``."""
    values = []
    for name, numbers in cells.items():
        table, row, column = name.split("/")
        for seed, value in zip(seeds, numbers, strict=False):  # weights are swept with the first seeds alone
            stage = f"{table}-{row}-{seed}"
            values.append(Value(f"{table}/{DATASET}/{row}/{column}", seed, "planted", value, (stage,)))
    run = RunFile(
        id="run-one",
        status="finished",
        request=Request(
            paper="vidlankd",
            tier=tier,
            dataset=DATASET,
            protocol="clean",
            seeds=tuple(seeds),
            claims="all",
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
            others=(),
            deviations=(),
        ),
        data=DataUsed("The unspoken world", "f" * 64, True, "", {"train": 1, "test": 1}),
        environment=HERE,
        started="",
        values=tuple(values),
    )
    write_run(folder, run)
    return Reproduction(run, folder)


def leave_picture(result: Reproduction, stage: str, picture: Mapping[str, Any]) -> None:
    """Keep the record of a stage, whose notes have the picture, beside the run, as a dossier does."""
    record = Record(
        hash=stage,
        label="",
        spec={},
        metrics={},
        curves={},
        notes={"picture": dict(picture)},
        files={},
        environment=HERE,
        seconds=0.0,
        finished="",
    )
    with (result.path / "records.jsonl").open("ab") as lines:
        lines.write(msgspec.json.encode(record) + b"\n")
