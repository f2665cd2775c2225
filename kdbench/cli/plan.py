"""``kdbench plan PAPER``"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from kdbench.cli.options import axes, console, parse_seeds, print_json

if TYPE_CHECKING:
    from rich.console import Console

    from kdbench.api import Prepared


@click.command("plan")
@axes
def command(*, paper: str, seeds: str | None, as_json: bool, **options: Any) -> None:
    """Show what 'reproduce' would do, and what it would cost. Trains and downloads nothing."""
    from kdbench.api import prepare

    prepared = prepare(paper, seeds=parse_seeds(seeds), fetch=False, **options)
    if as_json:
        print_json(_as_data(prepared))
    else:
        show_plan(console(), prepared)


def show_plan(console: Console, prepared: Prepared) -> None:
    """The stages, seeds folded together, and the price."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from kdbench.plugins import registry
    from kdbench.report.progress import duration

    plan, request, store = prepared.plan, prepared.request, prepared.store
    price, uses = plan.price(store), plan.uses()
    groups: dict[str, list[str]] = defaultdict(list)
    for key, spec in plan.specs.items():
        groups[_kind(spec.label)].append(key)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title, justify in (
        ("stage", "left"),
        ("n", "right"),
        ("done", "right"),
        ("used by", "right"),
        ("left", "right"),
    ):
        table.add_column(title, justify="left" if justify == "left" else "right")
    for label, keys in groups.items():
        done = sum(store.has(key) for key in keys)
        users = max(uses[key] for key in keys)
        left = sum(price.seconds[key] for key in keys)
        table.add_row(
            escape(label), str(len(keys)), str(done), str(users) if users else "", duration(left) if left else ""
        )
    console.print(table)
    done = sum(store.has(key) for key in plan.specs)
    data = plan.lab.data
    console.print(
        f"{request.paper}, tier {request.tier}, {data.title}, protocol {request.protocol}, "
        f"{len(request.seeds)} seeds, claims {', '.join(dict.fromkeys(claim.id for claim in plan.claims))}",
        highlight=False,
    )
    console.print(
        f"{len(plan.specs)} stages, {plan.shared()} of them shared by several others, {done} already done",
        highlight=False,
    )
    todo = len(plan.specs) - done
    if todo:
        source = f"{price.measured} of {todo} priced by this store's own timings"
        source += ", the rest by a model of their arithmetic" if price.measured < todo else ""
        console.print(
            f"[bold]about {duration(price.elapsed(request.workers))}[/] with {request.workers} workers on "
            f"{request.device} ({duration(price.total)} of work; {source})",
            highlight=False,
        )
    if data.fingerprint == "not fetched":
        supplied = registry().dataset(data.dataset).supplied
        cure = (
            "name its folder with --data-dir" if supplied else "it would be downloaded, or name a copy with --data-dir"
        )
        console.print(f"{data.title} is not here yet; {cure}")


def _kind(label: str) -> str:
    return label.partition(" seed ")[0]


def _as_data(prepared: Prepared) -> dict[str, Any]:
    plan, store = prepared.plan, prepared.store
    price = plan.price(store)
    return {
        "request": prepared.request,
        "claims": [claim.id for claim in plan.claims],
        "stages": [
            {
                "hash": key,
                "label": spec.label,
                "inputs": spec.inputs,
                "done": store.has(key),
                "seconds": price.seconds[key],
            }
            for key, spec in plan.specs.items()
        ],
        "shared": plan.shared(),
        "seconds_of_work": price.total,
        "seconds": price.elapsed(prepared.request.workers),
    }
