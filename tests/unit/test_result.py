"""The result object: tables, verdicts, and what may stand beside the paper's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from toy_paper import toy_paper

from kdbench.environment import environment
from kdbench.errors import KdbenchError
from kdbench.paper import Claim, Comparison, ReportedCell, ReportedTable
from kdbench.result import (
    DataUsed,
    FailureLine,
    Reproduction,
    Request,
    RunFile,
    StageLine,
    Value,
    facts_of,
    read_run,
    write_run,
)

NOT_OFFICIAL = "data is not the official CIFAR-10"
OFFICIAL = DataUsed("CIFAR-10", "f" * 64, True, "", {"train": 50_000, "test": 10_000})
SUBSET = DataUsed("CIFAR-10", "e" * 64, False, NOT_OFFICIAL, {"train": 8_000, "test": 2_000})
SIGNALS = DataUsed("MNIST-1D", "d" * 64, True, "", {"train": 4_000, "test": 6_000})

SCRATCH, DISTILLED = (69.9, 70.2, 69.8, 70.1, 70.0), (71.9, 72.1, 72.0, 71.8, 72.2)


def result(
    *,
    tier: str = "full",
    protocol: str = "written",
    data: DataUsed = OFFICIAL,
    scratch: tuple[float | None, ...] = SCRATCH,
    distilled: tuple[float | None, ...] = DISTILLED,
    **facts: Any,
) -> Reproduction:
    """A run of the toy paper as it would be on file."""
    paper = toy_paper(**facts)
    dataset = "mnist1d" if data is SIGNALS else "cifar10"
    request = Request(
        paper="toy",
        tier=tier,
        dataset=dataset,
        protocol=protocol,
        seeds=tuple(range(len(scratch))),
        claims="core",
        device="cpu",
        workers=2,
        threads=1,
        executor="local",
        data_dir=None,
    )
    claims = tuple(i for claim in paper.claims for i in claim.instances({"dataset": (dataset,)}))
    values = [
        Value(f"table1/{dataset}/{column}", seed, "test.accuracy", value, (f"{column}{seed}",))
        for column, given in (("scratch", scratch), ("distilled", distilled))
        for seed, value in enumerate(given)
    ]
    run = RunFile(
        id="toy-run",
        status="finished" if None not in (*scratch, *distilled) else "incomplete",
        request=request,
        facts=facts_of(paper, claims, request),
        data=data,
        environment=environment(device="cpu", threads=1, code="0" * 16),
        started="2026-01-01T00:00:00+00:00",
        values=tuple(values),
        stages=(StageLine("scratch0", "train", 1.0, False),),
        failures=(FailureLine("x", "y", "z", 0),) if None in scratch else (),
    )
    return Reproduction(run, Path("nowhere"))


def table(certainty: Any = "paper", comparable: tuple[str, ...] = ("written", "released")) -> ReportedTable:
    return ReportedTable(
        id="table1",
        title="T",
        metric="accuracy",
        unit="%",
        source="T",
        comparable=comparable,
        cells=(
            ReportedCell(cell="table1/cifar10/scratch", value=70.0, certainty=certainty, source="T"),
            ReportedCell(cell="table1/cifar10/distilled", value=72.0, certainty=certainty, source="T"),
        ),
    )


def test_table_is_tidy() -> None:
    frame = result().table()
    assert list(frame.columns) == ["paper", "claim", "cell", "protocol", "tier", "seed", "metric", "value"]
    assert len(frame) == 10
    assert frame["value"].dtype == np.float64
    assert frame["seed"].dtype == np.int64
    first = frame.iloc[0].to_dict()
    assert first == {
        "paper": "toy",
        "claim": "C1",
        "cell": "table1/cifar10/scratch",
        "protocol": "written",
        "tier": "full",
        "seed": 0,
        "metric": "test.accuracy",
        "value": 69.9,
    }
    means = frame.groupby("cell")["value"].mean()
    assert means["table1/cifar10/distilled"] == pytest.approx(72.0)


@pytest.mark.parametrize("scratch", [(None,) * 5, (None, *SCRATCH[1:])])
def test_table_keeps_its_type_where_values_are_missing(scratch: tuple[float | None, ...]) -> None:
    frame = result(scratch=scratch, distilled=scratch).table()
    assert frame["value"].dtype == np.float64
    assert frame["value"].isna().sum() == 2 * scratch.count(None)


def test_table_names_every_claim_that_uses_a_cell() -> None:
    one = toy_paper().claims[0]
    two = msgspec.structs.replace(
        one, id="C2", alternatives=((Comparison(left="table1/{dataset}/distilled", right="other/cell"),),)
    )
    frame = result(claims=(one, two)).table()
    assert set(frame[frame["cell"].str.endswith("distilled")]["claim"]) == {"C1,C2"}
    assert set(frame[frame["cell"].str.endswith("scratch")]["claim"]) == {"C1"}


REASONS = {
    "comparable": ({}, []),
    "released": ({"protocol": "released"}, []),
    "data": ({"data": SUBSET}, [NOT_OFFICIAL]),
    "data set": ({"data": SIGNALS}, ["the paper has no MNIST-1D"]),
    "tier": ({"tier": "laptop"}, ["tier laptop is not the paper's scale"]),
    "smoke": ({"tier": "smoke"}, ["tier smoke is not the paper's scale"]),
    "protocol": ({"protocol": "clean"}, ["protocol clean is not the paper's"]),
    "all": (
        {"data": SUBSET, "tier": "laptop", "protocol": "clean"},
        [NOT_OFFICIAL, "tier laptop is not the paper's scale", "protocol clean is not the paper's"],
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_values_stand_beside_the_papers_only_where_all_is_the_papers(case: str) -> None:
    how, reasons = REASONS[case]
    one = result(**how)
    assert one.not_comparable(one.run.facts.claims[0]) == reasons
    (verdict,) = one.claim_verdicts()
    if reasons:
        assert verdict.value_word == "not comparable"
        assert verdict.value_reason == "; ".join(reasons)
        assert all(test.p is None for test in verdict.values)
    else:
        assert verdict.value_word == "reproduced"
        assert {test.cell: test.target for test in verdict.values} == {
            "table1/cifar10/scratch": 70.0,
            "table1/cifar10/distilled": 72.0,
        }
        assert all(test.p is not None and test.p < 0.05 for test in verdict.values)


def test_full_official_written_values_are_really_tested() -> None:
    off = tuple(value - 5 for value in SCRATCH)
    (verdict,) = result(scratch=off).claim_verdicts()
    assert verdict.value_word == "not reproduced"
    words = {test.cell.rpartition("/")[2]: test.word for test in verdict.values}
    assert words == {"scratch": "not reproduced", "distilled": "reproduced"}
    assert verdict.scale == "paper"
    assert verdict.gain_word == "reproduced"  # the gain is judged apart from the values


@pytest.mark.parametrize("certainty", ["third-party", "third-party?", "third-party??", "derived", "pilot", "code"])
def test_what_others_say_is_never_a_target(certainty: str) -> None:
    (verdict,) = result(tables=(table(certainty),)).claim_verdicts()
    assert verdict.values == ()
    assert verdict.value_word == "no reported number"


@pytest.mark.parametrize("certainty", ["paper", "paper?"])
def test_what_the_paper_says_is_a_target(certainty: str) -> None:
    (verdict,) = result(tables=(table(certainty),)).claim_verdicts()
    assert len(verdict.values) == 2


def test_table_that_compares_with_no_protocol_is_no_target() -> None:
    (verdict,) = result(tables=(table(comparable=()),)).claim_verdicts()
    assert verdict.values == ()


def test_protocol_counts_for_the_tables_a_claim_touches() -> None:
    only_clean = msgspec.structs.replace(table(comparable=("clean",)), id="table2", cells=())
    one = result(tables=(table(), only_clean))
    assert one.not_comparable(one.run.facts.claims[0]) == []


def test_toy_scale_never_says_reproduced() -> None:
    (verdict,) = result(tier="laptop", data=SIGNALS).claim_verdicts()
    assert verdict.scale == "toy"
    assert verdict.gain_phrase == "supported at this scale"
    assert verdict.value_word == "not comparable"


@pytest.mark.parametrize("data", [SUBSET, SIGNALS], ids=["unofficial", "another data set"])
def test_full_tier_on_other_data_is_not_the_papers_scale(data: DataUsed) -> None:
    (verdict,) = result(tier="full", data=data).claim_verdicts()
    assert verdict.gain_phrase == "supported at this scale"


def test_missing_values_are_counted_in_the_verdict() -> None:
    one = result(scratch=(None, 70.0, None, 69.9, 70.2))
    assert not one.complete
    assert one.samples()["table1/cifar10/scratch"] == {1: 70.0, 3: 69.9, 4: 70.2}
    (verdict,) = one.claim_verdicts()
    assert "n=3 of 5 seeds" in verdict.sentence
    assert one.summaries()["table1/cifar10/scratch"].n == 3


def test_cell_of_which_no_seed_finished_says_so() -> None:
    one = result(scratch=(None,) * 5)
    assert one.samples()["table1/cifar10/scratch"] == {}
    (verdict,) = one.claim_verdicts()
    assert verdict.gain_word == "not tested"
    assert "no seed finished: table1/cifar10/scratch" in verdict.sentence
    assert "at this tier" not in verdict.sentence
    assert one.summaries()["table1/cifar10/scratch"].mean is None


def test_run_survives_its_file(tmp_path: Path) -> None:
    one = result()
    write_run(tmp_path / "run", one.run)
    back = read_run(tmp_path / "run")
    assert back.run == one.run
    assert back.table().equals(one.table())
    assert back.verdicts().equals(one.verdicts())


@pytest.mark.parametrize("content", [None, b"", b"{}", b"not json"])
def test_run_that_does_not_read_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(KdbenchError, match=r"run\.json is corrupt") as caught:
        read_run(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "finished stages are kept" in str(caught.value)


def test_verdicts_is_one_row_a_claim_and_to_dict_is_json() -> None:
    one = result()
    frame = one.verdicts()
    assert list(frame.columns) == [
        "claim", "title", "gain", "value", "reason", "p_support", "p_contradict", "more_seeds", "sentence",
    ]  # fmt: skip
    assert list(frame["claim"]) == ["C1"]
    data = json.loads(json.dumps(one.to_dict()))
    assert data["verdicts"][0]["gain_phrase"] == frame["gain"][0] == "reproduced"
    assert data["summaries"]["table1/cifar10/scratch"]["n"] == 5
    assert data["path"] == "nowhere"


def test_facts_of_a_run_hold_only_what_applies() -> None:
    from kdbench.paper import Deviation

    def line(name: str, **limits: Any) -> Deviation:
        return Deviation(id=name, item="i", effect="e", source="s", certainty="code", **limits)

    other = Claim(id="C9", title="t", sentence="s", source="T", certainty="paper", not_tested="no stage for it")
    paper = toy_paper(
        deviations=(line("a"), line("b", tiers=("smoke",)), line("c", protocols=("written",))),
        claims=(*toy_paper().claims, other),
    )
    facts = facts_of(paper, paper.claims[:1], result(protocol="clean").run.request)
    assert [line.id for line in facts.deviations] == ["a"]
    assert facts.claims == paper.claims[:1]
    assert facts.others == (other,)
    assert facts.protocol == "clean"


def test_arithmetic_on_printed_numbers_is_at_no_scale() -> None:
    table = ReportedTable(
        id="table1",
        title="Table 1",
        metric="score",
        unit="",
        source="Table 1",
        comparable=("written", "released", "clean"),
        arithmetic=True,
        cells=(ReportedCell(cell="table1/mnist1d/distilled", value=72.0, certainty="paper", source="Table 1"),),
    )
    facts = {"tier": "smoke", "protocol": "clean", "data": SIGNALS, "tables": (table,), "distilled": (72.0,) * 5}
    (claim,) = toy_paper().claims
    exact = result(**facts, claims=(msgspec.structs.replace(claim, exact=True),)).claim_verdicts()[0]
    assert exact.value_word == "reproduced"
    assert exact.gain_phrase == "reproduced"
    trained = result(**facts).claim_verdicts()[0]  # the table is arithmetic, the claim is not
    assert trained.value_word == "not comparable"
