"""The DAG that a study builds: pruned to the claims asked for, priced, and inspectable before anything runs."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from typing import Any

import msgspec

from kdbench.component import pack, unpack
from kdbench.errors import KdbenchError, unknown
from kdbench.paper import Claim, Paper
from kdbench.stage import Spec
from kdbench.store import Store
from kdbench.study import Lab, Measurement, Node
from kdbench.training import Sample

__all__ = ["Plan", "Price", "build_plan", "select_claims"]

SAMPLE = pack(Sample(size=1, number=0))["type"]

# Seconds of a stage, of an optimiser step and of a multiply-accumulate, used only until the store has timings of its
# own. The CPU's are measured on one AVX-512 thread with the plain nets; the GPU's are a guess.
SECONDS_PER_STAGE = 0.05
SECONDS_PER_STEP = {"cpu": 3.5e-3, "cuda": 2e-3}
SECONDS_PER_MAC = {"cpu": 4e-11, "cuda": 5e-13}


class Price:
    """Estimated cost of what is left to do, in seconds of one worker."""

    def __init__(self, seconds: dict[str, float], critical: dict[str, float], measured: int) -> None:
        self.seconds = seconds
        self.critical = critical
        self.measured = measured

    @property
    def total(self) -> float:
        """Seconds of work, all stages together."""
        return sum(self.seconds.values())

    def elapsed(self, workers: int) -> float:
        """Seconds on the clock with ``workers``: bound by the work and by the longest chain."""
        return max(self.total / max(workers, 1), max(self.critical.values(), default=0.0))


class Plan:
    """Stages by hash, in an order that respects their inputs, and the measurements that they serve."""

    def __init__(self, lab: Lab, claims: Sequence[Claim], measurements: Sequence[Measurement]) -> None:
        self.lab = lab
        self.claims = tuple(claims)
        self.measurements = tuple(measurements)
        nodes: dict[str, Node] = {}
        for measurement in measurements:
            for node in measurement.quantity.nodes:
                _collect(node, nodes)
        self.inputs = {key: tuple(n.spec.hash for n in node.inputs.values()) for key, node in nodes.items()}
        order = TopologicalSorter(self.inputs).static_order()
        self.specs: dict[str, Spec] = {key: nodes[key].spec for key in order}
        self._nodes = nodes

    def node(self, cell: str, seed: int | None = None) -> Node:
        """The stage whose metric a measured cell is, of one seed (by default the first that measures it).

        Raises
        ------
        KdbenchError : the plan does not measure the cell, or computes it from several stages.
        """
        found = [m for m in self.measurements if m.cell == cell and seed in (None, m.seed)]
        if not found:
            raise unknown("cell", cell, {m.cell for m in self.measurements})
        nodes = found[0].quantity.nodes
        if len(nodes) != 1:
            raise KdbenchError(f"'{cell}' is computed from {len(nodes)} stages", cure="look at plan.measurements")
        return nodes[0]

    def uses(self) -> dict[str, int]:
        """How many stages take each stage as input."""
        counts = dict.fromkeys(self.specs, 0)
        for inputs in self.inputs.values():
            for key in set(inputs):
                counts[key] += 1
        return counts

    def shared(self) -> int:
        """Stages that more than one other stage builds on: trained once, used often."""
        return sum(count > 1 for count in self.uses().values())

    def price(self, store: Store) -> Price:
        """What is left to do, from this store's own timings where it has any, else from a MAC model."""
        timings = store.timings()
        seconds: dict[str, float] = {}
        measured = 0
        for key, spec in self.specs.items():
            if store.has(key):
                seconds[key] = 0.0
                continue
            known = timings.get(cost_key(spec))
            measured += known is not None
            seconds[key] = known if known is not None else _guess(self._nodes[key])
        return Price(seconds, self._critical(seconds), measured)

    def _critical(self, seconds: dict[str, float]) -> dict[str, float]:
        """Seconds from the start of each stage to the end of the longest chain that hangs on it."""
        after = dict.fromkeys(self.specs, 0.0)
        for key in reversed(self.specs):
            after[key] += seconds[key]
            for parent in self.inputs[key]:
                after[parent] = max(after[parent], after[key])
        return after


def cost_key(spec: Spec) -> str:
    """Stages with equal keys cost the same: everything but the seed, the inputs' identities and the code.

    Nor does it matter which sample of the data a stage trains on.
    """
    from hashlib import sha256

    stage = _any_sample(spec.stage)
    parts = (stage, spec.device, spec.threads, spec.data.dataset, spec.data.sizes, sorted(spec.inputs))
    return sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:16]


def _any_sample(value: Any) -> Any:
    """A packed component without the numbers of its samples, of which a study may give every seed its own."""
    if isinstance(value, dict):
        numbers = ("number", "bootstrap") if value.get("type") == SAMPLE else ()
        return {key: _any_sample(item) for key, item in value.items() if key not in numbers}
    return [_any_sample(item) for item in value] if isinstance(value, list) else value


def select_claims(paper: Paper, wanted: str) -> tuple[Claim, ...]:
    """Claims by ``core`` (all of them where none is), ``all``, or ids with commas between them.

    Raises
    ------
    KdbenchError : an id does not exist.
    """
    if wanted == "all":
        return paper.claims
    if wanted == "core":
        return tuple(claim for claim in paper.claims if claim.core) or paper.claims
    ids = dict.fromkeys(part.strip() for part in wanted.split(",") if part.strip())
    chosen = []
    for claim_id in ids:
        claim = paper.claim(claim_id)
        if claim is None:
            raise unknown("claim", claim_id, ["core", "all", *(claim.id for claim in paper.claims)])
        chosen.append(claim)
    if not chosen:
        raise KdbenchError("no claim is named", cure="use --claims core, all, or ids such as H1,H3")
    return tuple(chosen)


def build_plan(lab: Lab, claims: str = "core") -> Plan:
    """Run the study once, lazily, and keep what the wanted claims need.

    A measurement that needs nothing beyond the stages already wanted is kept too: it costs nothing.
    """
    measurements = _measurements(lab)
    selected = select_claims(lab.paper, claims)
    chosen = [_unless_left_out(instance, lab) for claim in selected for instance in claim.instances(lab.axes)]
    absent = [claim.id for claim in selected if all(claim.id != instance.id for instance in chosen)]
    if absent and claims not in ("core", "all"):
        raise KdbenchError(
            f"claim {absent[0]} compares what tier '{lab.tier}' does not have",
            where=f"{lab.paper.id}, {lab.dataset}",
            cure="leave it out, or take another tier",
        )
    cells = {cell for claim in chosen if not claim.not_tested for cell in claim.cells()}
    if claims == "all":
        return Plan(lab, chosen, measurements)
    wanted: dict[str, Node] = {}
    for measurement in measurements:
        if measurement.cell in cells:
            for node in measurement.quantity.nodes:
                _collect(node, wanted)
    kept = [m for m in measurements if all(node.spec.hash in wanted for node in m.quantity.nodes)]
    return Plan(lab, chosen, kept)


def _unless_left_out(claim: Claim, lab: Lab) -> Claim:
    reason = next((lab.left_out[cell] for cell in claim.cells() if cell in lab.left_out), "")
    return msgspec.structs.replace(claim, not_tested=reason) if reason else claim


def _measurements(lab: Lab) -> list[Measurement]:
    """What the study yields; what it raises is a fault of the paper's plugin, and is said to be."""
    try:
        measurements = list(lab.paper.study(lab))
        _check(measurements)
        return measurements
    except KdbenchError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise KdbenchError(
            f"the study of '{lab.paper.id}' raised {type(error).__name__}: {error}",
            where=f"{last.filename}:{last.lineno}",
            cure="a fault of its plugin; --debug shows the whole traceback",
        ) from error


def _collect(node: Node, into: dict[str, Node]) -> None:
    if node.spec.hash not in into:
        into[node.spec.hash] = node
        for parent in node.inputs.values():
            _collect(parent, into)


def _check(measurements: Iterable[Measurement]) -> None:
    seen = set()
    for measurement in measurements:
        if not isinstance(measurement, Measurement):
            raise KdbenchError(
                f"the study yields {measurement!r:.80}, a {type(measurement).__name__}",
                cure="yield what lab.measure(cell, quantity, seed=seed) returns",
            )
        key = (measurement.cell, measurement.seed)
        if key in seen:
            raise KdbenchError(
                f"the study measures '{measurement.cell}' twice for seed {measurement.seed}",
                cure="give each measured cell a name of its own",
            )
        seen.add(key)


def _guess(node: Node) -> float:
    spec = node.spec
    networks = {role: parent.network for role, parent in node.inputs.items() if parent.network is not None}
    steps, macs = unpack(spec.stage).effort(spec.data, networks)
    seconds: float = steps * SECONDS_PER_STEP[spec.device] + macs * SECONDS_PER_MAC[spec.device]
    return SECONDS_PER_STAGE + seconds
