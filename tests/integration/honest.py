"""An honest paper that does many things its own way, each of which some check could take for a fault.

Edits of the healthy paper, as a fault is; every conformance test must pass.
"""

from __future__ import annotations

__all__ = ["HONEST"]

RETURN = "        return Outcome(metrics=metrics, notes="
LOGITS = """\
        from kdbench.training.evaluate import predict
        work.save_tensors("test_logits.safetensors", {"logits": predict(student, splits["test"].inputs)})
        metrics["test_margin"] = metrics["test.nll"] * 2
"""
ANOTHER_PROGRAM = """\
        import os
        import subprocess
        subprocess.run(["true"], env={**os.environ, "HEALTHY": "1"}, check=True)
        first = 0
"""
DERIVED = """\
    epochs: int = 2
    total: float = 0.0

    def __post_init__(self):
        import msgspec
        msgspec.structs.force_setattr(self, "total", self.lr * self.epochs)
"""

PRUNE = '''\
class Prune(Stage, frozen=True):
    """The smallest weights are set to zero; of the recipe it needs the holdout alone."""

    recipe: Recipe
    share: float = 0.5

    def __post_init__(self):
        if self.share != 0.5:
            raise ValueError("the paper removes one half")

    def run(self, work):
        import torch
        from kdbench.stages.splits import splits_of
        from kdbench.training.evaluate import evaluate
        source = work.input("network")
        model = source.model(work)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight[weight.abs() < weight.abs().flatten().quantile(self.share)] = 0
            model.train()(work.data()["train"].inputs[:600])  # statistics of what is now another network
        work.save_tensors(WEIGHTS, model.state_dict())
        splits = splits_of(work, self.recipe.holdout)
        metrics = {f"test.{n}": v for n, v in evaluate(model, splits["test"]).items()}
        return Outcome(metrics=metrics, notes=source.record.notes)


'''
PRUNED = """\
        pruned = Prune(recipe=RECIPE)
        pruned = lab.stage(pruned, seed=seed, inputs={"network": scratch}, label="prune", network=Small())
        yield lab.measure("pruned", pruned.accuracy, seed=seed)
"""
TABLE = """\


TABLE = {}


def table(protocol):
    if protocol not in TABLE:
        TABLE[protocol] = 2.0
    return TABLE[protocol]
"""

GATE = """\

[[gates]]
network = "healthy-small"
dataset = "healthy-data"
claimed = 16.0
tolerance = 1.0
certainty = "paper"
source = "Table 1"

[[parameter_counts]]
"""
CELL = '  { left = "pruned", right = "table1/{dataset}/scratch" },\n]]\n\n'

DATA = """\
@hookimpl
def kdbench_datasets():
    import msgspec
    from kdbench.data import DATASETS
    sizes = {"train": 4000, "test": 5000}
    locate = "kdbench_healthy.data:locate"
    yield msgspec.structs.replace(DATASETS["mnist1d"], id="healthy-data", sizes=sizes, locate=locate)


@hookimpl
def kdbench_networks"""
LOCATED = '''\
    sizes = {"train": 4000, "test": 5000}
    return msgspec.structs.replace(found, dataset="healthy-data", load="kdbench_healthy.data:load", sizes=sizes)


def load(ref):
    """Roots are taken of the inputs, and the test split has no example of one class."""
    from kdbench.data import Split

    splits = {name: Split(each.inputs.abs(), each.labels) for name, each in mnist1d.load(ref).items()}
    kept = splits["test"].labels != 9
    return {**splits, "test": Split(splits["test"].inputs[kept][:5000], splits["test"].labels[kept][:5000])}
'''

TORCH = "        from torch import nn\n"
ROOT = """\
        from torch import nn

        class Root(nn.Module):
            def forward(self, x):
                return x.sqrt()
"""
POOLED = '''\
class Pooled(Network, frozen=True):
    """For images alone, which this paper has none of."""

    @property
    def name(self):
        return "healthy-pooled"

    def build(self, input_shape, num_classes):
        from torch import nn

        return nn.Sequential(nn.MaxPool2d(16), nn.Flatten(), nn.Linear(3 * 2 * 2, num_classes))

    def cost(self, input_shape, num_classes):
        return Cost(parameters=13 * num_classes, macs=1)


class Small('''

RELATIONS = '''\
def distances(x):
    import torch

    x = x[:50].float()
    apart = (x[:, None] - x[None]).pow(2).sum(2).add(1e-12).sqrt()
    apart = apart[~torch.eye(len(x), dtype=torch.bool)]
    return apart / apart.mean()


class SoftTargets(Objective, frozen=True):
    """Distances between pairs of a batch's first examples, in float32; a weight for each of ten classes."""

    temperature: float
    weights: tuple[float, ...] = (1.0,) * 10

    def loss(self, logits, batch):
        import torch
        from torch.nn import functional

        assert batch.inputs.flatten(1).shape[1] == 40
        student = distances(logits * torch.tensor(self.weights, dtype=logits.dtype))
        return self.temperature * functional.smooth_l1_loss(student, distances(batch.teacher_logits.detach()))

    def reference(self, logits, batch):
        import torch

        student = distances(logits * torch.tensor(self.weights, dtype=logits.dtype))
        apart = (student - distances(batch.teacher_logits.detach())).abs()
        return self.temperature * torch.where(apart < 1, apart * apart / 2, apart - 0.5).mean()


class Former(Objective, frozen=True):
'''

HONEST = (
    ("stages.py", RETURN, LOGITS + RETURN),
    ("stages.py", "        first = 0\n", ANOTHER_PROGRAM),
    ("stages.py", "    epochs: int = 2\n", DERIVED),
    ("stages.py", "class Imitate(", f"{PRUNE}class Imitate("),
    ("stages.py", "import WEIGHTS, Stage\n", "import WEIGHTS, Stage\nfrom kdbench.training import Recipe\n"),
    ("study.py", "stages import Imitate", "stages import Imitate, Prune"),
    ("study.py", "        imitate = ", f"{PRUNED}        imitate = "),
    ("study.py", "Recipe(epochs=2", "Recipe(epochs=8"),  # until it is better than chance, as its gate demands,
    ("study.py", "holdout=0.1)", "holdout=0.0)"),  # which can read the test split alone
    ("study.py", "\n\n\ndef reproduce", f"{TABLE}\n\ndef reproduce"),
    ("study.py", "temperature=2.0", "temperature=table(lab.protocol)"),
    ("facts/paper.toml", '"mnist1d"', '"healthy-data"'),
    ("facts/paper.toml", "\n[[parameter_counts]]\n", GATE),
    ("facts/paper.toml", "]]\n\n", CELL),
    ("__init__.py", "@hookimpl\ndef kdbench_networks", DATA),
    (
        "__init__.py",
        "    yield Small()",
        "    from kdbench_healthy.networks import Pooled\n    yield Pooled()\n    yield Small()",
    ),
    ("data.py", '    return msgspec.structs.replace(found, dataset="healthy-data", num_classes=12)\n', LOCATED),
    ("networks.py", TORCH, ROOT),
    ("networks.py", "            nn.Flatten(), nn.Linear(prod", "            Root(), nn.Flatten(), nn.Linear(prod"),
    ("networks.py", "class Small(", POOLED),
    ("objectives.py", "class SoftTargets(Objective, frozen=True):\n", RELATIONS),
)
