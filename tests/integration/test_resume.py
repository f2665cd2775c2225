"""A run that is killed at any moment and started again ends as one that was never disturbed, to the bit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from toy_paper import toy_lab, toy_paper
from toy_stages import HELD_EPOCH, HOLD, held_study

from kdbench.api import Silent
from kdbench.executors.inline import InlineExecutor
from kdbench.plan import build_plan
from kdbench.run import drive
from kdbench.stage import WEIGHTS, read_record
from kdbench.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found through /proc"),
]

COMMAND = ["reproduce", "held-toy", "--tier", "smoke", "--workers", "2"]
DEADLINE = 120.0

Content = dict[str, tuple[dict[str, Any], bytes | None]]


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, not for a time."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE:g} s in vain: {what}"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The held paper, installed as a distribution: a folder with an entry point on the search path."""
    site = tmp_path_factory.mktemp("site")
    info = site / "held_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: held-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kdbench]\nheld = toy_stages\n")
    path = os.pathsep.join(
        [str(site), str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        yield path


def content_of(store: Path) -> Content:
    """Every record of a store without its timings, and its weights as bytes."""
    found: Content = {}
    for folder in (store / "stages").iterdir():
        record = read_record(folder)
        if record is not None:
            weights = folder / WEIGHTS
            found[folder.name] = (record.content(), weights.read_bytes() if weights.exists() else None)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The same plan in this process, at one go."""
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    store.stages.mkdir(parents=True)
    results = drive(build_plan(toy_lab(toy_paper(held_study)), "core"), store, InlineExecutor(), Silent())
    assert not results.failures
    content = content_of(store.root)
    assert len(content) == 4  # teacher, its gate and logits, scratch, distilled
    return content


class Process(NamedTuple):
    pid: int
    parent: int
    state: str


def processes() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                yield Process(int(entry.name), int(parent), state)


def children(pid: int) -> set[int]:
    return {process.pid for process in processes() if process.parent == pid}


def alive(pids: set[int]) -> set[int]:
    """Those that still run; one that ended and was not waited for does not."""
    return {process.pid for process in processes() if process.pid in pids and process.state not in "ZX"}


def heed_interrupts() -> None:
    """A shell that starts the tests in the background lets them ignore Ctrl-C, and so would the run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Run:
    """The command as a user starts it, to be killed."""

    def __init__(self, store: Path, hold: Path) -> None:
        self.stages = store / "stages"
        self.hold = hold
        self.pid_file = hold.with_suffix(".pid")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdbench", *COMMAND],
            env={**os.environ, "KDBENCH_STORE": str(store), HOLD: str(hold)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that Ctrl-C can be played to the whole group, this process not among it
            preexec_fn=heed_interrupts,
        )

    def reached(self, condition: Callable[[], object], what: str) -> set[int]:
        """Wait for a moment; the workers that run then."""
        until(lambda: self.process.poll() is not None or condition(), what)
        assert self.process.poll() is None, f"it ended before: {self.process.stderr and self.process.stderr.read()}"
        return children(self.process.pid)

    def files(self, name: str) -> list[Path]:
        return list(self.stages.glob(f"*/{name}"))

    def held(self) -> bool:
        return self.pid_file.exists() and bool(self.pid_file.read_text())


@pytest.fixture
def start(plugin: str, store: Path, tmp_path: Path) -> Iterator[Callable[[], Run]]:
    """Start the command; while the file ``hold`` lies there it cannot end before it is killed."""
    hold = tmp_path / "hold"
    hold.touch()
    runs: list[Run] = []

    def start() -> Run:
        hold.with_suffix(".pid").unlink(missing_ok=True)
        runs.append(Run(store, hold))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
        if run.process.stderr:
            run.process.stderr.close()


def test_killed_at_many_moments_ends_as_if_undisturbed(
    start: Callable[[], Run], store: Path, undisturbed: Content, cli: Any
) -> None:
    def kill(moment: str, condition: Callable[[Run], object]) -> Content:
        run = start()
        workers = run.reached(lambda: condition(run), moment)
        assert workers
        os.kill(run.process.pid, signal.SIGKILL)
        assert run.process.wait() == -signal.SIGKILL
        # The one that stands still in a stage ends too: nobody may write where the next run resumes.
        until(lambda: not alive(workers), f"workers {workers} to end by themselves after {moment}")
        done = content_of(store)
        assert len(done) < len(undisturbed)
        assert all(content == undisturbed[key] for key, content in done.items())
        return done

    kill("a stage has begun", lambda run: run.files("spec.json"))
    before = len(content_of(store))
    kill("the first record", lambda run: len(run.files("record.json")) > before or run.held())
    last = kill("the last stage", lambda run: run.held() and len(run.files("record.json")) == 3)  # in its third epoch
    assert len(last) == 3

    def state() -> dict[str, Any]:
        (path,) = store.glob("stages/*/state.pt")
        found: dict[str, Any] = torch.load(path, weights_only=True)
        return found

    assert state()["epoch"] == HELD_EPOCH

    run = start()  # it goes on in the third epoch, and is held there again
    workers = run.reached(run.held, "the third epoch, resumed")
    os.killpg(run.process.pid, signal.SIGINT)  # Ctrl-C, as a terminal sends it: to the workers as well
    _, stderr = run.process.communicate(timeout=DEADLINE)
    assert run.process.returncode == 130
    assert "interrupted; finished stages are kept" in stderr
    assert "Traceback" not in stderr
    until(lambda: not alive(workers), f"workers {workers} to end after Ctrl-C")
    assert state()["epoch"] == HELD_EPOCH

    run.hold.unlink()
    done = cli(*COMMAND, check=0)
    assert "4 stages, 3 of them reused" in done.stdout
    assert content_of(store) == undisturbed
    left = {path.name for path in (store / "stages").rglob("*") if path.is_file()}
    assert not left & {"state.pt", "progress"}
    assert not [name for name in left if name.endswith(".part")], "partial files stayed behind"
