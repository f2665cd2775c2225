"""The conformance kit catches planted faults: each makes the test fail that is about it, by name, and no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from disguised_faults import DISGUISED
from distributions import on_path
from faults import FAULTS as PLAIN
from faults import HEALTHY, Fault, plant
from honest import HONEST

from kdbench.plugins import ALLOW
from kdbench.testing import conformance

FAULTS = {**PLAIN, **DISGUISED}


class Outcome(NamedTuple):
    """What became of one test of one paper: ``passed``, ``failed`` or ``skipped``, and what it said."""

    word: str
    message: str


Outcomes = dict[str, dict[str, Outcome]]
"""By paper, then by test."""


SELECTION = """\
# Trains nothing for papers whose fault shows in what they declare.
def pytest_collection_modifyitems(config, items):
    skipped = [item for item in items if "kdbench_runs" in item.fixturenames and _paper(item) not in TRAINED]
    config.hook.pytest_deselected(items=skipped)
    items[:] = [item for item in items if item not in skipped]

def _paper(item):
    return item.callspec.params.get("kdbench_paper")
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """The conformance tests of the healthy paper and of every faulty one, installed side by side, in one session."""
    folder = tmp_path_factory.mktemp("faults")
    site = folder / "site"
    plant(site, HEALTHY)
    plant(site, "honest", HONEST)
    for name, fault in FAULTS.items():
        plant(site, name, fault.edits)
    trained = {HEALTHY, "honest", *(name for name, fault in FAULTS.items() if fault.trained)}
    (site / "selection.py").write_text(f"TRAINED = {trained}\n{SELECTION}")
    plugins = ",".join(f"kdbench-{name}" for name in (HEALTHY, "honest", *FAULTS))
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "--pyargs", "kdbench.testing.conformance", "-n", "2", "-q"]
    command += ["-p", "selection", "-p", "no:cacheprovider", f"--basetemp={folder / 'tests'}", f"--junitxml={report}"]
    environment = {**os.environ, **on_path(site), ALLOW: plugins}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return read(report)


def read(report: Path) -> Outcomes:
    """Outcomes from a JUnit report."""
    found: Outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test, _, paper = case.attrib["name"].removesuffix("]").partition("[")
        outcome = Outcome("passed", "")
        for element in case:
            word = {"failure": "failed", "error": "failed", "skipped": "skipped"}.get(element.tag)
            if word:
                outcome = Outcome(word, f"{element.attrib.get('message', '')}\n{element.text or ''}")
        found.setdefault(paper.removeprefix("kdbench-"), {})[test] = outcome
    return found


def wrong(name: str, fault: Fault, found: dict[str, Outcome]) -> list[str]:
    """How the outcomes of one faulty paper differ from what its fault must do."""
    culprit = f"test_{fault.test}"
    says = fault.says.replace(f"kdbench_{HEALTHY}", f"kdbench_{name.replace('-', '_')}").replace(HEALTHY, name)
    outcome = found.get(culprit, Outcome("not collected", ""))
    complaints: list[str] = []
    if outcome.word != "failed":
        complaints.append(f"{name}: {culprit} {outcome.word}, it must fail")
    elif not re.search(says, outcome.message, re.DOTALL):
        complaints.append(f"{name}: {culprit} does not say {says!r} but: {outcome.message}")
    for test, other in found.items():
        excused = test == culprit or test.removeprefix("test_") in fault.also
        if other.word == "failed" and not excused:
            complaints.append(f"{name}: {test} fails too: {other.message}")
        if other.word == "skipped" and not (fault.skipped and fault.skipped in other.message):
            complaints.append(f"{name}: {test} is skipped: {other.message}")
    return complaints


def test_sound_papers_pass_every_test(outcomes: Outcomes) -> None:
    for name in (HEALTHY, "honest"):
        found = outcomes[name]
        assert set(found) == set(conformance.__all__)
        assert {test: outcome for test, outcome in found.items() if outcome.word != "passed"} == {}, name


# One test for all, so that one worker runs the session that they come from.
def test_every_planted_fault_fails_the_test_that_is_about_it_and_no_other(outcomes: Outcomes) -> None:
    assert len(FAULTS) >= 14
    complaints = [text for name, fault in FAULTS.items() for text in wrong(name, fault, outcomes.get(name, {}))]
    assert not complaints, "\n".join(complaints)


def test_every_conformance_test_catches_a_fault() -> None:
    assert {f"test_{fault.test}" for fault in FAULTS.values()} == set(conformance.__all__)
