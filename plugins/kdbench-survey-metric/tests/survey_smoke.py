"""One run of the whole paper at smoke tier, two seeds, for every test that only looks at it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from kdbench.result import Reproduction

__all__ = ["smoke_run"]


@cache
def smoke_run(folder: Path) -> Reproduction:
    """The run, in a store in ``folder``; made by the first call."""
    from kdbench import reproduce

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_STORE", str(folder / "survey-smoke"))
        return reproduce("survey-metric", tier="smoke", executor="inline", seeds=2)
