"""What the plugin's tests share; they stand alone, as a third party's do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.paper import Paper


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One data cache for the session; a test never touches the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real images, where this machine has it."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    folder = Path(os.environ.get("KDBENCH_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: set KDBENCH_SHARED_DATA to a folder with cifar-10-subset-binary.tar.xz")
    return folder


@pytest.fixture(scope="session")
def paper() -> Paper:
    """TAKD's facts, without its study."""
    return Paper.load("kdbench_takd", study=lambda lab: iter(()))


@pytest.fixture(scope="session")
def value(paper: Paper) -> dict[str, float | None]:
    """The reported number of every cell, None where it was never read."""
    return {name: cell.value for name, (cell, _) in paper.reported().items()}
