"""How often verdicts are wrong: simulated studies with a known truth, at its least favourable place.

Every test with a level of 5 % is held against the 99.9 % quantile of the binomial, so that a rule that keeps its level
fails once in a thousand seeds of the generator (which is fixed), and one that forgets Holm's correction, pairs the
wrong seeds or takes the wrong side fails for sure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from kdbench.paper import Claim, Comparison, ReportedCell
from kdbench.verdict import judge

STUDIES, SEEDS, MARGIN = 600, 5, 0.5
ALLOWED = stats.binom.ppf(0.999, STUDIES, 0.05) / STUDIES


def facts(shape: Sequence[int], relation: str = "greater") -> Claim:
    """A claim with ``shape[i]`` comparisons in alternative i, each between cells of its own."""
    return Claim(
        id="C1", title="t", sentence="s", source="Table 1", certainty="paper", gain_margin=MARGIN, value_margin=MARGIN,
        alternatives=tuple(
            tuple(Comparison(left=f"{i}/{j}/left", right=f"{i}/{j}/right", relation=relation) for j in range(size))
            for i, size in enumerate(shape)
        ),
    )  # fmt: skip


def words(shape: Sequence[int], gain: float, relation: str = "greater", noise: float = 0.4) -> dict[str, float]:
    """Share of each gain word over the studies, where every comparison's true gain is ``gain``."""
    claim = facts(shape, relation)
    dice = np.random.default_rng(20240229)
    pairs = [(c.left, c.right) for alternative in claim.alternatives for c in alternative]
    # Seeds share some luck between the two cells, as weights initialised alike do: this is what pairing takes out.
    luck = dice.normal(60.0, 1.0, (STUDIES, len(pairs), SEEDS))
    left = luck + gain + dice.normal(0.0, noise, luck.shape)
    right = luck + dice.normal(0.0, noise, luck.shape)
    count: dict[str, int] = {}
    for study in range(STUDIES):
        samples = {}
        for k, (ours, theirs) in enumerate(pairs):
            samples[ours] = dict(enumerate(left[study, k].tolist()))
            samples[theirs] = dict(enumerate(right[study, k].tolist()))
        word = judge(claim, samples, {}, scale="toy", seeds=SEEDS).gain_word
        count[word] = count.get(word, 0) + 1
    return {word: number / STUDIES for word, number in count.items()}


SHAPES = pytest.mark.parametrize("shape", [(1,), (3,), (1, 1, 1), (2, 1)], ids=["single", "and", "or", "or-of-ands"])


@SHAPES
def test_without_an_effect_few_claims_are_supported(shape: tuple[int, ...]) -> None:
    share = words(shape, gain=0.0)
    assert share.get("supported", 0.0) + share.get("smaller than the margin", 0.0) <= ALLOWED


@SHAPES
def test_with_a_gain_of_just_the_margin_few_claims_are_contradicted(shape: tuple[int, ...]) -> None:
    share = words(shape, gain=MARGIN)
    assert share.get("contradicted", 0.0) + share.get("smaller than the margin", 0.0) <= ALLOWED


def test_a_loss_of_just_the_margin_is_seldom_called_not_worse() -> None:
    share = words((1,), gain=-MARGIN, relation="not_worse")
    assert share.get("supported", 0.0) + share.get("smaller than the margin", 0.0) <= ALLOWED


@SHAPES
def test_a_large_effect_is_found(shape: tuple[int, ...]) -> None:
    assert words(shape, gain=2.0, noise=0.25).get("supported", 0.0) > 0.95


@SHAPES
def test_a_large_effect_the_other_way_is_found(shape: tuple[int, ...]) -> None:
    assert words(shape, gain=-2.0, noise=0.25).get("contradicted", 0.0) > 0.95


@pytest.mark.parametrize(
    ("truth", "wrong"),
    [
        (-MARGIN, "reproduced"), (MARGIN, "reproduced"), (MARGIN, "exceeds"), (-MARGIN, "not reproduced"),
    ],
)  # fmt: skip
def test_a_value_just_at_the_margin_is_seldom_decided(truth: float, wrong: str) -> None:
    claim = facts((1,))
    paper = {"0/0/left": ReportedCell(cell="0/0/left", value=60.0, certainty="paper", source="Table 1")}
    values = np.random.default_rng(7).normal(60.0 + truth, 0.2, (STUDIES, SEEDS)).tolist()
    found = 0
    for study in values:
        samples = {"0/0/left": dict(enumerate(study)), "0/0/right": {0: 60.0}}
        found += judge(claim, samples, paper, scale="paper", seeds=SEEDS).value_word == wrong
    assert found / STUDIES <= ALLOWED
    assert found > 0  # at the edge the level is used up: a test that never decides would be no test


@pytest.mark.parametrize("cells", [2, 5])
def test_several_values_just_at_the_margin_are_seldom_called_not_reproduced(cells: int) -> None:
    """The claim as a whole is held at 5 %: without a correction five cells would be wrong in a fifth of the studies."""
    names = [f"0/{cell}/{side}" for cell in range(3) for side in ("left", "right")][:cells]
    claim = facts((3,))
    paper = {name: ReportedCell(cell=name, value=60.0, certainty="paper", source="Table 1") for name in names}
    values = np.random.default_rng(11).normal(60.0 - MARGIN, 0.2, (STUDIES, 6, SEEDS)).tolist()
    found = 0
    for study in values:
        samples = {cell: dict(enumerate(study[i])) for i, cell in enumerate(claim.cells())}
        found += judge(claim, samples, paper, scale="paper", seeds=SEEDS).value_word == "not reproduced"
    assert found / STUDIES <= ALLOWED
    assert found > 0


def test_without_an_effect_the_level_is_used_up() -> None:
    """The p of a single comparison is exact: at the edge it is uniform, not merely cautious."""
    share = words((1,), gain=0.0)
    supported = share.get("supported", 0.0) + share.get("smaller than the margin", 0.0)
    assert supported >= stats.binom.ppf(0.001, STUDIES, 0.05) / STUDIES
