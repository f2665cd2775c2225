"""Distributions with one planted fault each, around a small healthy paper: what the conformance kit must catch.

The paper is the package in ``healthy/``; each fault is installed as a paper of its own, by edits of that text. In what
a message must say, ``healthy`` stands for the paper's id, as it does there.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from distributions import distribution

__all__ = ["FAULTS", "HEALTHY", "Fault", "plant"]

HEALTHY = "healthy"
HOME = Path(__file__).parent / HEALTHY

Edits = tuple[tuple[str, str, str], ...]
"""File, text that stands there in the healthy paper, and what takes its place."""


class Fault(NamedTuple):
    """What is planted, the test that must fail for it, and a regular expression for what its message must say.

    ``also`` names tests that may fail for the same reason; every other one must pass or be skipped with ``skipped``.
    ``trained`` is False where the fault shows in what the paper declares, so that nothing of it need be trained.
    """

    edits: Edits
    test: str
    says: str
    also: tuple[str, ...] = ()
    skipped: str = ""
    trained: bool = True


FROZEN = "teachers_are_frozen_and_environment_unread"
LOSSES = "losses_equal_their_references"
CLEAN = "clean_protocol_is_clean"
HASH = "hash_knows_every_parameter"
LEAK = "test_split_reaches_no_training"
NETWORKS = "networks_fit_the_data"
COUNTS = "networks_have_their_published_parameter_counts"
PLAN = "plan_is_acyclic"
SMOKE = "smoke_tier_finishes_in_time"

OWN_TEACHER = 'work.input("teacher").model(work)'
TARGET = """\
                with torch.no_grad():
                    target = (teacher(inputs[indices]) / self.temperature).softmax(1)
"""
GRAPH = """\
                target = (teacher(inputs[indices]) / self.temperature).softmax(1)
"""

DATA = """\
@hookimpl
def kdbench_datasets():
    import msgspec
    from kdbench.data import DATASETS
    yield msgspec.structs.replace(
        DATASETS["mnist1d"], id="healthy-data", num_classes=12, locate="kdbench_healthy.data:locate"
    )
"""
SCRATCH = '        yield lab.measure(f"table1/{lab.dataset}/scratch"'
AGAIN = """\
        again = Imitate(network=Small(), lr=0.05, temperature=1.0)
        again = lab.stage(again, seed=seed, inputs={"teacher": scratch}, label="imitate", network=Small())
        yield lab.measure("again", again.accuracy, seed=seed)
"""
PEEK = """\
        seen = predict(student, splits["test"].inputs) + 99 * functional.one_hot(splits["test"].labels)
"""
SLOWER = """\
class Slower(Train, frozen=True):
    def run(self, work):
        import msgspec
        optimizer = msgspec.structs.replace(self.recipe.optimizer, lr=self.recipe.optimizer.lr / 10)
        recipe = msgspec.structs.replace(self.recipe, optimizer=optimizer)
        return Train(network=self.network, recipe=recipe, objective=self.objective).run(work)


"""
SLOWLY = """\
slower = Slower(network=Small(), recipe=RECIPE, objective=OBJECTIVE)
        inputs = {"teacher": lab.teacher(scratch, RECIPE)}
        distilled = lab.stage(slower, seed=seed, inputs=inputs, label="slowly", network=Small())"""
DROPPED = """\
    def __post_init__(self):
        import msgspec
        msgspec.structs.force_setattr(self, "temperature", 2.0)

"""

FAULTS = {
    "train-mode": Fault(
        (("stages.py", OWN_TEACHER, f"{OWN_TEACHER}.train()"),),
        FROZEN,
        r"imitate.*teacher.*training mode",
    ),
    "teacher-gradient": Fault(
        (("stages.py", OWN_TEACHER, f"{OWN_TEACHER}.requires_grad_()"), ("stages.py", TARGET, GRAPH)),
        FROZEN,
        r"imitate.*teacher.*takes a gradient",
    ),
    "teacher-graph": Fault(
        (("objectives.py", "softmax(batch.teacher_logits.detach()", "softmax(batch.teacher_logits"),),
        LOSSES,
        r"SoftTargets.*a gradient reaches the teacher",
        trained=False,
    ),
    "teacher-trained": Fault(
        (
            (
                "stages.py",
                "torch.optim.SGD(student.parameters()",
                "torch.optim.SGD([*student.parameters(), *teacher.parameters()]",
            ),
            ("stages.py", OWN_TEACHER, f"{OWN_TEACHER}.requires_grad_()"),
            ("stages.py", TARGET, GRAPH),
        ),
        FROZEN,
        r"imitate.*teacher.*is not what it was",
        also=("kill_and_resume_leave_the_same_record",),  # the state holds no teacher
    ),
    "mean-kl": Fault(
        (
            ("study.py", "import SGD,", "import SGD, Distillation,"),
            ("study.py", "SoftTargets(temperature=3.0)", 'Distillation(temperature=3.0, alpha=0.9, reduction="mean")'),
        ),
        CLEAN,
        r"the 'mean' KL at protocol clean: stage 'distil",
        trained=False,
    ),
    "mean-kl-own": Fault(
        (("objectives.py", 'reduction="batchmean"', 'reduction="mean"'),),
        LOSSES,
        r"SoftTargets of stage 'distil.*divided by the classes \('mean' of torch's KLDivLoss\)",
        trained=False,
    ),
    "wrong-t2": Fault(
        (("objectives.py", "return self.temperature**2 * functional", "return self.temperature * functional"),),
        LOSSES,
        r"SoftTargets.*At T = 1 it is right: look at the powers of T",
        trained=False,
    ),
    "no-reference": Fault(
        (("objectives.py", "def reference(", "def formula("),),
        LOSSES,
        r"SoftTargets of stage 'distil.*has no reference\(\)",
        trained=False,
    ),
    "test-selection": Fault(
        (("study.py", "holdout=0.1)", 'holdout=0.1, selection="test")'),),
        CLEAN,
        r"selection on test at protocol clean: stage 'train",
        trained=False,
    ),
    "unseeded": Fault(
        (("stages.py", 'derive_seed(work.seed, "order", epoch)', 'derive_seed(__import__("os").urandom(8))'),),
        "same_seed_leaves_the_same_record",
        r"unseeded: stage 'imitate.*metric '.*' is .*, then ",
    ),
    "dropped-field": Fault(
        (("stages.py", "    def run(self, work):", f"{DROPPED}    def run(self, work):"),),
        HASH,
        r"the hash ignores the parameter 'temperature' of Imitate",
        trained=False,
    ),
    "class-attribute": Fault(
        (
            ("objectives.py", "import Objective\n", "import Objective\n\nSHARPNESS = 1.0\n"),
            ("study.py", "import SoftTargets\n", "import SoftTargets\nfrom kdbench_healthy import objectives\n"),
            ("study.py", "    for seed", '    objectives.SHARPNESS = {"smoke": 0.5}.get(lab.tier, 1.0)\n    for seed'),
        ),
        HASH,
        r"kdbench_healthy.objectives.SHARPNESS changed from 1.0 to 0.5",
        trained=False,
    ),
    "rate-ignored": Fault(
        (("stages.py", "student.parameters(), lr=self.lr", "student.parameters(), lr=0.05"),),
        "learning_rate_is_applied",
        r"learning rate never applied: stage 'imitate.*weights.safetensors at lr 0.05 and 0.025",
    ),
    "rate-off-schedule": Fault(
        (
            ("stages.py", "class Imitate(", f"{SLOWER}class Imitate("),
            ("stages.py", "import WEIGHTS, Stage\n", "import WEIGHTS, Stage\nfrom kdbench.stages import Train\n"),
            ("study.py", "stages import Imitate", "stages import Imitate, Slower"),
            (
                "study.py",
                "distilled = lab.distil(Small(), scratch, seed=seed, recipe=RECIPE, objective=OBJECTIVE)",
                SLOWLY,
            ),
        ),
        "learning_rate_follows_its_schedule",
        r"learning rate off its schedule: stage 'slowly seed 0' ran epoch 0 at 0.005, its recipe says 0.05",
    ),
    "trains-on-test": Fault(
        (("stages.py", '= splits["train"].inputs', '= torch.cat([splits["train"].inputs, splits["test"].inputs])'),),
        LEAK,
        r"label leak: the test split reaches stage 'imitate",
    ),
    "peeks": Fault(
        (
            ("stages.py", "import evaluate\n", "import evaluate, metrics_of, predict\n"),
            ("stages.py", 'evaluate(student, splits["test"])', 'metrics_of(seen, splits["test"].labels)'),
            ("stages.py", "        metrics = {", f"{PEEK}        metrics = {{"),
        ),
        LEAK,
        r"label leak: stage 'imitate.*reaches 100.0 % on a test split with permuted labels",
    ),
    "too-many-outputs": Fault(
        (
            ("networks.py", "nn.Linear(16, num_classes)", "nn.Linear(16, num_classes + 2)"),
            ("networks.py", "17 * num_classes", "17 * (num_classes + 2)"),
            ("facts/paper.toml", "858", "892"),
        ),
        NETWORKS,
        r"network '.*-small' gives 12 outputs for 10 classes",
        trained=False,
    ),
    "wrong-classes": Fault(
        (
            ("__init__.py", "@hookimpl\ndef kdbench_networks", f"{DATA}\n@hookimpl\ndef kdbench_networks"),
            ("facts/paper.toml", '"mnist1d"', '"healthy-data"'),
            ("facts/paper.toml", "858", "892"),
        ),
        "data_are_as_described",
        r"wrong class count: the labels are 0 to 9, described are 12 classes",
        trained=False,
    ),
    "worker-state": Fault(
        (
            ("stages.py", "class Imitate", "SEEN = []\n\nclass Imitate"),
            ("stages.py", "        first = 0\n", "        SEEN.append(work.seed)\n        first = 0\n"),
            ("stages.py", "lr=self.lr,", "lr=self.lr * (1 + len(SEEN)),"),
            ("study.py", SCRATCH, AGAIN + SCRATCH),
            ("facts/paper.toml", "]]\n\n", '  { left = "again", right = "table1/{dataset}/scratch" },\n]]\n\n'),
        ),
        "workers_make_no_difference",
        r"differs with the worker that runs it: stage 'imitate",
    ),
    "no-source": Fault(
        (("facts/paper.toml", 'source = "Table 1"\ncertainty', 'source = "the paper"\ncertainty'),),
        "facts_have_sources",
        r"claim C1 has the source 'the paper', which names no table",
        trained=False,
    ),
    "empty-source": Fault(
        (("facts/paper.toml", 'source = "Table 1"\ncertainty', 'source = ""\ncertainty'),),
        "plugin_has_no_problem",
        r"plugin 'kdbench-healthy' has a problem: .*claim C1 cites no table or section",
        trained=False,
    ),
    "cell-without-source": Fault(
        (("facts/table1.csv", "distilled,61.5,paper,Table 1", "distilled,61.5,paper,"),),
        "facts_have_sources",
        r"the cell 'table1/mnist1d/distilled' has the value 61.5 and no source",
        trained=False,
    ),
    "downloads": Fault(
        (
            ("facts/paper.toml", 'datasets = ["mnist1d"]', 'datasets = ["mnist1d", "cifar10"]'),
            ("facts/paper.toml", 'smoke = "mnist1d"', 'smoke = "cifar10"'),
        ),
        "data_sets_are_known",
        r"smoke tier runs on 'cifar10', which must be downloaded; take embedded data",
        skipped="must be downloaded",
        trained=False,
    ),
    "no-margin": Fault(
        (("facts/paper.toml", "gain_margin = 0.3\n", ""),),
        "claims_can_be_judged",
        r"claim C1 compares .* by a margin of 0",
        trained=False,
    ),
    "broken-resume": Fault(
        (("stages.py", '            optimizer.load_state_dict(state["optimizer"])\n', ""),),
        "kill_and_resume_leave_the_same_record",
        r"kill and resume: stage 'imitate.*metric '.*' is .*, then ",
    ),
    "wrong-count": Fault(
        (("facts/paper.toml", "858", "1858"),),
        COUNTS,
        r"network '.*-small' has 858 trainable parameters on 'mnist1d', published are 1,858 \(Table 2\): -1,000",
        trained=False,
    ),
    "wrong-cost": Fault(
        (("networks.py", "+ 32 +", "+"),),
        NETWORKS,
        r"network '.*-small' says that it has 826 trainable parameters .* built it has 858",
        trained=False,
    ),
    "torch-early": Fault(
        (("stages.py", "from kdbench.component import pack\n", "import torch\nfrom kdbench.component import pack\n"),),
        "descriptors_import_no_torch",
        r"kdbench_healthy/stages.py:1 imports torch while",
        trained=False,
    ),
    "environment": Fault(
        (("stages.py", "lr=self.lr,", 'lr=float(__import__("os").environ.get("healthy_RATE", self.lr)),'),),
        FROZEN,
        r"imitate.*reads the environment variable healthy_RATE at kdbench_healthy/stages.py:\d+",
    ),
    "hash-seed": Fault(
        (("study.py", "lr=0.05, temperature", 'lr=0.05 + 1e-9 * (hash("imitate") % 1000), temperature'),),
        "plan_is_stable",
        r"the plan is not stable: stage 'imitate seed 0' has the hash .* another hash seed",
        trained=False,
    ),
    "unmeasured": Fault(
        (("study.py", '/imitated", imitated', '/imitation", imitated'),),
        "plan_measures_every_claim",
        r"claim C1 compares the cell 'table1/mnist1d/imitated', which the study does not measure",
        trained=False,
    ),
    "study-raises": Fault(
        (("study.py", "    for seed", '    lab.networks["nobody"]\n    for seed'),),
        PLAN,
        r"the study of 'healthy' .*KeyError: 'nobody' .*study.py:\d+",
        skipped="cannot be planned",
        trained=False,
    ),
    "stage-raises": Fault(
        (("stages.py", "        import torch\n", '        raise ValueError("no such luck")\n'),),
        SMOKE,
        r"the stage 'imitate seed 0' failed: ValueError: no such luck",
        skipped="does not finish",
    ),
}


def plant(site: Path, name: str, edits: Edits = ()) -> None:
    """Install the healthy paper under another name, with its edits, as a distribution of ``site``."""
    package = f"kdbench_{name.replace('-', '_')}"
    files = {str(path.relative_to(HOME)): path.read_text() for path in HOME.rglob("*.*") if path.suffix != ".pyc"}
    for file, old, new in edits:
        assert old in files[file], f"{name}: {old!r} does not stand in {file}"
        files[file] = files[file].replace(old, new)
    renamed = {file: text.replace(f"kdbench_{HEALTHY}", package).replace(HEALTHY, name) for file, text in files.items()}
    distribution(site, package.replace("_", "-"), renamed)
