"""A fresh virtual environment beside the installed kdbench: what a user has who now installs one more plugin."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

__all__ = ["Fresh", "build_wheel", "fresh_environment"]


class Fresh:
    """A virtual environment; it sees what the environment of the tests has, kdbench among it, and adds its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"

    def install(self, *what: Path | str, cwd: Path | None = None) -> None:
        """Install wheels or source folders; requirements are resolved against what is installed, never downloaded."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        offline = ["--no-index", "--no-build-isolation", "--disable-pip-version-check"]
        run([*pip, *offline, *map(str, what)], cwd=cwd, check=0)

    def run(
        self, *args: str, cwd: Path, check: int | None = None, env: dict[str, str] | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """``python ARGS`` of this environment; ``check`` is the exit status it must have."""
        return run([str(self.python), *args], cwd=cwd, check=check, env=env, timeout=timeout)

    def kdbench(
        self, *args: str, cwd: Path, check: int | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``kdbench ARGS`` in this environment."""
        return self.run("-m", "kdbench", *args, cwd=cwd, check=check, env=env)


def fresh_environment(folder: Path) -> Fresh:
    """Make one in ``folder``. Skips where kdbench is not installed, since a plugin's requirement could not be met."""
    try:
        distribution("kdbench")
    except PackageNotFoundError:
        pytest.skip("kdbench is not installed here: its plugins require the distribution")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=0)
    made = Fresh(folder)
    inside = made.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder, check=0).stdout
    outside = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    # addsitedir, not a bare path: it also reads the .pth files there, by which editable installations work.
    lines = [f"import site; site.addsitedir({path!r})" for path in outside]
    (Path(inside.strip()) / "beside.pth").write_text("\n".join(lines) + "\n")
    return made


def build_wheel(source: Path, into: Path) -> Path:
    """The wheel of a source folder, built by the installed setuptools."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(into), str(source)], check=0)
    (wheel,) = into.glob("*.whl")
    return wheel


def run(
    command: list[str],
    *,
    cwd: Path | None = None,
    check: int | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    # Of this process's environment only what a shell would have: no source tree on the path, no pytest around it.
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**plain, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check is not None:
        assert done.returncode == check, f"exit {done.returncode}: {command}\n{done.stdout}\n{done.stderr}"
    return done
