"""What ``kdbench new-plugin`` writes: names, files, and nothing at all where something is refused."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench.errors import KdbenchError
from kdbench.paper import Paper
from kdbench.plugins import PluginInfo, registry
from kdbench.scaffold import FILES, NewPlugin, describe, render, write
from kdbench.scaffold.names import LONGEST, paper_id

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BARE = NewPlugin(paper="mypaper")
LONG = NewPlugin(paper="x" * LONGEST, title="A long title" * 30, authors="Ada" * 60, venue="Venue" * 70, year=2026)
ODD = NewPlugin(
    paper="odd",
    title='"""Quoted""", \'single\', \\back\\slash, {brace, %}, {{ plugin.paper }}, # *star* _under_ <b> | Ü 学生 🎓',
    authors='O\'Neil {and} "Friends"',
    venue="{% raw %} ]] =",
    year=1999,
    url="https://example.org/~a?b=c&d=%20#e",
)


def load(plugin: NewPlugin, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Paper:
    """The facts that the written plugin's package holds."""
    monkeypatch.syspath_prepend(str(write(plugin, folder) / "src"))
    try:
        return Paper.load(plugin.package, study=lambda lab: iter(()))
    finally:
        sys.modules.pop(plugin.package, None)


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["mypaper", "my-paper", "my_paper", "kdbench-mypaper", "kdbench_mypaper", "kdbench-my-paper"]
)
def test_one_name_for_everything(name: str) -> None:
    plugin = describe(name)
    assert (plugin.paper, plugin.distribution, plugin.package) == ("mypaper", "kdbench-mypaper", "kdbench_mypaper")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MyPaper", "'MyPaper' cannot name a plugin [NAME]; use small letters"),
        ("MyPaper", "for instance 'mypaper'"),
        ("a/b", "cannot name a plugin"),
        ("../up", "for instance 'up'"),
        ("my paper", "for instance 'mypaper'"),
        ("my.paper", "for instance 'mypaper'"),
        ("über", "for instance 'ber'"),
        ("2015hinton", "a letter first, for instance 'hinton'"),
        ("my--paper", "single hyphens"),
        ("-mypaper", "cannot name a plugin"),
        ("mypaper-", "cannot name a plugin"),
        ("kdbench-", "cannot name a plugin"),
        ("", "'' cannot name a plugin"),
        ("学生", "a letter first"),
        ("mypaper\n", "cannot name a plugin"),
        ("class", "'class' cannot name a plugin: it is a word of the Python language"),
        ("kdbench-None", "cannot name a plugin"),
        ("is-not-in", ""),
        ("builtin", "'builtin' cannot name a plugin: kdbench uses it itself"),
        ("kdbench", "kdbench uses it itself"),
        ("kdbench-kdbench", "kdbench uses it itself"),
        ("x" * (LONGEST + 1), f"more than {LONGEST} letters"),
    ],
)
def test_wrong_names_are_refused_with_a_cure(name: str, words: str) -> None:
    if not words:
        assert paper_id(name) == "isnotin"  # words of the language are fine inside a name
        return
    with pytest.raises(KdbenchError, match=re.escape(words)) as raised:
        paper_id(name)
    assert raised.value.where == "NAME"
    assert raised.value.cure


def test_what_is_suggested_can_be_used() -> None:
    for name in ("MyPaper", "2015 Hinton", "a/b", "CLASS", "Builtin", "!!!", "X" * 50):
        with pytest.raises(KdbenchError) as raised:
            paper_id(name)
        for near in re.findall(r"for instance '(.*)'", raised.value.cure or ""):
            assert paper_id(near) == near


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("title", " ", "the text is empty [--title]"),
        ("authors", "a\x00b", "a character that cannot be printed: 'a\\x00b' [--authors]"),
        ("venue", "\udcff", "a character that cannot be printed: '\\udcff' [--venue]"),
        ("year", 99, "99 is not a year of publication [--year]"),
        ("url", "arxiv.org/abs/1", "'arxiv.org/abs/1' is not a web address [--url]; write it from https:// on"),
        ("url", "https://a b", "is not a web address"),
        ("url", "javascript:alert(1)", "is not a web address"),
        ("url", "https://a/<script>", "is not a web address"),
    ],
)
def test_wrong_citations_are_refused(option: str, text: Any, words: str) -> None:
    with pytest.raises(KdbenchError, match=re.escape(words)):
        describe("mypaper", **{option: text})


def test_a_citation_is_put_on_one_line() -> None:
    assert describe("mypaper", title="  Distilling\n\tthe knowledge ").title == "Distilling the knowledge"


@pytest.mark.parametrize(
    "taken",
    [
        PluginInfo(name="mypaper", module="elsewhere", distribution="elsewhere", version="2.0"),
        PluginInfo(name="other", module="kdbench_mypaper", distribution="KDBench_MyPaper", version="2.0"),
        PluginInfo(name="mypaper", module="x", distribution="blocked", version="2.0", state="blocked"),
    ],
)
def test_a_name_that_something_installed_has_is_refused(taken: PluginInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry(), "plugins", [*registry().plugins, taken])
    with pytest.raises(KdbenchError, match=r"'mypaper' is taken by an installed plugin \[.* 2\.0\]; take another name"):
        describe("mypaper")


def test_a_paper_that_another_plugin_brings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = PluginInfo(name="many", module="many", distribution="many-papers", version="3.1", state="loaded")
    monkeypatch.setattr(registry(), "plugins", [*registry().plugins, owner])
    monkeypatch.setitem(registry().found["papers"], "mypaper", object())
    monkeypatch.setitem(registry().owners, ("papers", "mypaper"), owner)
    with pytest.raises(KdbenchError, match=r"\[many-papers 3\.1\].*pip uninstall many-papers"):
        describe("mypaper")


# -------------------------------------------------------------------------------------------------------------- files


def test_every_template_makes_one_file() -> None:
    templates = [entry.name for entry in (resources.files("kdbench.scaffold") / "templates").iterdir()]
    assert sorted(FILES.values()) == sorted(templates)


@pytest.mark.parametrize("plugin", [BARE, LONG, ODD], ids=["bare", "long", "odd"])
def test_every_file_parses(plugin: NewPlugin) -> None:
    files = render(plugin)
    for path, text in files.items():
        assert text.endswith("\n"), path
        assert not re.search(r"[ \t]$", text, re.MULTILINE), path
        if path.endswith(".py"):
            compile(text, path, "exec")
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == plugin.distribution
    assert project["project"]["dependencies"] == ["kdbench>=0.1"]
    assert project["project"]["entry-points"] == {"kdbench": {plugin.paper: plugin.package}}
    assert project["tool"]["pytest"]["ini_options"]["kdbench_papers"] == [plugin.paper]
    rows = list(csv.DictReader(io.StringIO(files[f"src/{plugin.package}/facts/table1.csv"])))
    assert {(row["value"], row["certainty"]) for row in rows} == {("", "not found")}  # nobody has read a number


def test_without_options_every_word_about_the_paper_says_that_it_is_a_placeholder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = load(BARE, tmp_path, monkeypatch)
    for text in (paper.title, paper.authors, paper.venue, paper.summary, paper.url, paper.claims[0].note):
        assert "placeholder" in text.lower()
    assert paper.year == 0
    assert "year" not in paper.bibtex


@pytest.mark.parametrize("plugin", [LONG, ODD], ids=["long", "odd"])
def test_the_options_are_what_the_facts_say(plugin: NewPlugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = load(plugin, tmp_path, monkeypatch)
    assert (paper.id, paper.title, paper.authors) == (plugin.paper, plugin.title, plugin.authors)
    assert (paper.venue, paper.year) == (plugin.venue, plugin.year)
    assert plugin.url is None or paper.url == plugin.url
    assert paper.bibtex.count("{") == paper.bibtex.count("}") == 5
    assert f"year = {{{plugin.year}}}" in paper.bibtex


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=30))
def test_any_printable_title_comes_back_unchanged(text: str) -> None:
    title = describe("mypaper", title=text).title
    files = render(msgspec.structs.replace(BARE, title=title))
    facts = tomllib.loads(files["src/kdbench_mypaper/facts/paper.toml"])
    assert facts["title"] == title
    assert tomllib.loads(files["pyproject.toml"])["project"]["description"] == f"kdbench plugin: {title}"


def test_one_claim_that_cites_a_table_and_compares_cells_that_the_table_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = load(BARE, tmp_path, monkeypatch)
    (claim,) = paper.claims
    assert claim.source == "Table 1"
    assert claim.core
    assert claim.gain_margin > 0
    (instance,) = claim.instances({"dataset": ("mnist1d",)})
    assert set(instance.cells()) <= set(paper.reported())
    assert [protocol.id for protocol in paper.protocols] == ["clean"]


def test_the_study_stays_short() -> None:
    assert len(render(BARE)["src/kdbench_mypaper/study.py"].splitlines()) < 60


@pytest.mark.parametrize("plugin", [BARE, LONG, ODD], ids=["bare", "long", "odd"])
def test_ruff_has_nothing_to_say(plugin: NewPlugin, tmp_path: Path) -> None:
    if not shutil.which("ruff"):
        pytest.skip("ruff is not installed")
    folder = write(plugin, tmp_path)
    for command in (["check"], ["check", "--select", "E,F,W,I,UP,B,SIM,RUF,PT,C4"], ["format", "--check"]):
        done = subprocess.run(
            ["ruff", *command, "--no-cache", "."], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------ all of it or nothing


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_everything_is_written_into_a_new_or_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty" / "kdbench-mypaper").mkdir(parents=True)
    for parent in (tmp_path / "new" / "deep", tmp_path / "empty"):
        folder = write(BARE, parent)
        assert folder == parent / "kdbench-mypaper"
        assert {path for path in everything(folder) if (folder / path).is_file()} == set(render(BARE))
        assert [entry.name for entry in parent.iterdir()] == ["kdbench-mypaper"]
        for path, text in render(BARE).items():
            assert (folder / path).read_bytes() == text.encode()


def test_what_is_there_already_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "kdbench-mypaper").mkdir()
    (tmp_path / "kdbench-mypaper" / "thesis.tex").write_text("years of work")
    with pytest.raises(KdbenchError, match=r"there already and not empty \[.*kdbench-mypaper\]; move it away, or"):
        write(BARE, tmp_path)
    assert everything(tmp_path) == {"kdbench-mypaper", "kdbench-mypaper/thesis.tex"}


@pytest.mark.parametrize("kind", ["file", "link to nowhere", "link to an empty folder"])
def test_something_else_of_that_name_is_not_replaced(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "kdbench-mypaper"
    if kind == "file":
        target.touch()
    else:
        (tmp_path / "there").mkdir()
        target.symlink_to("there" if "empty" in kind else "nowhere")
    before = everything(tmp_path)
    with pytest.raises(KdbenchError, match="something else has this name already"):
        write(BARE, tmp_path)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("inside", ["file", "file/deeper", "x" * 300, "new/" + "x" * 300])
def test_a_place_that_cannot_be_made_is_refused(inside: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KdbenchError, match=r"cannot write: .*; name another place with --directory"):
        write(BARE, tmp_path / inside)
    assert everything(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "cannot write: Permission denied"),
        (errno.EROFS, "cannot write: Read-only file system"),
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EIO, "cannot write: Input/output error"),
    ],
)
def test_a_disk_that_refuses_midway_leaves_nothing(
    code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Path.write_bytes, []

    def refuse(path: Path, data: bytes) -> int:
        seen.append(path)
        if len(seen) == 4:
            raise OSError(code, os.strerror(code))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(KdbenchError, match=words):
        write(BARE, tmp_path / "new" / "deep")
    assert len(seen) == 4
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(BARE, tmp_path / "new")
    assert not list(tmp_path.iterdir())
