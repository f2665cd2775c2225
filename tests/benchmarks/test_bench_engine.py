"""What the engine itself costs: stages that do nothing, through the local workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdbench.api import Silent
from kdbench.executors.local import LocalExecutor
from kdbench.plan import Plan
from kdbench.run import drive
from kdbench.store import Store

from toy_paper import Nothing, toy_lab  # isort: skip


STAGES = 40


def test_overhead_of_a_stage(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds for 40 empty stages on one live worker; ``per_stage_ms`` says what one of them costs."""
    lab = toy_lab()
    nodes = [lab.stage(Nothing(number=number), seed=0, label=f"nothing {number}") for number in range(STAGES)]
    plan = Plan(lab, (), [lab.measure(str(i), node.accuracy, seed=0) for i, node in enumerate(nodes)])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # the worker must find the stage's module
    executor = LocalExecutor(workers=1)
    rounds = iter(range(1000))

    def run() -> None:
        store = Store(tmp_path / str(next(rounds)))
        with store.locked():
            results = drive(plan, store, executor, Silent())
        assert len(results.records) == STAGES
        assert not results.failures

    try:
        run()  # the worker imports torch once, whatever it is asked for
        benchmark.pedantic(run, rounds=5)
    finally:
        executor.close()
    if benchmark.stats is not None:
        benchmark.extra_info["per_stage_ms"] = 1000 * benchmark.stats.stats.median / STAGES
