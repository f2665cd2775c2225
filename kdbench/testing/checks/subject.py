"""What the checks are about: a paper, the plugin that brings it, and its plans at smoke tier."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path

from kdbench.api import prepare
from kdbench.component import pack
from kdbench.data.base import DataRef, Dataset
from kdbench.errors import KdbenchError
from kdbench.networks.base import Network
from kdbench.paper import Paper
from kdbench.plan import Plan
from kdbench.plugins import PluginInfo, registry

__all__ = ["Subject", "one_thread", "smoke_plan", "subject"]


class Subject:
    """An installed paper as the checks see it.

    Attributes
    ----------
    paper, plugin : its facts, and the plugin that it comes from.
    protocol : ``clean`` where the paper declares it, else its first.
    claims : ``core``, or ``all`` where no claim is a core claim.
    """

    def __init__(self, paper_id: str) -> None:
        self.paper: Paper = registry().paper(paper_id)
        self.plugin: PluginInfo = registry().owner("papers", self.paper.id)
        readings = [protocol.id for protocol in self.paper.protocols]
        self.protocol: str = "clean" if "clean" in readings or not readings else readings[0]
        self.claims = "core" if any(claim.core for claim in self.paper.claims) else "all"
        self._plans: dict[tuple[str, str, str], Plan | KdbenchError] = {}

    @property
    def package(self) -> str:
        """Import name of the plugin's outermost package."""
        return self.plugin.module.partition(":")[0].partition(".")[0]

    @property
    def protocols(self) -> tuple[str, ...]:
        """The protocols that the paper declares."""
        return tuple(protocol.id for protocol in self.paper.protocols)

    @property
    def smoke_data(self) -> Dataset:
        """The data set of smoke tier."""
        return registry().dataset(self.paper.default_dataset["smoke"])

    @cached_property
    def smoke(self) -> Plan:
        """What a smoke run would do: the paper's protocol and claims as above."""
        return self.plan(self.protocol, self.claims)

    @property
    def data(self) -> DataRef:
        """The smoke data, found and checked."""
        return self.smoke.lab.data

    def plan(self, protocol: str, claims: str, tier: str = "smoke") -> Plan:
        """The plan of one protocol; made once.

        Raises
        ------
        KdbenchError : it cannot be made; the error names the place in the study.
        """
        key = (protocol, claims, tier)
        if key not in self._plans:
            try:
                self._plans[key] = smoke_plan(self.paper.id, protocol, claims, tier)
            except KdbenchError as error:
                self._plans[key] = error
        found = self._plans[key]
        if isinstance(found, KdbenchError):
            raise found
        return found

    def planned_networks(self) -> list[Network]:
        """The networks of the smoke plan's stages, each once."""
        from kdbench.testing.checks.components import parts

        planned = [network for spec in self.smoke.specs.values() for network in parts(spec.stage, Network)]
        return list({repr(pack(network)): network for network in planned}.values())

    def siblings(self) -> list[Subject]:
        """The other papers of the plugin, as far as they can be planned."""
        found: list[Subject] = []
        for name in self.plugin.provides.get("papers", []):
            if name != self.paper.id:
                with suppress(KdbenchError):
                    if subject(name).smoke.specs:
                        found.append(subject(name))
        return found

    def shapes(self) -> list[tuple[tuple[int, int, int], int]]:
        """Input shape and number of classes of every known data set: smoke tier's, the paper's, all others."""
        datasets = registry().datasets
        names = dict.fromkeys([*(name for name in self.paper.datasets if name in datasets), *datasets])
        described: list[DataRef | Dataset] = [self.data, *(datasets[name] for name in names)]
        return list(dict.fromkeys(((*each.input_shape,), each.num_classes) for each in described))

    def published_networks(self) -> list[Network]:
        """The networks that the plugin publishes."""
        return [registry().networks[name] for name in self.plugin.provides.get("networks", [])]


def smoke_plan(paper: str, protocol: str, claims: str, tier: str = "smoke") -> Plan:
    """A fresh plan with one seed, on the CPU.

    Raises
    ------
    KdbenchError : the study raises; where, is named.
    """
    try:
        return prepare(
            paper,
            tier=tier,
            protocol=protocol,
            claims=claims,
            seeds=1,
            device="cpu",
            workers=1,
            fetch=False,  # embedded data are there all the same; tests download nothing
        ).plan
    except KdbenchError as error:
        raise KdbenchError(
            f"the study of '{paper}' cannot be planned (tier {tier}, protocol {protocol}): {error.what}",
            where=error.where,
            cure=error.cure,
        ) from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise KdbenchError(
            f"the study of '{paper}' raises {type(error).__name__}: {error} (tier {tier}, protocol {protocol})",
            where=f"{Path(last.filename).name}:{last.lineno}",
        ) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread, as stages do: on small tensors several cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def subject(paper_id: str) -> Subject:
    """The subject of that id, once a process."""
    return Subject(paper_id)
