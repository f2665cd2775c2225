"""A paper as a third party writes it: a network, an objective, a stage of its own and a study."""

from kdbench_healthy.networks import Small
from kdbench_healthy.study import reproduce

from kdbench import Paper, hookimpl
from kdbench.training import ObjectiveInfo

KDBENCH_API = 1


@hookimpl
def kdbench_papers():
    yield Paper.load(__package__, study=reproduce)


@hookimpl
def kdbench_networks():
    yield Small()


@hookimpl
def kdbench_objectives():
    yield ObjectiveInfo(
        id="healthy-kd",
        title="soft targets",
        source="Section 2",
        create="kdbench_healthy.objectives:SoftTargets",
        example={"temperature": 3.0},
    )
