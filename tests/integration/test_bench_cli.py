"""``kdbench bench kernels`` as users meet it, a plugin's contenders in it, and the same figures under pytest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import distribution
from in_process import complaint, inside, installed

ROOT = Path(__file__).resolve().parents[2]
BENCH = ("bench", "kernels", "--device", "cpu")
QUICK = (*BENCH, "--shapes", "8x10,4x33", "--contenders", "eager,eager-log", "--seconds", "0.01")
PLUGIN = re.search(r"```python\n(.*?)```", (ROOT / "docs/benchmarks/README.md").read_text(), flags=re.DOTALL)
WRONG = """
from kdbench import hookimpl
from kdbench.bench import Contender
from kdbench_by_hand import make as right

@hookimpl
def kdbench_benchmark_contenders():
    yield Contender(id="by-mistake", title="twice the loss", make="kdbench_mistake:make")

def make(case):
    return lambda *tensors: 2 * right(case)(*tensors)
"""
TWIN = WRONG.replace("by-mistake", "eager").replace("kdbench_mistake", "kdbench_twin")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """One comparison of two small cases: the file that it kept."""
    path = tmp_path_factory.mktemp("bench") / "cpu.json"
    done = inside(*QUICK, "--output", str(path), "--json", check=0)
    assert json.loads(done.stdout) == json.loads(path.read_text())
    assert done.stderr == ""
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The plugin of docs/benchmarks, one that is wrong, and one whose name is taken."""
    assert PLUGIN is not None
    folder = tmp_path_factory.mktemp("site")
    for name, text in (("by-hand", PLUGIN[1]), ("mistake", WRONG), ("twin", TWIN)):
        distribution(folder, f"kdbench-{name}", text)
    return folder


def test_help_needs_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "kdbench", "bench", "kernels", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "--contenders" in done.stdout
    assert not {"torch", "numpy", "pandas"} & set(re.findall(r"\| +([\w.]+)$", done.stderr, flags=re.MULTILINE))


def test_the_document_carries_everything(document):
    found = json.loads(document.read_text())
    assert found["finished"]
    assert found["date"].endswith("UTC")
    assert found["seconds_per_case"] == 0.01
    assert found["machine"]["environment"]["torch"]
    assert found["machine"]["environment"]["threads"] > 0
    assert found["machine"]["torch_instruction_set"]
    assert any("float" not in line and "rounds" in line for line in found["method"])
    assert [(part["case"]["rows"], part["case"]["classes"]) for part in found["cases"]] == [(8, 10), (4, 33)]
    for part in found["cases"]:
        assert [entry["id"] for entry in part["entries"]] == ["eager", "eager-log", "floor"]
        for entry in part["entries"]:
            assert entry["status"] == "measured"
            assert entry["time"]["n"] >= 5
            assert 0 < entry["time"]["minimum"] <= entry["time"]["median"]
            assert entry["gb_per_s"] > 0
            assert entry["floor_share"] > 0
        assert part["entries"][0]["x_eager"] == 1.0


def test_tables_are_the_documents(document):
    text = inside("bench", "kernels", "--from", str(document), check=0).stdout
    assert "8 x 10 float32, T = 4, alpha = 0.9" in text
    assert len(re.findall(r"^eager-log +[\d.]+ [um]?s ", text, flags=re.MULTILINE)) == 2
    page = inside("bench", "kernels", "--from", str(document), "--markdown", check=0).stdout
    assert page.count("| eager-log | ") == 2
    assert "### 4 x 33 float32, T = 4, alpha = 0.9" in page
    again = inside("bench", "kernels", "--from", str(document), "--json", check=0).stdout
    assert json.loads(again) == json.loads(document.read_text())


def test_without_json_the_tables_come_as_they_are_measured():
    text = inside(*QUICK, "--dtypes", "bfloat16", "--alpha", "1", check=0).stdout
    assert text.index("forward and backward") < text.index("8 x 10 bfloat16") < text.index("4 x 33 bfloat16")
    assert "T = 4, alpha = 1" in text
    assert "\x1b" not in text


def test_threads_are_torchs(cli):
    quick = (*BENCH, "--shapes", "8x10", "--contenders", "eager", "--seconds", "0.01", "--threads", "1", "--json")
    assert json.loads(cli(*quick, check=0).stdout)["machine"]["environment"]["threads"] == 1


def test_who_cannot_run_is_said_with_the_reason():
    found = inside(*BENCH, "--shapes", "8x10", "--contenders", "floor,liger", "--seconds", "0.01", check=0).stdout
    assert "liger: not available: its kernels run on a GPU only" in found
    assert re.search(r"^floor +[\d.]+ [um]?s", found, flags=re.MULTILINE)


BAD = {
    "shape": (("--shapes", "8-10"), "--shapes '8-10' cannot be read; write rows x classes"),
    "no rows": (("--shapes", "8x10,0x10"), "--shapes '0x10' cannot be read"),
    "dtype": (("--dtypes", "float31"), "unknown dtype 'float31'; did you mean 'float32'? known: bfloat16"),
    "contender": (("--contenders", "eagr"), "unknown contender 'eagr'; did you mean 'eager'? known: compile"),
    "device": (("--device", "cpuu"), "unknown device 'cpuu'; did you mean 'cpu'?"),
    "alpha": (("--alpha", "1.5"), "--alpha is 1.5; it is the weight of the soft term"),
    "temperature": (("--temperature", "nan"), "--temperature is nan; it must be positive"),
    "threads": (("--threads", "0"), "--threads is 0; it must be positive"),
    "seconds": (("--seconds", "0"), "--seconds is 0; it must be positive"),
    "no folder": (("--output", "/nobodys/place.json"), "--output '/nobodys/place.json' lies in a folder that does not"),
    "no file": (("--from", "/nobodys/place.json"), "--from '/nobodys/place.json' cannot be read: No such file"),
    "no document": (("--from", __file__), f"--from '{__file__}' is no document of 'kdbench bench kernels'"),
}


@pytest.mark.parametrize(("args", "what"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(args, what):
    assert complaint(inside(*QUICK, *args)).startswith(what)


def test_two_forms_at_once_are_refused():
    assert "choose one" in complaint(inside(*QUICK, "--json", "--markdown"), status=2)


# ------------------------------------------------------------------------------------------------------------ plugins


def test_the_documented_plugin_is_measured_beside_the_others(site):
    with installed(site):
        found = inside(
            *BENCH, "--shapes", "8x10", "--contenders", "eager,by-hand", "--seconds", "0.01", "--json", check=0
        )
    (part,) = json.loads(found.stdout)["cases"]
    entry = part["entries"][1]
    assert (entry["id"], entry["status"]) == ("by-hand", "measured")
    assert entry["x_eager"] > 0


def test_a_wrong_one_is_named_and_costs_the_exit_status(site):
    with installed(site):
        some = (*BENCH, "--shapes", "8x10", "--contenders", "by-mistake,by-hand", "--seconds", "0.01")
        text = inside(*some, check=1).stdout
    assert re.search(r"^by-mistake: wrong: its loss is [\d.]+, the reference's [\d.]+$", text, flags=re.MULTILINE)
    assert re.search(r"^by-hand +[\d.]+ [um]?s", text, flags=re.MULTILINE)


def test_a_taken_name_is_that_plugins_problem(site):
    with installed(site):
        rows = {row["name"]: row for row in json.loads(inside("plugins", "--json", check=0).stdout)}
    assert rows["kdbench-by-hand"]["provides"] == {"benchmark_contenders": ["by-hand"]}
    assert rows["kdbench-by-hand"]["problem"] == ""
    assert "the contender 'eager' is already provided by plugin 'kdbench.builtin'" in rows["kdbench-twin"]["problem"]


# ---------------------------------------------------------------------------------------------- under pytest-benchmark


def test_figures_can_be_kept_and_compared(tmp_path):
    kept = tmp_path / "kept.json"
    some = "cpu-128x10-float32 and (eager or floor) and not log"
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-q"]
    command += ["-p", "no:cacheprovider", "-k", some, "--benchmark-only"]
    command += [str(ROOT / "tests/benchmarks/test_bench_losses.py")]
    # Inside a worker of xdist pytest-benchmark would switch itself off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for option in (f"--benchmark-json={kept}", f"--benchmark-compare={kept}"):
        done = subprocess.run(
            [*command, option],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 passed" in done.stdout
    assert "(NOW)" in done.stdout
    rows = json.loads(kept.read_text())["benchmarks"]
    assert {row["group"] for row in rows} == {"128x10 float32"}
    assert {row["name"].rpartition("-")[2] for row in rows} == {"eager]", "floor]"}
    for row in rows:
        assert row["extra_info"]["gb_per_s"] == pytest.approx(3 * 128 * 10 * 4 / row["stats"]["median"] / 1e9)
        assert row["extra_info"]["floor_share"] > 0
