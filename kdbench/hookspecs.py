"""Every hook, on one page. A plugin implements any of them with ``@kdbench.hookimpl``.

All hooks yield (or return a list of) frozen descriptors; none of them may import torch, which is loaded only when a
stage runs. A plugin's module is named by an entry point in the group ``kdbench`` and may set ``KDBENCH_API`` to the
API level it was written for (now 1); a plugin from the future is reported and skipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from kdbench.bench.contender import Contender
    from kdbench.data.base import Dataset
    from kdbench.executors import ExecutorInfo
    from kdbench.networks.base import Network
    from kdbench.paper import Paper

__all__ = ["API_LEVEL", "hookimpl", "hookspec"]

API_LEVEL = 1

hookspec = pluggy.HookspecMarker("kdbench")
hookimpl = pluggy.HookimplMarker("kdbench")


@hookspec
def kdbench_papers() -> Iterable[Paper]:  # type: ignore[empty-body]
    """Papers that can be reproduced: ``yield Paper.load(__package__, study=reproduce)``."""


@hookspec
def kdbench_networks() -> Iterable[Network]:  # type: ignore[empty-body]
    """Networks that studies may call by name: ``yield Plain(size=10)``."""


@hookspec
def kdbench_datasets() -> Iterable[Dataset]:  # type: ignore[empty-body]
    """Data sets that ``--dataset`` may name: ``yield Dataset(id="mnist1d", ..., locate="module:function")``."""


@hookspec
def kdbench_executors() -> Iterable[ExecutorInfo]:  # type: ignore[empty-body]
    """Engines that ``--executor`` may name: ``yield ExecutorInfo(id="local", title=..., create="module:function")``."""


@hookspec
def kdbench_benchmark_contenders() -> Iterable[Contender]:  # type: ignore[empty-body]
    """Losses that ``kdbench bench kernels`` times: ``yield Contender(id="mine", title=..., make="module:function")``.

    ``make(case)`` returns ``loss(student, teacher, labels) -> scalar``, Hinton's loss for the case's temperature and
    alpha (:class:`kdbench.bench.Contender` has the whole contract). It is checked against float64 before it is timed.
    """


@hookspec
def kdbench_register_commands(cli: click.Group) -> None:
    """Add commands to the ``kdbench`` command line: ``cli.add_command(mine)``."""
