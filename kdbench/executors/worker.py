"""A worker process: reads one request a line on its standard input, answers one line each on its standard output.

It ends by itself when its standard input closes, even in the middle of a stage: a worker must never outlive the run
that started it, or it would write into folders that the next run is resuming.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import msgspec

from kdbench.errors import KdbenchError

__all__ = ["main"]


def main() -> None:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides, and closes our pipe
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a stage prints must not end up among the answers
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    import torch  # noqa: F401  (the slow import happens while the plan is still being built)

    from kdbench.stage import execute

    while True:
        folder = Path(requests.get().decode().rstrip("\n"))
        answer: dict[str, Any] = {}
        try:
            execute(folder)
        except KdbenchError as error:
            answer = {"what": error.what, "where": error.where, "cure": error.cure, "trace": traceback.format_exc()}
        except BaseException as error:
            what = f"{type(error).__name__}: {error}"
            answer = {"what": what, "where": str(folder), "cure": None, "trace": traceback.format_exc()}
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def _listen(requests: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)
