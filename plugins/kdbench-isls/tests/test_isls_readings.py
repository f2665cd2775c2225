"""What the figures are made of, on a run whose every value is known."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from statistics import fmean

import msgspec
import pytest
from isls_planted import ARMS, BINS, STATISTICS, TEMPERATURES, planted, record, without

from kdbench.files import atomic_write
from kdbench.result import Reproduction, read_run, write_run
from kdbench_isls.readings import Level, Readings

LEVEL = Level("plain4", "planted", "noise-20")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    return planted(tmp_path_factory.mktemp("planted"))


def test_levels_and_columns_keep_the_order_of_the_study(tmp_path: Path) -> None:
    readings = Readings(planted(tmp_path, networks=("resnet34", "densenet100"), noises=("20", "0"), seeds=1))
    assert readings.levels() == [
        Level(network, "planted", f"noise-{noise}") for network in ("resnet34", "densenet100") for noise in ("20", "0")
    ]
    assert readings.columns(readings.levels()[2], "ece") == list(ARMS)


def test_the_default_temperature_is_one_line_of_the_sweep(result: Reproduction) -> None:
    readings = Readings(result)
    assert readings.default_temperature(LEVEL) == 4.0
    for table in ("accuracy", *STATISTICS):
        assert list(readings.lines(LEVEL, table)) == ["T 1", "T 1.5", "T 4 (default)"]
    accuracy = readings.lines(LEVEL, "accuracy")
    # The arms themselves, with CE as generation 0.
    assert accuracy["T 4 (default)"] == {
        number: {seed: 70.0 + place + 0.3 * seed for seed in range(3)} for number, place in enumerate((0, 3, 4, 5))
    }
    assert accuracy["T 1"][2] == {0: 72.0, 1: 72.3, 2: 72.6}


def test_without_a_sweep_there_is_the_default_alone(tmp_path: Path) -> None:
    result = planted(tmp_path, sweep=False)
    assert {tuple(Readings(result).lines(LEVEL, table)) for table in ("accuracy", *STATISTICS)} == {("T 4 (default)",)}
    shutil.rmtree(tmp_path / "stages")
    alone = Readings(Reproduction(result.run, result.path))
    assert alone.default_temperature(LEVEL) is None
    assert list(alone.lines(LEVEL, "diversity")) == ["default"]


def test_without_its_record_the_default_is_not_told_from_the_sweep(tmp_path: Path) -> None:
    result = planted(tmp_path)
    shutil.rmtree(tmp_path / "stages")
    assert list(Readings(result).lines(LEVEL, "diversity")) == [f"T {t}" for t in TEMPERATURES]


def test_the_default_temperature_is_found_by_the_student_too(tmp_path: Path) -> None:
    result = planted(tmp_path, sweep=False, statistics=())
    assert Readings(result).default_temperature(LEVEL) is None
    record(tmp_path, "train-plain4-20-0", {"type": "Train", "objective": {"temperature": 1.5}}, {})
    assert Readings(result).default_temperature(LEVEL) == 1.5


def test_one_generation_is_no_line(tmp_path: Path) -> None:
    result = planted(tmp_path, arms=("CE", "LS", "Beta"), sweep=False, statistics=())
    assert Readings(result).lines(LEVEL, "accuracy") == {}


def test_seeds_of_a_diagram_are_pooled_bin_by_bin(result: Reproduction) -> None:
    diagrams = list(Readings(result).diagrams(LEVEL))
    assert [diagram.arm for diagram in diagrams] == list(ARMS)
    counts = {b: sum(b + seed for seed in range(3)) for b in range(1, BINS)}
    expected = [((b + 0.5) / BINS, 0.5, count / sum(counts.values())) for b, count in counts.items()]
    for place, diagram in enumerate(diagrams):
        assert diagram.bins == [pytest.approx(point) for point in expected]
        assert diagram.error.n == 3
        assert diagram.error.mean == pytest.approx(fmean([5.0 + place, 5.5 + place, 6.0 + place]))
        assert diagram.error.sd == pytest.approx(0.5)


def test_an_arm_whose_bins_are_not_on_file_has_no_diagram(tmp_path: Path) -> None:
    result = planted(tmp_path)
    path = tmp_path / "stages" / "calibrate-plain4-20-1" / "record.json"
    made = msgspec.json.decode(path.read_bytes())
    made["curves"] = {name: each for name, each in made["curves"].items() if ".Beta." not in name}
    atomic_write(path, msgspec.json.encode(made))
    assert [diagram.arm for diagram in Readings(result).diagrams(LEVEL)] == [arm for arm in ARMS if arm != "Beta"]
    path.unlink()
    assert list(Readings(result).diagrams(LEVEL)) == []


def test_a_seed_that_failed_is_in_no_diagram(result: Reproduction) -> None:
    (ce, *others) = Readings(without(result, cell="ece/plain4/planted/noise-20/CE", seed=2)).diagrams(LEVEL)
    assert ce.error.n == 2
    total = sum(b + seed for b in range(1, BINS) for seed in range(2))
    assert ce.bins[-1] == pytest.approx(((BINS - 0.5) / BINS, 0.5, (2 * BINS - 1) / total))
    assert {diagram.error.n for diagram in others} == {3}


def test_records_are_read_from_a_dossier_too(result: Reproduction, tmp_path: Path) -> None:
    kept = tmp_path / "dossier" / "records" / "laptop"
    write_run(kept, result.run)
    records = sorted((result.path.parent.parent / "stages").glob("*/record.json"))
    (kept / "records.jsonl").write_bytes(b"\n".join(path.read_bytes() for path in records))
    assert list(Readings(read_run(kept)).diagrams(LEVEL)) == list(Readings(result).diagrams(LEVEL))


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_gaps_are_seen_where_a_figure_shows_them(result: Reproduction, value: float | None) -> None:
    assert not Readings(result).has_gaps(LEVEL)
    for cell in ("accuracy/plain4/planted/noise-20/Beta", "ece/", "diversity-by-T/plain4/planted/noise-20/T1-g0"):
        assert Readings(without(result, cell=cell, seed=1, value=value)).has_gaps(LEVEL)
    assert not Readings(without(result, cell="confidence/", seed=1, value=value)).has_gaps(LEVEL)
    gone = Readings(without(result, cell="accuracy/plain4/planted/noise-20/Beta", seed=1, value=value))
    assert sorted(gone.values(LEVEL, "accuracy", "Beta")) == [0, 2]
