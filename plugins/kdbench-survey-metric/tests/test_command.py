"""``kdbench score RUN...``: the ranking, its refusals and its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from survey_runs import GOOD, PLAIN, TEACHER, Planted, answers, family

import kdbench.cli

Score = Callable[..., str]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planted:
    monkeypatch.setenv("KDBENCH_STORE", str(tmp_path / "store"))
    return Planted(tmp_path / "store")


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str]) -> Score:
    """Run the command in this process; what it says on standard output, or the one line of its error."""

    def run(*args: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as exit:
            kdbench.cli.main(["score", *args])
        out, err = capsys.readouterr()
        assert exit.value.code == status, out + err
        if not status:
            assert err == ""
            return out
        (line,) = err.splitlines()
        assert line.startswith("kdbench: error: ")
        assert "internal error" not in line
        return line.removeprefix("kdbench: error: ")

    return run


def cells(out: str) -> dict[str, list[str]]:
    """The table's rows by name; names of tests have no spaces but the two that every table has."""
    header = next(line for line in out.splitlines() if "DS-chance" in line)
    rows = {}
    for line in out.splitlines()[out.splitlines().index(header) + 2 :]:
        if line.startswith("DS at alpha"):
            break
        name, _, rest = line.replace("constant predictor", "constant").replace(" (teacher)", "").partition("  ")
        rows[name] = rest.split()
    return rows


def said(out: str) -> str:
    """The text without the breaks of its lines."""
    return " ".join(out.split())


def test_students_are_ranked_beside_the_teacher_and_the_constant_predictor(planted: Planted, score: Score):
    """good: .5 * .2 + .5 * (1 - 8/9) = .1556; small .05: .025 + .5 * (1 - 55/90); large .6: .3 + .5 * (1 - 77/90)."""
    out = score(family(planted))
    rows = cells(out)
    assert list(rows) == ["t/good", "t/small", "constant", "t/large", "train big"]
    assert rows["t/good"][:4] == ["1", "0.2000", "80.00", "0.1556"]
    assert rows["t/good"][7:] == ["0.2000", "+0.0556", "0.50", "yes"]
    assert rows["t/small"][:4] == ["2", "0.0500", "55.00", "0.2194"]
    assert rows["t/small"][7:] == ["0.3750", "unknown", "unknown", "yes"]
    assert rows["t/large"][:4] == ["3", "0.6000", "77.00", "0.3722"]
    assert rows["t/large"][-1] == "no"
    assert rows["constant"] == ["0.0000", "40.00", "0.2778", "0.5000"]
    assert rows["train big"] == ["1.0000", "90.00", "0.5000", "0.5000"]
    low, word, high = rows["t/good"][4:7]
    assert word == "to"
    assert float(low) < 0.1556 < float(high)


def test_the_winner_is_shown_for_every_alpha(planted: Planted, score: Score):
    """good and small change places at dq/(dq + dr), dq = 25/90 and dr = .15."""
    assert "Lowest score by alpha: t/good up to 0.6494, t/small up to 1 " in said(score(family(planted)))
    assert pytest.approx(0.6494, abs=5e-5) == 25 / 90 / (25 / 90 + 0.15)


def test_the_notes_say_what_must_be_known(planted: Planted, score: Score):
    out = said(score(family(planted)))
    for note in (
        "accuracies are averaged over seeds before ratios are taken; a report's scores are means over seeds",
        "size in parameters",
        "Planted, split test, tier smoke, protocol clean",
        "mean over n = 2 seeds",
        "100 test examples",
        "the largest class is 40 %",
        "t/small, t/large: dDS and gap closed unknown: its accuracy without a teacher is not known",
        "t/large: always answering the largest class scores better (0.2778)",
        "only 2 seeds: the 95 % interval is 9.2 times that of the draws, and rough",
    ):
        assert note in out


def test_scores_that_the_data_does_not_tell_apart_are_named(planted: Planted, score: Score):
    teacher = planted.stage("train big", TEACHER, network="big", parameters=1000)
    one = {
        name: {0: planted.distilled(name, classes, teacher, network=name, parameters=size)}
        for name, classes, size in (("a", GOOD, 100), ("b", answers(36, 25, 14, 4), 100), ("c", PLAIN, 900))
    }
    out = said(score(planted.run("one", one)))
    assert "at 95 % not told apart from a: b note" in out


def test_long_names_are_never_cut_short(planted: Planted, score: Score):
    """Two names that differ at their ends alone would pass for one."""
    teacher = planted.stage("train big", TEACHER, network="big", parameters=1000)
    names = [f"table1/{'a-very-long-name' * 4}/{end}" for end in "xy"]
    run = planted.run("one", {n: {0: planted.distilled(n, GOOD, teacher, network=n, parameters=9)} for n in names})
    out = score(run)
    assert "…" not in out
    shown = "".join(line.split("  ")[0].strip() for line in out.partition("─\n")[2].splitlines())
    assert shown.startswith("".join(names))


def test_ties_are_ties(planted: Planted, score: Score):
    teacher = planted.stage("train big", TEACHER, network="big", parameters=1000)
    twins = {name: {0: planted.distilled(name, GOOD, teacher, network=name, parameters=200)} for name in ("t/b", "t/a")}
    worse = {"t/c": {0: planted.distilled("c", PLAIN, teacher, network="c", parameters=200)}}
    out = score(planted.run("one", {**twins, **worse}))
    assert {name: row[0] for name, row in cells(out).items() if name.startswith("t/")} == {
        "t/a": "1=",
        "t/b": "1=",
        "t/c": "2",
    }
    assert "t/a and t/b tie" in out
    assert "Lowest score by alpha: t/a = t/b up to 1" in out


def test_alpha_and_level(planted: Planted, score: Score):
    """alpha 0 counts accuracy alone, 1 counts size alone."""
    run = family(planted)
    assert {name: row[3] for name, row in cells(score(run, "--alpha", "0")).items() if name == "t/good"} == {
        "t/good": "0.1111"
    }
    assert cells(score(run, "--alpha", "1"))["t/small"][0] == "1"
    wide, narrow = (cells(score(run, "--level", level))["t/good"][4:7] for level in ("95", "90"))
    assert float(wide[0]) < float(narrow[0]) < float(narrow[2]) < float(wide[2])


def test_other_units_of_size(planted: Planted, score: Score):
    sizes = {"nonzero_parameters": 500, "bytes": 4000, "macs": 9000}
    teacher = planted.stage("train big", TEACHER, network="big", parameters=1000, **sizes)
    pruned = {"nonzero_parameters": 50, "bytes": 2000, "macs": 3000}
    student = planted.distilled("a", GOOD, teacher, network="a", parameters=1000, **pruned)
    run = planted.run("one", {"t/a": {0: student}})
    for unit, ratio, word in (
        ("parameters", "1.0000", "parameters"),
        ("nonzero", "0.1000", "nonzero parameters"),
        ("bytes", "0.5000", "bytes"),
        ("macs", "0.3333", "MACs"),
    ):
        out = score(run, "--size-unit", unit)
        assert cells(out)["t/a"][1] == ratio
        assert f"size in {word};" in out


def test_json_has_everything(planted: Planted, score: Score):
    found = json.loads(score(family(planted), "--json", "--level", "90"))
    assert found["source"] == ["one"]
    assert (found["alpha"], found["size_unit"], found["level"]) == (0.5, "parameters", 90)
    assert (found["dataset"], found["split"], found["seeds"], found["examples"]) == ("Planted", "test", [0, 1], 100)
    rows = {row["name"]: row for row in found["rows"]}
    assert {row["kind"] for row in rows.values()} == {"student", "teacher", "constant"}
    good = rows["t/good"]
    assert good["score"] == {"type": "known", "value": pytest.approx(0.1 + 0.5 / 9), "warnings": []}
    assert good["chance_adjusted"]["value"] == pytest.approx(0.2)
    assert good["worst_class"]["value"] == pytest.approx(0.1 + 0.5 * (1 - 5 / 8))
    assert good["gain"]["value"] == pytest.approx(0.5 / 9)
    assert good["gap_closed"]["value"] == pytest.approx(0.5)
    assert good["front"] == "yes"
    interval = good["intervals"]["score"]
    assert interval["low95"] <= interval["low90"] < interval["estimate"] < interval["high90"] <= interval["high95"]
    assert rows["t/small"]["behind_first"]["estimate"] == pytest.approx(0.025 + 0.5 * 35 / 90 - 0.1 - 0.5 / 9)
    assert rows["t/small"]["gain"]["type"] == "unknown"
    assert "without a teacher is not known" in rows["t/small"]["gain"]["reason"]
    assert found["crossovers"] == [pytest.approx(25 / 90 / (25 / 90 + 0.15))]
    assert [segment["winners"] for segment in found["winners"]] == [["t/good"], ["t/small"]]
    assert found["front"]["dominated"] == {"t/large": "t/good"}


def test_two_calls_say_the_same(planted: Planted, score: Score):
    run = family(planted)
    assert score(run, "--json") == score(run, "--json") == score(run, run, "--json")


def test_several_runs_of_one_teacher(planted: Planted, score: Score):
    family(planted)
    teacher = {seed: planted.stage("train big", TEACHER, seed=seed, parameters=1000, network="big") for seed in (0, 1)}
    more = {s: planted.distilled("new", PLAIN, teacher[s], seed=s, network="new", parameters=10) for s in (0, 1)}
    planted.run("two", {"u/new": more})
    assert [name for name in cells(score("one", "two")) if "/" in name] == ["u/new", "t/good", "t/small", "t/large"]


# Refusals


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tier": "laptop"}, "the runs differ in tier: smoke and laptop [runs 'one' and 'two']"),
        ({"protocol": "written"}, "the runs differ in protocol: clean and written [runs 'one' and 'two']"),
        ({"dataset": "other"}, "the runs differ in data set: planted and other [runs 'one' and 'two']"),
        ({"fingerprint": "0" * 64}, "the runs were made on different data: fingerprints ffffffffffff and 000000000000"),
    ],
)
def test_runs_that_do_not_compare(planted: Planted, score: Score, change: dict[str, Any], reason: str):
    family(planted)
    planted.run("two", {}, **change)
    assert score("one", "two", status=1).startswith(reason)


def test_runs_of_different_teachers(planted: Planted, score: Score):
    family(planted)
    teacher = planted.stage("train other", TEACHER, network="other")
    planted.run("two", {"t/a": {0: planted.distilled("distil mid", GOOD, teacher, network="mid")}})
    assert score("one", "two", status=1).startswith("the runs have no teacher in common: 'train big'")


def two_teachers(planted: Planted) -> str:
    large = planted.stage("train big", TEACHER, parameters=1000, network="big")
    mid = planted.distilled("distil mid", GOOD, large, parameters=200, network="mid")
    second = planted.distilled("distil small", PLAIN, mid, parameters=50, network="small")
    return planted.run("one", {"t/mid": {0: mid}, "t/second": {0: second}})


def test_a_run_with_several_teachers_lists_them_and_takes_one(planted: Planted, score: Score):
    run = two_teachers(planted)
    listed = score(run, status=1)
    assert listed.startswith("there are 2 teachers, and a score compares students of one [one]; name it with --teacher")
    assert "'train big' (" in listed
    assert "measured as t/mid): 1 student" in listed
    assert [name for name in cells(score(run, "--teacher", "t/mid")) if name.startswith("t/")] == ["t/second"]
    assert [name for name in cells(score(run, "--teacher", "train big")) if name.startswith("t/")] == ["t/mid"]
    assert score(run, "--teacher", "t/mit", status=1).startswith("unknown teacher 't/mit'; did you mean 't/mid'?")


def test_an_unknown_run_is_named(planted: Planted, score: Score):
    family(planted)
    assert score("once", status=1).startswith("unknown run 'once'; did you mean 'one'?")


def test_another_store(planted: Planted, score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = family(planted)
    monkeypatch.setenv("KDBENCH_STORE", str(tmp_path / "nowhere"))
    assert score(run, status=1).startswith("unknown run 'one'")
    assert "t/good" in cells(score(run, "--store", str(planted.store.root)))


def test_a_teacher_that_is_always_wrong(planted: Planted, score: Score):
    teacher = planted.stage("train big", answers(), network="big")
    run = planted.run("one", {"t/a": {0: planted.distilled("a", GOOD, teacher, network="a")}})
    assert score(run, status=1).startswith("teacher accuracy is 0, not above 0 [teacher 'train big']")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "name runs or a --table; 'kdbench runs' lists those in the store"),
        (("one", "--table", "numbers.csv"), "name runs or a --table"),
        (("one", "--accuracy-unit", "percent"), "--accuracy-unit is for a --table"),
        (("one", "--majority", "0.1"), "--majority is for a --table"),
        (("--table", "numbers.csv", "--level", "90"), "--level is for runs"),
        (("--table", "numbers.csv", "--store", "here"), "--store is for runs"),
        (("one", "--size-unit", "layers"), "Invalid value for '--size-unit': 'layers' is not one of"),
        (("one", "--level", "99"), "Invalid value for '--level': '99' is not one of"),
        (("one", "--alpha", "half"), "Invalid value for '--alpha': 'half' is not a valid float"),
        (("one", "--tier", "smoke"), "No such option"),
    ],
)
def test_wrong_use(planted: Planted, score: Score, args: tuple[str, ...], message: str):
    line = score(*args, status=2)
    assert line.startswith(message)
    assert "see 'kdbench score --help'" in line


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        ("1.5", "alpha is 1.5, outside [0, 1]"),
        ("-0.1", "alpha is -0.1, outside [0, 1]"),
        ("nan", "alpha is nan, not a finite number"),
    ],
)
def test_alpha_is_a_weight(planted: Planted, score: Score, alpha: str, message: str):
    assert score(family(planted), "--alpha", alpha, status=1).startswith(message)


# As installed


def test_the_installed_command_scores_a_run(planted: Planted, score: Score):
    """In a process of its own, the command says the same to the last byte, and a refusal is JSON too."""
    run = family(planted)
    here = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kdbench", "score", *args],
            env={**os.environ, "PYTHONPATH": here},  # the data is loaded by a module of these tests
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = command(run, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout == score(run, "--json")
    refused = command(run, "--alpha", "2", "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["what"] == "alpha is 2, outside [0, 1]"


def test_help_needs_no_numbers():
    """Listing the command costs nothing: neither torch nor numpy is imported."""
    code = "import sys, kdbench.cli\ntry: kdbench.cli.main(['score', '--help'])\nexcept SystemExit: pass\n"
    code += "print('numpy' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "Rank students of one teacher" in done.stdout, done.stderr
    assert done.stdout.split()[-2:] == ["False", "False"]
