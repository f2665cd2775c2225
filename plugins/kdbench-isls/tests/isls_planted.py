"""A finished run whose every value is chosen here, and whose figures can be foretold: nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from kdbench.record import Environment, Record
from kdbench.result import DataUsed, Facts, Reproduction, Request, RunFile, Value, write_run

ARMS = ("CE", "LS", "LS-matched", "SD-g1", "SD-g2", "SD-g3", "Beta", "shuffled", "reversed", "entropy")
TEMPERATURES = ("1", "1.5", "4")
STATISTICS = ("uncertainty", "diversity", "variance", "confidence")
BINS = 15

_HERE = Environment(
    kdbench="0", commit="", code="", python="", torch="", numpy="", platform="", processor="", cores=1, threads=1,
    device="cpu", ops="",
)  # fmt: skip
_FACTS = Facts(
    title="", authors="", venue="", url="", bibtex="", protocol="", tables=(), claims=(), others=(), deviations=()
)


def planted(
    root: Path,
    *,
    arms: Sequence[str] = ARMS,
    noises: Sequence[str] = ("20",),
    networks: Sequence[str] = ("plain4",),
    seeds: int = 3,
    default: str = "4",
    sweep: bool = True,
    statistics: Sequence[str] = STATISTICS,
) -> Reproduction:
    """A run of ``arms``, with teachers at the default temperature and, if ``sweep``, at all."""
    values: list[Value] = []
    for seed in range(seeds):
        for network in networks:
            for noise in noises:
                key = f"{network}-{noise}-{seed}"
                record(root, f"calibrate-{key}", {"type": "Calibrate"}, bins(arms, seed))
                record(root, f"teachers-{key}", {"type": "TeacherStatistics", "temperature": float(default)}, {})
                values += [
                    Value(f"{table}/{network}/planted/noise-{noise}/{column}", seed, metric, value, (f"{stage}-{key}",))
                    for table, column, metric, value, stage in cells(seed, arms, default, sweep, statistics)
                ]
    run = RunFile(
        id="one",
        status="finished",
        request=Request(
            paper="isls", tier="laptop", dataset="planted", protocol="clean", seeds=tuple(range(seeds)), claims="all",
            device="cpu", workers=1, threads=1, executor="inline", data_dir=None,
        ),
        facts=_FACTS,
        data=DataUsed("Planted", "f" * 64, True, "", {"test": 100}),
        environment=_HERE,
        started="",
        values=tuple(values),
    )  # fmt: skip
    folder = root / "runs" / "one"
    write_run(folder, run)
    return Reproduction(run, folder)


def cells(
    seed: int, arms: Sequence[str], default: str, sweep: bool, statistics: Sequence[str]
) -> Iterator[tuple[str, str, str, float, str]]:
    """Table, column, metric, value and stage of everything that one seed measures."""
    for place, arm in enumerate(arms):
        yield "accuracy", arm, "test.accuracy", 70.0 + place + 0.3 * seed, "train"
        yield "ece", arm, f"test.ece.{arm}", 5.0 + place + 0.5 * seed, "calibrate"
    for number in range(4):
        for place, table in enumerate(statistics):
            yield table, f"g{number}", f"train.{table}.g{number}", place + 0.1 * number + 0.02 * seed, "teachers"
    for warm, temperature in enumerate(TEMPERATURES if sweep else ()):
        stage = "teachers" if temperature == default else f"teachers-{temperature}"
        for number in range(4):
            column = f"T{temperature}-g{number}"
            yield "accuracy-by-T", column, "test.accuracy", 70.0 + number - warm + 0.3 * seed, "train"
            for place, table in enumerate(statistics):
                value = place + warm + 0.1 * number + 0.02 * seed
                yield f"{table}-by-T", column, f"train.{table}.g{number}", value, stage


def bins(arms: Sequence[str], seed: int) -> dict[str, list[float]]:
    """Of every arm: the first bin is empty, bin b has b + seed examples, as sure as its middle, half of them right."""
    counts = [0.0, *(float(b + seed) for b in range(1, BINS))]
    middles = [(b + 0.5) / BINS for b in range(BINS)]
    return {
        f"test.reliability.{arm}.{name}": each
        for arm in arms
        for name, each in {
            "count": counts,
            "confidence": [count * middle for count, middle in zip(counts, middles, strict=True)],
            "correct": [count / 2 for count in counts],
        }.items()
    }


def record(root: Path, stage: str, packed: dict[str, Any], curves: dict[str, list[float]]) -> None:
    folder = root / "stages" / stage
    folder.mkdir(parents=True, exist_ok=True)
    made = Record(
        hash=stage, label=stage, spec={"stage": packed}, metrics={}, curves=curves, notes={}, files={},
        environment=_HERE, seconds=0.0, finished="",
    )  # fmt: skip
    (folder / "record.json").write_bytes(msgspec.json.encode(made))


def without(result: Reproduction, *, cell: str, seed: int, value: float | None = None) -> Reproduction:
    """The run as if one seed of the cells that begin with ``cell`` had given ``value``: by default it failed."""
    values = tuple(
        msgspec.structs.replace(each, value=value) if each.cell.startswith(cell) and each.seed == seed else each
        for each in result.run.values
    )
    return Reproduction(msgspec.structs.replace(result.run, values=values), result.path)
