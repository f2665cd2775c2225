"""The facts against a second, hand-typed copy of the numbers that were read, against the arithmetic that margins and
notes rest on, and against what must not be in them: a number of the paper that nobody read."""

from __future__ import annotations

import csv
import math
import string
from importlib import resources

import pytest
from scipy import stats

from kdbench.paper import Claim, Comparison, Paper
from kdbench.testing.checks import facts
from kdbench.verdict import judge
from kdbench_vidlankd.recipes import GRID, WEIGHTS
from kdbench_vidlankd.world import EVENTS, PARTS

GLUE = ("SST-2", "QNLI", "QQP", "MNLI")
SMALL = {"CoLA": 5.0, "SST-2": 2.0, "RTE": 3.0}  # margins of no harm
TABLE1 = (89.0, 88.0, 86.2, 79.2)
RERUN = (92.2, 89.8, 89.5, 83.4)
INDEPENDENT = {  # lowest, highest and mean of five fine-tunings, or all five
    "SST-2": (88.5, 91.2, 89.7), "QNLI": (87.4, 88.7, 88.1),
    "QQP": (87.5, 87.1, 87.0, 59.0, 86.3), "MNLI": (36.6, 79.5, 32.7, 80.5, 80.5),
}  # fmt: skip
README = (
    ("RTE", 54.5), ("MRPC", 84.7), ("STS-B", 87.2), ("CoLA", 52.3),
    ("RTE", 58.1), ("MRPC", 82.8), ("STS-B", 84.5), ("CoLA", 26.7), ("SST-2", 89.6), ("QNLI", 84.4), ("QQP", 86.5),
    ("MNLI", 77.6),
)  # fmt: skip
SUMMARY, RUNS = ("lowest", "highest", "mean"), tuple(f"run-{n}" for n in range(1, 6))
READ = {
    **{f"table1/text-12L/{task}": value for task, value in zip(GLUE, TABLE1, strict=True)},
    **{f"nst-only/NST-12L/{task}": value for task, value in zip(GLUE, RERUN, strict=True)},
    **{f"author-gain/NST-12L/{task}": value for task, value in zip(GLUE, (3.2, 1.8, 3.3, 4.2), strict=True)},
    **{f"vokenization/text-12L/{task}": value for task, value in zip(GLUE, (89.3, 87.9, 83.2, 79.4), strict=True)},
    **{
        f"independent/{task}/{name}": value
        for task, values in INDEPENDENT.items()
        for name, value in zip(SUMMARY if len(values) == 3 else RUNS, values, strict=True)
    },
    "vokenization-issue/12L/QQP": 69.1, "vokenization-issue/12L/MNLI": 31.8,
    **{f"vokenization-readme/unnamed/{task}": value for task, value in README[:4]},
    **{f"vokenization-readme/6L-Wiki103/{task}": value for task, value in README[4:]},
}  # fmt: skip
OTHERS = {"vokenization", "independent", "vokenization-issue", "vokenization-readme"}
CERTAINTY = {"table1": "third-party", "nst-only": "author", "author-gain": "derived"} | dict.fromkeys(
    OTHERS, "third-party"
)
BLANK = {
    *(f"table1/text-12L/{task}" for task in ("SQuAD-v1.1", "SQuAD-v2.0", "SWAG")),
    *(f"not-found/table1/{part}" for part in ("vokenization", "VidLanKD", "6L", "averages")),
    *(f"not-found/ablation/{x}" for x in ("objectives", "teacher-objectives", "2D-3D-CLIP", "negatives", "two-stage")),
    *(f"not-found/knowledge/{task}" for task in ("GLUE-diagnostics", "PIQA", "TRACIE")),
    "not-found/appendix/table1", "not-found/appendix/table2",
}  # fmt: skip
OURS = {"probe", "text", "retrieval", "glue", "teacher", "weights"}

ARMS = {
    "text", "nst", "crd", "nst-mismatched", "crd-mismatched", "soft", "l2", "nt-xent", "nst+crd", "nst-released",
    "nt-xent-released", "crd-mlm-only", "crd-contrastive-only", "crd-single-frame", "crd-frozen", "crd-2d",
    "crd-random", "nst-random", "nst-headless", "crd-headless", "voken", "voken-many", "text+captions", "text-compute",
    "teacher", "teacher-then-text",
}  # fmt: skip
SWEPT = {f"{name}@{weight:g}" for name, grid in GRID.items() for weight in grid}
TEACHERS = {"video", "mismatched", "mlm-only", "contrastive-only", "single-frame", "frozen", "2d", "random"}
PROBES = {"colour", "colour-cloze", "size", "physical", "order", "before-after", "pace", "faster-slower"}
COLUMNS = {
    "probe": PROBES, "teacher": {*PROBES, "collapse"}, "text": {"mlm", "acceptability"},
    "retrieval": {"recall1", "recall5"}, "glue": {*GLUE, *SMALL}, "weights": {"colour"},
}  # fmt: skip

CORE = {"T", "H0-leak", "H0-mismatched", "H1", "H1-either", "H1-cloze", "no-harm"}
REST = {
    "H0-random", "H1-compute", "H1-captions", "H2", "H2-many", "H3", "H3-cloze", "H3-sum", "H4", "H5", "H5-pace",
    "H5-static", "H6", "H7", "H8", "H8-physical", "H8-temporal", "H8-pace", "H8-general", "no-harm-acceptability", "H9",
    "H9-text", "H10", "F1", "F1-trained", "F1-trained-cloze", "NST-scale", "NT-Xent-scale",
    *(f"GLUE-{task}" for task in GLUE), *(f"no-harm-{task}" for task in SMALL), *(f"W-{name}" for name in GRID),
}  # fmt: skip
NOT_TESTED = {"H6-clip", "SQuAD", "SWAG", "PIQA", "TRACIE", "GLUE-diagnostics"}
CORE_ARMS = {"text", "nst", "crd", "nst-mismatched", "crd-mismatched", "chance"}

MARGINS = {
    "probe": (10.0, "%"), "teacher": (10.0, "%"), "text/mlm": (0.05, "nats"), "text/acceptability": (2.0, "%"),
    "retrieval": (5.0, "%"), "glue": (1.0, "%"), "weights": (10.0, "%"),
}  # fmt: skip


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_vidlankd", study=lambda lab: iter(()))


def claim(paper: Paper, claim_id: str) -> Claim:
    found = paper.claim(claim_id)
    assert found is not None
    return found


def short(cell: str) -> str:
    return cell.replace("/{dataset}", "")


def comparisons(each: Claim) -> list[Comparison]:
    return [comparison for alternative in each.alternatives for comparison in alternative]


def margin(cell: str) -> tuple[float, str]:
    table, _, column = short(cell).split("/")
    return MARGINS[table if table in MARGINS else f"{table}/{column}"]


def quoted(share: float) -> str:
    """A share as these facts write it, without a leading zero."""
    return f"{share:.2f}".removeprefix("0")


# ---------------------------------------------------------------------------------------------------------- numbers


def test_every_number_is_in_the_hand_typed_copy_and_none_is_missing(paper: Paper) -> None:
    cells = {name: cell for name, (cell, _) in paper.reported().items()}
    assert {name: cell.value for name, cell in cells.items() if cell.value is not None} == READ
    assert {name for name, cell in cells.items() if cell.value is None} == BLANK
    for name, cell in cells.items():
        expected = "not found" if name in BLANK else CERTAINTY[name.partition("/")[0]]
        assert cell.certainty == expected, name
    for name in OTHERS | {"table1"}:
        assert all("not verified" in cells[each].source for each in READ if each.startswith(f"{name}/")), name


def test_no_number_of_the_paper_is_compared_with(paper: Paper) -> None:
    assert "paper" not in {cell.certainty for cell, _ in paper.reported().values()}
    assert not any(table.comparable for table in paper.tables)
    assert all(each.value_margin == 0 for each in paper.claims)
    assert (paper.parameter_counts, paper.gates) == ((), ())


def test_tables_say_whose_they_are_and_every_file_belongs_to_one(paper: Paper) -> None:
    tables = {table.id: table for table in paper.tables}
    assert set(tables) == OURS | OTHERS | {"table1", "nst-only", "author-gain", "not-found"}
    for name in OURS:
        assert tables[name].title.startswith("Our experiment: "), name
        assert tables[name].cells == (), name
    assert all("read and not verified" in tables[name].title for name in OTHERS)
    assert all("NOT FOUND" in tables[name].title for name in ("table1", "not-found"))
    folder = resources.files("kdbench_vidlankd") / "facts"
    files = {file.name for file in folder.iterdir() if file.name.endswith(".csv")}
    assert files == {f"{name}.csv" for name in tables}
    for name in files:
        reader = csv.DictReader((folder / name).read_text(encoding="utf-8").splitlines())
        assert reader.fieldnames == ["cell", "value", "certainty", "source"], name


def test_the_author_s_gain_is_the_re_run_less_the_copied_baseline(paper: Paper) -> None:
    cells = {name: cell.value for name, (cell, _) in paper.reported().items()}
    for task, baseline, rerun in zip(GLUE, TABLE1, RERUN, strict=True):
        assert cells[f"author-gain/NST-12L/{task}"] == pytest.approx(rerun - baseline, abs=1e-9)
        note = claim(paper, f"GLUE-{task}").note
        assert f"{baseline:.1f} [third-party]" in note
        assert f"{rerun:.1f} [author]" in note
        assert f"+{rerun - baseline:.1f} points [derived]" in note


# ----------------------------------------------------------------------------------------------------------- claims


def test_claims(paper: Paper) -> None:
    assert {each.id for each in paper.claims if each.core} == CORE
    assert {each.id for each in paper.claims if each.not_tested} == NOT_TESTED
    assert {each.id for each in paper.claims} == CORE | REST | NOT_TESTED
    assert not any(each.exact for each in paper.claims)
    assert all(facts.cites(each.source) for each in paper.claims)
    titles = [s.title for each in paper.claims for s in each.instances({"dataset": ("unspoken",)})]
    assert len(set(titles)) == len(titles) == len(paper.claims)


def test_cells_are_those_that_the_study_names(paper: Paper) -> None:
    for each in paper.claims:
        for cell in each.cells():
            assert [name for _, name, _, _ in string.Formatter().parse(cell) if name is not None] == ["dataset"], cell
            table, dataset, arm, column = cell.split("/")
            assert dataset == "{dataset}", cell
            assert column in COLUMNS[table], cell
            assert arm in {"teacher": TEACHERS, "weights": SWEPT}.get(table, {*ARMS, "chance"}), cell


def test_core_claims_need_the_core_arms_alone(paper: Paper) -> None:
    arms = {cell.split("/")[2] for each in paper.claims if each.core for cell in each.cells()}
    assert arms == CORE_ARMS | {"video"}


def test_every_arm_is_in_a_claim(paper: Paper) -> None:
    cells = [cell.split("/") for each in paper.claims for cell in each.cells()]
    assert {arm for table, _, arm, _ in cells if table not in ("teacher", "weights")} - {"chance"} == ARMS
    assert {arm for table, _, arm, _ in cells if table == "weights"} == SWEPT


def test_every_claim_compares_one_kind_of_measure_by_its_margin(paper: Paper) -> None:
    for each in paper.claims:
        if each.id in NOT_TESTED:
            continue
        small = each.id.removeprefix("no-harm-") in SMALL
        wanted = {(each.gain_margin, each.unit)}
        assert small or {margin(cell) for cell in each.cells()} == wanted, each.id
        assert not small or each.gain_margin == SMALL[each.id.removeprefix("no-harm-")]
        assert each.margin_reason.startswith("Project choice"), each.id
        assert all(comparison.margin is None for comparison in comparisons(each)), each.id
        for comparison in comparisons(each):  # nothing but a like column is ever compared
            assert comparison.left.split("/")[-1] == comparison.right.split("/")[-1], each.id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("T", [("teacher/video/colour", "greater", "probe/chance/colour")]),
        ("H0-leak", [("probe/chance/colour", "not_worse", "probe/text/colour")]),
        *((f"H0-{control}", [("probe/text/colour", "not_worse", f"probe/{arm}-{control}/colour")
                             for arm in ("nst", "crd")]) for control in ("mismatched", "random")),
        ("H1", [(f"probe/{arm}/colour", "greater", "probe/text/colour") for arm in ("nst", "crd")]),
        ("H1-cloze", [(f"probe/{arm}/colour-cloze", "greater", "probe/text/colour-cloze") for arm in ("nst", "crd")]),
        ("no-harm", [("text/text/mlm", "not_worse", f"text/{arm}/mlm") for arm in ("nst", "crd")]),
        *((name, [("probe/crd/colour", "greater", f"probe/{other}/colour")])
          for name, other in (("H1-compute", "text-compute"), ("H1-captions", "text+captions"),
                              ("F1-trained", "crd-frozen"))),
        *((name, [(f"probe/{arm}/colour", "greater", f"probe/{other}/colour") for arm in ("nst", "crd")])
          for name, other in (("H2", "voken"), ("H2-many", "voken-many"))),
        *((name, [(f"probe/{arm}/{column}", "greater", f"probe/{other}/{column}")
                  for arm in ("nst", "crd") for other in ("soft", "l2")])
          for name, column in (("H3", "colour"), ("H3-cloze", "colour-cloze"))),
        ("H3-sum", [("probe/nst+crd/colour", "not_worse", f"probe/{arm}/colour") for arm in ("nst", "crd")]),
        ("H4", [("probe/crd/colour", "greater", f"probe/crd-{teacher}/colour")
                for teacher in ("mlm-only", "contrastive-only")]),
        *((name, [(f"probe/crd/{column}", "greater", f"probe/{other}/{column}")
                  for column in ("order", "before-after")])
          for name, other in (("H5", "crd-single-frame"), ("H6", "crd-2d"))),
        ("H5-static", [("probe/crd-single-frame/colour", "not_worse", "probe/crd/colour")]),
        ("H7", [(f"probe/{arm}/colour", "greater", f"probe/{arm}-headless/colour") for arm in ("nst", "crd")]),
        ("H8-general", [(f"text/{arm}/acceptability", "equal", "text/text/acceptability") for arm in ("nst", "crd")]),
        ("no-harm-acceptability", [(f"text/{arm}/acceptability", "not_worse", "text/text/acceptability")
                                   for arm in ("nst", "crd")]),
        ("H9", [("probe/crd/colour", "greater", f"probe/{one}/colour") for one in ("teacher", "teacher-then-text")]),
        ("H9-text", [("text/crd/mlm", "less", f"text/{other}/mlm") for other in ("teacher", "teacher-then-text")]),
        ("H10", [("retrieval/crd/recall5", "greater", "retrieval/chance/recall5")]),
        ("F1", [("probe/crd-frozen/colour", "greater", "probe/text/colour")]),
        ("F1-trained-cloze", [("probe/crd/colour-cloze", "greater", "probe/crd-frozen/colour-cloze")]),
        ("NST-scale", [("probe/nst/colour", "greater", "probe/nst-released/colour")]),
        ("NT-Xent-scale", [("probe/nt-xent/colour", "greater", "probe/nt-xent-released/colour")]),
        *((f"GLUE-{task}", [(f"glue/nst/{task}", "greater", f"glue/text/{task}")]) for task in GLUE),
        *((f"no-harm-{task}", [(f"glue/{arm}/{task}", "not_worse", f"glue/text/{task}") for arm in ("nst", "crd")])
          for task in SMALL),
        ("H5-pace", [(f"probe/crd/{column}", "greater", f"probe/crd-single-frame/{column}")
                     for column in ("pace", "faster-slower")]),
        *((f"W-{name}", [(f"weights/{name}@{WEIGHTS[name]:g}/colour", "not_worse", f"weights/{name}@{other:g}/colour")
                         for other in grid if other != WEIGHTS[name]]) for name, grid in GRID.items()),
    ],
)  # fmt: skip
def test_what_each_claim_compares(paper: Paper, name: str, expected: list[tuple[str, str, str]]) -> None:
    (alternative,) = claim(paper, name).alternatives
    assert [(short(c.left), c.relation, short(c.right)) for c in alternative] == expected


@pytest.mark.parametrize(
    ("name", "columns"),
    [("H1-either", "colour"), ("H8", "colour physical before-after"), ("H8-physical", "physical"),
     ("H8-temporal", "before-after"), ("H8-pace", "faster-slower")],
)  # fmt: skip
def test_where_either_objective_is_enough(paper: Paper, name: str, columns: str) -> None:
    found = [[(short(c.left), c.relation, short(c.right)) for c in one] for one in claim(paper, name).alternatives]
    assert found == [
        [(f"probe/{arm}/{column}", "greater", f"probe/text/{column}") for column in columns.split()]
        for arm in ("nst", "crd")
    ]


# -------------------------------------------------------------------------------------- what verdicts make of claims


@pytest.mark.parametrize(
    ("name", "plain", "shift", "expected"),
    [
        ("no-harm", 2.0, 0.2, "contradicted"),  # distilled students lose more
        ("no-harm", 2.0, -0.2, "supported"),
        ("H0-mismatched", 25.0, 40.0, "contradicted"),  # mismatched video gains too
        ("H0-mismatched", 25.0, 0.0, "supported"),
        ("H9-text", 2.0, 0.5, "contradicted"),
        ("H9-text", 2.0, -0.5, "supported"),
        ("H5-static", 90.0, 30.0, "supported"),
        ("H5-static", 90.0, -30.0, "contradicted"),
    ],
)
def test_claims_of_no_loss_and_of_small_losses_point_the_right_way(
    paper: Paper, name: str, plain: float, shift: float, expected: str
) -> None:
    """``shift`` is what others have over the reference, which is the text-only student unless it is named."""
    (stated,) = claim(paper, name).instances({"dataset": ("d",)})
    reference = {"H9-text": ("teacher", "teacher-then-text"), "H5-static": ("crd",)}.get(name, ("text",))
    jitter = {"text": [0.02, -0.01, 0.0, 0.01, -0.02], "crd": [-0.01, 0.02, 0.01, -0.02, 0.0]}
    samples = {}
    for cell in stated.cells():
        arm = cell.split("/")[2]
        base = plain if arm in reference else plain + shift
        noise = jitter.get(arm, [0.0, 0.01, -0.02, 0.02, -0.01])
        samples[cell] = {seed: base + noise[seed] for seed in range(5)}
    assert judge(stated, samples, {}, scale="toy", seeds=5).gain_word == expected


# ------------------------------------------------------------------------------------------------------- arithmetic


def apart(chance: float, count: int) -> float:
    """Deviation, in points, of the difference of two arms' means over five seeds where both guess ``count`` times."""
    return 100 * math.sqrt(chance * (1 - chance) / count) * math.sqrt(2 / 5)


def test_margins_rest_on_the_arithmetic_that_their_reasons_state(paper: Paper) -> None:
    assert len(EVENTS) * PARTS["test"] == 32
    for name, chance in (("H1", 1 / 4), ("H5", 1 / 2)):
        assert f"{2 * apart(chance, 32):.1f} points with 32 test nouns" in claim(paper, name).margin_reason
    assert 2 * apart(1 / 4, 32) < claim(paper, "H1").gain_margin
    reach = stats.t.ppf(0.95, 4) * apart(1 / 4, 32)
    assert f"with 32 test nouns, reaches {reach:.1f} points" in claim(paper, "H0-mismatched").note
    assert f"was {100 - 21} points (CRD, P1)" in claim(paper, "H1").margin_reason
    assert math.exp(claim(paper, "no-harm").gain_margin) == pytest.approx(1.05, abs=0.002)
    smallest = min(rerun - baseline for baseline, rerun in zip(TABLE1, RERUN, strict=True))
    assert f"({smallest:.1f} points)" in claim(paper, "no-harm-acceptability").margin_reason
    assert claim(paper, "GLUE-SST-2").gain_margin == round(smallest / 2)
    low, high, _ = INDEPENDENT["SST-2"]
    # Five normal draws span 2.33 deviations on average, so this range speaks of a deviation of about one.
    assert (high - low) / 2.33 == pytest.approx(claim(paper, "GLUE-SST-2").gain_margin, abs=0.2)


def test_notes_quote_the_pilot(paper: Paper) -> None:
    for name, values in {
        "T": [(1.00, 0.71), (1.00, 0.39)],
        "H0-leak": [(0.21, 0.24)],
        "H0-mismatched": [(0.27, 0.23), (0.22, 0.27)],
        "H1": [(0.21, 0.24), (1.00, 0.76), (0.43, 0.28), (0.13, 0.20), (1.00, 0.71), (1.00, 0.69)],
        "H3": [(1.00, 0.76), (1.00, 0.69), (1.00, 0.71), (0.75, 0.31)],
        "H4": [(0.14, 0.23), (0.15, 0.23)],
        "H5-static": [(0.84, 0.42), (1.00, 0.46), (1.00, 0.79)],
        "H9": [(1.00, 0.71)],
        "F1": [(1.00, 0.57), (0.98, 0.59)],
        "F1-trained": [(1.00, 0.76), (0.98, 0.59)],
        "NST-scale": [(0.15, 0.20), (1.00, 0.69)],
    }.items():
        note = claim(paper, name).note
        assert "[pilot]" in note, name
        assert all(f"{quoted(probe)} / {quoted(cloze)}" in note for probe, cloze in values), name
    assert all("(.11 to .33)" in claim(paper, name).note for name in ("H5", "H8-temporal"))
    assert f"a weight of {quoted(32 / 128)}" in claim(paper, "NST-scale").note


def test_the_facts_hold_what_the_framework_asks_of_any_paper(paper: Paper) -> None:
    assert facts.sources(paper) == []
    assert facts.claims(paper) == []
