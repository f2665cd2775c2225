"""The study without the libraries of its extra, in another process, and run from end to end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from vid_plans import PLANS, PROTOCOLS, measured, planned

from kdbench import reproduce
from kdbench.api import prepare
from kdbench_vidlankd import study
from kdbench_vidlankd.study import EXTRA

for extra in ("transformers", "tokenizers", "sklearn"):
    pytest.importorskip(extra, reason="needs kdbench-vidlankd[bert]")


@pytest.fixture(params=["transformers", "tokenizers", "sklearn"])
def bare(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the extra's libraries is not installed."""
    monkeypatch.setattr(study, "find_spec", lambda name: None if name == request.param else find_spec(name))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("tier", "dataset"), [("smoke", "unspoken"), ("full", "howto100m")])
def test_without_the_extra_no_claim_is_tested_and_nothing_is_planned(
    bare: None, tier: str, dataset: str, protocol: str
) -> None:
    for claims in ("core", "all"):
        plan = prepare(
            "vidlankd", tier=tier, dataset=dataset, protocol=protocol, claims=claims, device="cpu", fetch=False
        ).plan
        assert (plan.specs, plan.measurements) == ({}, ())
        assert {claim.not_tested for claim in plan.claims if claim.cells()} == {EXTRA}
        assert all(claim.not_tested for claim in plan.claims)


def test_the_reason_names_the_extra_that_has_the_libraries() -> None:
    assert EXTRA == "not run: install kdbench-vidlankd[bert]"
    wanted = [line for line in requires("kdbench-vidlankd") or [] if re.search(r"extra == ['\"]bert['\"]", line)]
    assert {re.split(r"[ >=;<]", line)[0] for line in wanted} == {"transformers", "tokenizers", "scikit-learn"}


def test_a_run_without_the_extra_finishes_and_says_what_to_install(bare: None, tmp_path: Path) -> None:
    result = reproduce("vidlankd", tier="smoke", claims="all", executor="inline", store=tmp_path)
    assert result.complete, result.run.failures
    assert (result.run.stages, result.run.values) == ((), ())
    assert set(result.verdicts()["gain"]) == {"not tested"}


NO_TORCH = """
import json, sys
from kdbench.api import prepare
found = {}
for tier, dataset in json.loads(sys.argv[1]):
    for protocol in ("clean", "released"):
        plan = prepare("vidlankd", tier=tier, dataset=dataset, protocol=protocol, claims="all", seeds=1, device="cpu",
                       fetch=False).plan
        found[f"{tier} {dataset} {protocol}"] = sorted(plan.specs)
heavy = [name for name in ("torch", "transformers", "tokenizers", "sklearn") if name in sys.modules]
print(json.dumps({"plans": found, "heavy": heavy}))
"""


def test_every_plan_is_built_without_heavy_imports_and_is_the_same_in_another_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, json.dumps(PLANS)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    assert len(found["plans"]) == 2 * len(PLANS)
    for name, hashes in found["plans"].items():
        tier, dataset, protocol = name.split()
        assert hashes == sorted(planned(tier, dataset=dataset, protocol=protocol).plan.specs), name


# ----------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_arm_runs(small_world: None, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smoke tier with less text and fewer clips still."""
    monkeypatch.setattr(study, "VOKENS", {"voken": 8, "voken-many": 64})
    result = reproduce(
        "vidlankd", tier="smoke", protocol=protocol, claims="all", executor="inline", seeds=1, store=tmp_path
    )
    assert result.complete, result.run.failures
    values = {value.cell: value.value for value in result.run.values}
    assert None not in values.values()
    assert len(values) == len(measured(planned("smoke", protocol=protocol).plan))
    for cell, value in values.items():
        if not cell.endswith(("/mlm", "/collapse")):
            assert 0.0 <= float(value or 0.0) <= 100.0, cell
