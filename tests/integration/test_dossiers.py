"""The public pages under ``papers/``: every sentence and number in them must follow from the records beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdbench.report.dossier import read_dossier, render

PAPERS = Path(__file__).resolve().parents[2] / "papers"
DOSSIERS = sorted(path.parent for path in PAPERS.glob("*/README.md"))


def test_takd_has_a_dossier_with_both_runs() -> None:
    runs = {(r.run.request.tier, r.run.request.dataset) for r, _ in read_dossier(PAPERS / "takd")}
    assert {("laptop", "mnist1d"), ("laptop", "cifar10")} <= runs


@pytest.mark.parametrize("folder", DOSSIERS, ids=lambda folder: folder.name)
def test_the_page_is_what_its_records_say(folder: Path) -> None:
    text = render([result for result, _ in read_dossier(folder)])
    assert text == (folder / "README.md").read_text(encoding="utf-8"), (
        f"the page drifted from its records: kdbench dossier --out {folder}"
    )


@pytest.mark.parametrize("folder", DOSSIERS, ids=lambda folder: folder.name)
def test_every_value_is_the_metric_of_a_committed_record(folder: Path) -> None:
    checked = 0
    for result, records in read_dossier(folder):
        assert {stage.hash for stage in result.run.stages} == set(records)
        for value in result.run.values:
            if value.value is None or len(value.stages) != 1:
                continue  # failed, or computed from several stages
            record = records[value.stages[0]]
            if value.metric not in record.metrics:
                continue  # computed from one stage, by the study
            assert record.metrics[value.metric] == value.value
            assert record.spec["seed"] == value.seed
            checked += 1
    assert checked > 0


@pytest.mark.parametrize("folder", DOSSIERS, ids=lambda folder: folder.name)
def test_records_name_no_path_and_come_from_committed_code(folder: Path) -> None:
    for result, records in read_dossier(folder):
        assert result.run.request.data_dir in (None, "DIR")
        environments = [result.run.environment, *(record.environment for record in records.values())]
        assert all(environment.commit and "+" not in environment.commit for environment in environments)
        assert len({environment.torch for environment in environments}) == 1


def test_a_changed_number_makes_the_page_drift(tmp_path: Path) -> None:
    """The check above can fail: one value changed in a copy of the records changes the text."""
    import msgspec

    result, _ = read_dossier(PAPERS / "takd")[0]
    before = render([result])
    first, *rest = result.run.values
    assert first.value is not None
    changed = msgspec.structs.replace(first, value=first.value + 1.0)
    run = msgspec.structs.replace(result.run, values=(changed, *rest))
    assert render([type(result)(run, tmp_path)]) != before
