"""Where finished work lies: one folder a stage, one folder a run. Anything with a record is finished, for good."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from kdbench.errors import KdbenchError, unknown
from kdbench.files import atomic_write, disk_errors
from kdbench.record import Record
from kdbench.stage import Spec, read_record

__all__ = ["Store", "default_store"]

BYTES_SPARE = 200 << 20  # below this a run would end in the middle of a write


def default_store() -> Path:
    """``$KDBENCH_STORE``, or this user's data folder."""
    from platformdirs import user_data_dir

    return Path(os.environ.get("KDBENCH_STORE") or Path(user_data_dir("kdbench")) / "store")


class Store:
    """A folder of stages (``stages/<hash>/``), runs (``runs/<id>/``) and their timings."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.stages = self.root / "stages"
        self.runs = self.root / "runs"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for one run.

        Raises
        ------
        KdbenchError : another run holds it, or it cannot be written, or the disk is nearly full.
        """
        with disk_errors(self.root):
            self.stages.mkdir(parents=True, exist_ok=True)
            self.runs.mkdir(exist_ok=True)
            if shutil.disk_usage(self.root).free < BYTES_SPARE:
                raise KdbenchError(
                    f"less than {BYTES_SPARE >> 20} MB are free on the disk",
                    where=self.root,
                    cure="free some space, or name another place with --store",
                )
            holder = self.root / "lock.pid"
            lock = FileLock(self.root / ".lock", blocking=False)
            try:
                lock.acquire()
            except Timeout:
                pid = holder.read_text() if holder.exists() else "unknown"
                raise KdbenchError(
                    f"another run (process {pid}) is using this store",
                    where=self.root,
                    cure="wait until it ends, or name another place with --store",
                ) from None
            try:
                holder.write_text(str(os.getpid()))
                yield
            finally:
                holder.unlink(missing_ok=True)
                lock.release()

    def has(self, key: str) -> bool:
        """Whether the stage is finished."""
        return (self.stages / key / "record.json").exists()

    def record(self, key: str) -> Record | None:
        """The stage's record, or None where it is not finished."""
        return read_record(self.stages / key)

    def prepare(self, spec: Spec) -> Path:
        """Lay the stage's folder with its ``spec.json``; what an earlier attempt left there stays, to be resumed."""
        folder = self.stages / spec.hash
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)
            for partial in folder.glob(".*.part"):  # a write that a kill cut short
                partial.unlink(missing_ok=True)
            atomic_write(folder / "spec.json", msgspec.json.encode(spec))
        return folder

    def note_timing(self, key: str, seconds: float) -> None:
        """Remember what a stage of this cost key took, for the next estimate."""
        with (self.root / "timings.jsonl").open("ab") as file:
            file.write(msgspec.json.encode((key, round(seconds, 4))) + b"\n")

    def timings(self) -> dict[str, float]:
        """Median seconds by cost key."""
        path = self.root / "timings.jsonl"
        found: dict[str, list[float]] = defaultdict(list)
        if path.exists():
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(msgspec.MsgspecError):  # a line cut short by a kill is no loss
                    key, seconds = msgspec.json.decode(line, type=tuple[str, float])
                    found[key].append(seconds)
        return {key: statistics.median(values) for key, values in found.items()}

    def run_folder(self, run_id: str) -> Path:
        """The folder of a run, by its id or by any prefix that only one run has.

        Raises
        ------
        KdbenchError : no run, or more than one, has that name.
        """
        ids = self.run_ids()
        matches = [run_id] if run_id in ids else [known for known in ids if known.startswith(run_id)]
        if len(matches) > 1:
            raise KdbenchError(f"'{run_id}' fits {len(matches)} runs", cure=f"which of {', '.join(matches)}?")
        if not matches:
            raise unknown("run", run_id, ids)
        return self.runs / matches[0]

    def run_ids(self) -> list[str]:
        """Every run in the store, oldest first."""
        if not self.runs.exists():
            return []
        return sorted(path.name for path in self.runs.iterdir() if (path / "run.json").exists())
