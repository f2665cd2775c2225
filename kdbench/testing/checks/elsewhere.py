"""A second interpreter that plans a paper and says what it saw: hashes, who imported torch, what state changed.

It runs in another folder and with another hash seed than the one that asks. Other plugins may not import torch in it:
one that does is left out, so that the paper in question is blamed for its own imports alone. Where the paper cannot be
planned without that plugin, one more interpreter plans it with all that it needs, and there hashes and state are read.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, cast

import msgspec

__all__ = ["Report", "main", "report", "snapshot"]

CHILD = (
    "import sys; sys.path[:] = sys.argv[4:]; from kdbench.testing.checks.elsewhere import main; main(*sys.argv[1:4])"
)
PLAIN = (bool, int, float, str, bytes, type(None))


class Report(msgspec.Struct):
    """What the other interpreter saw.

    Attributes
    ----------
    stages : label and hash of every stage in the plan's order, by protocol; all claims, smoke tier.
    error : why it could not plan; empty where it could.
    torch : the places of the paper's plugin that imported torch.
    refused : whether another plugin wanted torch, and did not get it.
    changed : plain values of modules and classes that changed while the study was planned; not what was filled.
    """

    stages: dict[str, list[tuple[str, str]]] = {}
    error: str = ""
    torch: list[str] = []
    refused: bool = False
    changed: list[str] = []


def report(paper: str, package: str) -> Report:
    """Plan ``paper``, whose plugin is the package ``package``, in another interpreter and folder."""
    found = _ask(paper, package, "refuse")
    if not (found.error and found.refused):
        return found
    whole = _ask(paper, package, "allow")
    whole.torch = list(dict.fromkeys([*found.torch, *whole.torch]))
    return whole


def _ask(paper: str, package: str, others: str) -> Report:
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    paths = [os.path.abspath(entry) for entry in sys.path]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, paper, package, others, *paths],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    try:
        return msgspec.json.decode(done.stdout.rpartition(b"\n")[2], type=Report)
    except msgspec.MsgspecError:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        return Report(error=f"the interpreter ended with status {done.returncode}: {last}")


def main(paper: str, package: str, others: str) -> None:
    """The other interpreter: one JSON line at the end of standard output. ``others``: refuse or allow them torch."""
    watch = _TorchWatch(package, refuse=others == "refuse")
    sys.meta_path.insert(0, watch)
    found = Report()
    try:
        _plan(paper, package, found)
    except Exception as error:
        found.error = str(error)
    found.torch, found.refused = list(dict.fromkeys(watch.culprits)), watch.refused
    sys.stdout.write("\n" + msgspec.json.encode(found).decode())


def _plan(paper: str, package: str, found: Report) -> None:
    from kdbench.testing.checks.subject import smoke_plan, subject

    protocols = subject(paper).protocols
    state = snapshot([package])
    # Twice, for what is imported only while a study is planned has no state before.
    for protocol in (*protocols, *protocols):
        plan = smoke_plan(paper, protocol, "all")
        found.stages.setdefault(protocol, [(spec.label, key) for key, spec in plan.specs.items()])
        now = snapshot([package])
        changes = [(name, state[name], value) for name, value in now.items() if state.get(name, value) != value]
        changes = [(name, old, new) for name, old, new in changes if not filled(old, new)]
        found.changed += [f"{name} changed from {old} to {new}" for name, old, new in changes]
        state = now


def snapshot(packages: Iterable[str]) -> dict[str, str]:
    """Plain values in the modules and classes of some packages, as written, by ``module.NAME``."""
    found: dict[str, str] = {}
    tops = set(packages)
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] in tops]:
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__.partition(".")[0] in tops:
                for attribute, inner in list(vars(value).items()):
                    if _is_state(attribute, inner):
                        found[f"{value.__module__}.{value.__qualname__}.{attribute}"] = repr(inner)
            elif _is_state(name, value):
                found[f"{module.__name__}.{name}"] = repr(value)
    return found


def filled(old: str, new: str) -> bool:
    """Whether a value, as written, was empty or keeps all that it had: a table that is read when it is first needed."""
    try:
        before, after = ast.literal_eval(old), ast.literal_eval(new)
    except ValueError:  # infinity, a frozen set
        return False
    if type(before) is not type(after) or not isinstance(before, (dict, list, set, tuple)):
        return False
    if isinstance(before, dict):
        return all(key in after and after[key] == value for key, value in before.items())
    return not before or (isinstance(before, set) and before <= after)


def _is_state(name: str, value: Any) -> bool:
    return not (name.startswith("__") and name.endswith("__")) and _is_plain(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    return isinstance(value, PLAIN)


class _TorchWatch:
    """Finds torch like everybody, and notes which file of ``package`` is the first that made Python load it."""

    def __init__(self, package: str, *, refuse: bool) -> None:
        self.package = package
        self.refuse = refuse
        self.refused = False
        self.plugins = {entry.value.partition(":")[0].partition(".")[0] for entry in entry_points(group="kdbench")}
        self.culprits: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The real specification of torch, with a loader that asks who wants it; None for any other module."""
        if name != "torch":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast(Loader, _Asking(spec.loader, self))
        return spec

    def ask(self) -> None:
        """Note the culprit among the callers; refuse torch to the other plugins."""
        frames = [frame for frame in _frames(sys._getframe(1)) if frame.f_globals.get("__name__") != __name__]
        frames = [frame for frame in frames if _package(frame) != "importlib"]
        # The nearest plugin: a study is not to blame for what another plugin's part does when it is asked its size.
        nearest = next((frame for frame in frames if _package(frame) in {self.package, *self.plugins}), None)
        if nearest is not None and _package(nearest) != self.package:
            if self.refuse:
                self.refused = True
                raise ImportError("describing it imports torch")
            return
        culprit = nearest or frames[0]
        through = "" if culprit is frames[0] else f" (through {frames[0].f_globals.get('__name__')})"
        self.culprits.append(f"{_place(culprit)}{through}")


class _Asking:
    """A loader that tells the watch before it loads."""

    def __init__(self, loader: Any, watch: _TorchWatch) -> None:
        self._loader = loader
        self._watch = watch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        self._watch.ask()
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _frames(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _place(frame: FrameType) -> str:
    """``kdbench_x/study.py:3``, from the folder that holds the package."""
    file = Path(frame.f_code.co_filename)
    top = getattr(sys.modules.get(_package(frame)), "__file__", None)
    root = Path(top).parent if top else file.parent
    root = root.parent if top and Path(top).name == "__init__.py" else root
    return f"{file.relative_to(root) if file.is_relative_to(root) else file.name}:{frame.f_lineno}"
