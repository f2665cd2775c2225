"""The pytest plugin (entry point ``kdbench``): conformance tests once for every paper, and fixtures for authors.

It is loaded in every pytest session of everybody who has kdbench installed, so importing it imports pytest and the
standard library only; everything else waits until a test asks for it.

A test with an argument ``kdbench_paper`` runs once for every paper, one with ``kdbench_plugin`` once for every plugin.
Which: those of the module's ``KDBENCH_PAPERS``, else of ``--kdbench-paper``, else of the ini option
``kdbench_papers``, else all that are installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from kdbench.plan import Plan
    from kdbench.result import Reproduction
    from kdbench.testing.runs import Runs

__all__ = ["InstalledPlugin"]


class InstalledPlugin(NamedTuple):
    """What ``kdbench_plugin`` is: a plugin's name (or the id of a paper that is missing), and what is wrong with it.

    ``problem`` is a sentence that names the plugin, empty where nothing is wrong.
    """

    name: str
    problem: str


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kdbench", "kdbench: conformance of papers")
    group.addoption(
        "--kdbench-paper",
        action="append",
        default=[],
        metavar="ID",
        help="hold this paper against the framework's promises (may be repeated; default: every installed one)",
    )
    parser.addini("kdbench_papers", "papers that conformance tests are about", type="args", default=[])
    parser.addini("kdbench_smoke_seconds", "what a paper's smoke tier may take on one process", default="60")


def pytest_configure(config: pytest.Config) -> None:
    for name in config.getoption("--kdbench-paper"):
        from kdbench.errors import KdbenchError
        from kdbench.plugins import registry

        try:
            registry().paper(name)
        except KdbenchError as error:
            raise pytest.UsageError(f"--kdbench-paper: {error}") from None
    seconds = config.getini("kdbench_smoke_seconds")
    try:
        usable = float(seconds) > 0
    except ValueError:
        usable = False
    if not usable:
        raise pytest.UsageError(
            f"ini option kdbench_smoke_seconds is '{seconds}'; give a number of seconds, such as 60"
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Grouped by paper, as far as a worker has several: what one test of a paper ran is there for the next.
    if "kdbench_paper" in metafunc.fixturenames:
        metafunc.parametrize("kdbench_paper", _papers(_wanted(metafunc)), scope="session")
    if "kdbench_plugin" in metafunc.fixturenames:
        wanted = _wanted(metafunc)
        found = _plugins(wanted)
        # A suite about nothing must not pass: where none of a plugin's own tests asks, it was asked for papers.
        asked = wanted is None and metafunc.module.__name__ == "kdbench.testing.conformance"
        if not found or (asked and not _papers(wanted)):
            found.append(InstalledPlugin("no-paper", _no_paper(wanted)))
        metafunc.parametrize("kdbench_plugin", found, ids=[plugin.name for plugin in found], scope="session")


def _wanted(metafunc: pytest.Metafunc) -> Sequence[str] | None:
    """The papers that are asked for; None for all."""
    named: str | Sequence[str] | None = getattr(metafunc.module, "KDBENCH_PAPERS", None)
    if named is not None:
        return [named] if isinstance(named, str) else named
    return metafunc.config.getoption("--kdbench-paper") or metafunc.config.getini("kdbench_papers") or None


def _papers(wanted: Sequence[str] | None) -> list[str]:
    """The installed papers that are asked for."""
    from kdbench.plugins import registry

    return [name for name in registry().papers if wanted is None or name in wanted]


def _no_paper(wanted: Sequence[str] | None) -> str:
    if wanted is not None:
        return "no paper is selected: name one in KDBENCH_PAPERS (or remove it, to test all that are installed)"
    return (
        "no paper is installed: there is nothing to hold against kdbench's promises; install a plugin that brings one "
        "(pip install -e . in its folder) and look at 'kdbench plugins --check'"
    )


def _plugins(wanted: Sequence[str] | None) -> list[InstalledPlugin]:
    """Every plugin but kdbench's own, or those of the wanted papers, and every wanted paper that is not there."""
    import click

    from kdbench.cli import cli
    from kdbench.errors import KdbenchError
    from kdbench.plugins import registry

    plugins = registry()
    cli.list_commands(click.Context(cli))  # the hook for commands is called only now, and may have a problem too
    chosen = plugins.plugins[1:]
    missing = []
    if wanted is not None:
        owners = [plugins.owner("papers", name) for name in wanted if name in plugins.papers]
        chosen = [info for info in chosen if any(info is owner for owner in owners)]
        for name in wanted:
            try:
                plugins.paper(name)
            except KdbenchError as error:
                missing.append(InstalledPlugin(name, str(error)))
    found = [
        InstalledPlugin(info.name, info.complaint if info.problem else "") for info in chosen if info.state != "blocked"
    ]
    return found + missing


@pytest.fixture(scope="session")
def kdbench_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for data, in ``KDBENCH_CACHE``: the user's where that is set, else one for the session."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("KDBENCH_CACHE"):
            folder = _shared(tmp_path_factory) / "kdbench-cache"
            folder.mkdir(exist_ok=True)
            patch.setenv("KDBENCH_CACHE", str(folder))
        yield Path(os.environ["KDBENCH_CACHE"])


@pytest.fixture
def kdbench_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, in ``KDBENCH_STORE``."""
    folder = tmp_path / "kdbench-store"
    monkeypatch.setenv("KDBENCH_STORE", str(folder))
    return folder


@pytest.fixture
def kdbench_smoke(kdbench_store: Path, kdbench_cache: Path) -> Callable[..., Reproduction]:
    """``kdbench_smoke(paper, **options)`` reproduces a paper in this process, into an empty store.

    Options are those of :func:`kdbench.reproduce`; tier and executor are ``smoke`` and ``inline`` if not given.
    """

    def smoke(paper: str, **options: Any) -> Reproduction:
        from kdbench import reproduce

        return reproduce(paper, **{"tier": "smoke", "executor": "inline", **options})

    return smoke


@pytest.fixture
def kdbench_plan(kdbench_cache: Path) -> Callable[..., Plan]:
    """``kdbench_plan(paper, **options)`` is the plan of :func:`kdbench_smoke`'s run; nothing is trained."""

    def plan(paper: str, **options: Any) -> Plan:
        from kdbench.api import prepare

        return prepare(paper, **{"tier": "smoke", "executor": "inline", **options}).plan

    return plan


@pytest.fixture
def kdbench_runs(
    kdbench_paper: str, kdbench_cache: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Runs:
    """The paper of this test, run at smoke tier in several ways: :class:`kdbench.testing.runs.Runs`."""
    from kdbench.testing.forks import available

    if not available():
        pytest.skip("conformance runs fork their processes, which this system cannot")
    from kdbench.testing.runs import Runs

    kept = request.config.stash.setdefault(_RUNS, {})
    if kdbench_paper not in kept:
        kept[kdbench_paper] = Runs(kdbench_paper, _shared(tmp_path_factory) / "kdbench-runs" / kdbench_paper)
    return kept[kdbench_paper]


_RUNS: pytest.StashKey[dict[str, Runs]] = pytest.StashKey()


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's folder, the same for all its workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
