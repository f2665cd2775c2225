"""transformers imports whatever it finds installed, and some of that talks while it is imported."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """No Python warnings and no log lines below an error while it lasts."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR - 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
