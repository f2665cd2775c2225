"""From a run to the records of its stages, wherever the run lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy_paper import Nothing, toy_lab, toy_paper

from kdbench.api import Prepared, carry_out
from kdbench.errors import KdbenchError
from kdbench.executors.inline import InlineExecutor
from kdbench.plan import build_plan
from kdbench.report.dossier import add_run, read_dossier
from kdbench.result import Reproduction, Request, read_run
from kdbench.store import Store
from kdbench.study import Lab

REQUEST = Request(
    paper="toy",
    tier="smoke",
    dataset="mnist1d",
    protocol="clean",
    seeds=(0,),
    claims="all",
    device="cpu",
    workers=1,
    threads=1,
    executor="local",
    data_dir=None,
)


def numbers(lab: Lab):  # type: ignore[no-untyped-def]
    """Three stages without work."""
    for number, column in enumerate(("scratch", "distilled", "third")):
        node = lab.stage(Nothing(number=number), seed=0, label=f"number {number}")
        yield lab.measure(f"table1/{lab.dataset}/{column}", node.accuracy, seed=0)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Reproduction, Store]:
    """A finished run of three stages, and the store that it lies in."""
    paper, store = toy_paper(numbers), Store(tmp_path / "store")
    plan = build_plan(toy_lab(paper), "all")
    return carry_out(Prepared(paper, REQUEST, plan, store), executor=InlineExecutor()), store


def test_a_run_in_its_store_has_all_its_records(made: tuple[Reproduction, Store]) -> None:
    result, store = made
    assert len(result.run.stages) == 3
    for value in result.run.values:
        (stage,) = value.stages
        record = result.record(stage)
        assert record == store.record(stage)
        assert record is not None
        assert record.metrics["test.accuracy"] == value.value
    again = read_run(result.path)  # in another year
    assert [again.record(line.hash) for line in again.run.stages] == [store.record(s.hash) for s in result.run.stages]


def test_a_run_in_a_dossier_has_them_without_the_store(made: tuple[Reproduction, Store], tmp_path: Path) -> None:
    result, store = made
    records = {line.hash: store.record(line.hash) for line in result.run.stages}
    add_run(result, store, tmp_path / "dossier")
    shutil.rmtree(store.root)
    ((kept, _),) = read_dossier(tmp_path / "dossier")
    assert {stage: kept.record(stage) for stage in records} == records
    assert all(result.record(stage) is None for stage in records), "the store is gone"


def test_a_record_that_is_nowhere_is_none(made: tuple[Reproduction, Store], tmp_path: Path) -> None:
    result, store = made
    add_run(result, store, tmp_path / "dossier")
    ((kept, _),) = read_dossier(tmp_path / "dossier")
    assert result.record("0" * 32) is None
    assert kept.record("0" * 32) is None
    first, *others = (line.hash for line in result.run.stages)
    shutil.rmtree(store.stages / first)
    assert result.record(first) is None
    assert all(result.record(stage) is not None for stage in others)


def test_a_record_that_does_not_read_is_not_taken_for_none(made: tuple[Reproduction, Store]) -> None:
    result, store = made
    stage = result.run.stages[0].hash
    (store.stages / stage / "record.json").write_text("{")
    with pytest.raises(KdbenchError, match=r"record\.json is corrupt"):
        result.record(stage)
