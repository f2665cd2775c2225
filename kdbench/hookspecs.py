"""Every hook, on one page. A plugin implements any of them with ``@kdbench.hookimpl``.

All hooks yield (or return a list of) frozen descriptors; none of them may import torch, which is loaded only when a
stage runs. A plugin's module is named by an entry point in the group ``kdbench`` and sets ``KDBENCH_API`` to the API
level it was written for (without it: the first); one from the future, or from before the oldest level still served, is
reported and skipped.
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
    from kdbench.metric import Metric
    from kdbench.networks.base import Network
    from kdbench.paper import Paper
    from kdbench.training import ObjectiveInfo

__all__ = ["API_LEVEL", "API_OLDEST", "hookimpl", "hookspec"]

# The level grows by one with everything that a plugin may rely on anew; the oldest one still served grows only when
# something that plugins rely on is taken away. docs/plugins.md has the list.
API_LEVEL = 1
API_OLDEST = 1

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
def kdbench_objectives() -> Iterable[ObjectiveInfo]:  # type: ignore[empty-body]
    """Losses that studies may build by name: ``yield ObjectiveInfo(id="mine", ..., create="module:Class")``."""


@hookspec
def kdbench_metrics() -> Iterable[Metric]:  # type: ignore[empty-body]
    """Numbers about each measured network of any paper: ``yield Metric(id="mine", ..., compute="module:function")``.

    They are computed when a run ends, stand in its report and its dossier, and change no stage.
    """


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
