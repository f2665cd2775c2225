from kdbench_healthy.networks import Small
from kdbench_healthy.objectives import SoftTargets
from kdbench_healthy.stages import Imitate

from kdbench.training import SGD, Recipe

RECIPE = Recipe(epochs=2, optimizer=SGD(lr=0.05), batch_size=600, statistics="none", holdout=0.1)
OBJECTIVE = SoftTargets(temperature=3.0)


def reproduce(lab):
    """From scratch, distilled by the framework's loop, and by the paper's own."""
    for seed in lab.seeds:
        scratch = lab.train(Small(), seed=seed, recipe=RECIPE)
        distilled = lab.distil(Small(), scratch, seed=seed, recipe=RECIPE, objective=OBJECTIVE)
        imitate = Imitate(network=Small(), lr=0.05, temperature=2.0)
        imitated = lab.stage(imitate, seed=seed, inputs={"teacher": scratch}, label="imitate", network=Small())
        yield lab.measure(f"table1/{lab.dataset}/scratch", scratch.accuracy, seed=seed)
        yield lab.measure(f"table1/{lab.dataset}/distilled", distilled.accuracy, seed=seed)
        yield lab.measure(f"table1/{lab.dataset}/imitated", imitated.accuracy, seed=seed)
