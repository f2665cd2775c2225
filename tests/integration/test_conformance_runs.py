"""The machinery under the conformance tests: papers run in several ways, what is watched in them, the fork server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributions import on_path
from in_process import installed
from planted_site import PLANTED, planted

from kdbench.errors import KdbenchError
from kdbench.record import Record
from kdbench.stage import WEIGHTS, read_spec
from kdbench.store import Store
from kdbench.testing.forks import ForkExecutor, Task, available, server
from kdbench.testing.runs import Run, Runs

pytestmark = pytest.mark.skipif(not available(), reason="conformance runs fork their processes")

DEADLINE = 120.0
Take = Callable[[str], Runs]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def take(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Take]:
    """The runs of a planted paper, made when they are first asked for."""
    folder = tmp_path_factory.mktemp("runs")
    known: dict[str, Runs] = {}
    with installed(site):
        yield lambda name: known.setdefault(name, Runs(name, folder / name))


def contents(run: Run) -> dict[str, dict[str, object]]:
    assert run.findings == []
    return {key: record.content() for key, record in run.records.items()}


def labelled(run: Run, label: str) -> Record:
    (record,) = (record for record in run.records.values() if record.label == f"{label} seed 0")
    return record


def diary(run: Run, label: str) -> list[str]:
    """The steps at which the stage began."""
    return (run.stages / labelled(run, label).hash / "diary").read_text().split()


@pytest.mark.slow
def test_a_sound_paper_leaves_the_same_records_however_it_is_run(take: Take) -> None:
    runs = take("sound")
    assert runs.plan.lab.protocol == "clean"  # its second
    once = contents(runs.once)
    assert len(once) == len(runs.plan.specs) == 6
    assert all((runs.once.stages / key / "record.json").exists() for key in runs.plan.specs)
    assert runs.once.reproduction.complete
    assert runs.once.reproduction.run.seconds > 0
    for run in (runs.again, runs.apart, runs.watched, runs.killed):
        assert contents(run) == once
        assert run.stages != runs.once.stages or run is runs.once


def test_every_stage_was_killed_at_its_state_and_at_its_record(take: Take) -> None:
    runs = take("sound")
    assert diary(runs.killed, "diary") == ["0", "1", "1"]  # killed after its first step; done and killed; done
    assert diary(runs.killed, "diary without states") == ["0", "0"]
    assert diary(runs.once, "diary") == ["0"]


def untested(files: dict[str, str]) -> dict[str, str]:
    """The files that say nothing of the test split."""
    return {name: digest for name, digest in files.items() if not name.startswith("test_")}


def test_a_blinded_run_differs_in_test_metrics_alone(take: Take) -> None:
    runs = take("sound")
    differing = set()
    for key, record in runs.once.records.items():
        blind = runs.blinded.records[key]
        assert untested(blind.files) == untested(record.files)
        assert (blind.curves, blind.notes) == (record.curves, record.notes)
        differing |= {name for name in record.metrics if record.metrics[name] != blind.metrics[name]}
    assert runs.blinded.findings == []
    assert differing == {"test.accuracy", "test.nll", "test.entropy"}
    student = labelled(runs.blinded, "distil planted-line from planted-line (T 4, alpha 0.9)")
    assert abs(student.metrics["test.accuracy"] - 10.0) < 3.0  # chance


def test_a_run_is_made_once_and_read_by_whoever_asks_next(take: Take) -> None:
    runs = take("sound")
    first = runs.once
    other = Runs("sound", runs.folder)
    assert contents(other.once) == contents(first)
    assert other.once.reproduction.run == first.reproduction.run
    assert len(list((runs.folder / "once" / "runs").iterdir())) == 1


def test_what_an_interrupted_session_left_is_not_taken_for_a_run(take: Take, tmp_path: Path) -> None:
    half = tmp_path / "exits" / "once" / "stages" / "0"
    half.mkdir(parents=True)
    assert Runs("exits", tmp_path / "exits").once.records
    assert not half.exists()


def test_unseeded_stages_differ_from_process_to_process(take: Take) -> None:
    assert contents(take("unseeded").once) != contents(take("unseeded").again)
    hashed = take("hashed")
    assert contents(hashed.once) != contents(hashed.again)
    assert contents(hashed.once) == contents(hashed.apart)


def test_state_of_a_module_differs_with_the_worker(take: Take) -> None:
    runs = take("counter")
    assert contents(runs.once) == contents(runs.again)
    assert contents(runs.once) != contents(runs.apart)
    assert {record.metrics["test.accuracy"] for record in runs.apart.records.values()} >= {1.0}


def test_a_stage_that_does_not_resume_differs_when_killed(take: Take) -> None:
    runs = take("forgetful")
    assert contents(runs.once) == contents(runs.apart)
    assert labelled(runs.killed, "diary").metrics != labelled(runs.once, "diary").metrics


@pytest.mark.parametrize("name", ["peeks-labels", "peeks-inputs"])
def test_a_stage_that_trains_on_the_test_split_differs_when_blinded(take: Take, name: str) -> None:
    runs = take(name)
    assert labelled(runs.blinded, "peeks").files != labelled(runs.once, "peeks").files
    trained = "train planted-line"
    assert untested(labelled(runs.blinded, trained).files) == untested(labelled(runs.once, trained).files)


@pytest.mark.parametrize("how", ["well", "copy", "inputs"])
def test_teachers_that_stay_frozen_are_no_finding(take: Take, how: str) -> None:
    assert take(f"teacher-{how}").watched.findings == []


@pytest.mark.parametrize(
    ("how", "kinds"),
    [
        ("mode", ["runs in training mode (the network itself, Normalised); call eval()", "net.1.running_mean"]),
        ("parameter", ["has a parameter that takes a gradient (net.1, weight)", "gradients flow back (net.1)"]),
        ("graph", ["gives an output through which gradients flow back (net.2)"]),
        ("weights", ["is not what it was when the stage began: net.1.weight changed"]),
        ("file", ["has another file than when the stage began: weights.safetensors does not match"]),
    ],
)
def test_teachers_that_are_not_frozen_are_named(take: Take, how: str, kinds: list[str]) -> None:
    runs = take(f"teacher-{how}")
    assert len(runs.watched.findings) == len(kinds)
    for finding, kind in zip(runs.watched.findings, kinds, strict=True):
        assert finding.startswith(f"teacher-{how}: the stage 'uses seed 0': the teacher (input 'teacher') ")
        assert kind in finding
    assert runs.apart.findings == []  # every stage left its record


def test_reads_of_the_environment_are_named_with_their_place(take: Take) -> None:
    lines = PLANTED.read_text().splitlines()
    switch = 1 + next(number for number, line in enumerate(lines) if "KDBENCH_PLANTED_SWITCH" in line)
    assert take("reads").watched.findings == [
        f"reads: the stage 'reads seed 0': reads the environment variable{names} at "
        f"kdbench_planted/__init__.py:{line}; its hash does not know it: make it a field"
        for names, line in (
            (" KDBENCH_PLANTED_RATE", switch - 1),
            ("s KDBENCH_PLANTED_SWITCH, KDBENCH_PLANTED_NAME", switch),
        )
    ]
    assert "KDBENCH_PLANTED_WRITTEN" not in os.environ


@pytest.mark.parametrize("to", ["tune", "estimate", "keep", "prune"])
def test_networks_that_are_adapted_are_no_finding(take: Take, to: str) -> None:
    assert take(f"adapts-{to}").watched.findings == []


def test_a_network_that_only_assists_is_a_teacher_whatever_its_role(take: Take) -> None:
    assert take("adapts-assist").watched.findings == [
        "adapts-assist: the stage 'adapts seed 0': the network of input 'network' runs in training mode "
        "(net.1.running_mean, net.1.running_var changed), though the stage neither trains nor keeps it; call eval() on "
        "it, as on a teacher"
    ]


def test_copies_of_the_environment_are_no_reads_of_it(take: Take) -> None:
    line = 1 + next(number for number, line in enumerate(PLANTED.read_text().splitlines()) if '"PATH": os' in line)
    (finding,) = take("copies").watched.findings
    assert f"reads the environment variable PATH at kdbench_planted/__init__.py:{line};" in finding


def test_a_gate_on_the_test_split_is_open_where_that_split_is_another(take: Take) -> None:
    runs = take("gated")
    assert contents(runs.blinded).keys() == contents(runs.once).keys()
    assert (
        labelled(runs.once, "gate").metrics["gate.accuracy"]
        > 15.0
        > labelled(runs.blinded, "gate").metrics["gate.accuracy"]
    )
    assert untested(labelled(runs.blinded, "taught").files) == untested(labelled(runs.once, "taught").files)


def test_what_optimisers_train_is_known_by_stage(take: Take) -> None:
    runs = take("adapts-tune")
    tuned, trained = labelled(runs.once, "adapts").hash, labelled(runs.once, "train planted-line").hash
    assert runs.once.trained.keys() == {tuned, trained}
    assert runs.once.trained == runs.again.trained == runs.apart.trained == runs.blinded.trained
    assert labelled(take("sound").once, "draws").hash not in take("sound").once.trained


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("raises", "ValueError: broken on purpose (at __init__.py:"),
        ("segfault", f"the worker process died (exit status -{signal.SIGSEGV.value})"),
        ("exits", "the worker process died (exit status 7)"),
    ],
)
def test_a_stage_that_fails_is_a_finding_and_the_rest_is_run(take: Take, name: str, cause: str) -> None:
    runs = take(name)
    for run in (runs.once, runs.apart, runs.killed):
        (finding,) = run.findings
        assert finding.startswith(f"{name}: the stage 'ends seed 0' failed: {cause}")
        assert len(run.records) == len(runs.plan.specs) - 1
        assert not run.reproduction.complete


def test_a_variant_differs_by_its_parameters_alone(take: Take) -> None:
    runs = take("sound")
    key = labelled(runs.once, "distil planted-line from planted-line (T 4, alpha 0.9)").hash
    same = runs.variant(key, {("recipe", "optimizer", "lr"): 0.05})
    assert same.content() == runs.once.records[key].content()
    slower = runs.variant(key, {("recipe", "optimizer", "lr"): 0.025})
    assert slower.files[WEIGHTS] != same.files[WEIGHTS]
    assert slower.curves["lr"] == [0.025, 0.025]
    assert read_spec(runs.once.stages / key).stage["recipe"]["optimizer"]["lr"] == 0.05

    with pytest.raises(KdbenchError, match=r"no parameter recipe\.rate"):
        runs.variant(key, {("recipe", "rate"): 1.0})
    (ends,) = (key for key, spec in take("raises").plan.specs.items() if spec.label == "ends seed 0")
    with pytest.raises(KdbenchError, match=r"died \(exit status 7\)"):
        take("raises").variant(ends, {("how",): "exits"})


def test_a_variant_begins_from_the_random_numbers_of_its_stage(take: Take) -> None:
    runs = take("sound")
    draws = labelled(runs.once, "draws")
    assert runs.variant(draws.hash, {("salt",): 1}).metrics == draws.metrics


def lay(runs: Runs, label: str, root: Path) -> Path:
    """The folder of a planned stage that needs no other."""
    store = Store(root)
    store.stages.mkdir(parents=True)
    (spec,) = (spec for spec in runs.plan.specs.values() if spec.label == f"{label} seed 0")
    return store.prepare(spec)


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and was not waited for does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, not for a time."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE:g} s in vain: {what}"
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="threads are counted through /proc")
def test_the_server_has_one_thread_and_outlives_its_children(take: Take, tmp_path: Path) -> None:
    forks = server(1)
    pid = forks.start()
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1  # else a fork may find a lock held for ever

    dying = lay(take("segfault"), "ends", tmp_path / "dying")
    assert forks.ask(Task(folder=str(dying), path=sys.path)).status == -signal.SIGSEGV
    done = lay(take("segfault"), "diary", tmp_path / "done")
    for fresh in (True, False):  # in a child of its own, and in that same one
        answer = forks.ask(Task(folder=str(done), path=sys.path, fresh=fresh))
        assert (answer.fault, answer.status) == (None, None)
    assert forks.start() == pid
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1


def test_a_server_that_dies_is_named_and_replaced(take: Take, tmp_path: Path) -> None:
    executor = ForkExecutor(server(1))
    orphan = lay(take("orphans"), "ends", tmp_path / "orphan")
    assert "died (exit status -9)" in str(executor.submit(orphan).exception())
    assert executor.submit(lay(take("segfault"), "diary", tmp_path / "next")).exception() is None


ASKING = """
import sys
from kdbench.testing.forks import Task, server
forks = server(1)
print(forks.start(), flush=True)
forks.ask(Task(folder=sys.argv[1], path=sys.path))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked at through /proc")
@pytest.mark.parametrize("killed", ["the one that asks", "the server"])
def test_server_and_child_end_with_whoever_is_above(take: Take, site: Path, tmp_path: Path, killed: str) -> None:
    folder = lay(take("stands"), "ends", tmp_path)
    environment = {**os.environ, **on_path(site, *map(Path, filter(None, sys.path)))}
    with subprocess.Popen([sys.executable, "-c", ASKING, str(folder)], stdout=subprocess.PIPE, env=environment) as top:
        assert top.stdout is not None
        asked = int(top.stdout.readline())
        pid_file = folder / "pid"
        until(lambda: pid_file.exists() and pid_file.read_text(), "the stage to begin")
        child = int(pid_file.read_text())
        assert alive(asked)
        assert alive(child)
        os.kill(top.pid if killed == "the one that asks" else asked, signal.SIGKILL)
        until(lambda: not alive(child), "the child to end")
        until(lambda: not alive(asked), "the server to end")
        top.kill()
