"""The process that imports torch once and forks a child wherever one is asked for; see :mod:`kdbench.testing.forks`.

A child begins without any plugin's package, so what their modules keep is as fresh as in a new process. The server
runs no tensor operation itself: it has one thread, and so forking it is safe. Server and child end when the process
above them ends, however it dies, because each of them reads a pipe that closes then.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from kdbench.errors import KdbenchError
from kdbench.testing.forks import Answer, Fault, Seen, Task

__all__ = ["main"]

PRELOADED = (
    "torch",
    "torch._inductor",  # use_deterministic_algorithms imports it, which takes longer than many a smoke stage
    "numpy",
    "safetensors.torch",
    "kdbench.ops",
    "kdbench.stages",
    "kdbench.networks",
    "kdbench.training.loop",
    "kdbench.training.model",
    "kdbench.testing.probes",
    "kdbench.testing.watch",
)


def main() -> None:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; pytest decides, and closes our pipe
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)  # what a stage prints must not end up among the answers
    for name in PRELOADED:
        importlib.import_module(name)
    for name in filter(None, os.environ.get("KDBENCH_PRELOAD", "").split(",")):
        with contextlib.suppress(ImportError):  # a stage that needs it says so
            importlib.import_module(name)
    _Server(requests, answers).serve()


class _Lines:
    """Whole lines out of the pieces that a pipe gives."""

    def __init__(self) -> None:
        self.rest = b""

    def take(self, data: bytes) -> Iterator[bytes]:
        *lines, self.rest = (self.rest + data).split(b"\n")
        yield from (line + b"\n" for line in lines)


class _Child(NamedTuple):
    pid: int
    tasks: int
    answers: int
    lines: _Lines


class _Server:
    """Hands tasks to its one child and answers back, and answers for a child that died."""

    def __init__(self, requests: int, answers: int) -> None:
        self.requests = requests
        self.answers = os.fdopen(answers, "wb")
        self.child: _Child | None = None
        self.pending = False  # whether the child has a task that is not answered
        self.woken, self.wake = os.pipe()
        for end in (self.woken, self.wake):
            os.set_blocking(end, False)

    def serve(self) -> None:
        # A child's death is taken from the signal, not from its pipe: what it started may still hold that open.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        self._say(msgspec.json.encode(Answer()) + b"\n")
        lines = _Lines()
        while True:
            pipes = [self.requests, self.woken, *([self.child.answers] if self.child else [])]
            ready, _, _ = select.select(pipes, [], [])
            if self.requests in ready:
                if not (data := os.read(self.requests, 1 << 16)):
                    self._end_child()
                    return
                for line in lines.take(data):
                    self._hand_over(line)
            if self.woken in ready:
                os.read(self.woken, 1 << 10)
            if self.child is not None:
                self._look_after(self.child)

    def _hand_over(self, line: bytes) -> None:
        if msgspec.json.decode(line, type=Task).fresh:
            self._end_child()
        child = self.child = self.child or self._fork()
        self.pending = True
        with contextlib.suppress(BrokenPipeError):  # it just died: its status will be the answer
            os.write(child.tasks, line)

    def _look_after(self, child: _Child) -> None:
        """Pass on what the child answered; where it died, say so and forget it."""
        died, status = os.waitpid(child.pid, os.WNOHANG)  # before the reading: what it said last is not to be lost
        while select.select([child.answers], [], [], 0)[0] and (data := os.read(child.answers, 1 << 16)):
            for line in child.lines.take(data):
                self.pending = False
                self._say(line)
        if died:
            if self.pending:
                self._say(msgspec.json.encode(Answer(status=os.waitstatus_to_exitcode(status))) + b"\n")
            self._forget(child)

    def _end_child(self) -> None:
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGKILL)
            os.waitpid(self.child.pid, 0)
            self._forget(self.child)

    def _forget(self, child: _Child) -> None:
        os.close(child.tasks)
        os.close(child.answers)
        self.child, self.pending = None, False

    def _say(self, line: bytes) -> None:
        self.answers.write(line)
        self.answers.flush()

    def _fork(self) -> _Child:
        tasks, to_child = os.pipe()
        from_child, answers = os.pipe()
        pid = os.fork()
        if pid:
            os.close(tasks)
            os.close(answers)
            return _Child(pid, to_child, from_child, _Lines())
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for pipe in (self.requests, self.answers.fileno(), self.woken, self.wake, to_child, from_child):
                os.close(pipe)
            _work(tasks, answers)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # never back into the server's own code


def _work(tasks: int, answers: int) -> NoReturn:
    """Be a child: do tasks until it is killed, or its pipe closes."""
    queued: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(tasks, queued), daemon=True).start()
    with os.fdopen(answers, "wb") as pipe:

        def tell(answer: Answer) -> None:
            pipe.write(msgspec.json.encode(answer) + b"\n")
            pipe.flush()

        while True:
            tell(_do(msgspec.json.decode(queued.get(), type=Task), tell))


def _listen(tasks: int, queued: queue.Queue[bytes]) -> None:
    with os.fdopen(tasks, "rb") as pipe:
        for line in pipe:
            queued.put(line)
    os._exit(0)


def _do(task: Task, tell: Callable[[Answer], None]) -> Answer:
    from kdbench.stage import execute
    from kdbench.testing import probes, watch

    sys.path[:] = task.path
    importlib.invalidate_caches()
    seen, fault = Seen(), None
    with contextlib.ExitStack() as stack:
        if task.seeded_as:
            stack.enter_context(probes.seeded_as(task.seeded_as))
        if task.blind:
            stack.enter_context(probes.other_test_split())
        if task.pause:
            stack.enter_context(probes.standing_still(task.pause, lambda moment: tell(Answer(paused=moment))))
        optimisers = stack.enter_context(watch.optimisers_watched())
        if task.watch is not None:
            stack.enter_context(watch.watched(task.watch, seen, optimisers))
        try:
            execute(Path(task.folder))
            seen.trained = optimisers.digest()
        except KdbenchError as error:
            fault = Fault(error.what, error.where, error.cure, traceback.format_exc())
        except BaseException as error:
            fault = Fault(f"{type(error).__name__}: {error}", task.folder, None, traceback.format_exc())
    return Answer(fault=fault, seen=seen)
