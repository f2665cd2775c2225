"""docs/plugins.md is followed to the letter, and no hook is missing from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import fresh_environment
from walkthrough import Walkthrough, blocks

from kdbench import hookspecs

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
HOOKS = [name for name in vars(hookspecs) if name.startswith("kdbench_")]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Walkthrough:
    """Somebody who has done everything on the page, in order."""
    folder = tmp_path_factory.mktemp("reader")
    variables = {"KDBENCH_STORE": str(folder / "store"), "KDBENCH_PLUGINS_BLOCK": ""}
    reader = Walkthrough(fresh_environment(folder / "venv"), folder, variables)
    for block in blocks(PAGE):
        reader.follow(block)
    return reader


@pytest.mark.slow
def test_the_page_does_what_it_says(reader):
    done = reader.environment.kdbench("plugins", "--json", cwd=reader.folder, env=reader.variables, check=0)
    provides = {row["name"]: row["provides"] for row in json.loads(done.stdout)}["workshop"]
    nouns = {name.removeprefix("kdbench_").removeprefix("register_") for name in HOOKS}
    assert set(provides) == nouns  # every hook is used by a plugin that is tested: this one


@pytest.mark.slow
def test_the_files_of_the_page_are_written_as_its_plugin_is_linted(reader):
    ruff = [sys.executable, "-m", "ruff"]
    if subprocess.run([*ruff, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("ruff is not installed here")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run([*ruff, *command, "."], cwd=reader.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_an_example(hook):
    text = PAGE.read_text(encoding="utf-8")
    section = re.search(rf"^### {hook}\n(.*?)^##", text, flags=re.MULTILINE | re.DOTALL)
    assert section, f"docs/plugins.md has no section on {hook}"
    assert re.search(rf"^@hookimpl\ndef {hook}\(", section[1], flags=re.MULTILINE)


def test_links_of_the_page_lead_somewhere():
    text = PAGE.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_the_page_names_the_current_api_level():
    text = PAGE.read_text(encoding="utf-8")
    levels = [int(level) for level in re.findall(r"^\| (\d+) \| \d", text, flags=re.MULTILINE)]
    assert levels == list(range(hookspecs.API_OLDEST, hookspecs.API_LEVEL + 1))
