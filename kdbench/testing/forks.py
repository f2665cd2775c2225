"""Stages in processes that cost next to nothing: one server imports torch, and forks a child wherever one is asked for.

This is the side that asks: the tasks, the server as an object, and an executor on it. The other side is
:mod:`kdbench.testing.fork_server`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import msgspec

from kdbench.errors import KdbenchError, StageError
from kdbench.stage import read_spec

__all__ = ["Answer", "Fault", "ForkExecutor", "ForkServer", "Task", "available", "server"]

# With this process's own search path: "-m" would put the working directory first, and in a clone that is the source.
SERVER = "import sys; sys.path[:] = sys.argv[1:]; from kdbench.testing.fork_server import main; main()"


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to do.

    Attributes
    ----------
    folder : the stage's.
    path : the search path of the process that asks.
    fresh : in a child of its own; else in the one that did the last task, where it still lives.
    blind : with another test split.
    watch : packages whose reads of the environment and losses are noted, networks being watched as well; None to watch
        optimisers alone.
    pause : moments (``state``, ``record``) at the first of which the child stands still, to be killed.
    seeded_as : the hash that seeds the global generators in place of the stage's own; empty for its own.
    """

    folder: str
    path: list[str]
    fresh: bool = True
    blind: bool = False
    watch: tuple[str, ...] | None = None
    pause: tuple[str, ...] = ()
    seeded_as: str = ""


class Fault(msgspec.Struct, frozen=True):
    """A stage's error, as it travels."""

    what: str
    where: str | None
    cure: str | None
    trace: str


class Seen(msgspec.Struct):
    """What was seen while a stage ran.

    Attributes
    ----------
    faults : sentences on teachers that were not frozen, and on variables of the environment that were read.
    unclean : sentences on what no stage does at protocol ``clean``.
    trained : digest of the networks' parameters that its optimisers held at its end; empty where none made a step.
    """

    faults: list[str] = []
    unclean: list[str] = []
    trained: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a task: done, at fault, ``paused`` at a moment, or the child's exit ``status`` where it died."""

    fault: Fault | None = None
    paused: str = ""
    status: int | None = None
    seen: Seen = msgspec.field(default_factory=Seen)


def available() -> bool:
    """Whether this system can fork."""
    return hasattr(os, "fork")


@functools.cache
def server(hash_seed: int) -> ForkServer:
    """This process's server with that seed for the hashes of strings, started at its first use."""
    found = ForkServer(hash_seed)
    atexit.register(found.close)
    return found


class ForkServer:
    """The server, seen from the process that asks. One task at a time."""

    def __init__(self, hash_seed: int) -> None:
        self._hash_seed = hash_seed
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start it unless it runs, and wait until it has imported torch; its process id.

        Raises
        ------
        KdbenchError : it cannot start here.
        """
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        if not available():
            raise KdbenchError("conformance runs need os.fork, which this system lacks", cure="run them on Linux")
        self.close()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",  # a process with threads cannot be forked safely
            "OPENBLAS_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONHASHSEED": str(self._hash_seed),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        if not self._read():
            code = self._process.wait()
            self.close()
            raise KdbenchError(
                f"the server of conformance runs ended as it began (exit status {code})",
                cure="read what it printed above, and see 'kdbench doctor'",
            )
        return self._process.pid

    def ask(self, task: Task) -> Answer:
        """Have a task done and wait for its answer."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it just died: reading will tell
                self._process.stdin.write(msgspec.json.encode(task) + b"\n")
                self._process.stdin.flush()
            line = self._read()
        except BaseException:
            self.close()  # the next answer would be the one to this task
            raise
        return msgspec.json.decode(line, type=Answer) if line else Answer(status=self._process.wait())

    def close(self) -> None:
        """End it, and its child with it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a task that it never read
                    pipe.close()

    def _read(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return line if line.endswith(b"\n") else b""


class ForkExecutor:
    """An executor whose ``submit`` returns when the stage has run, in a child of ``server``.

    Parameters
    ----------
    together : every stage in one child; else each in a child of its own.
    blind, watch : as in :class:`Task`.
    kill : kill every stage at its first resumable state and again before its record is written, then let it finish.

    Attributes
    ----------
    seen : what was seen of every stage, by its hash, in the order in which they ran.
    """

    slots = 1

    def __init__(
        self,
        server: ForkServer,
        *,
        together: bool = False,
        blind: bool = False,
        watch: tuple[str, ...] | None = None,
        kill: bool = False,
    ) -> None:
        self.seen: dict[str, Seen] = {}
        self._server = server
        self._together = together
        self._begun = False
        self._kill = kill
        self._blind = blind
        self._watch = watch
        server.start()  # now, so that no stage's time holds the import of torch

    def submit(self, folder: Path, seeded_as: str = "") -> Future[None]:
        future: Future[None] = Future()
        task = Task(
            folder=str(folder),
            path=sys.path,
            fresh=not (self._together and self._begun),
            blind=self._blind,
            watch=self._watch,
            pause=("state", "record") if self._kill else (),
            seeded_as=seeded_as,
        )
        self._begun = True
        answer = self._server.ask(task)
        while answer.paused:  # the next child takes its place, and the one that stands still is killed
            task = msgspec.structs.replace(task, fresh=True, pause=("record",) if answer.paused == "state" else ())
            answer = self._server.ask(task)
        where = f"the stage '{read_spec(folder).label}'"
        self.seen[folder.name] = Seen(
            faults=[f"{where}: {sentence}" for sentence in answer.seen.faults],
            unclean=[f"{where} {sentence}" for sentence in answer.seen.unclean],
            trained=answer.seen.trained,
        )
        error = _error(answer, folder)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass  # the server serves the next run as well


def _error(answer: Answer, folder: Path) -> StageError | None:
    if answer.status is not None:
        cure = "did it run out of memory, or crash in compiled code? what it printed stands above"
        return StageError(f"the worker process died (exit status {answer.status})", where=folder, cure=cure)
    if answer.fault is None:
        return None
    error = StageError(answer.fault.what, where=answer.fault.where, cure=answer.fault.cure)
    error.trace = answer.fault.trace
    return error
