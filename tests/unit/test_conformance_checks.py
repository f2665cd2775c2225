"""The conformance checks of facts, plans and components: silent about what is right, each fault named with its cure."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest
from toy_paper import RECIPE, STUDENT, TEACHER, toy_data, toy_lab, toy_paper

from kdbench.component import Component, pack
from kdbench.data import DATASETS
from kdbench.errors import KdbenchError
from kdbench.paper import Comparison, ParameterCount, ReportedCell
from kdbench.plan import build_plan
from kdbench.stage import Spec, Stage
from kdbench.testing.checks import clean, components, elsewhere, facts, planning
from kdbench.training import Distillation

PAPER = toy_paper()
CLAIM = msgspec.structs.replace(PAPER.claims[0], margin_reason="the smallest gain of Table 1")
SOUND = toy_paper(claims=(CLAIM,))


def with_claim(**changes: Any) -> Any:
    return toy_paper(claims=(msgspec.structs.replace(CLAIM, **changes),))


def with_cell(**changes: Any) -> Any:
    cell = ReportedCell(
        **{"cell": "table1/cifar10/other", "value": 1.0, "certainty": "paper", "source": "x", **changes}
    )
    table = msgspec.structs.replace(PAPER.tables[0], cells=(cell,))
    return msgspec.structs.replace(SOUND, tables=(table,))


# ----------------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize(
    "source",
    ["Table 1", "Fig. 2 and its text", "Tab. II", "Section 3.2", "§4", "Eq. (3)", "eqs (10) to (12)", "Appendix B",
     "Theorem 1", "p. 12", "pp. 3-4", "the abstract", "Mechanism offered in the text", "Theory section", "Table A3",
     "Experiments, first paragraph", "Introduction", "Conclusion", "Method", "Appendix", "Lemma 3", "page 7", "Table I",
     "Table I and its text", "Section IV-B", "Figure S2", "TABLE 3", "Eq. (A.2)", "Table 1, last column"],
)  # fmt: skip
def test_a_source_that_names_a_place_counts(source: str) -> None:
    assert facts.cites(source)


@pytest.mark.parametrize(
    "source",
    ["", "the paper", "tables", "see their README", "a tablet 4", "context 3", "3.2",
     "see the table a colleague sent", "we figure a gain matters", "the page I found", "the table I found",
     "the section a friend wrote", "in this section", "a method of ours", "we did experiments"],
)  # fmt: skip
def test_a_source_without_a_place_does_not(source: str) -> None:
    assert not facts.cites(source)


def test_sound_facts_give_no_finding() -> None:
    assert facts.sources(SOUND) + facts.claims(SOUND) + facts.datasets(SOUND, DATASETS) == []


@pytest.mark.parametrize(
    ("paper", "finding"),
    [
        (with_claim(source="the paper"), "claim C1 has the source 'the paper', which names no table"),
        (with_claim(source=" "), "claim C1 has no source"),
        (msgspec.structs.replace(SOUND, bibtex=""), "its bibtex is empty"),
        (msgspec.structs.replace(SOUND, protocols=()), "it declares no protocol"),
        (with_cell(source=""), "the cell 'table1/cifar10/other' has the value 1.0 and no source"),
        (with_cell(certainty="not found"), "has the value 1.0 and is 'not found'"),
        (with_cell(value=None), "is blank and its certainty 'paper'; write 'not found'"),
        (
            msgspec.structs.replace(
                SOUND,
                parameter_counts=(
                    ParameterCount(network="plain2", dataset="cifar10", parameters=1, certainty="paper", source=""),
                ),
            ),
            "the parameter count of plain2 on cifar10 has no source",
        ),
    ],
)
def test_a_number_without_source_is_named(paper: Any, finding: str) -> None:
    (found,) = facts.sources(paper)
    assert found.startswith("paper 'toy': ")
    assert finding in found


@pytest.mark.parametrize(
    ("paper", "finding"),
    [
        (with_claim(margin_reason=""), "claim C1 gives no margin_reason"),
        (with_claim(gain_margin=0.0), "by a margin of 0; declare the smallest gain"),
        (with_claim(value_margin=-1.0), "claim C1 has a negative margin"),
        (with_claim(not_tested="too dear"), "needs either comparisons or a reason"),
        (with_claim(alternatives=(*CLAIM.alternatives, ())), "has an empty alternative"),
        (toy_paper(claims=(CLAIM, CLAIM)), "'C1' stands twice"),
        (with_claim(alternatives=(), not_tested="too dear"), "none of its claims has comparisons"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_named(paper: Any, finding: str) -> None:
    assert any(finding in found for found in facts.claims(paper))


def test_a_comparison_may_have_a_margin_of_its_own() -> None:
    comparison = Comparison(left="a", right="b", margin=0.1)
    assert facts.claims(with_claim(gain_margin=0.0, alternatives=((comparison,),))) == []


def test_data_sets_must_be_published_and_smoke_data_embedded() -> None:
    paper = toy_paper(datasets=("cifar10", "mnist2d"), default_dataset={"smoke": "cifar10", "laptop": "cifar10"})
    found = "\n".join(facts.datasets(paper, DATASETS))
    assert "unknown data set 'mnist2d'; did you mean 'mnist1d'?" in found
    assert "tier 'full' has no default" in found
    assert "smoke tier runs on 'cifar10', which must be downloaded; take embedded data (mnist1d, mnist1d-pool)" in found


# ------------------------------------------------------------------------------------------------------------ plans


def test_a_cycle_and_a_missing_input_are_named() -> None:
    assert planning.cyclic({"a": (), "b": ("a",)}) == []
    assert "the plan has a cycle: " in planning.cyclic({"a": ("b",), "b": ("a",)})[0]
    assert "stage b takes the stage c that is not in the plan" in planning.cyclic({"b": ("c",)})[0]


def test_unequal_plans_name_the_stage() -> None:
    first = [("train", "1"), ("distil", "2")]
    assert planning.unequal(first, list(reversed(first)), "twice") == []
    (found,) = planning.unequal(first, [("train", "1"), ("distil", "3")], "planned twice")
    assert "stage 'distil' has the hash 2, then 3, planned twice" in found
    (found,) = planning.unequal(first, first[:1], "planned twice")
    assert "stage 'distil' is not there again" in found
    (found,) = planning.unequal(first, [*first, ("more", "4")], "planned twice")
    assert "2 stages, then 3" in found


def test_a_cell_that_nobody_measures_is_named_with_its_claim() -> None:
    plan = build_plan(toy_lab(SOUND), "all")
    assert planning.unmeasured(SOUND.claims, plan) == {}
    wrong = with_claim(
        alternatives=((Comparison(left="table1/{dataset}/distiled", right="table1/{dataset}/scratch"),),)
    )
    assert (
        "compares the cell 'table1/mnist1d/distiled', which the study" in planning.unmeasured(wrong.claims, plan)["C1"]
    )
    lost = with_claim(alternatives=((Comparison(left="{family}/a", right="{family}/b"),),))
    assert "the axis 'family' that the study does not declare" in planning.unmeasured(lost.claims, plan)["C1"]


def test_a_snapshot_sees_plain_state_and_nothing_else() -> None:
    module = ModuleType("snapped")
    exec(
        "RATE = 0.1\nWORDS = {'a': [1]}\nclass Thing:\n    size = 3\n    def call(self): ...\nTHING = Thing()",
        vars(module),
    )
    sys.modules["snapped"] = module
    try:
        module.Thing.__module__ = "snapped"
        before = elsewhere.snapshot(["snapped"])
        assert before == {"snapped.RATE": "0.1", "snapped.WORDS": "{'a': [1]}", "snapped.Thing.size": "3"}
        module.WORDS["a"].append(2)
        assert elsewhere.snapshot(["snapped"])["snapped.WORDS"] == "{'a': [1, 2]}"
    finally:
        del sys.modules["snapped"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("{}", "{'a': 1}"), ("{'a': 1}", "{'a': 1, 'b': 2}"), ("[]", "[1]"), ("set()", "{1}"), ("{1}", "{1, 2}")],
)
def test_a_table_that_is_filled_when_needed_is_no_change(old: str, new: str) -> None:
    assert elsewhere.filled(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [("{'a': 1}", "{'a': 2, 'b': 2}"), ("{'a': 1}", "{}"), ("[1]", "[1, 2]"), ("1.0", "0.5"), ("None", "0.5"),
     ("'a'", "'ab'"), ("{}", "[1]"), ("inf", "1.0")],
)  # fmt: skip
def test_a_value_that_became_another_is_a_change(old: str, new: str) -> None:
    assert not elsewhere.filled(old, new)


def test_the_clean_reading_chooses_nothing_on_test() -> None:
    def specs(**changes: Any) -> list[Spec]:
        lab = toy_lab(SOUND)
        recipe = msgspec.structs.replace(RECIPE, selection=changes.get("selection", "last"))
        objective = Distillation(temperature=4.0, alpha=0.9, reduction=changes.get("reduction", "batchmean"))
        teacher = lab.train(TEACHER, seed=0, recipe=RECIPE)
        trials = [
            lab.distil(STUDENT, teacher, seed=0, recipe=recipe, objective=objective, restart=restart)
            for restart in range(2)
        ]
        chosen = lab.choose(trials, by=changes.get("by", "validation"))
        return [node.spec for node in (teacher, *trials, chosen)]

    assert clean.unclean(specs()) == []
    assert len(clean.unclean(specs(selection="test"))) == 2
    (found,) = clean.unclean(specs(by="test"))
    assert found.startswith("selection on test at protocol clean: stage 'best of 2")
    assert "the 'mean' KL at protocol clean: stage 'distil" in clean.unclean(specs(reduction="mean"))[0]


def test_every_tier_must_be_clean_and_a_fault_is_told_once() -> None:
    def at(selection: str) -> SimpleNamespace:
        recipe = msgspec.structs.replace(RECIPE, selection=selection)
        spec = toy_lab(SOUND).train(TEACHER, seed=0, recipe=recipe).spec
        return SimpleNamespace(specs={spec.hash: spec})

    def found(**tiers: str) -> list[str]:
        def plan(protocol: str, claims: str, tier: str) -> SimpleNamespace:
            if tier not in tiers:
                raise KdbenchError("nothing at this tier")
            return at(tiers[tier])

        return clean.everywhere(SimpleNamespace(plan=plan))

    assert found(smoke="last", laptop="last", full="last") == found(smoke="last") == []
    (laptop,) = found(smoke="last", laptop="test", full="test")
    assert laptop.endswith("(tier laptop)")
    (smoke,) = found(smoke="test", laptop="test")
    assert "(tier" not in smoke


# ------------------------------------------------------------------------------------------------------- components


class Fine(Component, frozen=True):
    """Keeps what it is given, or refuses it."""

    rate: float = 0.5
    size: int = 2
    words: tuple[str, ...] = ("a",)

    def __post_init__(self) -> None:
        if self.size % 2:
            raise ValueError("even sizes only")


class Dropping(Stage, frozen=True):
    """Forgets one of its parameters."""

    inner: Fine = Fine()
    rate: float = 0.5

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "rate", 0.5)


def spec_of(stage: Stage) -> Spec:
    return Spec(
        stage=pack(stage), seed=0, tier="smoke", device="cpu", threads=1, code="", data=toy_data(), inputs={}, label="x"
    )


def test_a_parameter_that_is_forgotten_is_named() -> None:
    (found,) = components.unhashed([spec_of(Dropping())])
    assert "the hash ignores the parameter 'rate' of Dropping" in found
    assert "comes back as 0.5" in found
    plan = build_plan(toy_lab(SOUND), "all")
    assert components.unhashed(plan.specs.values()) == []


class Halves(Component, frozen=True):
    """Takes the values that it has, and no other."""

    share: float = 0.5
    count: int = 1
    zero: int = 0
    exact: bool = True

    def __post_init__(self) -> None:
        if (self.share, self.count, self.zero, self.exact) != (0.5, 1, 0, True):
            raise ValueError("as in the paper")


class Deriving(Stage, frozen=True):
    """One field follows the others."""

    lr: float = 0.5
    epochs: int = 4
    total: float = 0.0
    inner: Halves = Halves()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "total", self.lr * self.epochs)


def test_a_field_that_allows_one_value_or_follows_from_the_others_is_no_parameter() -> None:
    assert components.unhashed([spec_of(Deriving())]) == []


def test_leaves_are_the_plain_values_with_their_paths() -> None:
    packed = pack(Dropping())
    assert [path for path, _ in components.leaves(packed)] == [("rate",)]
    nested = [path for path, _ in components.leaves(packed, nested=True)]
    assert nested == [("inner", "rate"), ("inner", "size"), ("inner", "words", 0), ("rate",)]
