"""The facts against a second, hand-typed copy of the survey's numbers, and against their own arithmetic."""

from __future__ import annotations

import pytest
from survey_models import GOLDEN, GOLDEN_TEACHER
from survey_print import CROSSOVERS, TABLE1, TABLE2

from kdbench.paper import Paper
from kdbench.testing.checks import facts

OURS = {"our-ds", "crossovers", "golden-line", "ds", "gain", "opposed", "winner"}


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_survey_metric", study=lambda lab: iter(()))


def golden() -> dict[str, float | None]:
    cells: dict[str, float | None] = {"golden/teacher/accuracy": GOLDEN_TEACHER}
    for name, row in GOLDEN.items():
        cells |= {f"golden/{name}/{c}": v for c, v in zip(("size", "accuracy", "DS"), row, strict=True)}
    cells |= {f"crossovers/{pair}/alpha": alpha for pair, alpha in CROSSOVERS.items()}
    for name, (*printed, score) in TABLE2.items():
        cells |= {f"table2/{name}/{c}": v for c, v in zip(("dAcc", "vs-base", "dSize"), printed, strict=True)}
        cells[f"our-ds/table2/{name}/DS"] = score
    for name, (accuracy, size, score) in TABLE1.items():
        cells |= {f"table1/{name}/dAcc": accuracy, f"table1/{name}/dSize": size, f"our-ds/table1/{name}/DS": score}
    return cells


def test_every_cell_is_in_the_hand_typed_copy_and_none_is_missing(paper: Paper) -> None:
    assert {name: cell.value for name, (cell, _) in paper.reported().items()} == golden()


def test_a_cell_is_blank_exactly_where_it_was_not_found(paper: Paper) -> None:
    cells = [cell for cell, _ in paper.reported().values()]
    assert {c.cell for c in cells if c.value is None} == {c.cell for c in cells if c.certainty == "not found"}
    blank = [cell.cell.partition("/")[0] for cell in cells if cell.value is None]
    assert {table: blank.count(table) for table in set(blank)} == {"table1": 3, "table2": 9, "our-ds": 7}


def test_what_is_ours_is_derived_and_stands_beside_no_number_of_the_survey(paper: Paper) -> None:
    tables = {table.id: table for table in paper.tables}
    assert set(tables) - OURS == {"golden", "table1", "table2"}
    for name in OURS:
        assert tables[name].comparable == (), name
        assert {cell.certainty for cell in tables[name].cells} <= {"derived", "not found"}, name
        assert "our" in tables[name].title.lower(), name
    assert {cell.certainty for cell in tables["table2"].cells} == {"paper", "not found"}
    assert {cell.certainty for cell in tables["golden"].cells} == {"third-party"}
    assert "INCOMPLETE" in tables["table1"].title
    assert paper.reported()["table1/Polino-2018/dAcc"][0].certainty == "third-party??"


def test_only_tables_that_follow_from_printed_numbers_are_arithmetic(paper: Paper) -> None:
    assert {table.id for table in paper.tables if table.arithmetic} == {
        "golden",
        "golden-line",
        "crossovers",
        "our-ds",
    }
    exact = {claim.id for claim in paper.claims if claim.exact}
    assert exact == {"G1", "G2", "G3", "M2"}


def test_four_rows_of_table_2_lack_a_size_or_an_accuracy(paper: Paper) -> None:
    value = {name: cell.value for name, (cell, _) in paper.reported().items()}
    lacking = [name for name in TABLE2 if None in (value[f"table2/{name}/dAcc"], value[f"table2/{name}/dSize"])]
    assert len(lacking) == 4
    assert all(value[f"our-ds/table2/{name}/DS"] is None for name in lacking)
    claim = paper.claim("G3")
    assert claim is not None
    assert "4 of the 13 rows" in claim.note


def test_reductions_look_like_ratios_of_rounded_numbers() -> None:
    assert -TABLE1["Kimura-2019"][0] == pytest.approx(100 * 2 / 19, abs=5e-4)
    assert TABLE2["online/Chung-2020"][2] == pytest.approx(100 * 8 / 15, abs=5e-4)


def test_the_ledger_quotes_scores_that_the_formula_gives(paper: Paper) -> None:
    def score(size: float, accuracy: float, alpha: float = 0.5) -> float:
        return alpha * size + (1 - alpha) * (1 - accuracy)

    effects = {line.id: line.effect for line in paper.deviations}
    assert f"{score(0, 0.1 / 0.95):.3f}" == "0.447"
    assert ".447" in effects["chance"]
    assert f"{score(0.1, 88 / 92):.3f}" == "0.072"
    assert ".072 under 92 %" in effects["one-teacher"]
    assert score(0.1, 88 / 80) == pytest.approx(0.0, abs=1e-12)
    assert "0 under 80 %" in effects["one-teacher"]
    assert score(1.0, 1.0) - score(0.5, 1.0) == 0.25
    assert "is worth .25" in effects["size-saturates"]
    assert score(0.1, 1.0) - score(0.01, 1.0) == pytest.approx(0.045)
    assert ".045" in effects["size-saturates"]


def test_margins_rest_on_the_arithmetic_that_their_reasons_state(paper: Paper) -> None:
    claims = {claim.id: claim for claim in paper.claims}
    assert claims["G1"].value_margin == 0.5e-3
    assert claims["G1"].gain_margin == 1e-3
    assert claims["M3"].gain_margin == pytest.approx(0.5 * 0.3 / 100)
    assert claims["M4"].gain_margin == 1 / 10  # of the pairs that five students make
    # Two scores from 10,000 test examples each, unpaired: teacher and student err near .7.
    error = 0.5 * (2 * 0.3 / (0.7 * 10_000)) ** 0.5
    assert error == pytest.approx(0.0046, abs=1e-4)
    assert 1.96 * 2**0.5 * error == pytest.approx(claims["M1"].gain_margin, abs=1e-3)


def test_the_facts_hold_what_the_framework_asks_of_any_paper(paper: Paper) -> None:
    assert facts.sources(paper) == []
    assert facts.claims(paper) == []
