"""The facts against a second, hand-typed copy of other people's numbers, against the arithmetic of the pilot that their
margins rest on, and against what must not be in them: a number of the paper, of which only the abstract was found."""

from __future__ import annotations

import csv
import math
import string
from importlib import resources

import pytest
from scipy import stats

from kdbench.data import DATASETS
from kdbench.paper import Claim, Comparison, Paper
from kdbench.testing.checks import facts
from kdbench.verdict import judge
from kdbench_orthogonality.interaction import MARGINS as MARGINS_OF_GRADES
from kdbench_orthogonality.interaction import grade
from kdbench_orthogonality.stages import LOG_TEMPERATURES

QKD = {"qkd/ResNet-18/W4A4/gain": 1.3, "qkd/MobileNetV2/W4A4/gain": 2.6}
OURS = {
    "accuracy", "interaction", "ensemble", "augmentation", "unlabelled", "teacher-outputs", "order", "stack", "front",
    "grid",
}  # fmt: skip

ADDITIVE = {"H2p": "prune50", "H2s": "structured33", "H3": "qat4"}
REGULARISERS = {
    "mixup": "mixup", "cutmix": "cutmix", "smoothing": "label-smoothing", "decay": "weight-decay", "dropout": "dropout",
}  # fmt: skip
WEAK = {
    "H1": "none", "H1-ft": "none+ft", "H2p": "prune50", "H2p-30": "prune30", "H2p-70": "prune70",
    "H2s": "structured33", "H3": "qat4", "H3-3bit": "qat3", "H3-2bit": "qat2", "H3-int8-ptq": "int8-ptq",
    "H3-int8-qat": "int8-qat", "H4": "separable", **{f"H5-{name}": arm for name, arm in REGULARISERS.items()},
}  # fmt: skip
INTERACTIONS = {
    **{f"{name}-additive": (arm, "accuracy") for name, arm in ADDITIVE.items()},
    **{f"{name}-additive-log": (arm, "log-error") for name, arm in ADDITIVE.items()},
    "H4-additive": ("separable", "accuracy"),
    **{f"H5-{name}-additive": (arm, "accuracy") for name, arm in REGULARISERS.items()},
}
CORE = {
    "H1", "H1-ft", *(f"{name}{grade}" for name in ADDITIVE for grade in ("", "-additive", "-additive-log")),
    "B0", "B1", "B2", "B3", "B4", "B1-fixed", "B2-fixed", "G1-match", "G1", "G1-variance", "G1-gain", "G1-disagreement",
}  # fmt: skip
REST = {
    *WEAK, *INTERACTIONS, "H6", "H7", "B1-boot", "B5", "A1-n", "A1-aug", "A2", "A3",
    "O1-order", "O1-joint", "O1-staging",
} - CORE  # fmt: skip
NOT_TESTED = {"C1", "C3", "C4"}

# By table and, where a table holds several measures, by the last part of the cell's name.
MARGINS = {
    "accuracy": (0.5, "%"), "interaction/accuracy": (0.5, "points"), "interaction/log-error": (0.1, ""),
    "ensemble/variance": (0.005, ""), "ensemble/bias": (0.005, ""), "ensemble/gain": (0.5, "points"),
    "ensemble/disagreement": (0.01, ""), "ensemble/single": (0.5, "%"), "augmentation/gain": (0.5, "points"),
    "ensemble/matched-confidence": (0.01, ""), "ensemble/target-confidence": (0.01, ""),
    "augmentation/slope": (0.25, "points per doubling"), "unlabelled": (0.5, "%"), "teacher-outputs": (0.5, "%"),
    "order": (0.5, "%"), "stack/accuracy": (0.5, "%"), "grid": (0.5, "%"),
}  # fmt: skip

# The moderate pilot: accuracy without and with distillation, and I against none+ft.
PILOT = {
    "none": (94.90, 95.92, 1.03, None), "none+ft": (95.13, 96.19, 1.05, None), "prune50": (93.52, 95.30, 1.78, 0.72),
    "structured33": (90.79, 92.52, 1.73, 0.67), "qat4": (94.67, 95.96, 1.29, 0.24),
}  # fmt: skip
PILOT_RATIOS = {"none": 0.80, "none+ft": 0.78, "prune50": 0.73, "structured33": 0.81, "qat4": 0.76}
BAGGING_SINGLE = {"CE": 86.12, "KD-own": 89.61}
BAGGING = {  # ensemble gain, bias, variance, disagreement; label smoothing was not matched in confidence
    "CE": (9.73, 0.1015, 0.1041, 0.204),
    "LS": (11.03, 0.1748, 0.0724, 0.229),
    "KD-own": (6.62, 0.0786, 0.0786, 0.148),
    "KD-fixed": (5.07, 0.1037, 0.0642, 0.140),
}


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_orthogonality", study=lambda lab: iter(()))


def claim(paper: Paper, claim_id: str) -> Claim:
    found = paper.claim(claim_id)
    assert found is not None
    return found


def comparisons(each: Claim) -> list[Comparison]:
    return [comparison for alternative in each.alternatives for comparison in alternative]


def compared(paper: Paper, claim_id: str) -> list[tuple[str, str, str]]:
    """Left, relation and right of a claim that is one AND, without the data set."""
    (alternative,) = claim(paper, claim_id).alternatives
    return [(_short(c.left), c.relation, _short(c.right)) for c in alternative]


def measure(cell: str) -> str:
    """The key of ``MARGINS`` for a cell."""
    table, *_, last = cell.split("/")
    return table if table in MARGINS else f"{table}/{last}"


def _short(cell: str) -> str:
    return cell.replace("/{dataset}", "")


# ---------------------------------------------------------------------------------------------------------- numbers


def test_no_cell_has_a_number_of_the_paper(paper: Paper) -> None:
    cells = [cell for cell, _ in paper.reported().values()]
    assert {cell.cell: cell.value for cell in cells} == QKD
    assert {cell.certainty for cell in cells} == {"third-party"}
    assert all("read and not verified" in cell.source for cell in cells)
    assert {table.id for table in paper.tables if table.cells} == {"qkd"}
    assert not any(table.comparable for table in paper.tables)
    assert all(each.value_margin == 0 for each in paper.claims)
    assert (paper.parameter_counts, paper.gates) == ((), ())


def test_tables_say_whose_they_are_and_every_file_belongs_to_one(paper: Paper) -> None:
    tables = {table.id: table for table in paper.tables}
    assert set(tables) == OURS | {"paper", "qkd"}
    for name in OURS:
        assert tables[name].title.startswith("Our experiment: "), name
        assert tables[name].source.startswith("our experiment; "), name
    assert "NOT FOUND" in tables["paper"].title
    assert "other people's" in tables["qkd"].title
    folder = resources.files("kdbench_orthogonality") / "facts"
    files = {file.name for file in folder.iterdir() if file.name.endswith(".csv")}
    assert files == {f"{name}.csv" for name in tables}
    for name in files:
        reader = csv.DictReader((folder / name).read_text(encoding="utf-8").splitlines())
        assert reader.fieldnames == ["cell", "value", "certainty", "source"], name


# ----------------------------------------------------------------------------------------------------------- claims


def test_claims(paper: Paper) -> None:
    assert {each.id for each in paper.claims if each.core} == CORE
    assert {each.id for each in paper.claims if each.not_tested} == NOT_TESTED
    assert {each.id for each in paper.claims} == CORE | REST | NOT_TESTED
    assert {each.id for each in paper.claims if each.exact} == {"G1-match"}


def test_what_the_abstract_says_and_what_is_our_form_of_it(paper: Paper) -> None:
    assert {each.id for each in paper.claims if each.certainty == "paper"} == NOT_TESTED
    assert {each.certainty for each in paper.claims} == {"paper", "derived", "project"}
    for each in paper.claims:
        assert facts.cites(each.source), each.id
        assert "abstract" in each.source.lower(), each.id
        assert (each.certainty == "project") == each.source.startswith("Our control of C"), each.id


def test_every_claim_compares_one_measure_by_its_margin(paper: Paper) -> None:
    for each in paper.claims:
        if each.not_tested:
            continue
        measures = {measure(cell) for cell in each.cells()}
        # The one claim that compares two measures is that they are the same.
        matched = {"ensemble/matched-confidence", "ensemble/target-confidence"}
        assert len(measures) == 1 or (each.id == "G1-match" and measures == matched), f"{each.id} mixes measures"
        assert {(each.gain_margin, each.unit)} == {MARGINS[name] for name in measures}, each.id
        assert each.margin_reason.startswith("Project choice"), each.id
        assert all(comparison.margin is None for comparison in comparisons(each)), each.id


def test_cells_have_the_data_set_as_their_one_axis(paper: Paper) -> None:
    for each in paper.claims:
        for cell in each.cells():
            named = [name for _, name, _, _ in string.Formatter().parse(cell) if name is not None]
            assert named == ["dataset"], cell
            assert cell.split("/")[1] == "{dataset}", cell
            assert cell.split("/")[0] in OURS, cell
    stated = [s for each in paper.claims for s in each.instances({"dataset": ("mnist1d-pool",)})]
    assert len({s.title for s in stated}) == len(stated) == len(paper.claims)


@pytest.mark.parametrize(("name", "arm"), WEAK.items())
def test_the_weak_grade_is_a_gain_of_distillation_under_the_technique(paper: Paper, name: str, arm: str) -> None:
    assert compared(paper, name) == [(f"accuracy/{arm}/KD", "greater", f"accuracy/{arm}/CE")]


@pytest.mark.parametrize(("name", "cell"), INTERACTIONS.items())
def test_gains_add_up_where_the_interaction_equals_zero(paper: Paper, name: str, cell: tuple[str, str]) -> None:
    arm, scale = cell
    mine, zero = f"interaction/{arm}/{scale}", f"interaction/zero/{scale}"
    assert compared(paper, name) == [(mine, "equal", zero)]
    assert claim(paper, name).gain_margin == {str(key): m for key, m in MARGINS_OF_GRADES.items()}[scale]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("H6", [(f"grid/{at}/KD", "greater", f"grid/{at}/CE")
                for at in ("w1-d2", "w1-d4", "w1-d6", "w2-d2", "w2-d4", "w2-d6")]),
        ("H7", [("stack/triple/accuracy", "greater", f"stack/{pair}/accuracy")
                for pair in ("separable+prune", "separable+int8", "prune+int8")]),
        ("B0", [("ensemble/KD-own/single", "greater", "ensemble/CE/single")]),
        ("B1", [("ensemble/KD-own/variance", "less", "ensemble/CE/variance")]),
        ("B2", [("ensemble/CE/bias", "not_worse", "ensemble/KD-own/bias")]),
        ("B3", [("ensemble/KD-own/gain", "less", "ensemble/CE/gain")]),
        ("B4", [("ensemble/KD-own/disagreement", "less", "ensemble/CE/disagreement")]),
        ("B1-fixed", [("ensemble/KD-fixed/variance", "less", "ensemble/CE/variance")]),
        ("B2-fixed", [("ensemble/CE/bias", "not_worse", "ensemble/KD-fixed/bias")]),
        ("G1-match", [("ensemble/LS-matched/matched-confidence", "equal", "ensemble/LS-matched/target-confidence")]),
        ("G1", [("ensemble/KD-own/bias", "less", "ensemble/LS-matched/bias")]),
        *((f"G1-{column}", [(f"ensemble/KD-own/{column}", "less", f"ensemble/LS-matched/{column}")])
          for column in ("variance", "gain", "disagreement")),
        ("B1-boot", [("ensemble/KD-boot/variance", "less", "ensemble/CE-boot/variance")]),
        ("B5", [("ensemble/KD-bagged/single", "greater", "ensemble/CE-whole/single")]),
        ("A1-n", [("augmentation/n/slope", "less", "augmentation/zero/slope")]),
        ("A1-aug", [("augmentation/shift-on/gain", "less", "augmentation/shift-off/gain")]),
        ("A2", [("unlabelled/KD-extra", "greater", "unlabelled/KD")]),
        ("A3", [("teacher-outputs/redrawn", "greater", "teacher-outputs/frozen")]),
        ("O1-joint", [("order/joint", "greater", f"order/{other}") for other in ("prune-KD", "KD-prune")]),
        ("O1-staging", [("order/staged-qat3", "greater", "order/naive-qat3")]),
    ],
)  # fmt: skip
def test_what_each_other_claim_compares(paper: Paper, name: str, expected: list[tuple[str, str, str]]) -> None:
    assert compared(paper, name) == expected


def test_the_order_matters_if_either_is_ahead(paper: Paper) -> None:
    orders = ("order/prune-KD", "order/KD-prune")
    pairs = [(_short(c.left), c.relation, _short(c.right)) for (c,) in claim(paper, "O1-order").alternatives]
    assert pairs == [(orders[0], "greater", orders[1]), (orders[1], "greater", orders[0])]


def test_what_claims_presuppose_is_a_claim_and_they_say_so(paper: Paper) -> None:
    for name, others in (("B0", ("B1", "B2", "B3", "B4")), ("G1-match", ("G1", "G1-variance", "G1-gain"))):
        assert claim(paper, name).core
        for other in others:
            assert (
                f"Presupposes {name}." in claim(paper, other).note or f"Presupposes {name}:" in claim(paper, other).note
            )
    ids = [each.id for each in paper.claims]
    assert ids.index("B0") < ids.index("B1")
    assert ids.index("G1-match") < ids.index("G1")


def test_tables_that_no_claim_touches_are_shown(paper: Paper) -> None:
    touched = {cell.split("/")[0] for each in paper.claims for cell in each.cells()}
    measured = OURS - touched
    assert measured == {"front"}
    assert {table.id for table in paper.tables if table.shown} == measured


# -------------------------------------------------------------------------------------- what verdicts make of claims


def word(paper: Paper, name: str, values: dict[str, list[float]]) -> str:
    """The word of a claim on the toy data set, given the values of its cells by short name."""
    (stated,) = claim(paper, name).instances({"dataset": ("d",)})
    samples = {cell: dict(enumerate(values[cell.replace("/d/", "/")])) for cell in stated.cells()}
    return judge(stated, samples, {}, scale="toy", seeds=5).gain_word


@pytest.mark.parametrize(
    ("shift", "expected"), [(-0.02, "supported"), (0.0015, "smaller than the margin"), (0.02, "contradicted")]
)
def test_bias_that_is_not_higher_supports_b2_and_higher_bias_contradicts_it(
    paper: Paper, shift: float, expected: str
) -> None:
    plain = [0.100, 0.103, 0.098, 0.101, 0.105]
    jitter = [0.0005, -0.0004, 0.0002, -0.0003, 0.0001]
    distilled = [bias + shift + noise for bias, noise in zip(plain, jitter, strict=True)]
    assert word(paper, "B2", {"ensemble/CE/bias": plain, "ensemble/KD-own/bias": distilled}) == expected


@pytest.mark.parametrize(
    ("last", "expected"),
    [(0.8, "supported"), (0.8099, "supported"), (0.7899, "contradicted"), (0.8101, "contradicted")],
)
def test_one_seed_that_is_not_matched_contradicts_g1_match(paper: Paper, last: float, expected: str) -> None:
    cells = {
        "ensemble/LS-matched/matched-confidence": [0.9, 0.85, 0.7, 0.75, last],
        "ensemble/LS-matched/target-confidence": [0.9, 0.85, 0.7, 0.75, 0.8],
    }
    assert word(paper, "G1-match", cells) == expected


@pytest.mark.parametrize(("joint", "expected"), [(3.0, "supported"), (0.0, "contradicted"), (-3.0, "contradicted")])
def test_distilling_on_both_sides_must_beat_each(paper: Paper, joint: float, expected: str) -> None:
    """It is ahead of distillation after pruning by that much more than of distillation before it."""
    before, jitter = [90.0, 91.0, 90.5, 89.5, 90.2], [0.1, -0.1, 0.05, -0.05, 0.02]
    cells = {
        "order/prune-KD": [value - 2.0 for value in before],
        "order/KD-prune": before,
        "order/joint": [value + joint + noise for value, noise in zip(before, jitter, strict=True)],
    }
    assert word(paper, "O1-joint", cells) == expected


@pytest.mark.parametrize(
    ("values", "expected", "graded"),
    [
        ([0.05, -0.05, 0.03, -0.02, 0.01], "supported", "additive"),
        ([0.25, 0.20, 0.30, 0.22, 0.28], "supported", "additive"),  # not 0, and within the margin all the same
        ([0.15, 0.45, 0.45, 0.45, 0.25], "supported", "undecided"),  # 90 % lie within it, and 95 % do not
        ([0.9, 1.0, 0.95, 1.1, 0.85], "contradicted", "synergistic"),
        ([-0.9, -1.0, -0.95, -1.1, -0.85], "contradicted", "sub-additive"),
        ([0.5, 0.3, 0.6, 0.4, 0.7], "not resolved", "undecided"),  # not 0, and neither within the margin nor beyond it
        ([2.0, -1.0, 0.5, -1.5, 1.0], "not resolved", "undecided"),
    ],
)
def test_the_ledger_says_truly_how_verdicts_go_with_grades(
    paper: Paper, values: list[float], expected: str, graded: str
) -> None:
    cells = {"interaction/prune50/accuracy": values, "interaction/zero/accuracy": [0.0] * 5}
    assert word(paper, "H2p-additive", cells) == expected
    mean, reach = sum(values) / 5, stats.t.ppf(0.975, 4) * stats.tstd(values) / math.sqrt(5)
    assert grade(mean - reach, mean + reach, 0.5, None, None).interaction == graded


# ------------------------------------------------------------------------------------------------------- arithmetic


def test_notes_quote_the_pilot(paper: Paper) -> None:
    for name, arm in [("H1", "none"), ("H1-ft", "none+ft"), *ADDITIVE.items()]:
        plain, distilled, gain, interaction = PILOT[arm]
        # The pilot's gains are means of unrounded differences, so they may differ from these by a last digit.
        assert gain == pytest.approx(distilled - plain, abs=0.011)
        assert f"{plain:.2f} to {distilled:.2f}" in claim(paper, name).note, name
        assert f"+{gain:.2f} +-".replace("+0.", "+.") in claim(paper, name).note, name
        if interaction is not None:
            assert interaction == pytest.approx(gain - PILOT["none+ft"][2], abs=0.011)
            assert f"I = +{interaction:.2f}".replace("+0.", "+.") in claim(paper, f"{name}-additive").note, name


def test_notes_on_the_logarithm_of_the_error_follow_from_the_pilot(paper: Paper) -> None:
    for arm, (plain, distilled, _, _) in PILOT.items():
        assert f"{(100 - distilled) / (100 - plain):.2f}" == f"{PILOT_RATIOS[arm]:.2f}"
    for name, arm in ADDITIVE.items():
        found = math.log(PILOT_RATIOS[arm] / PILOT_RATIOS["none+ft"])
        note = claim(paper, f"{name}-additive-log").note
        assert f"I = {found:+.2f}".replace("0.", ".") in note, name
        assert f"{PILOT_RATIOS[arm]:.2f}"[1:] in note, name


def test_margins_rest_on_the_arithmetic_that_their_reasons_state(paper: Paper) -> None:
    gain, gain_ft = PILOT["none"][2], PILOT["none+ft"][2]
    assert claim(paper, "H1").gain_margin == round(gain / 2, 1) == round(gain_ft / 2, 1)
    logs = [-math.log(PILOT_RATIOS[arm]) for arm in ("none", "none+ft")]
    assert [f"{each:.2f}"[1:] for each in logs] == [".22", ".25"]
    assert claim(paper, "H2p-additive-log").gain_margin == math.floor(10 * min(logs) / 2) / 10
    fall = BAGGING["CE"][2] - BAGGING["KD-own"][2]
    assert f"{fall:.4f}"[1:] == ".0255"
    assert claim(paper, "B1").gain_margin == pytest.approx(fall / 5, abs=2e-4)
    assert claim(paper, "B1").gain_margin == pytest.approx(BAGGING["CE"][2] / 20, abs=3e-4)
    averaged = BAGGING["CE"][0] - BAGGING["KD-own"][0]
    assert f"{averaged:.2f}" == "3.11"
    assert claim(paper, "B3").gain_margin == pytest.approx(averaged / 6, abs=0.02)
    disagreed = BAGGING["CE"][3] - BAGGING["KD-own"][3]
    assert f"{disagreed:.3f}"[1:] == ".056"
    assert claim(paper, "B4").gain_margin < disagreed / 5
    assert claim(paper, "A1-n").gain_margin == claim(paper, "H1").gain_margin / 2


def test_five_seeds_resolve_what_the_notes_say(paper: Paper) -> None:
    reach = stats.t.ppf(0.95, 4) / math.sqrt(5)  # half of a 90 % interval, in standard deviations
    assert f"I +-{reach * 1.0:.2f}".replace("0.", ".") in claim(paper, "H2p-additive").note
    assert f"I +-{reach * 0.3:.2f}".replace("0.", ".") in claim(paper, "H3-additive").note
    margin = claim(paper, "H2p-additive").gain_margin
    assert reach * 0.3 < margin < reach * 1.0
    assert 0.5 ** len(comparisons(claim(paper, "H6"))) == 1 / 64
    assert "once in 64" in claim(paper, "H6").note


def test_notes_on_ensembles_quote_the_pilot(paper: Paper) -> None:
    def small(value: float) -> str:
        return f"{value:.4f}"[1:]

    for name, column, arms in [
        ("B1", 2, ("CE", "KD-own")), ("B2", 1, ("CE", "KD-own", "LS")), ("B1-fixed", 2, ("CE", "KD-fixed")),
        ("B2-fixed", 1, ("CE", "KD-fixed")), ("G1", 1, ("LS", "KD-own", "CE")), ("G1-variance", 2, ("LS", "KD-own")),
    ]:  # fmt: skip
        assert all(small(BAGGING[arm][column]) in claim(paper, name).note for arm in arms), name
    assert all(f"{single:.2f}" in claim(paper, "B0").note for single in BAGGING_SINGLE.values())
    for name, arms in [("B3", ("CE", "KD-own")), ("G1-gain", ("LS", "KD-own", "CE"))]:
        assert all(f"+{BAGGING[arm][0]:.2f}" in claim(paper, name).note for arm in arms), name
    for name, arms in [("B4", ("CE", "KD-own")), ("G1-disagreement", ("LS", "KD-own", "CE"))]:
        assert all(f"{BAGGING[arm][3]:.3f}"[1:] in claim(paper, name).note for arm in arms), name


def test_the_range_of_temperatures_is_the_stage_s(paper: Paper) -> None:
    low, high = (math.exp(bound) for bound in LOG_TEMPERATURES)
    assert f"from {low:.4f} to {high:.0f}".replace("0.", ".") in claim(paper, "G1-match").note


def test_the_facts_hold_what_the_framework_asks_of_any_paper(paper: Paper) -> None:
    assert facts.sources(paper) == []
    assert facts.claims(paper) == []
    assert facts.datasets(paper, DATASETS) == []
