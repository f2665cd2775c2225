"""Bad plugins as pip really installs them, in an environment of their own: each is named, and the rest works."""

from __future__ import annotations

import json

import pytest
from fresh import Fresh, fresh_environment
from test_plugin_faults import STAGE

HOOK = "from kdbench import hookimpl\n\n@hookimpl\ndef {name}():\n    {body}\n"
PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.4"
dependencies = ["kdbench>=0.1"]

[project.entry-points.kdbench]
{name} = "{module}"

[tool.setuptools]
py-modules = ["{module}"]
"""
TAKD = "import kdbench_takd\nfrom kdbench import hookimpl\n\n"
PLUGINS = {  # name: its module, what is said of it
    "kdbench-import": ("1 / 0\n", "import: ZeroDivisionError: division by zero"),
    "kdbench-call": (HOOK.format(name="kdbench_papers", body="1 / 0"), "kdbench_papers: ZeroDivisionError: division"),
    "kdbench-stage": (STAGE, "stage: less seed 0: ArithmeticError: a negative number (at kdbench_stage.py:"),
    "kdbench-name": (HOOK.format(name="kdbench_network", body="return []"), "import: unknown hook 'kdbench_network'"),
    "zkdbench-again": (
        TAKD + "@hookimpl\ndef kdbench_papers():\n    return kdbench_takd.kdbench_papers()\n",
        "kdbench_papers: the paper 'takd' is already provided by plugin 'takd'; uninstall one of the two",
    ),
    "kdbench-newer": ("KDBENCH_API = 99\n", "import: it needs API level 99, this kdbench has 1; upgrade kdbench"),
    "kdbench-lacks": ("import nobodys\n", "import: it needs the module 'nobodys', which is not installed; install it"),
    "kdbench-fine": (
        HOOK.format(name="kdbench_networks", body="from kdbench.networks import Plain; yield Plain(size=2, width=3)"),
        "",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """All of them, built and installed by pip from their sources."""
    folder = tmp_path_factory.mktemp("plugins")
    sources = []
    for name, (text, _) in PLUGINS.items():
        source = folder / name
        source.mkdir()
        module = name.replace("-", "_")
        (source / f"{module}.py").write_text(text)
        (source / "pyproject.toml").write_text(PYPROJECT.format(name=name, module=module))
        sources.append(source)
    made = fresh_environment(folder / "venv")
    made.install(*sources)
    return made


@pytest.mark.slow
def test_each_is_named_and_the_rest_works(environment, store, tmp_path):
    run = environment.kdbench("reproduce", "toystage", "--tier", "smoke", "--workers", "1", cwd=tmp_path, check=3)
    assert "(plugin 'kdbench-stage')" in run.stdout

    listing = environment.kdbench("plugins", "--check", "--json", cwd=tmp_path, check=1)
    rows = {row["name"]: row for row in json.loads(listing.stdout)}
    for name, (_, problem) in PLUGINS.items():
        assert rows[name]["distribution"] == name
        assert rows[name]["version"] == "0.4"
        assert rows[name]["problem"].startswith(problem)
        assert bool(rows[name]["problem"]) == bool(problem)
    assert rows["kdbench-fine"]["provides"] == {"networks": ["plain2-x3"]}
    assert rows["takd"]["problem"] == ""
    assert rows["takd"]["provides"] == {"papers": ["takd"]}
    said = environment.kdbench("plugins", cwd=tmp_path, check=0).stdout
    for _, problem in PLUGINS.values():
        assert not problem or f"problem: {problem}" in said

    papers = json.loads(environment.kdbench("list", "--json", cwd=tmp_path, check=0).stdout)
    assert {"takd", "toystage"} <= {paper["id"] for paper in papers}
    plan = environment.kdbench("plan", "takd", "--tier", "smoke", "--json", cwd=tmp_path, check=0)
    assert json.loads(plan.stdout)["stages"]


def test_a_blocked_one_is_not_imported(environment, store, tmp_path):
    switches = {"KDBENCH_PLUGINS_BLOCK": ",".join(name for name, (_, problem) in PLUGINS.items() if problem)}
    listing = environment.kdbench("plugins", "--check", "--json", cwd=tmp_path, check=0, env=switches)
    states = {row["name"]: row["state"] for row in json.loads(listing.stdout)}
    assert {name for name, state in states.items() if state == "blocked"} == {n for n, (_, p) in PLUGINS.items() if p}
