"""Which of the installed plugins are loaded: the environment decides, and says so."""

from __future__ import annotations

import json

import pytest
from distributions import GOOD, distribution, on_path
from in_process import inside, installed

ALLOW, BLOCK = "KDBENCH_PLUGINS_ALLOW", "KDBENCH_PLUGINS_BLOCK"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A good plugin whose entry point has another name than its distribution."""
    folder = tmp_path_factory.mktemp("site")
    distribution(folder, "kdbench-toy", GOOD)
    info = next(folder.glob("*.dist-info"))
    (info / "entry_points.txt").write_text("[kdbench]\ntoy = kdbench_toy\n")
    return folder


def listed(*args, check=0):
    done = inside("plugins", "--json", *args, check=check)
    return {row["name"]: row for row in json.loads(done.stdout)}, done.stderr


@pytest.mark.parametrize("name", ["toy", "kdbench-toy", "KDBench_Toy", " toy , takd"])
def test_a_blocked_plugin_brings_nothing_and_is_no_problem(site, store, monkeypatch, name):
    monkeypatch.setenv(BLOCK, name)
    with installed(site):
        rows, _ = listed("--check")
        assert rows["toy"]["state"] == "blocked"
        assert rows["toy"]["provides"] == {}
        assert rows["toy"]["problem"] == ""
        assert rows["takd"]["state"] == ("blocked" if "takd" in name else "loaded")
        assert "toyline" not in inside("list", check=0).stdout
        assert "toy  kdbench-toy 1.2.3 (kdbench_toy)  [blocked]" in inside("plugins", check=0).stdout


@pytest.mark.parametrize("name", ["toy", "kdbench_toy"])
def test_only_allowed_plugins_are_loaded(site, store, monkeypatch, name):
    monkeypatch.setenv(ALLOW, name)
    with installed(site):
        rows, _ = listed()
        assert {name for name, row in rows.items() if row["state"] == "loaded"} == {"kdbench.builtin", "toy"}
        assert rows["takd"]["state"] == "blocked"
        assert [paper["id"] for paper in json.loads(inside("list", "--json", check=0).stdout)] == ["toyline"]


def test_an_empty_list_allows_kdbench_alone(site, store, monkeypatch):
    monkeypatch.setenv(ALLOW, "")
    with installed(site):
        rows, _ = listed("--check")
        assert [name for name, row in rows.items() if row["state"] == "loaded"] == ["kdbench.builtin"]
        assert json.loads(inside("list", "--json", check=0).stdout) == []


def test_blocking_wins_over_allowing(site, store, monkeypatch):
    monkeypatch.setenv(ALLOW, "toy,takd")
    monkeypatch.setenv(BLOCK, "toy")
    with installed(site):
        rows, _ = listed()
        assert (rows["toy"]["state"], rows["takd"]["state"]) == ("blocked", "loaded")


def test_kdbench_itself_cannot_be_blocked(site, store, monkeypatch):
    monkeypatch.setenv(BLOCK, "kdbench,kdbench.builtin")
    with installed(site):
        rows, said = listed()
        assert rows["kdbench.builtin"]["state"] == "loaded"
        assert said == "note: KDBENCH_PLUGINS_BLOCK: what kdbench itself brings cannot be blocked\n"


def test_a_name_that_nobody_has_is_pointed_out(site, store, monkeypatch):
    monkeypatch.setenv(BLOCK, "tkad")
    with installed(site):
        rows, said = listed("--check", check=1)
        assert rows["takd"]["state"] == "loaded"
        assert "note: KDBENCH_PLUGINS_BLOCK: unknown plugin 'tkad'; did you mean 'takd'?" in said


def test_asking_for_a_blocked_paper_says_why_it_is_not_there(site, store, monkeypatch):
    monkeypatch.setenv(BLOCK, "toy")
    with installed(site):
        said = inside("plan", "toyline", check=1).stderr
        assert "unknown paper 'toyline'" in said
        assert "blocked by the environment: 'toy'" in said


def test_a_blocked_plugin_is_not_even_imported(tmp_path, store, monkeypatch, cli):
    distribution(tmp_path, "kdbench-loud", "print('imported')\n")
    environment = on_path(tmp_path)
    assert "imported" in cli("list", env=environment, check=0).stdout
    assert "imported" not in cli("list", env={**environment, BLOCK: "kdbench-loud"}, check=0).stdout
