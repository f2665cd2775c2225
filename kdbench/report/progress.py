"""Progress of a run on the terminal: one line per running stage, an overall bar with the time left."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.progress import Task as RichTask
from rich.text import Text

from kdbench.plan import Plan
from kdbench.run import Failure
from kdbench.stage import Spec

__all__ = ["Downloads", "Watch", "duration"]


def duration(seconds: float) -> str:
    """``48 s``, ``3 min``, ``5.2 h``, ``12 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"


class Watch:
    """A listener (:class:`kdbench.run.Listener`) that draws; on anything but a terminal it says nothing."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Left(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.running: dict[str, tuple[Spec, Path, TaskID]] = {}
        self.left: dict[str, float] = {}
        self.spent = self.estimated = 0.0
        self.workers = 1
        self.overall: TaskID | None = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, plan: Plan, todo: list[str], seconds: dict[str, float], workers: int) -> None:
        self.workers = workers
        self.left = {key: seconds[key] for key in todo}
        self.overall = self.progress.add_task(f"[bold]{len(todo)} stages", total=len(todo), eta=None)
        self.progress.start()
        self.tick()

    def started(self, spec: Spec, folder: Path) -> None:
        task = self.progress.add_task(f"  {escape(spec.label)}", total=1.0, eta=None)
        self.running[spec.hash] = (spec, folder, task)

    def finished(self, spec: Spec, seconds: float) -> None:
        self.spent += seconds
        self.estimated += self.left.pop(spec.hash, 0.0)
        self._end(spec)

    def failed(self, spec: Spec, failure: Failure) -> None:
        self.left.pop(spec.hash, None)
        self._end(spec)
        text = failure.cause if failure.label in failure.cause else f"{failure.label}: {failure.cause}"
        self.console.print(f"kdbench: error: {text}", highlight=False, markup=False, soft_wrap=True)

    def tick(self) -> None:
        if self.progress.disable or self.overall is None:
            return
        begun = 0.0
        for spec, folder, task in self.running.values():
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                done, total = map(int, (folder / "progress").read_text().split())
                self.progress.update(task, completed=done / total)
                begun += self.left.get(spec.hash, 0.0) * done / total
        # The estimate learns from what the finished stages really took.
        pace = self.spent / self.estimated if self.estimated > 1.0 else 1.0
        self.progress.update(self.overall, eta=max(0.0, sum(self.left.values()) - begun) * pace / self.workers)

    def _end(self, spec: Spec) -> None:
        _, _, task = self.running.pop(spec.hash)
        self.progress.remove_task(task)
        if self.overall is not None:
            self.progress.advance(self.overall)


class Downloads:
    """Progress of downloads and unpacking, in the form :data:`kdbench.data.Progress`."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.progress.start()
            self.tasks[what] = self.progress.add_task(what, total=total)
        self.progress.update(self.tasks[what], completed=done, total=total or None)


class _Left(ProgressColumn):
    """``12 of 40, about 48 s left`` on the overall line, nothing on the others."""

    def render(self, task: RichTask) -> Text:
        eta = task.fields.get("eta")
        if eta is None:
            return Text("")
        return Text(f"{task.completed:.0f} of {task.total:.0f}, about {duration(eta)} left")
