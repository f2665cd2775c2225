"""Every way found so far in which one plugin could take others down with it: each is named, and the rest works."""

from __future__ import annotations

import json

import pytest
from distributions import distribution
from in_process import complaint, inside, installed
from test_plugin_faults import STUDY

PAPER = f"{STUDY}\nKDBENCH_API = 1\n\ndef measured(lab):\n" + (
    "    for seed in lab.seeds:\n"
    "        for name, number in (('more', 2.0), ('less', 1.0)):\n"
    "            node = lab.stage(Constant(number=number), seed=seed, label=name)\n"
    "            yield lab.measure(f'table1/{name}', node.accuracy, seed=seed)\n\n"
)
HOOK = "@hookimpl\ndef kdbench_papers():\n    yield {what}\n"


def replaced(what: str) -> str:
    return PAPER + "import msgspec\n\n" + HOOK.format(what=f"msgspec.structs.replace(paper('odd', measured), {what})")


def claim(left: str) -> str:
    return replaced(
        "claims=(Claim(id='C1', title='t', sentence='s', source='Table 1', certainty='project', core=True,"
        f" alternatives=((Comparison(left={left!r}, right='table1/less'),),)),)"
    )


STUDIES = {
    "yields a number": "    yield 1\n",
    "yields nothing callable": "    return 7\n",
    "exits": "    raise SystemExit(0)\n    yield\n",
    "measures twice": "    for _ in 'ab':\n        yield from measured(lab)\n",
}
YIELDED = HOOK.format(what="paper('odd', study)")
ODD = {
    **{name: f"{PAPER}def study(lab):\n{body}\n{YIELDED}" for name, body in STUDIES.items()},
    "no protocol": replaced("protocols=()"),
    "an id that is a number": PAPER + HOOK.format(what="paper(7, measured)"),
    "an empty id": PAPER + HOOK.format(what="paper('', measured)"),
    "an id that is a path": PAPER + HOOK.format(what="paper('../up', measured)"),
    "a claim with empty braces": claim("table1/{}/more"),
    "a claim with half a brace": claim("table1/}more"),
    "a claim with a subscript": claim("table1/{dataset[0]}"),
    "data that cannot be located": PAPER
    + "def locate(data_dir, cache, progress):\n    raise ZeroDivisionError('nowhere')\n\n"
    + "@hookimpl\ndef kdbench_datasets():\n    import msgspec\n    from kdbench.data import DATASETS\n"
    + "    yield msgspec.structs.replace(DATASETS['mnist1d'], id='odd-data', locate='kdbench_odd:locate')\n\n"
    + "import msgspec\n"
    + HOOK.format(
        what="msgspec.structs.replace(paper('odd', measured), datasets=('odd-data',),"
        " default_dataset=dict.fromkeys(('smoke', 'laptop', 'full'), 'odd-data'))"
    ),
    "a hook that is not marked": PAPER + "def kdbench_papers():\n    yield paper('odd', measured)\n",
}  # fmt: skip
SAID = {
    "yields a number": "plan of 'odd' (clean): the study yields 1, a int; yield what lab.measure",
    "yields nothing callable": "plan of 'odd' (clean): the study of 'odd' raised TypeError: 'int' object",
    "exits": "plan of 'odd' (clean): the study of 'odd' raised SystemExit: 0",
    "measures twice": "plan of 'odd' (clean): the study measures 'table1/more' twice for seed 0",
    "no protocol": "plan of 'odd': 'odd' declares no protocol; a fault of its facts",
    "an id that is a number": "kdbench_papers: ValueError: 7 is no id",
    "an empty id": "kdbench_papers: ValueError: '' is no id",
    "an id that is a path": "kdbench_papers: ValueError: '../up' is no id",
    "a claim with empty braces": "plan of 'odd' (clean): claim C1 compares 'table1/{}/more', whose braces name no axis",
    "a claim with half a brace": "plan of 'odd' (clean): claim C1 compares 'table1/}more', whose braces name no axis",
    "a claim with a subscript": "plan of 'odd' (clean): claim C1 compares 'table1/{dataset[0]}', whose braces name no",
    "data that cannot be located": "plan of 'odd' (clean): locating the data set 'odd-data' raised ZeroDivisionError: "
    "nowhere [kdbench_odd:locate]; a fault of plugin 'kdbench-odd'",
    "a hook that is not marked": "import: 'kdbench_papers' is not marked as a hook; put @hookimpl above it",
}


def problems(*args: str, check: int = 1) -> dict[str, str]:
    return {row["name"]: row["problem"] for row in json.loads(inside("plugins", "--json", *args, check=check).stdout)}


@pytest.mark.parametrize("fault", ODD)
def test_it_is_named_by_check_and_nobody_else_is_touched(fault, tmp_path, store):
    with installed(distribution(tmp_path, "kdbench-odd", ODD[fault])):
        found = problems("--check")
        assert found["kdbench-odd"].startswith(SAID[fault])
        assert {name for name, problem in found.items() if problem} == {"kdbench-odd"}
        assert "takd" in inside("list", check=0).stdout
        assert json.loads(inside("plan", "takd", "--tier", "smoke", "--json", check=0).stdout)["stages"]


@pytest.mark.parametrize("hook", ["kdbench_paper", "papers"])
def test_a_wrong_hook_is_found_wherever_in_the_package_it_was_written(hook, tmp_path, store):
    files = {
        "__init__.py": f"from kdbench_deep.papers import {hook}\n",
        "papers.py": f"from kdbench import hookimpl\n\n@hookimpl\ndef {hook}():\n    return []\n",
    }
    with installed(distribution(tmp_path, "kdbench-deep", files)):
        assert problems("--check")["kdbench-deep"].startswith(
            f"import: unknown hook '{hook}'; did you mean 'kdbench_papers'?"
        )


def test_an_unmarked_hook_is_found_wherever_it_was_written(tmp_path, store):
    files = {
        "__init__.py": "from kdbench_deep.papers import kdbench_papers\n",
        "papers.py": "def kdbench_papers():\n    return []\n",
    }
    with installed(distribution(tmp_path, "kdbench-deep", files)):
        assert problems("--check")["kdbench-deep"].startswith("import: 'kdbench_papers' is not marked as a hook")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from kdbench import nobody_knows\n\nKDBENCH_API = 99\n", "import: it needs API level 99, this kdbench has 1"),
        ("import nobodys\nKDBENCH_API = 99\n", "import: it needs API level 99, this kdbench has 1"),
        ("from kdbench import nobody_knows\n\nKDBENCH_API = 1\n", "import: AttributeError: module 'kdbench' has no"),
        ("from kdbench import nobody_knows\n", "import: AttributeError: module 'kdbench' has no"),
    ],
)
def test_a_plugin_from_the_future_that_does_not_even_import_is_told_so(tmp_path, store, text, said):
    with installed(distribution(tmp_path, "kdbench-newer", text)):
        problem = problems("--check")["kdbench-newer"].replace(
            "ImportError: cannot import name 'nobody_knows'", "AttributeError: module 'kdbench' has no"
        )
        assert problem.startswith(said)


def test_damaged_metadata_is_one_plugins_problem(tmp_path, store):
    distribution(tmp_path, "kdbench-odd", "")
    metadata = next(tmp_path.glob("*.dist-info")) / "METADATA"
    metadata.write_text(f"{metadata.read_text().rstrip()}\nRequires-Dist: not a requirement\n")
    with installed(tmp_path):
        assert problems("--check")["kdbench-odd"].startswith("requirements: 'not a requirement' is no requirement")
    metadata.unlink()
    with installed(tmp_path):
        assert "takd" in inside("list", check=0).stdout
        assert problems("--check")["kdbench-odd"].startswith("requirements: the metadata of kdbench-odd cannot be read")


def test_a_command_is_given_back_even_if_the_hook_then_raises(tmp_path, store):
    text = (
        "from kdbench import hookimpl\nimport click\n\n@hookimpl\ndef kdbench_register_commands(cli):\n"
        "    cli.add_command(click.Command('greet', callback=lambda: click.echo({word!r})))\n{end}"
    )
    distribution(tmp_path, "kdbench-a", text.format(word="hello", end=""))
    distribution(tmp_path, "kdbench-b", text.format(word="hijacked", end="    1 / 0\n"))
    with installed(tmp_path):
        assert inside("greet", check=0).stdout == "hello\n"
        found = problems("--check")
        assert found["kdbench-a"] == ""
        assert found["kdbench-b"] == (
            "kdbench_register_commands: ZeroDivisionError: division by zero; "
            "kdbench_register_commands: the command 'greet' is already there; give it a name of its own"
        )


LIBRARY = """
from kdbench import hookimpl
from kdbench.training import Objective, ObjectiveInfo

class Broken(Objective, frozen=True):
    def loss(self, logits, batch):
        raise RuntimeError("no gradient today")

@hookimpl
def kdbench_objectives():
    yield ObjectiveInfo(id="broken", title="", source="", create="kdbench_library:Broken")
"""
USER = f"""{STUDY}
from kdbench.networks import Plain
from kdbench.training import SGD, Recipe

class Mine(Plain, frozen=True):
    pass

def study(lab):
    for seed in lab.seeds:
        node = lab.train(
            Mine(size=2, width=0.5), seed=seed, recipe=Recipe(epochs=1, optimizer=SGD(lr=0.1)),
            objective=lab.objective("broken"),
        )
        yield lab.measure("table1/more", node.accuracy, seed=seed)
        yield lab.measure("table1/less", lab.stage(Constant(number=-1.0), seed=seed, label="less").accuracy, seed=seed)

@hookimpl
def kdbench_papers():
    yield paper("user", study)
"""


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_failing_stage_is_blamed_on_whose_code_it_was(executor, tmp_path, store, monkeypatch):
    distribution(tmp_path, "kdbench-library", LIBRARY)
    with installed(distribution(tmp_path, "kdbench-user", USER)):
        run = ("reproduce", "user", "--tier", "smoke", "--executor", executor, "--workers", "1")
        result = json.loads(inside(*run, "--json", check=3).stdout)
        blamed = {failure["label"]: failure["plugin"] for failure in result["failures"]}
        assert blamed == {"train plain2-x0.5 seed 0": "kdbench-library", "less seed 0": "kdbench-user"}
        found = problems("--check")
        assert "RuntimeError: no gradient today" in found["kdbench-library"]
        assert "ArithmeticError: a negative number" in found["kdbench-user"]


LATE = {
    "lab.stage(Constant(number=1.0), seed=seed, label='a').metric('test.acuracy')": (
        "unknown metric 'test.acuracy' [a seed 0]; did you mean 'test.accuracy'?"
    ),
    "derive('ratio', lambda a: 1 / (a - a), lab.stage(Constant(number=1.0), seed=seed, label='a').accuracy)": (
        "ZeroDivisionError: "
    ),
    "derive('word', lambda a: 'large', lab.stage(Constant(number=1.0), seed=seed, label='a').accuracy)": "ValueError: ",
}


@pytest.mark.parametrize("quantity", LATE)
def test_a_value_that_cannot_be_read_costs_its_cell_and_no_other(quantity, tmp_path, store):
    text = f"""{STUDY}
from kdbench.study import derive

def study(lab):
    for seed in lab.seeds:
        yield lab.measure("table1/more", {quantity}, seed=seed)
        yield lab.measure("table1/less", lab.stage(Constant(number=1.0), seed=seed, label="b").accuracy, seed=seed)

@hookimpl
def kdbench_papers():
    yield paper("late", study)
"""
    with installed(distribution(tmp_path, "kdbench-late", text)):
        run = ("reproduce", "late", "--tier", "smoke", "--executor", "inline")
        result = json.loads(inside(*run, "--json", check=3).stdout)
        assert result["status"] == "incomplete"
        assert {value["cell"]: value["value"] for value in result["values"]} == {
            "table1/more": None,
            "table1/less": 1.0,
        }
        (failure,) = result["failures"]
        assert failure["label"] == "cell table1/more seed 0"
        assert failure["cause"].startswith(LATE[quantity])
        assert failure["plugin"] == "kdbench-late"
        assert "failed cell table1/more seed 0" in inside(*run, "--debug", check=3).stdout


def test_a_stage_that_exits_is_a_failed_stage(tmp_path, store):
    text = STUDY.replace("raise ArithmeticError", "raise SystemExit")
    text += PAPER.removeprefix(STUDY).replace("('less', 1.0)", "('less', -1.0)") + HOOK.format(
        what="paper('exits', measured)"
    )
    with installed(distribution(tmp_path, "kdbench-exits", text)):
        result = json.loads(
            inside("reproduce", "exits", "--tier", "smoke", "--executor", "inline", "--json", check=3).stdout
        )
        (failure,) = result["failures"]
        assert failure["cause"].startswith("SystemExit: a negative number")


EXECUTOR = """
from kdbench import hookimpl
from kdbench.executors import ExecutorInfo
from kdbench.executors.inline import InlineExecutor

class Refuses(InlineExecutor):
    def __init__(self, workers, threads):
        raise RuntimeError("no queue")

class Drops(InlineExecutor):
    def submit(self, folder):
        raise RuntimeError("queue full")

class Clings(InlineExecutor):
    def close(self):
        raise RuntimeError("still busy")

@hookimpl
def kdbench_executors():
    for name in ("Refuses", "Drops", "Clings"):
        yield ExecutorInfo(id=name.lower(), title=name, create=f"kdbench_engine:{name}")
"""


def test_an_executor_that_raises_is_named_with_its_plugin(tmp_path, store):
    distribution(tmp_path, "kdbench-engine", EXECUTOR)
    with installed(distribution(tmp_path, "kdbench-odd", PAPER + HOOK.format(what="paper('odd', measured)"))):
        run = ("reproduce", "odd", "--tier", "smoke", "--executor")
        assert complaint(inside(*run, "refuses")) == (
            "starting the executor 'refuses' raised RuntimeError: no queue [kdbench_engine:Refuses]; "
            "a fault of plugin 'kdbench-engine'"
        )
        result = json.loads(inside(*run, "drops", "--json", check=3).stdout)
        assert {failure["cause"] for failure in result["failures"]} == {"RuntimeError: queue full"}
        assert {failure["plugin"] for failure in result["failures"]} == {"kdbench-engine"}
        result = json.loads(inside(*run, "clings", "--json", check=3).stdout)
        assert all(value["value"] is not None for value in result["values"])  # all work is done, and kept
        (failure,) = result["failures"]
        assert failure["cause"] == "it raised RuntimeError when it was to stop: still busy"
        assert failure["plugin"] == "kdbench-engine"


def test_a_paper_without_core_claims_or_without_a_clean_reading_is_reproduced_all_the_same(tmp_path, store):
    text = PAPER.replace("core=True, ", "").replace('id="clean"', 'id="released"') + HOOK.format(
        what="paper('odd', measured)"
    )
    assert text.count("released") == 1
    with installed(distribution(tmp_path, "kdbench-odd", text)):
        result = json.loads(
            inside("reproduce", "odd", "--tier", "smoke", "--executor", "inline", "--json", check=0).stdout
        )
        assert result["request"]["protocol"] == "released"
        assert [verdict["claim"] for verdict in result["verdicts"]] == ["C1"]
        assert len(result["stages"]) == 2


def test_planning_never_downloads(store, tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(b"cut short")
    monkeypatch.setattr("requests.get", lambda *args, **options: pytest.fail("it went out"))
    request = ("plan", "takd", "--tier", "full", "--claims", "H13", "--dataset", "cifar10", "--json")
    assert json.loads(inside(*request, check=0).stdout)["stages"]


def test_brackets_in_facts_are_text(store, tmp_path):
    out = inside("show", "takd", check=0).stdout
    assert "[derived]" in out
    assert "[third-party]" in out
    text = replaced("title='On [bold]brackets[/] [/x]', summary='see [/y] and [z]'").replace(
        "label=name", "label=name + '[/x]'"
    )
    with installed(distribution(tmp_path, "kdbench-odd", text)):
        out = inside("show", "odd", check=0).stdout
        assert "On [bold]brackets[/] [/x]" in out
        assert "see [/y] and [z]" in out
        assert "more[/x]" in inside("plan", "odd", "--tier", "smoke", check=0).stdout
        assert (
            "On [bold]brackets[/] [/x]"
            in inside("reproduce", "odd", "--tier", "smoke", "--executor", "inline", check=0).stdout
        )
        inside("runs", check=0)
