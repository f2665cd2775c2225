"""TAKD's facts against a second, hand-typed copy of the paper's numbers, and against their own arithmetic."""

from __future__ import annotations

import re
from itertools import combinations, product
from math import sqrt

import pytest

from kdbench.paper import PROTOCOLS, TIERS, Paper

CIFAR = ("cifar10", "cifar100")
TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 50_000}

TABLE1 = {  # NOKD, BLKD, TAKD, unpaired binomial standard error of TAKD - BLKD
    "cnn/cifar10": (70.16, 72.57, 73.51, 0.63),
    "cnn/cifar100": (41.09, 44.57, 44.92, 0.70),
    "resnet/cifar10": (88.52, 88.65, 88.98, 0.45),
    "resnet/cifar100": (61.37, 61.41, 61.82, 0.69),
    "resnet/imagenet": (65.20, 66.60, 67.36, 0.30),
}
TABLE2 = {"cifar10": (72.75, 73.15, 73.51), "cifar100": (44.28, 44.57, 44.92)}
TABLE3 = {"cifar10": (88.70, 88.73, 88.90, 88.98), "cifar100": (61.47, 61.55, 61.82, 61.5)}
FIG5 = {
    "NOKD-S2": 41.09, "10-2": 44.57, "10-8-2": 44.28,
    "10-6-2": 44.57, "10-4-2": 44.92, "10-8-6-4-2": 45.14,
}  # fmt: skip
FIG6_METHODS = ("NOKD", "BLKD", "FITNET", "AT", "FSP", "BSS", "MUTUAL", "TAKD")
FIG6 = {
    "R8": (86.02, 86.66, 86.73, 86.86, 87.07, 87.32, 87.71, 88.01),
    "R14": (89.11, 89.75, 89.72, 89.84, 89.92, 90.34, 90.54, 91.23),
}
AUTHOR = {
    "cifar100/scratch/R110": 72.38, "cifar100/scratch/R20": 67.03,
    "cifar100/scratch/R8": 61.37, "cifar100/R110-R20": 68.11,
    "cifar100/R110-R8": 61.41, "cifar100/R110-R20-R8": 61.82,
    "cifar10/R110-R20": 92.82, "cifar10/scratch/R26": 92.48,
    "cifar10/scratch/R110": 93, "cifar10/scratch/R20": 91.5,
    "cifar10/scratch/R8": 88.5,
}  # fmt: skip
OPTIMA = {  # lambda, temperature, seed
    "cifar100/R110-R20": (0.5, 5, 55),
    "cifar100/R110-R8": (0.2, 2, 31),
    "cifar100/R110-R20-R8": (0.15, 5, 31),
    "cifar10/R110-R20": (0.4, None, None),
}
RUFFY = {
    "teacher": 93.41, "200-epochs/NOKD": 89.42, "200-epochs/BLKD": 90.33,
    "200-epochs/TAKD": 90.57, "350-epochs/NOKD": 89.34, "350-epochs/BLKD": 90.77,
    "350-epochs/TAKD": 90.97, "sweep/R8": 89.48, "sweep/R20": 90.16,
    "sweep/R26": 90.40, "sweep/R18-11M": 89.50, "sweep/WRN16-4": 89.58,
}  # fmt: skip
DGKD = {
    "cifar100/full-path": (45.14, 48.92),
    "cifar100/seven-assistants": (44.07, 49.56),
    "cifar10/R26-R20-R14-R8": (88.01, 89.02),
}
GATES = {
    ("resnet110", "cifar100", "full"): 72.38, ("resnet20", "cifar100", "full"): 67.03,
    ("resnet26", "cifar10", "full"): 92.48, ("resnet110", "cifar10", "full"): 93.0,
    ("resnet20", "cifar10", "full"): 91.5, ("plain4-x0.5", "mnist1d", "laptop"): 96.80,
    ("plain6-x0.5", "mnist1d", "laptop"): 97.48, ("plain8-x0.5", "mnist1d", "laptop"): 97.29,
    ("plain10-x0.5", "mnist1d", "laptop"): 97.91,
}  # fmt: skip

PROTOCOL_ROWS = ("framework", "optimizer", "epochs", "lr-resnet", "lr-plain", "weight-decay", "batch", "preprocessing",
                 "augmentation", "kd-loss", "search", "reported", "comparison-run")  # fmt: skip


def paths(size: int) -> list[str]:
    """Every way from T10 down to a student of ``size``, the direct one first."""
    between = range(8, size, -2)
    chosen = [middle for count in range(len(between) + 1) for middle in combinations(between, count)]
    return ["-".join(map(str, (10, *middle, size))) for middle in chosen]


def golden() -> dict[str, float | None]:
    cells: dict[str, float | None] = {}
    for row, values in TABLE1.items():
        cells |= {f"table1/{row}/{arm}": v for arm, v in zip(("NOKD", "BLKD", "TAKD"), values[:3], strict=True)}
    for data in CIFAR:
        cells |= {f"table2/{data}/TA{n}": v for n, v in zip((8, 6, 4), TABLE2[data], strict=True)}
        cells |= {f"table3/{data}/TA{n}": v for n, v in zip((56, 32, 20, 14), TABLE3[data], strict=True)}
        cells |= {f"fig2/{data}/T{n}": None for n in (4, 6, 8, 10)}
        cells |= {f"fig3/{data}/S{n}": None for n in (2, 4, 6, 8)}
        cells |= {f"fig4/{data}/scratch{n}": None for n in (2, 4, 6, 8, 10)}
        cells |= {f"fig4/{data}/TA-{rule}": None for rule in ("nearest", "middle")}
    for size in (2, 4, 6, 8):
        cells |= {f"fig5/cifar100/{path}": FIG5.get(path) for path in (f"NOKD-S{size}", *paths(size))}
    for student, values in FIG6.items():
        cells |= {f"fig6/cifar10/{student}/{m}": v for m, v in zip(FIG6_METHODS, values, strict=True)}
    cells |= {f"author/{name}": value for name, value in AUTHOR.items()}
    for chain, values in OPTIMA.items():
        cells |= {
            f"author-optima/{chain}/{n}": v for n, v in zip(("lambda", "temperature", "seed"), values, strict=True)
        }
    advice = {"lambda": 0.04, "temperature-low": 5, "temperature-high": 10}
    cells |= {f"author-optima/cifar100/advice/{name}": value for name, value in advice.items()}
    cells |= {f"ruffy/cifar10/{name}": value for name, value in RUFFY.items()}
    for row, values in DGKD.items():
        cells |= {f"dgkd/{row}/{arm}": v for arm, v in zip(("TAKD", "DGKD"), values, strict=True)}
    cells |= {"cifd/cost/assistant-chain-low": 3, "cifd/cost/assistant-chain-high": 5, "cifd/cost/CIFD": 1.08}
    cells |= {"dist/imagenet/KD/R34": 71.21, "dist/imagenet/KD/R50": 71.35, "dist/imagenet/KD/R101": 71.09}
    return cells


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_takd", study=lambda lab: iter(()))


@pytest.fixture(scope="module")
def value(paper: Paper) -> dict[str, float | None]:
    return {name: cell.value for name, (cell, _) in paper.reported().items()}


def pairs(paper: Paper, claim_id: str) -> list[list[tuple[str, str, str]]]:
    claim = paper.claim(claim_id)
    assert claim is not None
    return [[(c.left, c.relation, c.right) for c in alternative] for alternative in claim.alternatives]


# ------------------------------------------------------------------------------------------------------ numbers


def test_every_cell_is_in_the_golden_list_and_none_is_missing(value: dict[str, float | None]) -> None:
    assert value == golden()


def test_a_cell_is_blank_exactly_where_it_was_not_found(paper: Paper) -> None:
    cells = [cell for cell, _ in paper.reported().values()]
    assert {c.cell for c in cells if c.value is None} == {c.cell for c in cells if c.certainty == "not found"}
    assert all(cell.source for cell in cells)


def test_numbers_of_other_people_never_stand_as_the_papers(paper: Paper) -> None:
    for table in paper.tables:
        if table.comparable:
            certainties = {cell.certainty for cell in table.cells} - {"not found"}
            assert certainties <= ({"paper", "third-party?"} if table.id == "fig5" else {"paper"}), table.id
    uncompared = {table.id for table in paper.tables if not table.comparable}
    assert uncompared == {"author", "author-optima", "ruffy", "dgkd", "cifd", "dist"}


@pytest.mark.parametrize("row", TABLE1)
def test_binomial_standard_error_of_the_gain_in_table1(value: dict[str, float | None], row: str) -> None:
    images = TEST_IMAGES[row.split("/")[1]]
    shares = [(value[f"table1/{row}/{arm}"] or 0.0) / 100 for arm in ("TAKD", "BLKD")]
    error = 100 * sqrt(sum(p * (1 - p) / images for p in shares))
    assert error == pytest.approx(TABLE1[row][3], abs=0.01)
    # The note of H3: no CIFAR gain exceeds 1.5 standard errors, the one on ImageNet does.
    assert (100 * (shares[0] - shares[1]) > 1.5 * error) is ("imagenet" in row)


def test_table1_repeats_the_best_assistants_of_tables_2_and_3(value: dict[str, float | None]) -> None:
    for data in CIFAR:
        for family, table in (("cnn", "table2"), ("resnet", "table3")):
            assistants = {name: v or 0.0 for name, v in value.items() if name.startswith(f"{table}/{data}/")}
            assert value[f"table1/{family}/{data}/TAKD"] == max(assistants.values())


def test_assistant_nearest_to_the_mean_on_cifar100_is_resnet20(value: dict[str, float | None]) -> None:
    scratch = {n: value[f"author/cifar100/scratch/R{n}"] or 0.0 for n in (8, 20, 110)}
    middle = (scratch[8] + scratch[110]) / 2
    assert middle == pytest.approx(66.875)
    nearest = min(scratch, key=lambda n: abs(scratch[n] - middle))
    best = max((14, 20, 32, 56), key=lambda n: value[f"table3/cifar100/TA{n}"] or 0.0)
    assert nearest == best == 20


def test_margins_rest_on_the_arithmetic_that_their_reasons_state(paper: Paper) -> None:
    claim = paper.claim("H3")
    assert claim is not None
    gains = [takd - blkd for row, (_, blkd, takd, _) in TABLE1.items() if "imagenet" not in row]
    assert min(gains) == pytest.approx(0.33)
    assert 0 < claim.gain_margin <= min(gains)
    accuracies = [a / 100 for row, cells in TABLE1.items() if "imagenet" not in row for a in cells[:3]]
    doubled = [200 * sqrt(a * (1 - a) / 10_000) for a in accuracies]
    assert (round(min(doubled), 1), round(max(doubled), 1)) == (0.6, 1.0)
    assert claim.value_margin == round(max(doubled), 1)


# ------------------------------------------------------------------------------------------------------- claims


def test_core_claims(paper: Paper) -> None:
    assert {claim.id for claim in paper.claims if claim.core} == {"H1", "H3", "H4", "H13"}
    assert {claim.id for claim in paper.claims if claim.not_tested} == {"H8", "H9", "H12"}


def test_ids_are_unique_and_every_hypothesis_is_there(paper: Paper) -> None:
    ids = [fact.id for fact in (*paper.claims, *paper.deviations)]
    assert len(ids) == len(set(ids))
    assert {claim.id for claim in paper.claims} == {f"H{n}" for n in range(1, 15)} | {"H4-resnet", "H11-tau"}


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
        ("H5", [("fig4/{dataset}/TA-nearest", "greater", "fig4/{dataset}/TA-middle")]),
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


# --------------------------------------------------------------------------------------- protocols, deviations, gates


def test_three_protocols(paper: Paper) -> None:
    assert tuple(protocol.id for protocol in paper.protocols) == PROTOCOLS


def test_every_row_of_the_protocol_table_has_its_three_readings(paper: Paper) -> None:
    lines = {line.id: line for line in paper.deviations}
    for name in PROTOCOL_ROWS:
        assert lines[name].written, name
        assert lines[name].released, name
        assert lines[name].clean, name


def test_every_deviation_says_what_it_does_and_prose_stays_on_one_line(paper: Paper) -> None:
    for line in paper.deviations:
        assert line.effect, line.id
        assert line.source, line.id
        text = (line.item, line.written, line.released, line.clean, line.here, line.effect, line.source)
        assert not any("\n" in part or "  " in part for part in text), line.id
    for claim in paper.claims:
        text = (claim.title, claim.sentence, claim.margin_reason, claim.note, claim.not_tested)
        assert not any("\n" in part or "  " in part for part in text), claim.id


@pytest.mark.parametrize(
    ("tier", "dataset", "expected"),
    [
        ("smoke", "mnist1d", {"scale-data", "scale-network", "scale-epochs-smoke", "scale-schedule", "scale-trials"}),
        ("laptop", "mnist1d", {"scale-data", "scale-network", "scale-epochs", "scale-schedule", "scale-trials"}),
        ("smoke", "cifar100", {"scale-network", "scale-epochs-smoke", "scale-schedule", "scale-trials"}),
        ("laptop", "cifar10", {"scale-network", "scale-epochs", "scale-schedule", "scale-trials"}),
        ("full", "cifar100", {"scale-schedule", "scale-search"}),
    ],
)
def test_project_lines_apply_where_the_project_deviates(
    paper: Paper, tier: str, dataset: str, expected: set[str]
) -> None:
    lines = [d for d in paper.deviations if d.applies(protocol="clean", tier=tier, dataset=dataset)]
    assert {d.id for d in lines if d.here} == expected
    assert {d.id for d in lines if d.id.startswith("scale-")} == expected


def test_effective_weight_of_the_soft_term_is_what_the_ledger_says(paper: Paper) -> None:
    lines = {line.id: line for line in paper.deviations}
    true_kl = 0.5 * 5**2
    for name in ("kd-loss", "transfer"):
        assert f"{true_kl:g}" in lines[name].effect
        assert f"{true_kl / 100:g}".removeprefix("0") in lines[name].effect
    assert f"= {20 * 6 * 3}" in lines["idle-trials"].released
    assert f"= {20 * 6 * 3}" in lines["scale-search"].released


def test_gates_hold_the_claimed_accuracies_at_their_own_tier_only(paper: Paper) -> None:
    assert {(g.network, g.dataset, tier): g.claimed for g in paper.gates for tier in g.tiers} == GATES
    for (network, dataset, own), tier, protocol in product(GATES, TIERS, PROTOCOLS):
        # The pilot knows what the clean recipe reaches, and nothing of the other two readings.
        there = tier == own and (dataset != "mnist1d" or protocol == "clean")
        assert (paper.gate(network, dataset=dataset, tier=tier, protocol=protocol) is not None) is there


def test_gate_tolerances_cover_the_binomial_error_and_still_see_the_known_failure(paper: Paper) -> None:
    for gate in paper.gates:
        assert "tolerance:" in gate.source
        if gate.dataset == "mnist1d":
            error = 100 * sqrt(0.97 * 0.03 / 400)  # of the validation images that the gate is read on
            assert 3 * error < gate.tolerance == 5.0
            assert f"({3 * error:.1f})" in gate.source or "as for plain4" in gate.source
            continue
        share = gate.claimed / 100
        error = 100 * sqrt(2 * share * (1 - share) / 10_000)
        assert 2 * error < gate.tolerance < 10
        assert f"2 SE of the difference are {2 * error:.1f}".replace("are 0.", "are .") in gate.source
