"""What a paper says: citation, reported cells, claims with margins, and the ledger of deviations.

Facts are data files inside a plugin, never code: ``facts/paper.toml`` (citation, protocols, tables, claims,
deviations) and ``facts/<table>.csv`` (one line a reported cell: ``cell,value,certainty,source``). A cell that was
never read in the paper has an empty value and stays blank everywhere.

Cells are named ``table/row.../column``, for instance ``table1/cnn/cifar10/TAKD``; measured cells use the same names,
so that a measured number finds the paper's own. In claims a name may hold ``{dataset}`` or another axis of the study.
"""

from __future__ import annotations

import csv
import io
import string
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec

from kdbench.errors import KdbenchError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from importlib.abc import Traversable

__all__ = [
    "PROTOCOLS",
    "TIERS",
    "Claim",
    "Comparison",
    "Deviation",
    "Gate",
    "Paper",
    "ParameterCount",
    "Protocol",
    "ReportedCell",
    "ReportedTable",
]

TIERS = ("smoke", "laptop", "full")
PROTOCOLS = ("written", "released", "clean")

Certainty = Literal[
    "paper", "paper?", "code", "author", "third-party", "third-party?", "third-party??",
    "derived", "derived?", "derived??", "pilot", "project", "not found",
]  # fmt: skip


class Fact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the facts: immutable, strict about unknown keys."""


class Protocol(Fact, frozen=True):
    """One reading of the authors' recipe: ``written``, ``released`` or ``clean``."""

    id: Literal["written", "released", "clean"]
    sentence: str


class ReportedCell(Fact, frozen=True):
    """One number of the paper. ``value`` is None where the number was never read; ``printed`` is it as it was read."""

    cell: str
    value: float | None
    certainty: Certainty
    source: str
    printed: str = ""


class ReportedTable(Fact, frozen=True):
    """A table or figure of the paper. ``comparable`` names the protocols whose numbers may stand beside it.

    ``arithmetic`` tables follow from other printed numbers: whoever recomputes them is at no scale, and their values
    may be compared at any tier and on any data. A ``shown`` table stands in reports whenever it is measured; others
    where a claim of the run touches them.
    """

    id: str
    title: str
    metric: str
    unit: str
    source: str
    comparable: tuple[str, ...] = ("written", "released")
    arithmetic: bool = False
    shown: bool = False
    cells: tuple[ReportedCell, ...] = ()


class Comparison(Fact, frozen=True):
    """``left`` against ``right``, paired by seed. The gain is signed so that positive favours ``left``.

    ``greater``: left is larger by more than nothing. ``less``: left is smaller (a loss, a divergence).
    ``not_worse``: left is not below right by ``margin`` or more (non-inferiority).
    ``equal``: they differ by less than ``margin``, either way (equivalence); the gain is left - right.
    """

    left: str
    right: str
    relation: Literal["greater", "less", "not_worse", "equal"] = "greater"
    margin: float | None = None


class Claim(Fact, frozen=True):
    """One testable sentence, with everything declared before the run.

    ``alternatives`` is an OR of ANDs: the claim holds if, in at least one alternative, every comparison holds.
    ``gain_margin`` is the smallest gain that would matter; ``value_margin`` the half-width within which a measured
    mean counts as equal to the paper's number; both in the unit of the metric. ``exact``: it is true or false of
    the numbers themselves and sampling plays no part, as in arithmetic on what is printed or what follows from a
    definition; the least favourable seed decides, and no test is made.
    """

    id: str
    title: str
    sentence: str
    source: str
    certainty: Certainty
    metric: str = "test accuracy"
    unit: str = "%"
    core: bool = False
    exact: bool = False
    gain_margin: float = 0.0
    value_margin: float = 0.0
    margin_reason: str = ""
    alternatives: tuple[tuple[Comparison, ...], ...] = ()
    note: str = ""
    not_tested: str = ""

    def cells(self) -> tuple[str, ...]:
        """Every cell name the claim compares, each once, in order."""
        seen: dict[str, None] = {}
        for alternative in self.alternatives:
            for comparison in alternative:
                seen[comparison.left] = None
                seen[comparison.right] = None
        return tuple(seen)

    def instances(self, axes: dict[str, tuple[str, ...]]) -> Iterator[Claim]:
        """The claim once for every combination of the axes that its cell names mention, placeholders filled in."""
        used = sorted({name for cell in self.cells() for name in _placeholders(cell, self.id)})
        missing = [name for name in used if name not in axes]
        if missing:
            raise KdbenchError(f"claim {self.id} uses the axis '{missing[0]}' that the study does not declare")
        for values in product(*(axes[name] for name in used)):
            bound = dict(zip(used, values, strict=True))
            yield msgspec.structs.replace(
                self,
                title=self.title.format_map(_Keep(bound)),
                alternatives=tuple(
                    tuple(
                        msgspec.structs.replace(c, left=c.left.format(**bound), right=c.right.format(**bound))
                        for c in alternative
                    )
                    for alternative in self.alternatives
                ),
            )


class Deviation(Fact, frozen=True):
    """One ledger line: where the readings differ and what it does to the number.

    Empty ``protocols``, ``tiers`` or ``datasets`` means all of them. ``axes`` limits the line to values of the study's
    own axes, for instance ``{family = ["resnet"]}``. ``here`` is what is run whatever the protocol says.
    """

    id: str
    item: str
    effect: str
    source: str
    certainty: Certainty
    written: str = ""
    released: str = ""
    clean: str = ""
    here: str = ""
    protocols: tuple[str, ...] = ()
    tiers: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    axes: dict[str, tuple[str, ...]] = {}

    def applies(
        self, *, protocol: str, tier: str, dataset: str, axes: Mapping[str, tuple[str, ...]] | None = None
    ) -> bool:
        """Whether the line concerns a run of this protocol, tier and data set.

        Parameters
        ----------
        axes : the values that the run has of each axis of its study (``Lab.axes``). An axis that is not there limits
            nothing.
        """
        run = axes or {}
        return (
            (not self.protocols or protocol in self.protocols)
            and (not self.tiers or tier in self.tiers)
            and (not self.datasets or dataset in self.datasets)
            and all(not set(values).isdisjoint(run[name]) for name, values in self.axes.items() if name in run)
        )

    def text(self, protocol: str) -> str:
        """What the line says of a run of this protocol: what is run here, else its column, else the paper's text."""
        columns = {"written": self.written, "released": self.released, "clean": self.clean}
        return self.here or columns[protocol] or self.written


class Gate(Fact, frozen=True):
    """A teacher's own claimed accuracy (top-1 %), checked before anyone distils from it.

    It concerns teachers trained on the labels; a distilled assistant has no claimed accuracy of its own. The teacher
    passes when it reaches ``claimed - tolerance``. Empty ``tiers`` or ``protocols`` means all.
    """

    network: str
    dataset: str
    claimed: float
    tolerance: float
    certainty: Certainty
    source: str
    tiers: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()


class ParameterCount(Fact, frozen=True):
    """The published number of trainable parameters of a network on a data set: what its implementation must have."""

    network: str
    dataset: str
    parameters: int
    certainty: Certainty
    source: str


class Paper(Fact, frozen=True):
    """Frozen facts of one paper, and the study that reproduces it.

    ``default_seeds`` says how many seeds a run of each tier has unless it is told; else 1 at smoke and 5.
    ``figures`` is the import path ``module:function`` of ``figures(result) -> dict[str, str]``, which draws a finished
    run: SVG texts by short names, kept with the run and shown in the dossier.
    """

    id: str
    title: str
    authors: str
    venue: str
    year: int
    url: str
    bibtex: str
    summary: str
    datasets: tuple[str, ...]
    default_dataset: dict[str, str]
    protocols: tuple[Protocol, ...]
    tables: tuple[ReportedTable, ...] = ()
    claims: tuple[Claim, ...] = ()
    deviations: tuple[Deviation, ...] = ()
    gates: tuple[Gate, ...] = ()
    parameter_counts: tuple[ParameterCount, ...] = ()
    default_seeds: dict[str, Annotated[int, msgspec.Meta(ge=1)]] = {}
    figures: str = ""
    study: Any = None

    @classmethod
    def load(cls, package: str, *, study: Callable[..., Any], figures: str = "", facts: str = "facts") -> Paper:
        """Read ``facts/paper.toml`` and its tables from ``package``.

        Parameters
        ----------
        package : import name of the plugin's package (``__package__``).
        study : the generator function ``study(lab)`` that yields measurements.
        figures : import path of the function that draws a finished run; see :class:`Paper`.
        facts : folder of the data files inside the package.

        Raises
        ------
        KdbenchError : a file is missing or does not parse, a cell is named twice, or a claim has no source.
        """
        folder = resources.files(package) / facts
        where = f"{package}/{facts}/paper.toml"
        try:
            data = tomllib.loads((folder / "paper.toml").read_text(encoding="utf-8"))
            for table in data.get("tables", []):
                table["cells"] = _cells(folder / f"{table['id']}.csv", table["id"])
            paper = msgspec.convert(data, cls)
        except (OSError, ValueError, KeyError, TypeError, msgspec.ValidationError) as error:
            cure = f"certainties: {', '.join(get_args(Certainty))}" if "certainty" in str(error) else None
            raise KdbenchError(f"the facts do not read: {error}", where=where, cure=cure) from error
        paper._check(where)
        return msgspec.structs.replace(paper, study=study, figures=figures or paper.figures)

    def reported(self) -> dict[str, tuple[ReportedCell, ReportedTable]]:
        """Every reported cell by name, with the table it stands in."""
        return {cell.cell: (cell, table) for table in self.tables for cell in table.cells}

    def claim(self, claim_id: str) -> Claim | None:
        """The claim of that id, or None."""
        return next((claim for claim in self.claims if claim.id == claim_id), None)

    def gate(self, network: str, *, dataset: str, tier: str, protocol: str) -> Gate | None:
        """The gate for a teacher, or None where no accuracy is known to hold it against."""
        for gate in self.gates:
            if (
                gate.network == network
                and gate.dataset == dataset
                and (not gate.tiers or tier in gate.tiers)
                and (not gate.protocols or protocol in gate.protocols)
            ):
                return gate
        return None

    def _check(self, where: str) -> None:
        cells = [cell.cell for table in self.tables for cell in table.cells]
        ids = [claim.id for claim in self.claims] + [deviation.id for deviation in self.deviations]
        readings = [protocol.id for protocol in self.protocols]
        for name in {*cells, *ids}:
            if cells.count(name) > 1 or ids.count(name) > 1:
                raise KdbenchError(f"'{name}' stands twice in the facts", where=where)
        for claim in self.claims:
            if not claim.source:
                raise KdbenchError(f"claim {claim.id} cites no table or section", where=where)
            for cell in claim.cells():
                _placeholders(cell, claim.id)
            if bool(claim.alternatives) == bool(claim.not_tested):
                raise KdbenchError(
                    f"claim {claim.id} needs either comparisons or a reason why it is not tested", where=where
                )
        for line in self.deviations:
            for protocol in line.protocols or readings:
                if not line.text(protocol):
                    raise KdbenchError(f"deviation {line.id} says nothing of '{protocol}'", where=where)
        if wrong := self.default_seeds.keys() - set(TIERS):
            raise KdbenchError(f"default_seeds knows no tier '{min(wrong)}'", where=where, cure=f"tiers: {TIERS}")
        for tier in TIERS:
            if self.default_dataset.get(tier) not in self.datasets:
                raise KdbenchError(f"tier '{tier}' has no default among the paper's data sets", where=where)


def _cells(file: Traversable, table: str) -> list[dict[str, Any]]:
    if not file.is_file():
        raise ValueError(f"table '{table}' needs its cells in a file {table}.csv beside paper.toml")
    return [_cell(row) for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))]


def _cell(row: dict[str, str]) -> dict[str, Any]:
    value = (row["value"] or "").strip()
    return {**row, "value": float(value) if value else None, "printed": value}


def _placeholders(cell: str, claim: str) -> list[str]:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(cell) if name is not None]
    except ValueError:
        names = [""]
    if not all(name.isidentifier() for name in names):
        raise KdbenchError(
            f"claim {claim} compares '{cell}', whose braces name no axis",
            cure="write {dataset}, or an axis of the study",
        )
    return names


class _Keep(dict[str, str]):
    """Leaves a placeholder it does not know as it is."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"
