"""How many seeds a run has: what was asked for, else what the paper says, else the framework's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_paper import toy_paper

from kdbench.api import DEFAULT_SEEDS, prepare
from kdbench.errors import KdbenchError
from kdbench.paper import TIERS
from kdbench.plugins import registry

OWN = {"smoke": 2, "laptop": 3}


def seeds_of(monkeypatch: pytest.MonkeyPatch, store: Path, declared: dict[str, int], **how: Any) -> tuple[int, ...]:
    monkeypatch.setitem(registry().found["papers"], "toy", toy_paper(default_seeds=declared))
    return prepare("toy", store=store, device="cpu", fetch=False, **how).plan.lab.seeds


@pytest.mark.parametrize(("tier", "count"), [("smoke", 2), ("laptop", 3), ("full", DEFAULT_SEEDS["full"])])
def test_a_paper_says_how_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tier: str, count: int) -> None:
    assert seeds_of(monkeypatch, tmp_path, OWN, tier=tier) == tuple(range(count))


@pytest.mark.parametrize("tier", TIERS)
def test_a_paper_that_does_not_has_the_frameworks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tier: str) -> None:
    assert seeds_of(monkeypatch, tmp_path, {}, tier=tier) == tuple(range({"smoke": 1}.get(tier, 5)))


def test_whoever_asks_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert seeds_of(monkeypatch, tmp_path, OWN, tier="smoke", seeds=4) == (0, 1, 2, 3)
    assert seeds_of(monkeypatch, tmp_path, OWN, tier="smoke", seeds=(7, 3)) == (7, 3)
    with pytest.raises(KdbenchError, match="at least 1"):  # none is not the paper's own
        seeds_of(monkeypatch, tmp_path, OWN, tier="smoke", seeds=0)
