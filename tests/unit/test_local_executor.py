"""Worker processes that die at the wrong moment: a failure each, never a run that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.executors import local
from kdbench.executors.local import LocalExecutor


def watched(call: Callable[[], object]) -> None:
    """Run what must return; a deadline instead of a hanging suite."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert ended == [None], "it hangs, or raised"


CUT_SHORT = 'import sys; sys.stdin.readline(); sys.stdout.write(\'{"what": "cut\'); sys.stdout.flush()'
SILENT = "import sys; sys.stdin.readline()"


@pytest.mark.parametrize("program", [CUT_SHORT, SILENT], ids=["in the middle of an answer", "without an answer"])
def test_death_of_a_worker_never_hangs_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str) -> None:
    monkeypatch.setattr(local, "WORKER", program)
    executor = LocalExecutor(1)
    futures = [executor.submit(tmp_path) for _ in range(3)]
    for future in futures:
        assert "the worker process died" in str(future.exception(timeout=60))
    executor.submit(tmp_path)  # one is dying while we close
    watched(executor.close)
    assert executor._workers[0].poll() is not None


def test_close_takes_a_request_that_a_dead_worker_never_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "WORKER", "pass")
    executor = LocalExecutor(1)
    executor._workers[0].wait(timeout=60)
    executor._closed = True  # so that the dead one is not replaced, as when it dies while we close
    future = executor.submit(tmp_path)
    assert "the worker process died" in str(future.exception(timeout=60))
    watched(executor.close)
