"""What a user gets: one smoke reproduction of TAKD, and every verb that reads it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from in_process import inside

import kdbench

CORE = ["H1", "H3", "H4", "H13"]
SMOKE = ("reproduce", "takd", "--tier", "smoke", "--seeds", "2")


class Smoke(NamedTuple):
    """The one reproduction of this module: where it is kept, its id, what it printed and what it says as JSON."""

    store: str
    run: str
    path: Path
    text: str
    result: dict


@pytest.fixture(scope="module")
def smoke(cli, tmp_path_factory):
    store = tmp_path_factory.mktemp("smoke")
    done = cli(*SMOKE, "--store", str(store), check=0)
    (path,) = (store / "runs").iterdir()
    result = json.loads(inside("report", path.name, "--store", str(store), "--json", check=0).stdout)
    return Smoke(str(store), path.name, path, done.stdout, result)


@pytest.fixture(scope="module")
def released(smoke):
    """A run in the same store that reads the recipe otherwise, made in this process."""
    options = ("--protocol", "released", "--claims", "H13", "--seeds", "1", "--executor", "inline", "--json")
    return json.loads(inside("reproduce", "takd", "--tier", "smoke", *options, "--store", smoke.store, check=0).stdout)


def one_line(text):
    return " ".join(text.split())


def reuse(text):
    stages, reused = re.search(r"(\d+) stages, (\d+) of them reused", text).groups()
    return int(stages), int(reused)


def imported(done):
    """Top-level modules in the output of ``-X importtime``."""
    return set(re.findall(r"\| +([\w.]+)$", done.stderr, flags=re.MULTILINE))


def timed(*args):
    command = [sys.executable, "-X", "importtime", "-m", "kdbench", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


# ------------------------------------------------------------------------------------------------ what reproduce says


def test_the_paper_stands_beside_what_was_measured(smoke):
    text = one_line(smoke.text)
    assert re.search(r"The paper: Table 1: .* cnn cifar10 70\.16 72\.57 73\.51", text)
    assert re.search(r"Measured: Table 1: .* cnn mnist1d \d+\.\d\d ± \d+\.\d\d", text)
    assert "mean ± sd over n = 2 seeds, %; MNIST-1D, tier smoke, protocol clean" in text


def test_every_core_claim_has_two_verdicts_with_statistics(smoke):
    assert re.findall(r"^  (H\d+\S*) ", smoke.text, flags=re.MULTILINE) == CORE
    verdicts = one_line(smoke.text).partition("Verdicts ")[2]
    assert len(re.findall(r"^     gain:  \w", smoke.text, flags=re.MULTILINE)) == len(CORE)
    assert verdicts.count("value: not comparable: the paper has no MNIST-1D; tier smoke is not the paper's") == len(
        CORE
    )
    assert re.search(r"90 % CI [+-]\d+\.\d\d to [+-]\d+\.\d\d, ?n=2", verdicts)
    assert "at this scale" in verdicts


def test_deviations_that_apply_are_shown_with_their_effect(smoke):
    applying = smoke.result["facts"]["deviations"]
    assert f"Deviations that apply ({len(applying)}; this run reads the recipe as 'clean')" in one_line(smoke.text)
    assert "scale-data" in {line["id"] for line in applying}
    for line in applying:
        assert f"{line['id']} {line['item']}: " in one_line(smoke.text)
        assert one_line(line["effect"]) in one_line(smoke.text)


def test_it_says_where_the_run_is_kept(smoke):
    assert f"\n{smoke.path}\n" in smoke.text
    assert f"kdbench report {smoke.run}" in smoke.text
    assert reuse(smoke.text) == (len(smoke.result["stages"]), 0)
    assert {path.name for path in (Path(smoke.store) / "stages").iterdir()} >= {
        stage["hash"] for stage in smoke.result["stages"]
    }


def test_output_that_is_no_terminal_has_no_progress_and_no_colour(cli, smoke):
    done = cli(*SMOKE, "--store", smoke.store, check=0)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_a_second_call_reuses_every_stage_without_torch(smoke):
    done = timed(*SMOKE, "--store", smoke.store)
    stages, reused = reuse(done.stdout)
    assert (stages, reused) == (len(smoke.result["stages"]), stages)
    assert "kdbench.api" in imported(done)
    assert "torch" not in imported(done)


def test_json_holds_verdicts_values_and_the_run(smoke):
    result = json.loads(inside(*SMOKE, "--store", smoke.store, "--json", check=0).stdout)
    assert Path(result["path"]).name == result["id"]
    assert (Path(smoke.store) / "runs" / result["id"] / "run.json").is_file()
    assert [verdict["claim"] for verdict in result["verdicts"]] == CORE
    assert result["values"] == smoke.result["values"]
    assert {value["seed"] for value in result["values"]} == {0, 1}
    assert result["status"] == "finished"
    assert all(stage["reused"] for stage in result["stages"])
    for field in ("kdbench", "torch", "processor", "ops", "code"):
        assert result["environment"][field]


# ---------------------------------------------------------------------------------------------------- the Python API


def test_the_api_returns_what_the_command_printed(smoke):
    result = kdbench.reproduce("takd", tier="smoke", seeds=2, executor="inline", store=smoke.store)
    assert result.complete
    assert all(stage.reused for stage in result.run.stages)
    table, verdicts = result.table(), result.verdicts()
    assert list(table.columns) == ["paper", "claim", "cell", "protocol", "tier", "seed", "metric", "value"]
    assert [(row.cell, row.seed, row.metric, row.value) for row in table.itertuples()] == [
        (value["cell"], value["seed"], value["metric"], value["value"]) for value in smoke.result["values"]
    ]
    assert set(table.paper) == {"takd"}
    assert set(table.protocol) == {"clean"}
    assert set(table.tier) == {"smoke"}
    assert "H3" in table[table.cell == "table1/cnn/mnist1d/TAKD"].claim.iloc[0].split(",")
    columns = {"claim": "claim", "gain": "gain_phrase", "value": "value_word", "sentence": "sentence"}
    assert verdicts[list(columns)].to_dict("records") == [
        {name: verdict[field] for name, field in columns.items()} for verdict in smoke.result["verdicts"]
    ]


# ------------------------------------------------------------------------------------------------- verbs that read it


def test_report_prints_the_same_page(smoke):
    assert inside("report", smoke.run, "--store", smoke.store, check=0).stdout == smoke.text


def test_report_takes_the_beginning_of_an_id_that_only_one_run_has(smoke, released):
    beginning = released["id"].partition("-released")[0] + "-rel"
    done = inside("report", beginning, "--store", smoke.store, "--json", check=0)
    assert json.loads(done.stdout)["id"] == released["id"]
    inside(*SMOKE, "--store", smoke.store, check=0)  # so that there are two of them
    done = inside("report", "takd-smoke-mnist1d-clean", "--store", smoke.store, check=1)
    assert re.search(r"fits \d+ runs; which of .*" + smoke.run, done.stderr)


def test_report_shows_every_comparison(smoke):
    text = one_line(inside("report", smoke.run, "--store", smoke.store, "--statistics", check=0).stdout)
    assert "p support" in text
    for verdict in smoke.result["verdicts"]:
        assert f"Statistics: {verdict['claim']}: {verdict['title']}" in text


def test_runs_lists_them(smoke, released):
    text = inside("runs", "--store", smoke.store, check=0).stdout
    line = next(line for line in text.splitlines() if line.startswith(smoke.run))
    assert "finished" in line
    assert "H13" in line
    rows = json.loads(inside("runs", "--store", smoke.store, "--json", check=0).stdout)
    assert {row["id"]: row["status"] for row in rows}[smoke.run] == "finished"
    assert {row["request"]["protocol"] for row in rows} == {"clean", "released"}


def test_a_run_compared_with_itself_is_equal_to_the_bit(smoke):
    text = one_line(inside("compare", smoke.run, smoke.run, "--store", smoke.store, check=0).stdout)
    assert "equal to the bit" in text
    data = json.loads(inside("compare", smoke.run, smoke.run, "--store", smoke.store, "--json", check=0).stdout)
    assert {row["cell"] for row in data["cells"]} == {value["cell"] for value in smoke.result["values"]}
    assert all(row["equal_bits"] == row["n"] == 2 and row["difference"] == 0 for row in data["cells"])
    assert data["differs"] == {}


def test_protocols_never_share_a_table(smoke, released):
    done = inside("compare", smoke.run, released["id"], "--store", smoke.store, check=1)
    assert "the runs differ in protocol (clean and released)" in done.stderr
    assert done.stdout == ""


def test_tiers_never_share_a_table(smoke, tmp_path):
    run = json.loads((smoke.path / "run.json").read_text())
    for name, tier in (("first", "smoke"), ("second", "laptop")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        run["request"]["tier"], run["id"] = tier, name
        (tmp_path / "runs" / name / "run.json").write_text(json.dumps(run))
    done = inside("compare", "first", "second", "--store", str(tmp_path), check=1)
    assert "the runs differ in tier (smoke and laptop)" in done.stderr


# ------------------------------------------------------------------------------------------------- options of the run


def test_claims_restrict_the_plan(store):
    plan = json.loads(inside("plan", "takd", "--tier", "smoke", "--claims", "H2,H5", "--json", check=0).stdout)
    whole = json.loads(inside("plan", "takd", "--tier", "smoke", "--claims", "all", "--json", check=0).stdout)
    assert plan["claims"] == ["H2", "H5"]
    hashes = {stage["hash"] for stage in plan["stages"]}
    assert hashes < {stage["hash"] for stage in whole["stages"]}
    assert not any("from plain10-plain4" in stage["label"] for stage in plan["stages"])


def test_claims_restrict_the_run(smoke):
    options = ("--claims", "H13", "--json", "--store", smoke.store)
    result = json.loads(inside(*SMOKE, *options, check=0).stdout)
    assert [verdict["claim"] for verdict in result["verdicts"]] == ["H13"]
    assert all(stage["reused"] for stage in result["stages"])
    assert len(result["stages"]) < len(smoke.result["stages"])
    whole = {(value["cell"], value["seed"]): value["value"] for value in smoke.result["values"]}
    assert {(v["cell"], v["seed"]): v["value"] for v in result["values"]}.items() <= whole.items()


def test_the_released_reading_is_another_run(smoke, released):
    assert released["request"]["protocol"] == "released"
    assert not any(stage["reused"] for stage in released["stages"])
    assert {line["id"] for line in released["facts"]["deviations"]} != {
        line["id"] for line in smoke.result["facts"]["deviations"]
    }
    mine = {(value["cell"], value["seed"]): value["value"] for value in smoke.result["values"]}
    assert all(mine[value["cell"], value["seed"]] != value["value"] for value in released["values"])


def test_each_protocol_has_stages_of_its_own(store):
    plans = [
        json.loads(inside("plan", "takd", "--tier", "smoke", "--protocol", name, "--json", check=0).stdout)
        for name in ("written", "released", "clean")
    ]
    hashes = [{stage["hash"] for stage in plan["stages"]} for plan in plans]
    assert all(hashes)
    assert len(set.union(*hashes)) == sum(map(len, hashes))


def test_seeds_may_be_named(store):
    done = inside("plan", "takd", "--tier", "smoke", "--seeds", "3,7", "--claims", "H13", "--json", check=0)
    plan = json.loads(done.stdout)
    assert plan["request"]["seeds"] == [3, 7]
    assert {stage["label"].rpartition(" ")[2] for stage in plan["stages"]} == {"3", "7"}


# -------------------------------------------------------------------------------------------------- plan trains nothing


def test_plan_prices_and_trains_nothing(store):
    text = one_line(inside("plan", "takd", check=0).stdout)
    assert "takd, tier laptop, MNIST-1D, protocol clean, 5 seeds, claims H1, H3, H4, H13" in text
    assert re.search(r"\d+ stages, \d+ of them shared by several others, 0 already done", text)
    assert re.search(r"about [\d.]+ (s|min|h) with \d+ workers on cpu", text)
    assert not store.exists()


def test_plan_knows_what_is_done(smoke):
    options = ("plan", "takd", "--tier", "smoke", "--seeds", "3", "--store", smoke.store, "--json")
    plan = json.loads(inside(*options, check=0).stdout)
    done = {stage["hash"] for stage in plan["stages"] if stage["done"]}
    assert {stage["hash"] for stage in smoke.result["stages"]} == done
    assert all((stage["seconds"] == 0) == stage["done"] for stage in plan["stages"])
    assert 0 < plan["seconds"] <= plan["seconds_of_work"]
    known = {stage["hash"] for stage in plan["stages"]}
    assert all(set(stage["inputs"].values()) <= known for stage in plan["stages"])


def test_full_tier_is_priced_and_not_started_without_a_yes(store, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("KDBENCH_CACHE", str(cache))
    done = inside("reproduce", "takd", "--tier", "full", check=1)
    text = one_line(done.stderr)
    assert "takd, tier full, CIFAR-100, protocol clean" in text
    assert re.search(r"about [\d,.]+ (h|days) with \d+ workers", text)
    assert "CIFAR-100 is not here yet" in text
    assert "kdbench: error: a full-tier run is not started without a yes; add --yes" in text
    assert not store.exists()
    assert not cache.exists()


# ----------------------------------------------------------------------------------------------------------- the rest


def test_help_names_every_verb_and_needs_no_torch():
    done = timed("--help")
    for verb in (
        "reproduce",
        "plan",
        "list",
        "show",
        "runs",
        "report",
        "compare",
        "dossier",
        "data",
        "plugins",
        "doctor",
    ):
        assert re.search(rf"^  {verb} ", done.stdout, flags=re.MULTILINE)
    assert not {"torch", "pandas", "scipy", "numpy"} & imported(done)


def test_list_needs_no_torch():
    done = timed("list")
    assert "takd  Improved Knowledge Distillation via Teacher Assistant" in done.stdout
    assert "core: H1, H3, H4, H13" in done.stdout
    assert not {"torch", "pandas", "scipy", "numpy"} & imported(done)
    (paper,) = (paper for paper in json.loads(inside("list", "--json", check=0).stdout) if paper["id"] == "takd")
    assert set(CORE) < set(paper["claims"])


def test_show_says_what_the_paper_says():
    text = one_line(inside("show", "takd", check=0).stdout)
    assert "@inproceedings{mirzadeh2020takd" in text
    assert "H3 (core) TAKD beats direct distillation" in text
    assert "the smallest gain that matters is 0.3; values within 1 count as equal; level 5 %" in text
    assert "41.09 44.57 44.92" in text
    assert "as written | as released | clean" in text
    # Tables of which nothing was read are named once, all together.
    assert text.count("o number was read") == 1
    assert "No number was read of: Fig. 2: plain S2 distilled directly" in text
    facts = json.loads(inside("show", "takd", "--json", check=0).stdout)
    assert facts["year"] == 2020
    assert {protocol["id"] for protocol in facts["protocols"]} == {"written", "released", "clean"}
    assert all(claim["source"] for claim in facts["claims"])


def test_plugins_names_takd():
    text = inside("plugins", "--check", check=0).stdout
    assert re.search(r"^takd  kdbench-takd \S+ \(kdbench_takd\)\n    papers: takd$", text, flags=re.MULTILINE)
    rows = {row["name"]: row for row in json.loads(inside("plugins", "--json", check=0).stdout)}
    assert rows["takd"]["provides"] == {"papers": ["takd"]}
    assert rows["takd"]["problem"] == ""
    assert "local" in rows["kdbench.builtin"]["provides"]["executors"]


def test_data_list_where_and_verify(cache, smoke):
    assert "mnist1d  MNIST-1D: 10 classes, 4,000 train, 6,000 test; generated" in inside("data", "list", check=0).stdout
    rows = {row["id"]: row for row in json.loads(inside("data", "list", "--json", check=0).stdout)}
    assert rows["cifar100"]["sizes"] == {"train": 50_000, "test": 10_000}
    assert inside("data", "where", check=0).stdout.strip() == str(cache)
    assert inside("data", "where", "mnist1d", check=0).stdout.strip() == str(cache / "mnist1d")
    assert "MNIST-1D: 4,000 train, 6,000 test; official" in inside("data", "verify", "mnist1d", check=0).stdout
    found = json.loads(inside("data", "verify", "mnist1d", "--json", check=0).stdout)
    assert found["fingerprint"] == smoke.result["data"]["fingerprint"]
    assert Path(found["path"]).is_relative_to(cache)


def test_doctor_says_which_kernels_are_in_use_and_why(store):
    text = inside("doctor", check=0).stdout
    for line in ("environment", "ops", "plugins", "folders", "  takd: ok", f"  store: {store}"):
        assert line in text.splitlines()
    found = json.loads(inside("doctor", "--json", check=0).stdout)
    assert found["environment"]["torch"]
    assert found["ops"]["in use"] in ("cpu", "reference")
    assert found["ops"]["built"] or found["ops"]["reason"]
    assert found["folders"]["writable"]


# -------------------------------------------------------------------------------------------------------- the dossier


def test_the_dossier_is_rendered_from_the_records_beside_it(smoke, cache, tmp_path):
    folder = tmp_path / "takd"
    done = inside("dossier", smoke.run, "--out", str(folder), "--store", smoke.store, check=0)
    page = folder / "README.md"
    assert done.stdout.strip() == str(page)
    (records,) = (folder / "records").iterdir()
    assert records.name == "smoke-mnist1d-clean"
    lines = (records / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["hash"] for line in lines] == [stage["hash"] for stage in smoke.result["stages"]]
    text = page.read_text()
    for claim in CORE:
        assert re.search(rf"\b{claim}\b", text)
    assert "kdbench reproduce takd --tier smoke" in text

    first = page.read_bytes()
    page.unlink()
    inside("dossier", "--out", str(folder), "--store", str(tmp_path / "nothing"), check=0)
    assert page.read_bytes() == first
    inside("dossier", smoke.run, "--out", str(folder), "--store", smoke.store, check=0)
    assert page.read_bytes() == first

    here = [smoke.store, str(tmp_path), str(cache), str(Path.home())]
    for file in (page, *records.iterdir()):
        content = file.read_text()
        assert not [path for path in here if path in content], file.name
