"""Faults that show only when a plugin is used: in its study, a stage, a metric, its requirements, its ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from distributions import distribution
from in_process import inside, installed

from kdbench.networks import Plain

STUDY = """
from kdbench.paper import Claim, Comparison, Paper, Protocol
from kdbench import hookimpl
from kdbench.record import Outcome
from kdbench.stage import Stage

class Constant(Stage, frozen=True):
    number: float

    def run(self, work):
        import os
        if self.number < 0 and not os.environ.get("TOY_MENDED"):
            raise ArithmeticError("a negative number")
        return Outcome(metrics={"test.accuracy": self.number})

def paper(id, study):
    return Paper(
        id=id, title=f"A toy called {id}", authors="Nobody", venue="Nowhere", year=2026, url="https://example.org",
        bibtex="@misc{toy}", summary="More is better.", datasets=("mnist1d",),
        default_dataset={"smoke": "mnist1d", "laptop": "mnist1d", "full": "mnist1d"},
        protocols=(Protocol(id="clean", sentence="as meant"),),
        claims=(Claim(
            id="C1", title="More beats less", sentence="More is better.", source="Table 1", certainty="project",
            core=True, gain_margin=0.3,
            alternatives=((Comparison(left="table1/more", right="table1/less"),),),
        ),),
        study=study,
    )
"""
STAGE = f"""{STUDY}
def study(lab):
    for seed in lab.seeds:
        for name, number in (("more", 1.0), ("less", -1.0)):
            node = lab.stage(Constant(number=number), seed=seed, label=name)
            yield lab.measure(f"table1/{{name}}", node.accuracy, seed=seed)

@hookimpl
def kdbench_papers():
    yield paper("toystage", study)
"""
PLAN = f"""{STUDY}
def study(lab):
    yield from {{}}["table1"]

@hookimpl
def kdbench_papers():
    yield paper("toyplan", study)
"""
METRICS = """
from kdbench import hookimpl
from kdbench.metric import Metric

def size_ratio(subject):
    if subject.teacher is None:
        return None
    return subject.student.record.notes["parameters"] / subject.teacher.record.notes["parameters"]

def gain(subject):
    if subject.baseline is None:
        return None
    assert subject.baseline.record.notes["network"] == subject.student.record.notes["network"]
    return subject.student.record.metrics["test.accuracy"] - subject.baseline.record.metrics["test.accuracy"]

def wrong(subject):
    return subject.student.record.metrics["no such metric"]

def endless(subject):
    return float("inf")

def metric(id, compute):
    return Metric(id=id, title=id, unit="", better="lower", source="here", compute=f"kdbench_scores:{compute}")

@hookimpl
def kdbench_metrics():
    yield metric("size", "size_ratio")
    yield metric("gain", "gain")
    yield metric("wrong", "wrong")
    yield metric("endless", "endless")
    yield metric("absent", "nobody_wrote_this")
"""


def problems(*args, check=0):
    return {row["name"]: row["problem"] for row in json.loads(inside("plugins", "--json", *args, check=check).stdout)}


def test_a_stage_that_raises_is_named_until_it_runs(tmp_path, store, monkeypatch):
    with installed(distribution(tmp_path, "kdbench-stage", STAGE)):
        request = ("reproduce", "toystage", "--tier", "smoke", "--executor", "inline")
        done = inside(*request, check=3)
        assert "(plugin 'kdbench-stage')" in done.stdout
        assert "failed less seed 0: ArithmeticError: a negative number (at kdbench_stage.py:" in done.stdout
        found = problems("--check", check=1)
        assert found["kdbench-stage"].startswith("stage: less seed 0: ArithmeticError: a negative number")
        assert "[run toystage-smoke-mnist1d-clean-" in found["kdbench-stage"]
        assert found["takd"] == ""
        assert problems()["kdbench-stage"] == found["kdbench-stage"]

        monkeypatch.setenv("TOY_MENDED", "1")
        inside(*request, check=0)
        assert problems("--check")["kdbench-stage"] == ""


def test_a_study_that_raises_is_named_with_its_line_and_by_check(tmp_path, store):
    with installed(distribution(tmp_path, "kdbench-plan", PLAN)):
        line = PLAN[: PLAN.index("yield from {}")].count("\n") + 1
        done = inside("plan", "toyplan", check=1)
        assert done.stderr.startswith("kdbench: error: the study of 'toyplan' raised KeyError: 'table1' [")
        assert f"kdbench_plan.py:{line}]" in done.stderr
        assert "Traceback" in inside("plan", "toyplan", "--debug", check=1).stderr
        assert problems()["kdbench-plan"] == ""
        found = problems("--check", check=1)
        assert found["kdbench-plan"].startswith("plan of 'toyplan' (clean): the study of 'toyplan' raised KeyError")
        assert found["takd"] == ""


def test_a_reading_that_the_paper_does_not_have(tmp_path, store):
    with installed(distribution(tmp_path, "kdbench-stage", STAGE)):
        done = inside("plan", "toystage", "--protocol", "released", check=1)
        assert done.stderr == "kdbench: error: 'toystage' has no reading 'released'; its readings: clean\n"


@pytest.mark.slow
def test_metrics_stand_in_the_report_and_wrong_ones_are_named(tmp_path, store, monkeypatch):
    monkeypatch.setenv("KDBENCH_PLUGINS_ALLOW", "takd,kdbench-scores")  # others bring metrics too
    with installed(distribution(tmp_path, "kdbench-scores", METRICS)):
        request = ("reproduce", "takd", "--tier", "smoke", "--claims", "H3,H13", "--executor", "inline")
        plain = json.loads(inside("plan", *request[1:-2], "--json", check=0).stdout)
        done = inside(*request, check=0)
        assert "Scores: metrics of the measured networks" in done.stdout
        assert "size: size; lower is better; here; plugin 'kdbench-scores'" in done.stdout
        for name, said in (
            ("wrong", "KeyError: 'no such metric'"),
            ("endless", "ValueError: inf for "),
            ("absent", "KdbenchError: cannot load 'kdbench_scores:nobody_wrote_this'"),
        ):
            assert f"metric '{name}' of plugin 'kdbench-scores' failed: {said}" in done.stdout.replace("\n", " ")

        result = json.loads(inside(*request, "--json", check=0).stdout)
        assert {stage["hash"] for stage in result["stages"]} == {stage["hash"] for stage in plain["stages"]}
        scores = {score["cell"]: score["value"] for score in result["scores"] if score["metric"] == "size"}
        assert {score["metric"] for score in result["scores"]} == {"size", "gain"}
        values = {value["cell"]: value["value"] for value in result["values"]}
        gains = {score["cell"]: score["value"] for score in result["scores"] if score["metric"] == "gain"}
        for arm in ("BLKD", "TAKD"):
            apart = values[f"table1/cnn/mnist1d/{arm}"] - values["table1/cnn/mnist1d/NOKD"]
            assert gains[f"table1/cnn/mnist1d/{arm}"] == apart
        assert "table1/cnn/mnist1d/NOKD" not in gains  # it is the baseline
        student, teacher = (Plain(size=size, width=0.5).cost((1, 1, 40), 10).parameters for size in (2, 4))
        assert scores["fig2/mnist1d/T4"] == student / teacher
        assert "table1/cnn/mnist1d/NOKD" not in scores  # no teacher, no score
        found = problems()["kdbench-scores"]
        assert "metric 'wrong': KeyError: 'no such metric'" in found
        assert "metric 'endless': ValueError: inf" in found
        report = inside("report", result["id"], check=0).stdout
        assert "Scores: metrics of the measured networks" in report


def test_what_is_brought_twice_is_named_and_the_rest_is_kept(tmp_path, store):
    text = (
        "from kdbench import hookimpl\nfrom kdbench.metric import Metric\n\n"
        "def metric(id):\n"
        "    return Metric(id=id, title=id, unit='', better='lower', source='here', compute='a:b')\n\n"
        "@hookimpl\ndef kdbench_metrics():\n    return [metric(id) for id in {ids}]\n"
    )
    distribution(tmp_path, "kdbench-first", text.format(ids=["one", "two"]))
    with installed(distribution(tmp_path, "kdbench-second", text.format(ids=["zero", "one", "three"]))):
        rows = {row["name"]: row for row in json.loads(inside("plugins", "--json", check=0).stdout)}
        assert rows["kdbench-first"]["problem"] == ""
        assert rows["kdbench-second"]["provides"] == {"metrics": ["zero", "three"]}
        assert rows["kdbench-second"]["problem"] == (
            "kdbench_metrics: the metric 'one' is already provided by plugin 'kdbench-first'; uninstall one of the two"
        )


def test_two_distributions_with_one_plugin_name(tmp_path, store):
    distribution(tmp_path, "kdbench-first", "")
    distribution(tmp_path, "kdbench-second", "")
    for info in tmp_path.glob("*.dist-info"):
        text = (info / "entry_points.txt").read_text()
        (info / "entry_points.txt").write_text("[kdbench]\nsame = " + text.partition("= ")[2])
    with installed(tmp_path):
        rows = [row for row in json.loads(inside("plugins", "--json", check=0).stdout) if row["name"] == "same"]
        assert [row["state"] for row in rows] == ["loaded", "not loaded"]
        assert rows[1]["problem"].startswith("import: the name 'same' is already that of a plugin of kdbench-first")


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("nobodys>=2", "requirements: nobodys>=2 is required and not installed; pip install 'nobodys>=2'"),
        ("pluggy<0.1", "requirements: pluggy<0.1 is required, "),
        ("nobodys; extra == 'more'", ""),
        ("nobodys; python_version < '3'", ""),
        ("pluggy", ""),
    ],
)
def test_a_requirement_that_is_not_met(tmp_path, store, requirement, problem):
    distribution(tmp_path, "kdbench-needy", "")
    metadata = next(tmp_path.glob("*.dist-info")) / "METADATA"
    metadata.write_text(f"{metadata.read_text().rstrip()}\nRequires-Dist: {requirement}\n")
    with installed(tmp_path):
        found = problems("--check", check=1 if problem else 0)["kdbench-needy"]
        assert found.startswith(problem)
        assert bool(found) == bool(problem)


FIGURES = (
    STAGE.replace("-1.0", "2.0").replace("study=study,", "study=study, figures='kdbench_stage:{function}',")
    + """

def front(result):
    values = [value.value for value in result.run.values]
    return {"front": f"<svg><!-- {sorted(values)} --></svg>"}

def broken(result):
    raise ValueError("nothing to draw")
"""
)


def test_a_papers_figures_are_drawn_when_its_run_ends(tmp_path, store):
    with installed(distribution(tmp_path, "kdbench-stage", FIGURES.replace("{function}", "front"))):
        run = ("reproduce", "toystage", "--tier", "smoke", "--executor", "inline")
        result = json.loads(inside(*run, "--json", check=0).stdout)
        figure = Path(result["path"]) / "figures" / "front.svg"
        assert figure.read_text() == "<svg><!-- [1.0, 2.0] --></svg>"
        assert f"Figure: {figure}" in inside("report", result["id"], check=0).stdout
        inside("dossier", result["id"], "--out", str(tmp_path / "dossier"), check=0)
        page = (tmp_path / "dossier" / "README.md").read_text()
        assert "![front](records/smoke-mnist1d-clean/figures/front.svg)" in page
        assert (
            tmp_path / "dossier" / "records/smoke-mnist1d-clean/figures/front.svg"
        ).read_text() == figure.read_text()


def test_a_figure_that_cannot_be_drawn_costs_no_number(tmp_path, store):
    with installed(distribution(tmp_path, "kdbench-stage", FIGURES.replace("{function}", "broken"))):
        result = json.loads(
            inside("reproduce", "toystage", "--tier", "smoke", "--executor", "inline", "--json", check=3).stdout
        )
        assert [value["value"] for value in result["values"]] == [1.0, 2.0]
        (failure,) = result["failures"]
        assert (failure["label"], failure["plugin"]) == ("figures", "kdbench-stage")
        assert failure["cause"].startswith("drawing raised ValueError: nothing to draw [kdbench_stage:broken]")
