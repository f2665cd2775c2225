"""What a conformance run does to a stage from outside: context managers around ``execute``.

Each replaces something of kdbench's own for as long as it lasts. What is watched: :mod:`kdbench.testing.watch`.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

from kdbench import stage
from kdbench.files import atomic_write
from kdbench.stage import Finished, Spec, Work

if TYPE_CHECKING:
    from kdbench.data.base import Split

__all__ = ["other_test_split", "seeded_as", "standing_still"]


@contextmanager
def seeded_as(key: str) -> Iterator[None]:
    """Stages take the global generators' seed from this hash and not from their own.

    Without it a stage with another parameter would begin from other random numbers, and so differ in any case.
    """
    read_spec = stage.read_spec

    def read(folder: Path) -> Spec:
        spec = read_spec(folder)
        spec.__dict__["hash"] = key  # where its cached property would keep it
        return spec

    with mock.patch.object(stage, "read_spec", read):
        yield


@contextmanager
def other_test_split() -> Iterator[None]:
    """Whoever loads data finds other test inputs and permuted test labels; all else, the fingerprint too, is equal.

    A teacher's gate that reads the test split, because there is no validation split, is open: it would close on these.
    """
    from kdbench import data
    from kdbench.stages import teacher

    load, check = data._load, teacher._check_gate

    def blinded(encoded: bytes) -> dict[str, Split]:
        splits = dict(load(encoded))
        splits["test"] = _blind(splits["test"])
        return splits

    def gate(finished: Finished, floor: float | None) -> float:
        return check(finished, floor if "validation.accuracy" in finished.record.metrics else None)

    with (
        mock.patch.object(data, "_load", functools.cache(blinded)),
        mock.patch.object(teacher, "_check_gate", gate),
    ):
        yield


def _blind(split: Split) -> Split:
    """Test inputs drawn with replacement, so that they stay what a network can take, and permuted labels."""
    import torch

    from kdbench.data.base import Split

    count, generator = len(split.labels), torch.Generator().manual_seed(0)
    drawn = torch.randint(count, (count,), generator=generator)
    return Split(split.inputs[drawn], split.labels[torch.randperm(count, generator=generator)])


@contextmanager
def standing_still(moments: Sequence[str], tell: Callable[[str], None]) -> Iterator[None]:
    """Call ``tell`` at the first of ``moments`` that comes and then stand still, to be killed.

    ``state`` is when a resumable state has been saved (and is due at once), ``record`` when all work is done and the
    record would be written.
    """
    save_state = Work.save_state

    def stop(moment: str) -> NoReturn:
        tell(moment)
        while True:
            signal.pause()

    def saved(work: Work, state: Any) -> None:
        save_state(work, state)
        stop("state")

    def written(path: Path, data: bytes) -> None:
        if path.name == "record.json":
            stop("record")
        atomic_write(path, data)

    with ExitStack() as stack:
        if "state" in moments:
            stack.enter_context(mock.patch.object(stage, "STATE_EVERY", 0.0))
            stack.enter_context(mock.patch.object(Work, "save_state", saved))
        if "record" in moments:
            stack.enter_context(mock.patch.object(stage, "atomic_write", written))
        yield
