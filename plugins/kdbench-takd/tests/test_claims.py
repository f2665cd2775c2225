"""TAKD's claims: which cells each compares, in what direction, and what the paper's own numbers say of it."""

from __future__ import annotations

import re

import pytest
from takd_paths import CIFAR, paths

from kdbench.paper import Paper


def pairs(paper: Paper, claim_id: str) -> list[list[tuple[str, str, str]]]:
    claim = paper.claim(claim_id)
    assert claim is not None
    return [[(c.left, c.relation, c.right) for c in alternative] for alternative in claim.alternatives]


def test_core_claims(paper: Paper) -> None:
    assert {claim.id for claim in paper.claims if claim.core} == {"H1", "H3", "H4", "H13"}
    assert {claim.id for claim in paper.claims if claim.not_tested} == {"H8", "H9", "H12"}


def test_ids_are_unique_and_every_hypothesis_is_there(paper: Paper) -> None:
    ids = [fact.id for fact in (*paper.claims, *paper.deviations)]
    assert len(ids) == len(set(ids))
    assert {claim.id for claim in paper.claims} == {f"H{n}" for n in range(1, 15)} | {
        "H4-resnet",
        "H5-resnet",
        "H11-tau",
    }


def test_every_claim_cites_a_source_and_declares_its_margins(paper: Paper) -> None:
    for claim in paper.claims:
        assert claim.source, claim.id
        if claim.alternatives:
            assert claim.gain_margin > 0, claim.id
            assert "project choice" in claim.margin_reason.lower(), claim.id
            shown = {claim.unit} | {t.unit for c in claim.cells() for t in paper.tables if c.startswith(f"{t.id}/")}
            assert len(shown) == 1, f"{claim.id} mixes units {shown}"


MEASURED = re.compile(
    r"fit/\w+/(train|test)-(kl|agreement)/(T|TA)|entropy/\w+/T(4|6|8|10)|tuned/\w+/BLKD-tau|fair/\w+/(BLKD-equal-trials|born-again)"
)


def test_every_compared_cell_is_reported_or_measured_only(paper: Paper) -> None:
    reported = paper.reported()
    for claim in paper.claims:
        for instance in claim.instances({"dataset": CIFAR, "family": ("cnn", "resnet")}):
            assert "{" not in instance.title
            for cell in instance.cells():
                only_on_cifar100 = cell.startswith("fig5/cifar10/") and cell.replace("10/", "100/", 1) in reported
                assert cell in reported or only_on_cifar100 or MEASURED.fullmatch(cell), (claim.id, cell)


def test_h3_stands_once_for_each_family_and_data_set(paper: Paper) -> None:
    claim = paper.claim("H3")
    assert claim is not None
    stated = list(claim.instances({"dataset": CIFAR, "family": ("cnn", "resnet")}))
    assert len(stated) == 4
    assert {title for s in stated for title in re.findall(r"\((\w+)\)", s.title)} == {"cnn", "resnet"}
    assert stated[0].cells() == tuple(f"table1/cnn/cifar10/{arm}" for arm in ("TAKD", "BLKD", "NOKD"))


def test_h1_is_an_or_over_smaller_teachers(paper: Paper) -> None:
    assert pairs(paper, "H1") == [[(f"fig2/{{dataset}}/T{n}", "greater", "fig2/{dataset}/T10")] for n in (4, 6, 8)]


def test_h2_is_an_or_over_intermediate_students(paper: Paper) -> None:
    expected = [[(f"fig3/{{dataset}}/S{m}", "greater", f"fig3/{{dataset}}/S{end}") for end in (2, 8)] for m in (4, 6)]
    assert pairs(paper, "H2") == expected


def test_h6_sets_every_path_with_an_assistant_against_direct_and_scratch(paper: Paper) -> None:
    expected = {
        (f"fig5/{{dataset}}/{path}", "greater", f"fig5/{{dataset}}/{rival}")
        for size in (2, 4, 6)
        for path in paths(size)[1:]
        for rival in (f"10-{size}", f"NOKD-S{size}")
    }
    (stated,) = pairs(paper, "H6")
    assert set(stated) == expected
    assert len(stated) == 22


def test_h7_sets_the_full_path_against_every_other(paper: Paper) -> None:
    expected = {
        (f"fig5/{{dataset}}/{paths(size)[-1]}", "greater", f"fig5/{{dataset}}/{other}")
        for size in (2, 4)
        for other in paths(size)[:-1]
    }
    (stated,) = pairs(paper, "H7")
    assert set(stated) == expected
    assert len(stated) == 10


@pytest.mark.parametrize(("size", "count"), [(2, 8), (4, 4), (6, 2), (8, 1)])
def test_paths_per_student_size_in_fig5(paper: Paper, size: int, count: int) -> None:
    cells = [name.rsplit("/", 1)[1] for name in paper.reported() if name.startswith("fig5/cifar100/10-")]
    assert len([path for path in cells if path.endswith(f"-{size}")]) == count
    assert len(cells) == 15


def test_h10_lowers_divergence_and_raises_agreement_with_its_own_margin(paper: Paper) -> None:
    claim = paper.claim("H10")
    assert claim is not None
    (stated,) = claim.alternatives
    assert {c.left for c in stated} == {
        f"fit/{{dataset}}/{split}-{metric}/TA" for split in ("train", "test") for metric in ("kl", "agreement")
    }
    for c in stated:
        assert c.right == c.left.removesuffix("TA") + "T"
        assert (c.relation, c.margin) == (("less", 0.01) if "-kl/" in c.left else ("greater", 0.3))


@pytest.mark.parametrize(
    ("claim_id", "expected"),
    [
        (
            "H5",
            [("fig4/cnn/{dataset}/TA-nearest", "greater", f"fig4/cnn/{{dataset}}/TA-other-{rank}") for rank in (1, 2)],
        ),
        (
            "H5-resnet",
            [
                ("fig4/resnet/{dataset}/TA-nearest", "greater", f"fig4/resnet/{{dataset}}/TA-other-{rank}")
                for rank in (1, 2, 3)
            ],
        ),
        ("H11-tau", [("tuned/{dataset}/BLKD-tau", "not_worse", "table1/cnn/{dataset}/TAKD")]),
        ("H13", [("table2/{dataset}/TA4", "greater", "fig2/{dataset}/T4")]),
        ("H4", [(f"table2/{{dataset}}/TA{n}", "greater", "table1/cnn/{dataset}/BLKD") for n in (4, 6, 8)]),
        (
            "H4-resnet",
            [(f"table3/{{dataset}}/TA{n}", "greater", "table1/resnet/{dataset}/BLKD") for n in (56, 32, 20, 14)],
        ),
        (
            "H11",
            [(f"entropy/{{dataset}}/T{n}", "greater", f"entropy/{{dataset}}/T{n + 2}") for n in (4, 6, 8)],
        ),
        (
            "H14",
            [
                ("table1/cnn/{dataset}/TAKD", "greater", f"fair/{{dataset}}/{rival}")
                for rival in ("BLKD-equal-trials", "born-again")
            ],
        ),
    ],
)
def test_the_other_claims_compare_these_cells(
    paper: Paper, claim_id: str, expected: list[tuple[str, str, str]]
) -> None:
    assert pairs(paper, claim_id) == [expected]


def holds_on_paper(paper: Paper, value: dict[str, float | None], claim_id: str, dataset: str) -> bool:
    """Whether the printed numbers alone, without margin, satisfy every comparison that has both of them."""
    claim = paper.claim(claim_id)
    assert claim is not None
    (instance,) = claim.instances({"dataset": (dataset,)})
    printed = [(value.get(c.left), value.get(c.right)) for a in instance.alternatives for c in a]
    known = [(left, right) for left, right in printed if left is not None and right is not None]
    assert known
    return all(left > right for left, right in known)


@pytest.mark.parametrize(
    ("claim_id", "dataset", "holds"),
    [
        ("H4", "cifar10", True),
        ("H4", "cifar100", False),
        ("H4-resnet", "cifar10", True),
        ("H4-resnet", "cifar100", True),
        ("H6", "cifar100", False),
        ("H7", "cifar100", True),
    ],
)
def test_the_notes_tell_where_the_paper_contradicts_itself(
    paper: Paper, value: dict[str, float | None], claim_id: str, dataset: str, holds: bool
) -> None:
    assert holds_on_paper(paper, value, claim_id, dataset) is holds
    claim = paper.claim(claim_id)
    assert claim is not None
    assert ("contradicted" in claim.note.lower()) is (claim_id in {"H4", "H6"})
