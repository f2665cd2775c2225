"""What every test shares: an isolated store, one data cache a session, and the installed command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CLI = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One data cache for the session, for this process and its children; a test never touches the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_CACHE", str(folder))
        yield folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, also for child processes."""
    folder = tmp_path / "store"
    monkeypatch.setenv("KDBENCH_STORE", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data, where this machine has it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("KDBENCH_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: set KDBENCH_SHARED_DATA to a folder with cifar-10-subset-binary.tar.xz")
    return folder


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> CLI:
    """Run the installed command; ``check`` is the exit status it must have."""
    # Python puts the working directory first on its path: in a clone that would be the source tree, not the package.
    elsewhere = tmp_path_factory.mktemp("cwd")

    def run(
        *args: str, env: dict[str, str] | None = None, timeout: float = 180, check: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "kdbench", *args],
            env={**os.environ, **(env or {})},
            cwd=elsewhere,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
