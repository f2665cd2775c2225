"""The pytest plugin of the conformance kit: which papers, which workers, what it says where nothing can be tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import distribution, on_path
from planted_site import planted, pytest_plugin

from kdbench.plugins import ALLOW
from kdbench.testing.forks import available

pytestmark = pytest.mark.skipif(not available(), reason="conformance runs fork their processes")

DEADLINE = 120.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("site"))


SUITE = """
import pytest

CHOSEN

def test_once(kdbench_paper, kdbench_runs):
    assert kdbench_runs.paper_id == kdbench_paper
    assert kdbench_runs.once.findings == []

def test_once_more(kdbench_runs):
    assert kdbench_runs.once.reproduction.complete

def test_plugin(kdbench_plugin):
    assert not kdbench_plugin.problem, kdbench_plugin.problem

def test_fixtures(kdbench_smoke, kdbench_plan, kdbench_store, kdbench_cache):
    result = kdbench_smoke("sound", seeds=2)
    assert result.complete
    assert result.path.is_relative_to(kdbench_store)
    assert len(kdbench_plan("sound", seeds=2).specs) == len(result.run.stages)
    assert any(kdbench_cache.iterdir())
"""


def suite(site: Path, folder: Path, *options: str, chosen: str = "", ini: str = "") -> subprocess.CompletedProcess[str]:
    """Run the suite in a folder of its own, as a plugin's author would."""
    (folder / "test_suite.py").write_text(SUITE.replace("CHOSEN", chosen))
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "--basetemp", str(folder / "tmp")]
    environment = {**os.environ, **on_path(site, *map(Path, filter(None, sys.path)))}
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False
    )


def words(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Outcome and name of every test."""
    lines = (line.partition(" - ")[0] for line in done.stdout.splitlines() if "test_suite.py::" in line)
    return {line.replace("test_suite.py::", "") for line in lines if line.startswith(("PASSED", "FAILED", "ERROR"))}


@pytest.mark.slow
def test_the_pytest_plugin_serves_every_worker_from_one_run(site: Path, tmp_path: Path) -> None:
    done = suite(site, tmp_path, "-n", "2", "--kdbench-paper", "sound", "--kdbench-paper", "reads")
    expected = {f"PASSED {test}[{paper}]" for test in ("test_once", "test_once_more") for paper in ("sound", "reads")}
    assert words(done) == expected | {"PASSED test_plugin[kdbench-planted]", "PASSED test_fixtures"}, done.stdout
    for paper in ("sound", "reads"):
        assert len(list((tmp_path / "tmp" / "kdbench-runs" / paper / "once" / "runs").iterdir())) == 1


def test_papers_are_chosen_by_module_then_option_then_ini(site: Path, tmp_path: Path) -> None:
    def collected(*options: str, **settings: str) -> set[str]:
        done = suite(site, tmp_path, "--collect-only", "-k", "once and not more", *options, **settings)
        names = [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]
        return {name.removeprefix("test_once[").removesuffix("]") for name in names}

    assert collected("--kdbench-paper", "reads", chosen='KDBENCH_PAPERS = ["sound"]') == {"sound"}
    assert collected(chosen='KDBENCH_PAPERS = "sound"') == {"sound"}
    assert collected("--kdbench-paper", "reads", ini="kdbench_papers = sound counter") == {"reads"}
    assert collected(ini="kdbench_papers = sound counter") == {"sound", "counter"}
    assert collected() >= {"sound", "counter", "reads", "teacher-mode"}


def test_a_paper_that_is_not_there_is_an_error(site: Path, tmp_path: Path) -> None:
    done = suite(site, tmp_path, "--kdbench-paper", "sund")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--kdbench-paper: unknown paper 'sund'; did you mean 'sound'? known: " in done.stderr

    done = suite(site, tmp_path, "-k", "test_plugin or test_once", chosen='KDBENCH_PAPERS = ["sund"]')
    assert words(done) == {"FAILED test_plugin[sund]"}
    assert "unknown paper 'sund'" in done.stdout


def test_a_plugin_with_a_problem_fails_by_name(site: Path, tmp_path: Path) -> None:
    broken = distribution(tmp_path / "broken", "kdbench-broken", "raise RuntimeError('no luck')\n")
    command = """
import click
from kdbench import hookimpl

@hookimpl
def kdbench_register_commands(cli):
    cli.add_command(click.Command("reproduce"))
"""
    distribution(broken, "kdbench-greedy", command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", on_path(broken)["PYTHONPATH"])
        done = suite(site, tmp_path, "-k", "test_plugin")
    assert words(done) >= {
        "PASSED test_plugin[kdbench-planted]",
        "FAILED test_plugin[kdbench-broken]",
        "FAILED test_plugin[kdbench-greedy]",
    }
    assert "plugin 'kdbench-broken' is not loaded: import: RuntimeError: no luck" in done.stdout
    assert "the command 'reproduce' is already there" in done.stdout


def test_the_pytest_plugin_costs_other_sessions_nothing(site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    assert 'kdbench.testing.plugin' in sys.modules\n"
        "    heavy = {'torch', 'numpy', 'msgspec', 'pluggy.plugins', 'kdbench.plugins', 'kdbench.api', 'click'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    done = suite(site, tmp_path, "test_other.py")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


KIT = ("--pyargs", "kdbench.testing.conformance")


def conformance(folder: Path, allowed: str, tests: tuple[str, ...] = KIT) -> subprocess.CompletedProcess[str]:
    """Run the conformance tests, by default without any file, with some of the installed plugins."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, **on_path(folder, *map(Path, filter(None, sys.path))), ALLOW: allowed}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--rootdir", str(folder), *tests]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_without_a_paper_the_conformance_tests_fail_and_say_so(tmp_path: Path) -> None:
    pytest_plugin(tmp_path)
    distribution(tmp_path, "kdbench-bare", "KDBENCH_API = 1\n")
    for allowed, passed in (("kdbench-nobody", 0), ("kdbench-bare", 1)):
        done = conformance(tmp_path, allowed)
        assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
        assert "test_plugin_has_no_problem[no-paper]" in done.stdout
        assert "no paper is installed: there is nothing to hold against kdbench's promises" in done.stdout
        assert ("1 passed" in done.stdout) == bool(passed)


def test_a_plugin_that_brings_no_paper_may_collect_the_conformance_tests_too(tmp_path: Path) -> None:
    pytest_plugin(tmp_path)
    distribution(tmp_path, "kdbench-bare", "KDBENCH_API = 1\n")
    (tmp_path / "test_conformance.py").write_text("from kdbench.testing.conformance import *\n")
    done = conformance(tmp_path, "kdbench-bare", tests=("test_conformance.py",))
    assert "1 passed" in done.stdout, done.stdout
    assert done.returncode == pytest.ExitCode.OK


def test_seconds_that_are_no_number_are_a_usage_error(site: Path, tmp_path: Path) -> None:
    for seconds in ("abc", "0", "nan"):
        done = suite(site, tmp_path, "--collect-only", ini=f"kdbench_smoke_seconds = {seconds}")
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert f"kdbench_smoke_seconds is '{seconds}'; give a number of seconds, such as 60" in done.stderr
