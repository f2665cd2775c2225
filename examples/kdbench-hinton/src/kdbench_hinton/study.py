"""The study of 'hinton': a student from labels, from smoothed labels, and from a teacher at temperatures 1 and above.

Three rules make the arms comparable. They share network and recipe. Each has as many trials as every other, chosen
on validation; and trial k of every arm starts from the same weights and sees the examples in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdbench.networks import Plain
from kdbench.study import Lab, Measurement, Node
from kdbench.training import SGD, Distillation, OneCycle, Recipe

TEMPERATURES = (2.0, 4.0, 8.0)
STRENGTHS = (0.05, 0.1, 0.2)
TRIALS = len(TEMPERATURES)

# The teacher's share of the loss. The paper gives the labels the smaller part; this value is the project's.
ALPHA = 0.9

# With little data nothing is chosen: the teacher was trained on most of what would be held out.
FIXED_TEMPERATURE = 4.0
FIXED_STRENGTH = 0.1

EPOCHS = {"smoke": 2, "laptop": 30, "full": 150}


def networks(tier: str) -> tuple[Plain, Plain]:
    """Teacher and student."""
    if tier == "full":
        return Plain(size=8), Plain(size=2)
    return Plain(size=6, width=0.5), Plain(size=2, width=0.5)


def recipe(tier: str, *, holdout: float = 0.2, batch_size: int = 128, longer: int = 1) -> Recipe:
    """How every network is trained, teacher and student alike, so that only the targets make a difference."""
    return Recipe(
        epochs=EPOCHS[tier] * longer,
        optimizer=SGD(lr=0.05, weight_decay=1e-4),
        batch_size=batch_size,
        schedule=OneCycle(warmup=0.3),
        statistics="none",  # MNIST-1D is generated with zero mean and unit deviation
        holdout=holdout,
        selection="last",
    )


def small_recipe(tier: str) -> Recipe:
    """The same on a tenth of the signals; small batches and twice the epochs keep the number of updates near."""
    return recipe(tier, holdout=0.9, batch_size=32, longer=2)


def reproduce(lab: Lab) -> Iterator[Measurement]:
    """Sections 2 and 3 with the rival that they lack, then the small training set of Section 6."""
    for seed in lab.seeds:
        teacher = lab.train(networks(lab.tier)[0], seed=seed, recipe=recipe(lab.tier))
        yield lab.measure(f"mnist/{lab.dataset}/teacher", teacher.accuracy, seed=seed)
        for arm, trials in arms(lab, teacher, seed).items():
            student = lab.choose(trials, by="validation")
            yield lab.measure(f"mnist/{lab.dataset}/{arm}", student.accuracy, seed=seed)
        for arm, student in small_arms(lab, teacher, seed).items():
            yield lab.measure(f"small/{lab.dataset}/{arm}", student.accuracy, seed=seed)


def arms(lab: Lab, teacher: Node, seed: int) -> dict[str, list[Node]]:
    """Each arm's trials; the number of a trial is that of its initialisation, whatever the arm."""
    network, training = networks(lab.tier)[1], recipe(lab.tier)
    made: dict[str, list[Node]] = {"plain": [], "smoothed": [], "distilled-T1": [], "distilled": []}
    for trial in range(TRIALS):
        smoothing = lab.objective("hinton-label-smoothing", strength=STRENGTHS[trial])
        made["plain"].append(lab.train(network, seed=seed, recipe=training, restart=trial))
        made["smoothed"].append(lab.train(network, seed=seed, recipe=training, objective=smoothing, restart=trial))
        for arm, temperature in (("distilled-T1", 1.0), ("distilled", TEMPERATURES[trial])):
            objective = Distillation(temperature=temperature, alpha=ALPHA)
            made[arm].append(
                lab.distil(network, teacher, seed=seed, recipe=training, objective=objective, restart=trial)
            )
    return made


def small_arms(lab: Lab, teacher: Node, seed: int) -> dict[str, Node]:
    """A student of each kind on a tenth of the signals, and the teacher that saw most of them."""
    network, training = networks(lab.tier)[1], small_recipe(lab.tier)
    smoothing = lab.objective("hinton-label-smoothing", strength=FIXED_STRENGTH)
    distillation = Distillation(temperature=FIXED_TEMPERATURE, alpha=ALPHA)
    return {
        "plain": lab.train(network, seed=seed, recipe=training, label="small data, plain"),
        "smoothed": lab.train(network, seed=seed, recipe=training, objective=smoothing, label="small data, smoothed"),
        "distilled": lab.distil(
            network, teacher, seed=seed, recipe=training, objective=distillation, label="small data, distilled"
        ),
    }
