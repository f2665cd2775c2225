"""``kdbench new-plugin``: what it writes is built, installed beside kdbench, tested and reproduced as it stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from distributions import distribution
from fresh import Fresh, build_wheel, fresh_environment
from in_process import complaint, inside, installed

FILES = {
    ".github/workflows/tests.yml",
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "src/kdbench_mypaper/__init__.py",
    "src/kdbench_mypaper/facts/paper.toml",
    "src/kdbench_mypaper/facts/table1.csv",
    "src/kdbench_mypaper/study.py",
    "tests/test_conformance.py",
    "tests/test_study.py",
}


# -------------------------------------------------------------------------------------------------------- the command


def test_it_says_what_it_wrote_and_what_comes_next(cli, tmp_path):
    done = cli("new-plugin", "mypaper", "--directory", str(tmp_path / "my papers"), check=0)
    folder = tmp_path / "my papers" / "kdbench-mypaper"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == FILES
    for path in FILES:
        assert Path(path).name in done.stdout
    commands = [line.strip() for line in done.stdout.partition("Next:\n")[2].splitlines()]
    assert commands[:4] == [
        f"cd {shlex.quote(str(folder))}",
        'pip install -e ".[test]"',
        "kdbench reproduce mypaper --tier smoke",
        "pytest",
    ]
    assert done.stdout.startswith(f"The plugin of the paper 'mypaper' is in {folder}\n")
    order = re.findall(r"(\S+) +([1-5])\. ", done.stdout)
    assert sorted(order, key=lambda pair: pair[1]) == [
        ("paper.toml", "1"),
        ("table1.csv", "2"),
        ("study.py", "3"),
        ("test_study.py", "4"),
        ("pyproject.toml", "5"),
    ]
    assert not done.stderr


def test_json_gives_the_paths(tmp_path):
    citation = ("--title", "On [bold]Students", "--authors", "Ada", "--venue", "V", "--year", "2026")
    done = inside("new-plugin", "kdbench-mypaper", "--directory", str(tmp_path), "--json", *citation, check=0)
    told = json.loads(done.stdout)
    assert (told["paper"], told["distribution"], told["package"]) == ("mypaper", "kdbench-mypaper", "kdbench_mypaper")
    assert told["directory"] == str(tmp_path / "kdbench-mypaper")
    assert set(told["files"]) == FILES
    assert set(told["edit"]) < FILES
    assert told["next"][2] == "kdbench reproduce mypaper --tier smoke"
    facts = (tmp_path / "kdbench-mypaper" / "src/kdbench_mypaper/facts/paper.toml").read_text(encoding="utf-8")
    assert 'title = "On [bold]Students"' in facts


def test_it_stands_in_the_help_and_its_module_name_is_no_command():
    assert "\n  new-plugin " in inside("--help", check=0).stdout
    assert "unknown command 'new_plugin'; did you mean 'new-plugin'?" in complaint(inside("new_plugin", "x"), 2)


# ----------------------------------------------------------------------------------------------------------- refusals

REFUSED = {
    "capitals": (["MyPaper"], "'MyPaper' cannot name a plugin [NAME]; use small letters"),
    "a path": (["up/mypaper"], "'up/mypaper' cannot name a plugin"),
    "upwards": (["../mypaper"], "'../mypaper' cannot name a plugin"),
    "no letter first": (["3d"], "'3d' cannot name a plugin"),
    "a word of Python": (["lambda"], "'lambda' cannot name a plugin: it is a word of the Python language"),
    "kdbench's own": (["builtin"], "'builtin' cannot name a plugin: kdbench uses it itself"),
    "empty": ([""], "'' cannot name a plugin"),
    "installed": (["takd"], "'takd' is taken by an installed plugin [kdbench-takd "),
    "year": (["mypaper", "--year", "26"], "26 is not a year of publication [--year]"),
    "url": (["mypaper", "--url", "example.org"], "'example.org' is not a web address [--url]"),
    "title": (["mypaper", "--title", ""], "the text is empty [--title]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line_and_writes_nothing(case, tmp_path):
    arguments, words = REFUSED[case]
    done = inside("new-plugin", *arguments, "--directory", str(tmp_path / "new"))
    assert complaint(done).startswith(words)
    assert "; " in complaint(done)  # and a cure
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "kdbench-mypaper").mkdir()
    (tmp_path / "kdbench-mypaper" / "thesis.tex").write_text("years of work")
    done = inside("new-plugin", "mypaper", "--directory", str(tmp_path), "--json")
    assert "the folder is there already and not empty" in complaint(done)
    assert json.loads(done.stdout)["error"]["where"] == str(tmp_path / "kdbench-mypaper")
    assert [path.name for path in tmp_path.rglob("*")] == ["kdbench-mypaper", "thesis.tex"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = inside("new-plugin", "mypaper", "--directory", str(tmp_path / "file"))
    assert complaint(done).startswith("cannot write: ")
    assert complaint(done).endswith(f"[{tmp_path / 'file' / 'kdbench-mypaper'}]; name another place with --directory")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        done = inside("new-plugin", "mypaper", "--directory", str(tmp_path))
        assert complaint(done).startswith("cannot write: Permission denied")
    finally:
        tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_a_plugin_that_does_not_load_keeps_its_name(tmp_path):
    site = distribution(tmp_path / "site", "kdbench-broken", "raise RuntimeError('no such luck')\n")
    with installed(site):
        done = inside("new-plugin", "broken", "--directory", str(tmp_path / "new"))
    assert complaint(done).startswith("'broken' is taken by an installed plugin [kdbench-broken 1.2.3]")
    assert not (tmp_path / "new").exists()


# ----------------------------------------------------------------------------------- as generated, in a new environment


class Installed(NamedTuple):
    """A generated plugin, and an environment that has it installed."""

    folder: Path
    wheel: Path
    environment: Fresh
    elsewhere: Path

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """``python -m ARGUMENTS``, which must succeed; nowhere near the sources unless told."""
        store = {"KDBENCH_STORE": str(self.elsewhere / "store")}
        return self.environment.run("-m", *arguments, cwd=cwd or self.elsewhere, env=store, check=0, timeout=600)


@pytest.fixture(scope="module")
def mypaper(cli, tmp_path_factory) -> Installed:
    """The way of an author: generate, build a wheel, install it where kdbench already is."""
    base = tmp_path_factory.mktemp("mypaper")
    cli("new-plugin", "mypaper", "--directory", str(base), check=0)
    folder = base / "kdbench-mypaper"
    wheel = build_wheel(folder, base / "wheels")
    environment = fresh_environment(base / "venv")
    environment.install(wheel)
    (base / "elsewhere").mkdir()
    return Installed(folder, wheel, environment, base / "elsewhere")


@pytest.mark.slow
def test_the_wheel_holds_the_facts(mypaper):
    with zipfile.ZipFile(mypaper.wheel) as wheel:
        names = set(wheel.namelist())
    assert {path.removeprefix("src/") for path in FILES if path.startswith("src/")} <= names
    assert not any(name.startswith(("tests", "src")) for name in names)


@pytest.mark.slow
def test_it_is_found_without_a_problem(mypaper):
    mypaper.run("kdbench", "plugins", "--check")
    (row,) = (row for row in json.loads(mypaper.run("kdbench", "plugins", "--json").stdout) if row["name"] == "mypaper")
    assert (row["distribution"], row["version"], row["api"]) == ("kdbench-mypaper", "0.1.0", 1)
    assert row["provides"] == {"papers": ["mypaper"]}
    assert not row["problem"]
    assert "mypaper" in [paper["id"] for paper in json.loads(mypaper.run("kdbench", "list", "--json").stdout)]


@pytest.mark.slow
def test_it_is_reproduced_at_smoke_tier(mypaper):
    result = json.loads(mypaper.run("kdbench", "reproduce", "mypaper", "--tier", "smoke", "--json").stdout)
    assert result["status"] == "finished"
    assert not result["failures"]
    (verdict,) = result["verdicts"]
    assert verdict["claim"] == "C1"
    assert verdict["gain_word"] in ("supported", "contradicted", "not resolved", "smaller than the margin")
    assert verdict["scale"] == "toy"
    measured = {value["cell"].rpartition("/")[2]: value["value"] for value in result["values"]}
    assert set(measured) == {"teacher", "scratch", "distilled"}
    assert all(10 < value <= 100 for value in measured.values())  # percent, better than chance
    folders = {path.name for path in Path(result["path"]).parents[1].glob("stages/*")}
    assert folders == {stage["hash"] for stage in result["stages"]}


@pytest.mark.slow
def test_its_own_tests_pass(mypaper):
    done = mypaper.run("pytest", "-p", "no:cacheprovider", "-rA", cwd=mypaper.folder)
    passed = done.stdout.splitlines()[-1]
    assert re.search(r" \d+ passed in ", passed), passed  # none failed, and none was skipped
    assert "test_conformance.py::test_plan_is_stable[mypaper]" in done.stdout
    assert "test_study.py::test_smoke_gives_a_verdict_on_the_claim" in done.stdout
    assert "[takd]" not in done.stdout  # only the plugin's own paper
