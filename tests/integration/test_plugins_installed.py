"""Plugins as distributions: a good one brings everything, a bad one is named, reported and skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import distribution, good, on_path

HOOK = "from kdbench import hookimpl\n\n@hookimpl\ndef {name}({arguments}):\n    {body}\n"
BAD = {
    "kdbench-raises": ("raise RuntimeError('no such luck')\n", "import: RuntimeError: no such luck"),
    "kdbench-exits": ("raise SystemExit(7)\n", "import: SystemExit: 7"),
    "kdbench-missing": ("import nobodys\n", "import: it needs the module 'nobodys', which is not installed; install"),
    "kdbench-typo": (
        HOOK.format(name="kdbench_paper", arguments="", body="return []"),
        "import: unknown hook 'kdbench_paper'; did you mean 'kdbench_papers'? known: ",
    ),
    "kdbench-marked": (
        HOOK.format(name="networks", arguments="", body="return []"),
        "import: unknown hook 'networks'; did you mean 'kdbench_networks'? known: ",
    ),
    "kdbench-hookraises": (
        HOOK.format(name="kdbench_papers", arguments="", body="raise ValueError('half a table')"),
        "kdbench_papers: ValueError: half a table",
    ),
    "kdbench-nonsense": (
        HOOK.format(name="kdbench_networks", arguments="", body="return ['plain10']"),
        "kdbench_networks: TypeError: a Network is expected, this is a str: 'plain10'",
    ),
    "kdbench-command": (
        HOOK.format(name="kdbench_register_commands", arguments="cli", body="cli.add_comand(None)"),
        "kdbench_register_commands: AttributeError: ",
    ),
    "kdbench-usurps": (
        HOOK.format(
            name="kdbench_register_commands",
            arguments="cli",
            body="import click; cli.add_command(click.Command('report', help='mine'))",
        ),
        "kdbench_register_commands: the command 'report' is already there",
    ),
    "kdbench-zgreets": (
        HOOK.format(
            name="kdbench_register_commands",
            arguments="cli",
            body="import click; cli.add_command(click.Command('toy-greet', help='mine'))",
        ),
        "kdbench_register_commands: the command 'toy-greet' is already there",
    ),
    "kdbench-zdouble": (  # after kdbench-toy in the order of names
        HOOK.format(name="kdbench_papers", arguments="", body="from kdbench_toy.facts import PAPER; return [PAPER]"),
        "kdbench_papers: the paper 'toyline' is already provided by plugin 'kdbench-toy'; uninstall one of the two",
    ),
    "kdbench-twin": (
        HOOK.format(
            name="kdbench_executors",
            arguments="",
            body="from kdbench.executors import ExecutorInfo; return [ExecutorInfo('local', 'mine', 'x:y')]",
        ),
        "kdbench_executors: the executor 'local' is already provided by plugin 'kdbench.builtin'; uninstall one",
    ),
    "kdbench-past": (
        "KDBENCH_API = 0\n",
        "import: it was written for API level 0, this kdbench serves 1 to 1; upgrade the plugin",
    ),
    "kdbench-level": ("KDBENCH_API = 'one'\n", "import: KDBENCH_API is 'one', which is no API level; write "),
    "kdbench-argument": (
        HOOK.format(name="kdbench_papers", arguments="lab", body="return []"),
        "import: PluginValidationError: ",
    ),
    "kdbench-future": (
        "KDBENCH_API = 99\nfrom kdbench import hookimpl\n",
        "import: it needs API level 99, this kdbench has 1; upgrade kdbench",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return good(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def crowd(site, tmp_path_factory):
    """The environment with the good plugins and every bad one."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (text, _) in BAD.items():
        distribution(folder, name, text)
    return on_path(site, folder)


@pytest.fixture(scope="module")
def listed(cli, crowd):
    return {row["name"]: row for row in json.loads(cli("plugins", "--json", env=crowd, check=0).stdout)}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_plugin_is_named_with_its_problem(listed, name):
    assert listed[name]["problem"].startswith(BAD[name][1])
    assert listed[name]["distribution"] == name
    assert listed[name]["version"] == "1.2.3"


def test_nobody_else_is_blamed(listed):
    assert {name for name, row in listed.items() if row["problem"]} == set(BAD)
    assert listed["takd"]["provides"] == {"papers": ["takd"]}
    assert listed["kdbench-toy"]["provides"] == {
        "papers": ["toyline"],
        "networks": ["toy-line"],
        "executors": ["toy-thread"],
        "commands": ["toy-greet"],
    }


def test_the_listing_for_people_says_the_same(cli, crowd):
    done = cli("plugins", env=crowd, check=0)
    assert "kdbench-toy  kdbench-toy 1.2.3 (kdbench_toy)\n    papers: toyline\n" in done.stdout
    for _, problem in BAD.values():
        assert f"    problem: {problem}" in done.stdout


def test_check_turns_a_problem_into_an_exit_status(cli, site, crowd, tmp_path):
    cli("plugins", "--check", env=on_path(site), check=0)
    cli("plugins", "--check", env=crowd, check=1)
    json.loads(cli("plugins", "--check", "--json", env=crowd, check=1).stdout)
    late = distribution(tmp_path, "kdbench-command", BAD["kdbench-command"][0])
    cli("plugins", "--check", env=on_path(late), check=1)  # its only hook is called last of all


def test_the_rest_works_beside_them(cli, crowd):
    done = cli("list", env=crowd, check=0)
    assert "takd  Improved Knowledge Distillation" in done.stdout
    assert "toyline  A toy called toyline" in done.stdout
    assert "Traceback" not in done.stderr
    assert "plugin 'kdbench-raises' is not loaded: import: RuntimeError: no such luck" in done.stderr.splitlines()
    papers = [paper["id"] for paper in json.loads(cli("list", "--json", env=crowd, check=0).stdout)]
    assert {"takd", "toyline", "toynan"} <= set(papers)
    assert cli("--help", env=crowd, check=0).stdout.split().count("toy-greet") == 1
    plugins = json.loads(cli("doctor", "--json", env=crowd, check=0).stdout)["plugins"]
    assert plugins["takd"] == "ok"
    assert plugins["kdbench-future"].startswith("import: it needs API level 99")


def test_takd_is_the_same_with_and_without_them(cli, crowd, store):
    plan = ("plan", "takd", "--tier", "smoke", "--json")
    assert json.loads(cli(*plan, env=crowd, check=0).stdout) == json.loads(cli(*plan, check=0).stdout)


def test_a_plugins_command_runs(cli, crowd):
    assert cli("toy-greet", "Ada", env=crowd, check=0).stdout == "hello Ada\n"


def test_the_good_plugins_paper_is_reproduced_by_its_own_executor(cli, crowd, store):
    request = ("reproduce", "toyline", "--tier", "smoke", "--seeds", "2", "--executor", "toy-thread")
    done = cli(*request, env=crowd, check=0)
    assert "C1 Fast beats slow" in done.stdout
    assert "4 stages, 0 of them reused" in done.stdout
    folders = list((store / "stages").iterdir())
    assert len(folders) == 4
    assert all((folder / "ran-by-toy-thread").exists() for folder in folders)
    result = json.loads(cli(*request, "--json", env=crowd, check=0).stdout)
    assert all(stage["reused"] for stage in result["stages"])
    record = json.loads((folders[0] / "record.json").read_text())
    assert record["notes"]["network"] == {"type": "kdbench_toy.networks:Line"}
    assert record["notes"]["parameters"] == 410


def test_workers_use_the_package_that_started_them(site, store, tmp_path):
    # In a clone the working directory holds the source, which is not what is installed: it may lack the kernels.
    script = Path(sys.executable).with_name("kdbench")
    if not script.exists():
        pytest.skip("no kdbench script beside the interpreter")
    decoy = tmp_path / "clone" / "kdbench"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise RuntimeError('the source, not the installed package')\n")
    done = subprocess.run(
        [script, "reproduce", "toyline", "--tier", "smoke", "--workers", "1", "--json"],
        env={**os.environ, **on_path(site)},
        cwd=decoy.parent,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "finished"
    records = [json.loads(path.read_text()) for path in store.glob("stages/*/record.json")]
    assert {record["environment"]["ops"] for record in records} == {result["environment"]["ops"]}
