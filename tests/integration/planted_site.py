"""The planted papers as an installed plugin, and kdbench's pytest plugin as installing kdbench leaves it."""

from __future__ import annotations

from pathlib import Path

from distributions import distribution

__all__ = ["PLANTED", "planted", "pytest_plugin"]

PLANTED = Path(__file__).with_name("planted_runs.py")


def planted(folder: Path) -> Path:
    """Install both into ``folder``."""
    distribution(folder, "kdbench-planted", {"__init__.py": PLANTED.read_text()})
    return pytest_plugin(folder)


def pytest_plugin(folder: Path) -> Path:
    """Install the pytest plugin alone."""
    info = folder / "kdbench_pytest-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kdbench-pytest\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pytest11]\nkdbench = kdbench.testing.plugin\n")
    return folder
