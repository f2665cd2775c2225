"""What a run leaves: one self-contained ``run.json`` from which tables and verdicts are computed, now or in a year.

It holds the facts as they were declared when the run began (claims with their margins, reported tables, the ledger
lines that apply), the request, and every measured value with the stages it came from. Rendering needs nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kdbench.errors import KdbenchError
from kdbench.files import atomic_write
from kdbench.metric import MetricUsed, Score
from kdbench.paper import Claim, Deviation, Paper, ReportedTable
from kdbench.record import Environment, Record
from kdbench.stage import read_record

if TYPE_CHECKING:
    import pandas

    from kdbench.verdict import ClaimVerdict, Summary

__all__ = ["DataUsed", "Facts", "Reproduction", "Request", "RunFile", "StageLine", "Value", "read_run", "write_run"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: the axes of the run, and how it was computed."""

    paper: str
    tier: str
    dataset: str
    protocol: str
    seeds: tuple[int, ...]
    claims: str
    device: str
    workers: int
    threads: int
    executor: str
    data_dir: str | None


class Value(msgspec.Struct, frozen=True):
    """One seed's value of one cell; None where a stage it needs failed."""

    cell: str
    seed: int
    metric: str
    value: float | None
    stages: tuple[str, ...]


class StageLine(msgspec.Struct, frozen=True):
    """One stage of the run: whether it was reused, and what it took when it ran (seconds of one worker)."""

    hash: str
    label: str
    seconds: float
    reused: bool


class FailureLine(msgspec.Struct, frozen=True):
    """One stage that failed, why, how many others were skipped because of it, and the plugin whose code it is."""

    hash: str
    label: str
    cause: str
    skipped: int
    plugin: str = ""


class DataUsed(msgspec.Struct, frozen=True):
    """The data of the run, as found and checked."""

    title: str
    fingerprint: str
    official: bool
    note: str
    sizes: dict[str, int]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the paper's plugin declared when the run began."""

    title: str
    authors: str
    venue: str
    url: str
    bibtex: str
    protocol: str
    tables: tuple[ReportedTable, ...]
    claims: tuple[Claim, ...]
    others: tuple[Claim, ...]
    deviations: tuple[Deviation, ...]


class RunFile(msgspec.Struct, kw_only=True):
    """``run.json``. ``status``: ``running``, ``finished``, ``incomplete`` (stages failed) or ``stopped`` (an error).

    A run that was killed stays ``running``; its finished stages are kept all the same. ``plugin`` is the paper's
    distribution with its version.
    """

    id: str
    status: str
    request: Request
    facts: Facts
    data: DataUsed
    environment: Environment
    started: str
    seconds: float = 0.0
    values: tuple[Value, ...] = ()
    stages: tuple[StageLine, ...] = ()
    failures: tuple[FailureLine, ...] = ()
    plugin: str = ""
    metrics: tuple[MetricUsed, ...] = ()
    scores: tuple[Score, ...] = ()
    schema: int = 1


class Reproduction:
    """The result of :func:`kdbench.reproduce`, and of any run read back from a store.

    Attributes
    ----------
    run : everything on file about the run.
    path : the run's folder.
    traces : tracebacks of failed stages by hash; only where the run was just made.
    """

    def __init__(self, run: RunFile, path: Path) -> None:
        self.run = run
        self.path = path
        self.traces: dict[str, str] = {}
        self._judged: tuple[ClaimVerdict, ...] | None = None
        self._kept: dict[str, Record] | None = None

    @property
    def complete(self) -> bool:
        """Whether every stage finished."""
        return self.run.status == "finished"

    def record(self, stage: str) -> Record | None:
        """The record of one of the run's stages, by its hash, from the store or the dossier that the run lies in.

        Returns
        -------
        Record or None : None where it is in neither.
        """
        found = read_record(self.path.parent.parent / "stages" / stage)
        if found is None and self._kept is None:
            kept = self.path / "records.jsonl"
            lines = kept.read_bytes().splitlines() if kept.exists() else []
            self._kept = {record.hash: record for record in (msgspec.json.decode(line, type=Record) for line in lines)}
        return found or (self._kept or {}).get(stage)

    def samples(self) -> dict[str, dict[int, float]]:
        """Measured values by cell and seed."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for value in self.run.values:
            cell = found[value.cell]  # a cell all of whose seeds failed is there, without values
            if value.value is not None:
                cell[value.seed] = value.value
        return dict(found)

    def claim_verdicts(self) -> tuple[ClaimVerdict, ...]:
        """A verdict on every claim of the run, with all its statistics."""
        if self._judged is None:
            from kdbench.verdict import judge

            samples = self.samples()
            reported = {
                cell.cell: cell
                for table in self.run.facts.tables
                for cell in table.cells
                if table.comparable and cell.certainty in ("paper", "paper?")  # not what others say it says
            }
            self._judged = tuple(
                judge(
                    claim,
                    samples,
                    reported,
                    scale="paper" if self._at_paper_scale() or self._is_arithmetic(claim) else "toy",
                    not_comparable=self.not_comparable(claim),
                    seeds=len(self.run.request.seeds),
                )
                for claim in self.run.facts.claims
            )
        return self._judged

    def not_comparable(self, claim: Claim) -> list[str]:
        """Why no value of the claim may stand beside the paper's; empty where it may."""
        request, reasons = self.run.request, []
        touched = {cell.partition("/")[0] for cell in claim.cells()}
        tables = [table for table in self.run.facts.tables if table.comparable]
        if self._is_arithmetic(claim):
            return []
        if self.run.data.note:
            reasons.append(self.run.data.note)
        if not any(cell.value is not None for table in tables for cell in table.cells):
            reasons.append("no number of the paper was read")
        elif not self._on_reported_data():
            reasons.append(f"the paper has no {self.run.data.title}")
        if request.tier != "full":
            reasons.append(f"tier {request.tier} is not the paper's scale")
        if any(table.id in touched and request.protocol not in table.comparable for table in tables):
            reasons.append(f"protocol {request.protocol} is not the paper's")
        return reasons

    def _is_arithmetic(self, claim: Claim) -> bool:
        """Whether all that the claim compares follows from printed numbers, so that no scale is in it."""
        arithmetic = {table.id for table in self.run.facts.tables if table.arithmetic}
        return claim.exact and {cell.partition("/")[0] for cell in claim.cells()} <= arithmetic

    def _on_reported_data(self) -> bool:
        """Whether a table that may stand beside ours reports numbers on this data set."""
        tables = [table for table in self.run.facts.tables if table.comparable]
        return any(self.run.request.dataset in cell.cell.split("/") for table in tables for cell in table.cells)

    def _at_paper_scale(self) -> bool:
        """Whether a gain measured here speaks about what the paper trained: its scale, on its data."""
        return self.run.request.tier == "full" and self._on_reported_data() and not self.run.data.note

    def summaries(self) -> dict[str, Summary]:
        """n, mean, spread and interval of every measured cell, in the order of measurement."""
        from kdbench.verdict import summarise

        return {cell: summarise(list(values.values())) for cell, values in self.samples().items()}

    def table(self) -> pandas.DataFrame:
        """Tidy: one row a value, with columns paper, claim, cell, protocol, tier, seed, metric, value.

        ``claim`` names every claim of the run that uses the cell, with commas between them.
        """
        import pandas

        request = self.run.request
        claims: dict[str, list[str]] = defaultdict(list)
        for claim in self.run.facts.claims:
            for cell in claim.cells():
                if claim.id not in claims[cell]:
                    claims[cell].append(claim.id)
        columns = ["paper", "claim", "cell", "protocol", "tier", "seed", "metric", "value"]
        rows = [
            (
                request.paper,
                ",".join(claims[value.cell]),
                value.cell,
                request.protocol,
                request.tier,
                value.seed,
                value.metric,
                value.value,
            )
            for value in self.run.values
        ]
        return pandas.DataFrame(rows, columns=columns).astype({"value": "float64"})

    def verdicts(self) -> pandas.DataFrame:
        """One row a claim: its two verdicts, their p values, and the sentence that says it."""
        import pandas

        rows = [
            {
                "claim": verdict.claim,
                "title": verdict.title,
                "gain": verdict.gain_phrase,
                "value": verdict.value_word,
                "reason": verdict.value_reason,
                "p_support": verdict.p_support,
                "p_contradict": verdict.p_contradict,
                "more_seeds": verdict.more_seeds,
                "sentence": verdict.sentence,
            }
            for verdict in self.claim_verdicts()
        ]
        return pandas.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data for ``--json``."""
        data: dict[str, Any] = msgspec.to_builtins(self.run)
        data["path"] = str(self.path)
        data["summaries"] = msgspec.to_builtins(self.summaries())
        data["verdicts"] = [
            {**msgspec.to_builtins(verdict), "gain_phrase": verdict.gain_phrase} for verdict in self.claim_verdicts()
        ]
        return data


def facts_of(
    paper: Paper, claims: tuple[Claim, ...], request: Request, axes: Mapping[str, tuple[str, ...]] | None = None
) -> Facts:
    """The facts that go into a run's file; ``claims`` are those it judges, the rest is listed as not asked for.

    ``axes`` are the study's own, by which ledger lines may be limited.
    """
    judged = {claim.id for claim in claims}
    return Facts(
        title=paper.title,
        authors=paper.authors,
        venue=paper.venue,
        url=paper.url,
        bibtex=paper.bibtex,
        protocol=next(p.sentence for p in paper.protocols if p.id == request.protocol),
        tables=paper.tables,
        claims=claims,
        others=tuple(claim for claim in paper.claims if claim.id not in judged),
        deviations=tuple(
            line
            for line in paper.deviations
            if line.applies(protocol=request.protocol, tier=request.tier, dataset=request.dataset, axes=axes)
        ),
    )


def write_run(folder: Path, run: RunFile) -> None:
    """Write ``run.json`` atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "run.json", msgspec.json.format(msgspec.json.encode(run), indent=1))


def read_run(folder: Path) -> Reproduction:
    """Read a run back.

    Raises
    ------
    KdbenchError : the file is missing or does not read.
    """
    path = folder / "run.json"
    try:
        return Reproduction(msgspec.json.decode(path.read_bytes(), type=RunFile), folder)
    except (OSError, msgspec.MsgspecError) as error:
        raise KdbenchError(
            f"run.json is corrupt ({error})",
            where=path,
            cure="delete the run's folder and reproduce again: finished stages are kept",
        ) from error
