"""Facts: how they are read, what they are checked for, and what is asked of them."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toy_paper import toy_paper

from kdbench.errors import KdbenchError
from kdbench.paper import PROTOCOLS, Claim, Comparison, Deviation, Gate, Paper

TOML = """
id = "mini"
title = "A title"
authors = "Somebody"
venue = "Somewhere"
year = 2020
url = "https://example.org"
bibtex = "@misc{mini}"
summary = "It works."
datasets = ["mnist1d", "cifar10"]
default_dataset = { smoke = "mnist1d", laptop = "mnist1d", full = "cifar10" }

[[protocols]]
id = "clean"
sentence = "As meant."

[[tables]]
id = "table1"
title = "Table 1"
metric = "accuracy"
unit = "%"
source = "Table 1"

[[claims]]
id = "H1"
title = "Helps"
sentence = "Distillation helps."
source = "Table 1"
certainty = "paper"
alternatives = [[{ left = "table1/a", right = "table1/b" }]]

[[deviations]]
id = "d1"
item = "Epochs"
written = "150"
axes = { family = ["cnn"] }
effect = "Fewer"
source = "README"
certainty = "code"
"""
CSV = "cell,value,certainty,source\ntable1/a,71.5,paper,Table 1\ntable1/b,,not found,Table 1\n"

_numbers = count()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load facts from a package of their own, as a plugin would."""

    def load(toml: str | None = TOML, csv: str | None = CSV) -> Paper:
        name = f"mini_facts_{next(_numbers)}"  # a package is imported once under a name
        facts = tmp_path / name / "facts"
        facts.mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("")
        for file, text in (("paper.toml", toml), ("table1.csv", csv)):
            if text is not None:
                (facts / file).write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        return Paper.load(name, study=toy_paper)

    return load


def test_facts_read_as_written(load: Any) -> None:
    paper = load()
    assert paper.study is toy_paper
    (table,) = paper.tables
    assert [(cell.cell, cell.value, cell.certainty) for cell in table.cells] == [
        ("table1/a", 71.5, "paper"),
        ("table1/b", None, "not found"),  # never read: blank, not zero
    ]
    assert paper.reported()["table1/a"] == (table.cells[0], table)
    assert paper.claim("H1") is paper.claims[0]
    assert paper.claim("H2") is None
    assert paper.deviations[0].axes == {"family": ("cnn",)}
    assert paper.default_seeds == {}  # the framework's own


def test_a_paper_may_say_how_many_seeds_its_runs_have(load: Any) -> None:
    assert load(replaced("year = 2020", SEEDS)).default_seeds == {"smoke": 1, "laptop": 3}


def replaced(old: str, new: str) -> str:
    assert old in TOML
    return TOML.replace(old, new)


SEEDS = "year = 2020\ndefault_seeds = { smoke = 1, laptop = 3 }"
CLAIM = 'alternatives = [[{ left = "table1/a", right = "table1/b" }]]'
FAULTS = {
    "no toml": (None, CSV, "paper.toml"),
    "no csv": (TOML, None, "table 'table1' needs its cells in a file table1.csv beside paper.toml"),
    "bad toml": (TOML + "\nid = ", CSV, "do not read"),
    "unknown key": (replaced("year = 2020", "year = 2020\ncolour = 1"), CSV, "colour"),
    "unknown key in a claim": (replaced(CLAIM, CLAIM + "\nbest = true"), CSV, "best"),
    "wrong type": (replaced("year = 2020", 'year = "soon"'), CSV, "year"),
    "unknown certainty": (TOML, CSV.replace("not found", "sure"), "sure"),
    "certainty that does not exist": (TOML, CSV.replace("not found", "project?"), "certainties: paper, paper?, code, "),
    "unknown protocol": (replaced('id = "clean"', 'id = "mine"'), CSV, "mine"),
    "no number": (TOML, CSV.replace("71.5", "good"), "good"),
    "short row": (TOML, CSV + "table1/c\n", "do not read"),
    "long row": (TOML, CSV + "table1/c,1,paper,T,T\n", "do not read"),
    "no value column": (TOML, CSV.replace("value", "number"), "value"),
    "table without id": (replaced('id = "table1"\n', ""), CSV, "id"),
    "duplicate cell": (TOML, CSV + "table1/a,70,paper,Table 1\n", "'table1/a' stands twice"),
    "duplicate id": (replaced('id = "d1"', 'id = "H1"'), CSV, "'H1' stands twice"),
    "claim without source": (replaced('source = "Table 1"\ncertainty', 'source = ""\ncertainty'), CSV, "cites no"),
    "claim that compares nothing": (replaced(CLAIM, ""), CSV, "needs either comparisons or a reason"),
    "tested and not tested": (replaced(CLAIM, CLAIM + '\nnot_tested = "why"'), CSV, "needs either"),
    "deviation without text": (replaced('written = "150"\n', ""), CSV, "deviation d1 says nothing of 'clean'"),
    "deviation without text for one protocol": (
        replaced('written = "150"', 'released = "160"\nprotocols = ["released", "clean"]'),
        CSV,
        "deviation d1 says nothing of 'clean'",
    ),
    "no default": (replaced('full = "cifar10"', 'full = "svhn"'), CSV, "tier 'full' has no default"),
    "missing default": (replaced(', full = "cifar10"', ""), CSV, "tier 'full' has no default"),
    "seeds of no tier": (
        replaced("year = 2020", SEEDS.replace("smoke", "tiny")),
        CSV,
        "default_seeds knows no tier 'tiny'",
    ),
    "no seed": (replaced("year = 2020", SEEDS.replace("1", "0")), CSV, ">= 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_in_the_facts_is_named_with_its_place(load: Any, fault: str) -> None:
    toml, csv, says = FAULTS[fault]
    with pytest.raises(KdbenchError) as caught:
        load(toml, csv)
    assert re.search(re.escape(says), str(caught.value))
    assert "facts/paper.toml" in str(caught.value)


def claim(*alternatives: tuple[Comparison, ...], title: str = "T") -> Claim:
    return Claim(id="C", title=title, sentence="S", source="T1", certainty="paper", alternatives=alternatives)


def test_instances_bind_every_axis_a_cell_mentions() -> None:
    one = claim(
        (Comparison(left="t/{family}/{dataset}/x", right="t/{family}/{dataset}/y", relation="less"),),
        (Comparison(left="u/{dataset}", right="u/z", margin=0.5),),
        title="On {family} {else}",
    )
    axes = {"dataset": ("mnist1d",), "family": ("cnn", "resnet"), "unused": ("a", "b", "c")}
    instances = list(one.instances(axes))
    assert [i.title for i in instances] == ["On cnn {else}", "On resnet {else}"]
    assert instances[1].cells() == ("t/resnet/mnist1d/x", "t/resnet/mnist1d/y", "u/mnist1d", "u/z")
    assert instances[1].alternatives[0][0].relation == "less"
    assert instances[1].alternatives[1][0].margin == 0.5


def test_claim_without_axes_has_one_instance() -> None:
    one = claim((Comparison(left="a", right="b"), Comparison(left="a", right="c")))
    assert list(one.instances({"dataset": ("x", "y")})) == [one]
    assert one.cells() == ("a", "b", "c")


def test_axis_that_the_study_does_not_declare_is_an_error() -> None:
    with pytest.raises(KdbenchError, match="claim C uses the axis 'family'"):
        list(claim((Comparison(left="t/{family}", right="b"),)).instances({"dataset": ("x",)}))


@pytest.mark.parametrize(
    ("limits", "applies"),
    [
        ({}, True),
        ({"protocols": ("clean",)}, True),
        ({"protocols": ("written", "clean")}, True),
        ({"protocols": ("written",)}, False),
        ({"tiers": ("laptop",)}, True),
        ({"tiers": ("full",)}, False),
        ({"datasets": ("mnist1d",)}, True),
        ({"datasets": ("cifar10",)}, False),
        ({"protocols": ("clean",), "tiers": ("laptop",), "datasets": ("cifar10",)}, False),
        ({"protocols": ("clean",), "tiers": ("laptop",), "datasets": ("mnist1d",)}, True),
    ],
)
def test_deviation_applies_where_all_its_limits_hold(limits: dict[str, tuple[str, ...]], applies: bool) -> None:
    line = Deviation(id="d", item="i", effect="e", source="s", certainty="code", **limits)
    assert line.applies(protocol="clean", tier="laptop", dataset="mnist1d") is applies


@pytest.mark.parametrize(
    ("limits", "run", "applies"),
    [
        ({"family": ("resnet",)}, {"family": ("resnet",)}, True),
        ({"family": ("resnet",)}, {"family": ("cnn",)}, False),
        ({"family": ("resnet",)}, {"family": ("cnn", "resnet")}, True),
        ({"family": ("resnet", "vgg")}, {"family": ("cnn", "vgg")}, True),
        ({"family": ("resnet",)}, {"dataset": ("mnist1d",)}, True),  # the run has no such axis
        ({"family": ("resnet",)}, {}, True),
        ({"family": ("resnet",)}, None, True),
        ({"family": ("resnet",), "depth": ("8",)}, {"family": ("resnet",), "depth": ("14",)}, False),
        ({}, {"family": ("cnn",)}, True),
    ],
)
def test_deviation_is_limited_to_values_of_the_studys_axes(
    limits: dict[str, tuple[str, ...]], run: dict[str, tuple[str, ...]] | None, applies: bool
) -> None:
    line = Deviation(id="d", item="i", effect="e", source="s", certainty="code", axes=limits)
    assert line.applies(protocol="clean", tier="laptop", dataset="mnist1d", axes=run) is applies
    other = msgspec.structs.replace(line, tiers=("full",))
    assert not other.applies(protocol="clean", tier="laptop", dataset="mnist1d", axes=run)


def test_deviation_tells_what_is_run() -> None:
    line = Deviation(id="d", item="i", effect="e", source="s", certainty="code", written="w", clean="c")
    assert [line.text(protocol) for protocol in PROTOCOLS] == ["w", "w", "c"]
    here = msgspec.structs.replace(line, here="h")
    assert {here.text(protocol) for protocol in PROTOCOLS} == {"h"}


def test_deviation_reads_back_from_a_file_without_axes() -> None:
    old = b'{"id":"d","item":"i","effect":"e","source":"s","certainty":"code"}'
    assert msgspec.json.decode(old, type=Deviation).axes == {}


def test_gate_is_found_by_network_data_tier_and_protocol() -> None:
    def gate(claimed: float, **limits: Any) -> Gate:
        return Gate(
            network="plain10", dataset="cifar10", claimed=claimed, tolerance=2, certainty="paper", source="T", **limits
        )

    paper = toy_paper(gates=(gate(90, tiers=("full",), protocols=("written",)), gate(80, tiers=("laptop",))))

    def found(network: str = "plain10", dataset: str = "cifar10", tier: str = "full", protocol: str = "written") -> Any:
        gate = paper.gate(network, dataset=dataset, tier=tier, protocol=protocol)
        return None if gate is None else gate.claimed

    assert found() == 90
    assert found(tier="laptop", protocol="clean") == 80
    assert found(protocol="clean") is None
    assert found(tier="smoke") is None
    assert found(network="plain8") is None
    assert found(dataset="cifar100") is None


def test_facts_cannot_be_changed() -> None:
    paper = toy_paper()
    with pytest.raises(AttributeError):
        paper.title = "Another"  # type: ignore[misc]
    assert msgspec.structs.replace(paper, title="Another").title == "Another"
