"""What kdbench itself brings, through the same hooks as everybody else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kdbench.hookspecs import hookimpl

if TYPE_CHECKING:
    from kdbench.bench.contender import Contender
    from kdbench.data.base import Dataset
    from kdbench.executors import ExecutorInfo
    from kdbench.networks.base import Network
    from kdbench.training import ObjectiveInfo


@hookimpl
def kdbench_networks() -> Iterable[Network]:
    from kdbench.networks import NETWORKS

    return NETWORKS.values()


@hookimpl
def kdbench_datasets() -> Iterable[Dataset]:
    from kdbench.data import DATASETS

    return DATASETS.values()


@hookimpl
def kdbench_objectives() -> Iterable[ObjectiveInfo]:
    from kdbench.training import ObjectiveInfo

    yield ObjectiveInfo(
        id="cross-entropy",
        title="cross-entropy with the labels",
        source="the negative log-likelihood of the labels",
        create="kdbench.training:CrossEntropy",
    )
    yield ObjectiveInfo(
        id="label-smoothing",
        title="cross-entropy with smoothed labels",
        source="Szegedy et al. 2016, Section 7",
        create="kdbench.training:LabelSmoothing",
        example={"epsilon": 0.1, "over": "all"},
    )
    yield ObjectiveInfo(
        id="distillation",
        title="cross-entropy with the labels and, at a temperature, with the teacher",
        source="Hinton, Vinyals, Dean 2015, Section 2",
        create="kdbench.training:Distillation",
        example={"temperature": 4.0, "alpha": 0.9},
    )
    yield ObjectiveInfo(
        id="ensemble-distillation",
        title="cross-entropy with the labels and, at a temperature, with several teachers",
        source="Hinton, Vinyals, Dean 2015, Section 2, with the mean over the teachers",
        create="kdbench.training:EnsembleDistillation",
        example={"temperature": 4.0, "alpha": 0.9, "combine": "probabilities"},
    )
    yield ObjectiveInfo(
        id="smoothed-distillation",
        title="cross-entropy with smoothed labels and, at a temperature, with the teacher",
        source="Szegedy et al. 2016, Section 7; Hinton, Vinyals, Dean 2015, Section 2",
        create="kdbench.training:SmoothedDistillation",
        example={"temperature": 4.0, "alpha": 0.9, "epsilon": 0.1, "over": "all"},
    )


@hookimpl
def kdbench_executors() -> Iterable[ExecutorInfo]:
    from kdbench.executors import ExecutorInfo

    yield ExecutorInfo(
        id="local", title="worker processes on this machine", create="kdbench.executors.local:LocalExecutor"
    )
    yield ExecutorInfo(
        id="inline", title="this process, one stage after the other", create="kdbench.executors.inline:InlineExecutor"
    )


@hookimpl
def kdbench_benchmark_contenders() -> Iterable[Contender]:
    from kdbench.bench import CONTENDERS

    return CONTENDERS
