"""The dossier: ``README.md`` of one reproduction, rendered from records that lie beside it and from nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from kdbench.errors import KdbenchError
from kdbench.figures import FOLDER, drawn
from kdbench.files import atomic_write, disk_errors
from kdbench.paper import PROTOCOLS, TIERS
from kdbench.record import Record
from kdbench.report.grids import (
    Grid,
    claim_grids,
    conditions,
    data_name,
    margins,
    measured_grids,
    metric_grids,
    reported_grids,
)
from kdbench.result import Reproduction, read_run, write_run
from kdbench.store import Store

__all__ = ["add_run", "read_dossier", "render", "write_dossier"]

# Certainties of numbers that are the paper's: read in it, in its code, or said by its authors.
_OWN = ("paper", "paper?", "code", "author")


def add_run(result: Reproduction, store: Store, folder: Path) -> Path:
    """Copy a run and the records of all its stages into ``folder/records``; the latest of equal axes stays.

    Raises
    ------
    KdbenchError : the run is not finished, or a record it rests on is gone.
    """
    run = result.run
    if run.status in ("running", "stopped"):
        raise KdbenchError(f"run {run.id} never ended", cure="reproduce again: its finished stages are kept")
    target = folder / "records" / "-".join((run.request.tier, run.request.dataset, run.request.protocol))
    lines = []
    for stage in run.stages:
        record = store.record(stage.hash)
        if record is None:
            raise KdbenchError(
                f"the record of '{stage.label}' is gone from the store",
                where=store.stages / stage.hash,
                cure="reproduce again: only what is missing is done",
            )
        lines.append(msgspec.json.encode(record))
    # A path of this machine means nothing to a reader.
    where = None if run.request.data_dir is None else "DIR"
    request = msgspec.structs.replace(run.request, data_dir=where)
    with disk_errors(folder):
        shutil.rmtree(target, ignore_errors=True)
        write_run(target, msgspec.structs.replace(run, request=request))
        atomic_write(target / "records.jsonl", b"\n".join(lines) + b"\n")
        for figure in drawn(result.path):
            (target / FOLDER).mkdir(exist_ok=True)
            atomic_write(target / FOLDER / figure.name, figure.read_bytes())
    return target


def read_dossier(folder: Path) -> list[tuple[Reproduction, dict[str, Record]]]:
    """Every run of a dossier with its records by stage hash: laptop before full, clean before the others."""
    found = []
    for path in (folder / "records").glob("*/run.json"):
        lines = (path.parent / "records.jsonl").read_bytes().splitlines()
        records = [msgspec.json.decode(line, type=Record) for line in lines]
        found.append((read_run(path.parent), {record.hash: record for record in records}))
    if not found:
        raise KdbenchError("the dossier holds no run", where=folder, cure="name one: kdbench dossier RUN")
    return sorted(found, key=lambda pair: _order(pair[0]))


def write_dossier(folder: Path) -> Path:
    """Render ``folder/README.md`` from ``folder/records``."""
    with disk_errors(folder):
        atomic_write(folder / "README.md", render([result for result, _ in read_dossier(folder)]).encode())
    return folder / "README.md"


def render(results: list[Reproduction]) -> str:
    """The Markdown text of a dossier.

    Raises
    ------
    KdbenchError : the runs are not of one paper.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    papers = {result.run.request.paper for result in results}
    if len(papers) != 1:
        raise KdbenchError(f"a dossier is about one paper, these runs are of {', '.join(sorted(papers))}")
    environment = Environment(
        loader=PackageLoader("kdbench.report"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    facts = results[-1].run.facts
    return environment.get_template("dossier.md.j2").render(
        facts=facts,
        reported=[grid for grid in reported_grids(facts.tables) if grid.rows],
        own_numbers=any(
            cell.value is not None and cell.certainty in _OWN for table in facts.tables for cell in table.cells
        ),
        unread=_unread(results),
        runs=[_section(result) for result in results],
        table=_table,
    )


def _unread(results: list[Reproduction]) -> list[str]:
    """Titles of reported tables of which no number was read.

    Tables that compare with no protocol and have measured cells, or claims on them, are the project's own.
    """
    ours = {cell.partition("/")[0] for result in results for cell in result.summaries()}
    facts = results[-1].run.facts
    ours |= {cell.partition("/")[0] for claim in (*facts.claims, *facts.others) for cell in claim.cells()}
    return [
        table.title
        for table in facts.tables
        if all(cell.value is None for cell in table.cells)
        and (table.comparable or not (table.shown or table.id in ours))
    ]


def _section(result: Reproduction) -> dict[str, Any]:
    run, request = result.run, result.run.request
    name = f"{data_name(result)}, {request.tier}, {request.protocol}"
    sizes = ", ".join(f"{count:,} {split}" for split, count in run.data.sizes.items())
    machine = run.environment
    judged = {verdict.claim: verdict for verdict in result.claim_verdicts()}
    work = sum(stage.seconds for stage in run.stages)
    return {
        "name": name,
        "anchor": "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-"),
        "id": run.id,
        "started": run.started,
        "request": request,
        "conditions": conditions(result),
        "seeds": ", ".join(map(str, request.seeds)),
        "environment": (
            f"Made with torch {machine.torch}, Python {machine.python}, loss kernels '{machine.ops}', on "
            f"{machine.processor} ({machine.platform}), {request.workers} workers of {request.threads} "
            f"{'thread' if request.threads == 1 else 'threads'} on {request.device}."
        ),
        "stages": f"Data: {sizes} examples. {len(run.stages)} stages, {work:.0f} s of work.",
        "protocol": run.facts.protocol,
        "data_note": run.data.note,
        "fingerprint": run.data.fingerprint,
        "verdicts": result.claim_verdicts(),
        "sources": {claim.id: f"{claim.source}; certainty: {claim.certainty}" for claim in run.facts.claims},
        "notes": {claim.id: claim.note for claim in run.facts.claims},
        "margins": {claim.id: f"{margins(claim)}. {claim.margin_reason}".strip() for claim in run.facts.claims},
        "measured": [*measured_grids(result), *metric_grids(result)],
        "figures": [(path.stem, f"records/{result.path.name}/{FOLDER}/{path.name}") for path in drawn(result.path)],
        "failed_metrics": [metric for metric in run.metrics if metric.problem],
        "statistics": [grid for grid in claim_grids(result) if grid.rows],
        "deviations": [
            {
                "id": line.id,
                "item": line.item,
                "text": _sentence(line.text(request.protocol)),
                "effect": line.effect,
                "source": line.source,
                "certainty": line.certainty,
            }
            for line in run.facts.deviations
        ],
        "not_tested": [
            *(f"{c.id} ({c.title}): {judged[c.id].sentence}" for c in run.facts.claims if _untested(judged[c.id])),
            *(f"{c.id} ({c.title}): {c.not_tested or 'not asked for in this run'}" for c in run.facts.others),
        ],
        "failures": run.failures,
        "command": _command(result),
    }


def _untested(verdict: Any) -> bool:
    return bool(verdict.gain_word == "not tested")


def _sentence(text: str) -> str:
    return f"{text}." if text and not text.endswith(".") else text


def _command(result: Reproduction) -> str:
    request = result.run.request
    parts = ["kdbench reproduce", request.paper, f"--tier {request.tier}", f"--dataset {request.dataset}"]
    parts += [f"--data-dir {request.data_dir}"] if request.data_dir else []
    counted = request.seeds == tuple(range(len(request.seeds)))
    seeds = str(len(request.seeds)) if counted else ",".join(map(str, request.seeds))
    parts += [f"--protocol {request.protocol}", f"--seeds {seeds}", f"--claims {request.claims}"]
    return " ".join(parts)


def _order(result: Reproduction) -> tuple[int, str, int]:
    request = result.run.request
    return (TIERS.index(request.tier), request.dataset, -PROTOCOLS.index(request.protocol))


def _table(grid: Grid) -> str:
    if not grid.rows:
        return ""
    header = "| " + " | ".join(grid.columns) + " |"
    ruler = "|" + "|".join(["---", *(["---:"] * (len(grid.columns) - 1))]) + "|"
    return "\n" + "\n".join([header, ruler, *("| " + " | ".join(row) + " |" for row in grid.rows)]) + "\n"
