"""Real tiny distributions, as pip leaves them: a package beside its ``*.dist-info``, in a folder for PYTHONPATH."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["distribution", "good", "on_path", "toys"]

GOOD = {
    "__init__.py": '''\
"""Everything that a third party can bring: a paper, a network, an executor and a command."""
import click
from kdbench import hookimpl
from kdbench.executors import ExecutorInfo
from kdbench_toy.facts import PAPER
from kdbench_toy.networks import Line

KDBENCH_API = 1

@hookimpl
def kdbench_papers():
    yield PAPER

@hookimpl
def kdbench_networks():
    yield Line()

@hookimpl
def kdbench_executors():
    yield ExecutorInfo(id="toy-thread", title="one thread", create="kdbench_toy.engine:Thread")

@hookimpl
def kdbench_register_commands(cli):
    @cli.command("toy-greet")
    @click.argument("name")
    def greet(name):
        """Say hello, from a plugin."""
        click.echo(f"hello {name}")
''',
    "networks.py": '''\
from kdbench.networks.base import Cost, Network

class Line(Network, frozen=True):
    """A linear classifier."""

    @property
    def name(self):
        return "toy-line"

    def build(self, input_shape, num_classes):
        from math import prod
        from torch import nn
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_classes))

    def cost(self, input_shape, num_classes):
        from math import prod
        return Cost(parameters=(prod(input_shape) + 1) * num_classes, macs=prod(input_shape) * num_classes)
''',
    "engine.py": '''\
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from kdbench.stage import execute

class Thread:
    """Leaves a mark in every folder that it ran, so that a test can tell who did the work."""
    slots = 1

    def __init__(self, workers, threads):
        self.pool = ThreadPoolExecutor(1)

    def submit(self, folder):
        def run():
            execute(folder)
            (Path(folder) / "ran-by-toy-thread").touch()
        return self.pool.submit(run)

    def close(self):
        self.pool.shutdown()
''',
    "facts.py": '''\
from kdbench.paper import Claim, Comparison, Paper, Protocol
from kdbench.training import SGD, Recipe

def recipe(lr):
    return Recipe(epochs=1, optimizer=SGD(lr=lr), holdout=0.1)

def study(lab):
    """Two stages a seed: a plugin's own network by name, at two rates; ``fast`` is absurd where the paper says so."""
    for seed in lab.seeds:
        for name, lr in (("slow", 0.01), ("fast", FAST[lab.paper.id])):
            node = lab.train("toy-line", seed=seed, recipe=recipe(lr), label=name)
            yield lab.measure(f"table1/{lab.dataset}/{name}", node.accuracy, seed=seed)

FAST = {"toyline": 0.1, "toynan": 1e38}

def paper(id):
    return Paper(
        id=id, title=f"A toy called {id}", authors="Nobody", venue="Nowhere", year=2026, url="https://example.org",
        bibtex="@misc{toy}", summary="Fast beats slow.", datasets=("mnist1d",),
        default_dataset={"smoke": "mnist1d", "laptop": "mnist1d", "full": "mnist1d"},
        protocols=tuple(Protocol(id=name, sentence=name) for name in ("written", "released", "clean")),
        claims=(Claim(
            id="C1", title="Fast beats slow", sentence="A larger rate is better.", source="Table 1",
            certainty="project", core=True, gain_margin=0.3,
            alternatives=((Comparison(left="table1/{dataset}/fast", right="table1/{dataset}/slow"),),),
        ),),
        study=study,
    )

PAPER = paper("toyline")
''',
}


HOLD = """\
import os, time
from pathlib import Path
from kdbench import hookimpl
from kdbench.executors import ExecutorInfo
from kdbench.executors.inline import InlineExecutor

class Patient(InlineExecutor):
    \"\"\"Runs nothing before the file in KDBENCH_TOY_GO exists.\"\"\"
    def submit(self, folder):
        end = time.monotonic() + 120
        while not Path(os.environ["KDBENCH_TOY_GO"]).exists() and time.monotonic() < end:
            time.sleep(0.05)
        return super().submit(folder)

@hookimpl
def kdbench_executors():
    yield ExecutorInfo(id="toy-patient", title="waits", create="kdbench_hold:Patient")
"""


def distribution(site: Path, name: str, files: dict[str, str] | str, *, version: str = "1.2.3") -> Path:
    """Install a distribution ``name`` into the folder ``site``: its module's text, or its package's files."""
    module = name.replace("-", "_")
    sources = {f"{module}.py": files} if isinstance(files, str) else {f"{module}/{k}": v for k, v in files.items()}
    info = f"{module}-{version}.dist-info"
    sources[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    sources[f"{info}/entry_points.txt"] = f"[kdbench]\n{name} = {module}\n"
    sources[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in sources)
    for path, text in sources.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return site


def good(site: Path) -> Path:
    """The good plugin, and one whose paper ``toynan`` has a stage with a loss that is not finite."""
    distribution(site, "kdbench-toy", GOOD)
    text = (
        "from kdbench import hookimpl\nfrom kdbench_toy.facts import paper\n\n"
        "@hookimpl\ndef kdbench_papers():\n    yield paper('toynan')\n"
    )
    return distribution(site, "kdbench-toynan", text)


def toys(site: Path) -> Path:
    """The good plugins, the paper ``toy`` of ``tests/toy_paper.py``, and the executor ``toy-patient``."""
    text = (Path(__file__).parents[1] / "toy_paper.py").read_text()
    hook = (
        "from kdbench import hookimpl\nfrom kdbench_distil.toy_paper import toy_paper\n\n"
        "@hookimpl\ndef kdbench_papers():\n    yield toy_paper()\n"
    )
    distribution(good(site), "kdbench-distil", {"__init__.py": hook, "toy_paper.py": text})
    return distribution(site, "kdbench-hold", HOLD)


def on_path(*sites: Path) -> dict[str, str]:
    """The environment in which the distributions of ``sites`` are installed."""
    return {"PYTHONPATH": os.pathsep.join([*map(str, sites), *filter(None, [os.environ.get("PYTHONPATH")])])}
