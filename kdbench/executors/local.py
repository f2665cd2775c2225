"""The default executor: local worker processes that stay alive between stages."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import msgspec

from kdbench.errors import StageError

__all__ = ["LocalExecutor"]


# With this process's own search path: "-m" would put the working directory first, and in a clone that is the source.
WORKER = "import sys; sys.path[:] = sys.argv[1:]; from kdbench.executors.worker import main; main()"


class LocalExecutor:
    """``workers`` processes, each with ``threads`` torch threads.

    Plain pipes rather than multiprocessing: nothing is pickled, a caller's ``__main__`` is not imported again, and a
    worker ends when its pipe closes, however this process dies.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        self.slots = workers
        self._threads = threads
        self._closed = False
        self._answered = False
        self._queue: queue.Queue[tuple[Path, Future[None]] | None] = queue.Queue()
        self._workers = [self._start() for _ in range(workers)]  # all at once: importing torch takes seconds
        self._servers = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(workers)]
        for server in self._servers:
            server.start()

    def submit(self, folder: Path) -> Future[None]:
        future: Future[None] = Future()
        self._queue.put((folder, future))
        return future

    def close(self) -> None:
        self._closed = True
        for worker in self._workers:
            worker.kill()
        for _ in self._servers:
            self._queue.put(None)
        for server in self._servers:
            server.join()
        for worker in self._workers:
            worker.kill()  # again: one that died as we closed may just have been replaced
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # a request that a dead worker never read
                        pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        threads = str(self._threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic cuBLAS, see torch's notes on reproducibility
        }
        return subprocess.Popen(
            [sys.executable, "-c", WORKER, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def _serve(self, index: int) -> None:
        while (item := self._queue.get()) is not None:
            folder, future = item
            error = self._ask(index, folder)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _ask(self, index: int, folder: Path) -> Exception | None:
        worker = self._workers[index]
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(f"{folder}\n".encode())
            worker.stdin.flush()
            line = worker.stdout.readline()
        except OSError:
            line = b""
        if not line:
            return self._lost(index, folder)
        try:
            answer = msgspec.json.decode(line)
        except msgspec.DecodeError:  # killed in the middle of its answer
            worker.kill()
            return self._lost(index, folder)
        self._answered = True
        if not answer:
            return None
        error = StageError(answer["what"], where=answer["where"], cure=answer["cure"])
        error.trace = answer["trace"]
        return error

    def _lost(self, index: int, folder: Path) -> Exception:
        code = self._workers[index].wait()
        if not self._closed:
            self._workers[index] = self._start()
        cure = "out of memory? try fewer --workers; run again to resume the stage"
        if not self._answered:
            cure = "none has answered yet: read what it printed above, and see 'kdbench doctor'"
        return StageError(f"the worker process died (exit status {code})", where=folder, cure=cure)
