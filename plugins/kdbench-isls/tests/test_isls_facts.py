"""The facts against a second, hand-typed copy of other people's numbers, against their own arithmetic, and against what
must not be in them: a number of the paper, none of whose tables was found."""

from __future__ import annotations

import math
import re
import string
import warnings
from typing import Any

import pytest

from kdbench.data import DATASETS
from kdbench.paper import TIERS, Claim, Paper
from kdbench.testing.checks import facts
from kdbench_isls.recipes import GENERATIONS as GENERATIONS_TRAINED
from kdbench_isls.recipes import TEMPERATURES

PSKD = {  # error %, NLL, ECE %; blank where the table was read for ECE alone
    "PreAct-ResNet-18/CE": (24.18, 1.10, 11.84),
    "PreAct-ResNet-18/LS": (20.94, 0.98, 10.79),
    "PreAct-ResNet-18/CS-KD": (21.30, 0.88, 6.24),
    "PreAct-ResNet-18/TF-KD": (22.88, 1.05, 11.96),
    "PreAct-ResNet-18/PS-KD": (20.82, 0.76, 1.77),
}
PSKD_ECE = {  # without and with label smoothing
    "ResNeXt-29": (4.17, 22.14),
    "DenseNet-121": (7.34, 3.76),
}
SELFKDLIB = {"CE": 77.79, "LS": 80.33, "Tf-KD-reg": 79.84, "CS-KD": 79.99, "max-entropy": 78.11}

OTHERS = {"selfkdlib", "pskd", "tfkd"}
UNITS = {
    "accuracy": "%", "nll": "nats", "ece": "%", "ece20": "%", "scaled-nll": "nats", "scaled-ece": "%", "target": "",
    "uncertainty": "nats", "diversity": "nats", "variance": "", "diversity-all": "nats", "variance-all": "",
    "confidence": "", "association": "", "tuned": "%",
    "accuracy-by-T": "%", "uncertainty-by-T": "nats", "diversity-by-T": "nats", "variance-by-T": "",
    "confidence-by-T": "",
}  # fmt: skip
MARGINS = {
    "accuracy": 0.5, "tuned": 0.5, "ece": 1.0, "scaled-ece": 1.0, "nll": 0.02, "diversity": 0.1, "diversity-all": 0.1,
    "variance": 0.001, "diversity-by-T": 0.1, "target": 0.01,
}  # fmt: skip
ARMS = {
    "CE", "LS", "LS-matched", "SD-g1", "SD-g2", "SD-g3", "Beta", "shuffled", "reversed", "student-ranked", "quantile",
    "SD-flat", "SD-permuted", "entropy",
}  # fmt: skip
GENERATIONS = {f"g{n}" for n in range(4)}
COLUMNS = {
    "diversity": GENERATIONS,
    "diversity-all": GENERATIONS,
    "variance": GENERATIONS,
    "diversity-by-T": {f"T{t}-{g}" for t in ("1", "1.5", "2", "4") for g in GENERATIONS},
    "tuned": {"CE", "LS", "SD", "Beta", "entropy"},
}

CORE = {
    "H1", "H2", "H2-all", "H2-variance", "H3", "H4", "H4-ece", "H4-nll", "H4-scaled", "H5", "H5-noise", "H6-beta", "M1",
}  # fmt: skip
OTHER_NOISE = {"H1", "H2", "H3", "H4", "H4-ece", "H5", "H5-noise", "H6-beta", "M1"}
REST = {
    "H2b", "H2-T1", "H2-T1.5", "H2-T2", "H2-T4", "H3-tuned", "H4-tuned", "H5-reversed", "H6-beta-tuned", "H6-flat",
    "H6-permuted", "H7", "H8", "H8-quantile", "M1-controls",
}  # fmt: skip


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_isls", study=lambda lab: iter(()))


@pytest.fixture(scope="module")
def lines(paper: Paper) -> dict[str, dict[str, str]]:
    """The texts of every ledger line by protocol, with its effect."""
    return {
        line.id: {p.id: line.text(p.id) for p in paper.protocols} | {"effect": line.effect} for line in paper.deviations
    }


def claim(paper: Paper, claim_id: str) -> Claim:
    found = paper.claim(claim_id)
    assert found is not None
    return found


def compared(paper: Paper, claim_id: str) -> list[tuple[str, str, str]]:
    """Table and column on the left, the relation, and the same on the right; every claim is one AND."""
    (alternative,) = claim(paper, claim_id).alternatives
    return [(_short(c.left), c.relation, _short(c.right)) for c in alternative]


def _short(cell: str) -> str:
    table, _, _, _, column = cell.split("/")
    return f"{table}/{column}"


# ---------------------------------------------------------------------------------------------------------- numbers


def test_no_cell_has_a_number_of_the_paper(paper: Paper) -> None:
    cells = [cell for cell, _ in paper.reported().values()]
    assert {cell.certainty for cell in cells} == {"third-party"}
    assert all("read and not verified" in cell.source for cell in cells)
    assert {table.id for table in paper.tables if table.cells} == OTHERS
    assert not any(table.comparable for table in paper.tables)
    assert all(claim.value_margin == 0 for claim in paper.claims)


def test_every_cell_is_in_the_hand_typed_copy_and_none_is_missing(paper: Paper) -> None:
    golden = {f"selfkdlib/cifar100/ResNet-50/{arm}": value for arm, value in SELFKDLIB.items()}
    golden["tfkd/cifar100/ResNet-18/baseline"] = 75.87
    for row, values in PSKD.items():
        columns = zip(("error", "nll", "ece"), values, strict=True)
        golden |= {f"pskd/cifar100/{row}/{name}": value for name, value in columns}
    for network, (plain, smoothed) in PSKD_ECE.items():
        golden |= {f"pskd/cifar100/{network}/CE/ece": plain, f"pskd/cifar100/{network}/LS/ece": smoothed}
    assert {name: cell.value for name, (cell, _) in paper.reported().items()} == golden


def test_tables_say_whose_they_are(paper: Paper) -> None:
    tables = {table.id: table for table in paper.tables}
    assert set(tables) == set(UNITS) | OTHERS | {"paper"}
    for name, unit in UNITS.items():
        assert tables[name].title.startswith("Our experiment: "), name
        assert "of the paper" not in tables[name].source, name
        assert tables[name].unit == unit, name
    assert all("other people's" in tables[name].title for name in OTHERS)
    assert "NOT FOUND" in tables["paper"].title


# ----------------------------------------------------------------------------------------------------------- claims


def test_claims(paper: Paper) -> None:
    twins = {f"{name}-other" for name in OTHER_NOISE}
    assert [c.id for c in paper.claims if c.core] == sorted(CORE, key=[c.id for c in paper.claims].index)
    assert {c.id for c in paper.claims} == CORE | REST | twins
    assert {c.id for c in paper.claims if c.not_tested} == {"H7", "H2b"}
    assert {c.id for c in paper.claims if c.exact} == {"M1", "M1-controls", "M1-other"}


def test_no_verdict_rests_on_an_association(paper: Paper) -> None:
    """The twelve teachers of a seed are the same in every seed, so that seeds are no sample of them."""
    assert claim(paper, "H2b").alternatives == ()
    assert len(TEMPERATURES) * GENERATIONS_TRAINED == 12
    assert "every seed has the same twelve teachers" in claim(paper, "H2b").not_tested
    assert not any(cell.startswith("association/") for each in paper.claims for cell in each.cells())
    (table,) = (table for table in paper.tables if table.id == "association")
    assert table.shown
    assert "no test is made of it" in table.metric


def test_what_no_claim_touches_is_shown(paper: Paper) -> None:
    touched = {cell.partition("/")[0] for each in paper.claims for cell in each.cells()}
    shown = {table.id for table in paper.tables if table.shown}
    assert set(UNITS) - touched - shown <= {"variance-all", "confidence-by-T"}
    assert not shown & OTHERS
    assert "paper" not in shown


def test_statistics_of_teachers_say_which_examples_they_are_over(paper: Paper) -> None:
    for table in paper.tables:
        name = table.id.removesuffix("-by-T")
        if name in ("uncertainty", "diversity", "variance", "confidence"):
            assert table.metric.endswith("rightly labelled training examples"), table.id
        if name.endswith("-all"):
            assert table.metric.endswith("training set with its wrong labels"), table.id


def test_every_claim_cites_and_is_judged_by_the_margin_of_its_metric(paper: Paper) -> None:
    units = {table.id: table.unit for table in paper.tables}
    for each in paper.claims:
        assert facts.cites(each.source), each.id
        tables = {cell.partition("/")[0] for cell in each.cells()}
        if each.not_tested:
            continue
        assert len(tables) == 1, f"{each.id} mixes metrics"
        (table,) = tables
        assert (each.unit, each.gain_margin) == (units[table], MARGINS[table]), each.id
        assert "project choice" in each.margin_reason.lower(), each.id
        assert all(c.margin is None for alternative in each.alternatives for c in alternative), each.id
        less = {c.relation == "less" for alternative in each.alternatives for c in alternative}
        assert less == {table in ("ece", "scaled-ece", "nll")}, each.id


def test_cells_have_one_shape_and_the_four_axes_alone(paper: Paper) -> None:
    for each in paper.claims:
        level = "othernoise" if each.id.endswith("-other") else "noise"
        for cell in each.cells():
            named = {name for _, name, _, _ in string.Formatter().parse(cell) if name is not None}
            assert named == {"network", "dataset", level}, each.id
            table, network, dataset, noise, column = cell.split("/")
            assert (network, dataset, noise) == ("{network}", "{dataset}", f"noise-{{{level}}}"), each.id
            assert column in COLUMNS.get(table, ARMS), cell


def test_no_two_verdicts_of_a_run_have_the_same_title(paper: Paper) -> None:
    axes = {
        "network": ("resnet34", "densenet100"), "dataset": ("cifar100",), "noise": ("20",), "othernoise": ("0", "40"),
    }  # fmt: skip
    titles = [stated.title for each in paper.claims for stated in each.instances(axes)]
    assert len(set(titles)) == len(titles)
    assert not any("{" in title for title in titles)


def test_a_run_with_one_level_of_noise_states_no_claim_of_others(paper: Paper) -> None:
    axes = {"network": ("resnet34",), "dataset": ("cifar100",), "noise": ("0",), "othernoise": ()}
    stated = {s.id for each in paper.claims for s in each.instances(axes)}
    assert stated == CORE | REST


@pytest.mark.parametrize("name", sorted(OTHER_NOISE))
def test_twins_differ_in_the_level_of_noise_alone(paper: Paper, name: str) -> None:
    mine, twin = claim(paper, name), claim(paper, f"{name}-other")
    assert mine.core
    assert not twin.core
    assert twin.title == mine.title.replace("{noise}", "{othernoise}")
    assert compared(paper, name) == compared(paper, f"{name}-other")
    for field in ("source", "certainty", "metric", "unit", "gain_margin", "exact"):
        assert getattr(twin, field) == getattr(mine, field), field


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("H1", [(f"accuracy/SD-g{n}", "greater", "accuracy/CE") for n in (1, 2, 3)]),
        ("H2", [(f"diversity/g{n}", "greater", f"diversity/g{n - 1}") for n in (1, 2)]),
        ("H2-variance", [(f"variance/g{n}", "greater", f"variance/g{n - 1}") for n in (1, 2)]),
        ("H2-all", [(f"diversity-all/g{n}", "greater", f"diversity-all/g{n - 1}") for n in (1, 2)]),
        *(
            (f"H2-T{t}", [(f"diversity-by-T/T{t}-g{n}", "greater", f"diversity-by-T/T{t}-g{n - 1}") for n in (1, 2)])
            for t in ("1", "1.5", "2", "4")
        ),
        ("H3", [("accuracy/SD-g1", "greater", "accuracy/LS-matched")]),
        ("H3-tuned", [("tuned/SD", "greater", "tuned/LS")]),
        ("H4", [("accuracy/Beta", "greater", "accuracy/LS")]),
        ("H4-ece", [("ece/Beta", "less", "ece/LS")]),
        ("H4-nll", [("nll/Beta", "less", "nll/LS")]),
        ("H4-scaled", [("scaled-ece/Beta", "less", "scaled-ece/LS")]),
        ("H4-tuned", [("tuned/Beta", "greater", "tuned/LS")]),
        ("H5", [("accuracy/Beta", "greater", "accuracy/shuffled")]),
        ("H5-reversed", [(f"accuracy/{arm}", "greater", "accuracy/reversed") for arm in ("Beta", "shuffled", "LS")]),
        ("H6-beta", [("accuracy/SD-g1", "greater", "accuracy/Beta")]),
        ("H6-beta-tuned", [("tuned/SD", "greater", "tuned/Beta")]),
        ("H6-flat", [("accuracy/SD-g1", "greater", "accuracy/SD-flat")]),
        ("H6-permuted", [("accuracy/SD-g1", "greater", "accuracy/SD-permuted")]),
        (
            "H8",
            [
                ("accuracy/Beta", "not_worse", "accuracy/student-ranked"),
                ("accuracy/student-ranked", "not_worse", "accuracy/shuffled"),
            ],
        ),
    ],
)
def test_what_each_claim_compares(paper: Paper, name: str, expected: list[tuple[str, str, str]]) -> None:
    assert compared(paper, name) == expected


@pytest.mark.parametrize(
    ("name", "table", "pairs"),
    [
        ("H5-noise", "accuracy", [("shuffled", "LS")]),
        ("H8-quantile", "accuracy", [("quantile", "Beta")]),
        ("M1", "target", [("SD-g1", "LS-matched"), ("LS", "shuffled"), ("LS", "Beta")]),
        (
            "M1-controls",
            "target",
            [(control, "SD-g1") for control in ("SD-flat", "SD-permuted")]
            + [(control, "Beta") for control in ("reversed", "student-ranked", "quantile")],
        ),
    ],
)
def test_equality_is_claimed_once_for_every_pair(
    paper: Paper, name: str, table: str, pairs: list[tuple[str, str]]
) -> None:
    assert compared(paper, name) == [(f"{table}/{left}", "equal", f"{table}/{right}") for left, right in pairs]


def test_nothing_else_claims_equality(paper: Paper) -> None:
    equal = {
        each.id for each in paper.claims for alternative in each.alternatives for c in alternative
        if c.relation == "equal"
    }  # fmt: skip
    assert equal == {"H5-noise", "H5-noise-other", "H8-quantile", "M1", "M1-controls", "M1-other"}
    assert all(claim(paper, name).gain_margin > 0 for name in equal)


# ----------------------------------------------------------------------------------------------------------- ledger


def test_protocols_and_seeds(paper: Paper, lines: dict[str, dict[str, str]]) -> None:
    assert [protocol.id for protocol in paper.protocols] == ["released", "clean"]
    assert paper.default_seeds == {"smoke": 1, "laptop": 10, "full": 5}
    assert "(1 by default at smoke, 10 at laptop, 5 at full)" in lines["seeds"]["clean"]


def test_every_line_speaks_of_both_protocols_and_prose_stays_on_one_line(paper: Paper) -> None:
    for line in paper.deviations:
        assert line.written, line.id
        assert line.released, line.id
        assert line.effect, line.id
        for protocol in line.protocols or ("released", "clean"):
            assert line.text(protocol).strip(), (line.id, protocol)
        text = (line.item, line.written, line.released, line.clean, line.here, line.effect, line.source)
        assert not any("\n" in part or "  " in part for part in text), line.id
    for each in paper.claims:
        text = (each.title, each.sentence, each.source, each.metric, each.margin_reason, each.note, each.not_tested)
        assert not any("\n" in part or "  " in part for part in text), each.id


def test_where_the_two_readings_are_run_differently(lines: dict[str, dict[str, str]]) -> None:
    differ = {name for name, text in lines.items() if text["released"] != text["clean"]}
    assert differ == {
        "code-and-paper", "arms-that-crash", "settings", "lr-resnet", "lr-densenet", "soft-weight", "temperature",
        "log-floor", "ema-cap", "scale-schedule", "initialisation",
    }  # fmt: skip
    scale = {"epochs", "scale-data", "scale-network"}
    either = re.compile(r"in (every|any) reading")
    assert {name for name in lines.keys() - differ if not either.search(lines[name]["clean"])} == scale


def test_what_the_paper_says_is_nowhere_filled_in(paper: Paper) -> None:
    assert all("not found" in line.written for line in paper.deviations)
    assert "paper" not in {line.certainty for line in paper.deviations}
    assert paper.parameter_counts == ()


@pytest.mark.parametrize(
    ("tier", "dataset", "network", "expected"),
    [
        ("smoke", "mnist1d", "plain2", {"scale-data", "scale-network", "scale-schedule", "scale-epochs-smoke",
                                        "label-noise", "clean-validation-labels"}),
        ("laptop", "mnist1d", "plain4", {"scale-data", "scale-network", "scale-schedule", "scale-epochs",
                                         "label-noise", "clean-validation-labels"}),
        ("laptop", "cifar10", "plain4", {"scale-network", "scale-schedule", "scale-epochs", "label-noise",
                                         "clean-validation-labels", "augmentation"}),
        ("full", "cifar100", "resnet34", {"networks", "epochs", "lr-resnet", "augmentation", "initialisation"}),
        ("full", "cifar100", "densenet100", {"networks", "epochs", "lr-densenet", "augmentation"}),
        ("full", "tiny-imagenet", "resnet34", {"networks", "epochs", "lr-resnet", "tiny-imagenet", "initialisation"}),
    ],
)  # fmt: skip
def test_lines_of_a_scale_apply_there_alone(
    paper: Paper, tier: str, dataset: str, network: str, expected: set[str]
) -> None:
    limited = {line.id for line in paper.deviations if line.tiers or line.datasets or line.axes}
    axes = {"network": (network,), "dataset": (dataset,)}
    applying = {
        line.id for line in paper.deviations if line.applies(protocol="clean", tier=tier, dataset=dataset, axes=axes)
    }
    assert applying & limited == expected
    assert {line.id for line in paper.deviations} - limited <= applying


def test_every_limit_names_what_exists(paper: Paper) -> None:
    for line in paper.deviations:
        assert set(line.tiers) <= set(TIERS), line.id
        assert set(line.datasets) <= set(paper.datasets), line.id
        assert set(line.axes) <= {"network"}, line.id
        assert {name for values in line.axes.values() for name in values} <= {"resnet34", "densenet100"}, line.id


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_margins_rest_on_the_arithmetic_that_their_reasons_state(paper: Paper) -> None:
    errors = [math.sqrt(2) * sd / math.sqrt(10) for sd in (0.4, 0.7)]
    assert [f"{error:.2f}" for error in errors] == ["0.18", "0.31"]
    assert "standard error of .18 to .31" in claim(paper, "H1").margin_reason
    assert math.exp(claim(paper, "H2").gain_margin) == pytest.approx(1.1, abs=0.01)  # wider by a tenth
    assert f"{5.06 - 4.63:.2f}" == "0.43"
    assert f"{0.0011 - 0.0003:.4f}" == "0.0008"
    assert claim(paper, "M1").gain_margin == pytest.approx(0.15 / 15)
    assert claim(paper, "H4-nll").gain_margin < 0.01 * math.log(10)
    assert claim(paper, "H4-nll").gain_margin < 2 / 3 * (0.348 - 0.316)
    below = [smoothed - beta for smoothed, beta in ((20.2, 17.2), (21.9, 18.3), (16.7, 13.4))]
    assert (round(min(below), 1), round(max(below), 1)) == (3.0, 3.6)


def test_the_ledger_quotes_what_follows_from_the_defaults(paper: Paper, lines: dict[str, dict[str, str]]) -> None:
    alpha, a, classes = 0.6, 3.0, 10
    eps = alpha / (a + 1)
    assert eps == pytest.approx(0.15)
    assert "= .15" in lines["smoothing-strength"]["clean"]
    assert f"{eps * classes / (classes - 1):.3f}" == "0.167"
    assert ".167" in lines["ls-convention"]["effect"]
    images, batch = 45_000, 128
    steps = math.ceil(images / batch) * 150
    assert (steps, images % batch) == (52_800, 72)
    (ranked,) = (line for line in paper.deviations if line.id == "rank-in-batch")
    assert "72 of 128 with 45,000 images" in ranked.released
    assert "52,800" in lines["ema-cap"]["effect"]
    assert f"{1 - 1 / (0.019 * 800):.2f}" == "0.93"
    assert ".93 for 800 steps" in lines["ema-cap"]["clean"]
    assert f"{1 - 1 / (0.019 * steps):.3f}" == "0.999"


@pytest.mark.parametrize(
    ("line", "fractions", "quoted"),
    [
        ("lr-resnet", (1 / 3, 2 / 3), "epoch indices 49 and 99 of 150"),
        ("lr-densenet", (0.5, 0.75), "once, at epoch index 74 of 150"),
    ],
)
def test_the_released_schedule_drops_where_the_ledger_says(
    lines: dict[str, dict[str, str]], line: str, fractions: tuple[float, ...], quoted: str
) -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    milestones: list[Any] = [150 * f for f in fractions]  # floats, which torch's types forbid and its code takes
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that stepping the schedule first is wrong, and it is
        for _ in range(150):
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
    drops = [epoch for epoch in range(1, 150) if rates[epoch] != rates[epoch - 1]]
    assert drops == [int(n) for n in re.findall(r"\d+", quoted)[:-1]]
    assert quoted in lines[line]["released"]


def test_the_facts_hold_what_the_framework_asks_of_any_paper(paper: Paper) -> None:
    assert facts.sources(paper) == []
    assert facts.claims(paper) == []
    assert facts.datasets(paper, DATASETS) == []
