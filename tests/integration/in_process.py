"""The command line inside this process: the same code to the last line, without an interpreter's start a call."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdbench.cli
from kdbench.plugins import registry

__all__ = ["complaint", "inside", "installed"]


def inside(*args: str, check: int | None = None) -> subprocess.CompletedProcess[str]:
    """As the fixture ``cli``, for calls whose process does not matter."""
    out, err, stdin = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO()  # no terminal
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
            kdbench.cli.main(list(args))
    finally:
        sys.stdin = stdin
    status = exit.value.code or 0
    assert isinstance(status, int)
    if check is not None:
        assert status == check, f"exit {status}\n{out.getvalue()}\n{err.getvalue()}"
    return subprocess.CompletedProcess(args, status, out.getvalue(), err.getvalue())


def complaint(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line that a fault gives."""
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = done.stderr.splitlines()
    what = line.removeprefix("kdbench: error: ")
    assert what != line
    assert not what.startswith("internal error")
    return what


@contextlib.contextmanager
def installed(site: Path) -> Iterator[None]:
    """The distributions of ``site`` as plugins of this process; nothing of them stays behind."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(site))
            _forget()
            yield
    finally:
        _forget()
        for path in site.iterdir():
            for name in [name for name in sys.modules if name.partition(".")[0] == path.stem]:
                del sys.modules[name]


def _forget() -> None:
    registry.cache_clear()
    kdbench.cli.cli.commands.clear()
    vars(kdbench.cli.cli).pop("asked", None)
