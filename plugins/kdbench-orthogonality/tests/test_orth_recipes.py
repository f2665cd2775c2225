"""How everything is trained: which examples, for how many steps, and whether the ledger states these numbers."""

from __future__ import annotations

import math
from itertools import combinations, product

import msgspec
import numpy as np
import pytest

from kdbench.data import DATASETS
from kdbench.data.base import DataRef
from kdbench.paper import TIERS, Deviation, Paper
from kdbench.training import SGD, Recipe, Sample
from kdbench_orthogonality import recipes
from kdbench_orthogonality.recipes import GRID, MEMBERS, POOL_SEEDS, Method, method, slope
from kdbench_orthogonality.study import reproduce

POOL = "mnist1d-pool"
PLACES = [
    ("smoke", POOL),
    ("laptop", POOL),
    *product(("laptop", "full"), ("cifar10", "cifar100")),
]


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_orthogonality", study=reproduce)


def data_of(name: str) -> DataRef:
    return DATASETS[name].expected()


def made(tier: str = "laptop", dataset: str = POOL, seed: int = 0) -> Method:
    return method(tier=tier, data=data_of(dataset), seed=seed)


def examples(sample: Sample | None) -> range:
    """Places in the training split: sets of one size are numbered from its beginning."""
    assert sample is not None
    return range(sample.size * sample.number, sample.size * (sample.number + 1))


def trained_on(recipe: Recipe, dataset: str) -> int:
    """Examples of an epoch."""
    own = data_of(dataset).sizes["train"] if recipe.sample is None else recipe.sample.size
    return own - round(own * recipe.holdout) + (recipe.unlabelled.size if recipe.unlabelled else 0)


def steps(recipe: Recipe, dataset: str) -> int:
    return recipe.epochs * math.ceil(trained_on(recipe, dataset) / recipe.batch_size)


# -------------------------------------------------------------------------------------------------------- training sets


def sets_of(how: Method) -> list[range]:
    """The training sets of one seed: the factorial's, then those of the ensemble side and its foreign teacher."""
    return [examples(how.recipe.sample), *(examples(how.member(number).sample) for number in range(MEMBERS + 1))]


def test_training_sets_of_six_seeds_share_no_example() -> None:
    found = [part for seed in range(POOL_SEEDS) for part in sets_of(made(seed=seed))]
    assert [len(part) for part in found[: MEMBERS + 2]] == [2_000] + [1_000] * (MEMBERS + 1)
    for one, other in combinations(found, 2):
        assert not set(one) & set(other)
    # They are the beginning of the pool, without a gap.
    assert set().union(*found) == set(range(48_000)) < set(range(data_of(POOL).sizes["train"]))


@pytest.mark.parametrize("seed", [6, 7, 13])
def test_later_seeds_begin_again(seed: int) -> None:
    assert sets_of(made(seed=seed)) == sets_of(made(seed=seed % POOL_SEEDS))


@pytest.mark.parametrize("tier", TIERS)
def test_a_seed_has_the_same_training_set_at_every_tier(tier: str) -> None:
    assert sets_of(made(tier, seed=3)) == sets_of(made(seed=3))


@pytest.mark.parametrize(("tier", "dataset"), [place for place in PLACES if place[1] != POOL])
def test_of_images_every_seed_has_all_and_the_same_sets(tier: str, dataset: str) -> None:
    one, other = made(tier, dataset, 0), made(tier, dataset, 5)
    assert one == other
    assert one.recipe.sample is None
    sets = sets_of(with_a_sample(one))[1:]
    assert all(not set(a) & set(b) for a, b in combinations(sets, 2))
    assert sets[-1].stop <= data_of(dataset).sizes["train"]


def with_a_sample(how: Method) -> Method:
    """The method with a sample of one example in the factorial, where it has all there are."""
    return how._replace(recipe=msgspec.structs.replace(how.recipe, sample=Sample(size=1, number=0)))


@pytest.mark.parametrize("seed", range(POOL_SEEDS))
def test_unlabelled_inputs_are_no_examples_of_a_factorial_nor_of_another_seeds_inputs(seed: int) -> None:
    own = set(examples(made(seed=seed).with_unlabelled().unlabelled))
    assert len(own) == 2_000
    for other in range(POOL_SEEDS):
        assert not own & set(examples(made(seed=other).recipe.sample))
        if other != seed:
            assert not own & set(examples(made(seed=other).with_unlabelled().unlabelled))
    # What the ledger says of them: they are among those that the ensembles train on.
    ensembles = [set(part) for each in range(POOL_SEEDS) for part in sets_of(made(seed=each))[1:]]
    assert own <= set().union(*ensembles)


def test_resamples_are_of_one_set_and_of_no_other() -> None:
    how = made(seed=2)
    first = how.member(0).sample
    for number in range(MEMBERS):
        resample = how.member(0, bootstrap=number).sample
        assert resample is not None
        assert resample == msgspec.structs.replace(first, bootstrap=number)
    assert len({how.member(0, bootstrap=number).sample for number in range(MEMBERS)}) == MEMBERS


def test_a_tenth_is_held_out_on_the_ensemble_side_alone() -> None:
    how = made()
    assert how.member(0).holdout == how.member(3, bootstrap=1).holdout == 0.1
    others = (how.recipe, how.fine_tuning, how.mixed("mixup"), how.decayed(), how.shifted(), how.with_unlabelled())
    assert {recipe.holdout for recipe in others} == {0.0}


# ---------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(("tier", "dataset"), PLACES)
def test_smaller_sets_are_parts_of_the_larger_and_are_trained_for_as_many_steps(tier: str, dataset: str) -> None:
    how = made(tier, dataset, 1)
    quarter, half, whole = (how.of_size(share) for share in (4, 2, 1))
    assert set(examples(quarter.sample)) < set(examples(half.sample)) < set(examples(whole.sample))
    assert [trained_on(each, dataset) for each in (quarter, half, whole)] == [
        how.set_size // share for share in (4, 2, 1)
    ]
    # A last batch that is not full counts as a step, so that steps agree but for these.
    assert steps(quarter, dataset) == pytest.approx(steps(whole, dataset), rel=0.01)
    assert steps(half, dataset) == pytest.approx(steps(whole, dataset), rel=0.01)
    if dataset == POOL:
        assert whole == how.recipe
        assert steps(quarter, dataset) == steps(half, dataset) == steps(whole, dataset)


@pytest.mark.parametrize(("tier", "dataset"), PLACES)
def test_further_inputs_do_not_add_steps(tier: str, dataset: str) -> None:
    how = made(tier, dataset, 1)
    more, less = how.with_unlabelled(), how.without_unlabelled()
    assert more.sample == less.sample == how.of_size(2).sample
    assert less.unlabelled is None
    assert more.unlabelled is not None
    assert not set(examples(more.unlabelled)) & set(examples(how.of_size(1).sample))
    assert steps(more, dataset) == pytest.approx(steps(less, dataset), rel=0.02)
    assert (trained_on(more, dataset), trained_on(less, dataset)) == (3 * how.set_size // 2, how.set_size // 2)


@pytest.mark.parametrize(("tier", "dataset"), PLACES)
def test_two_stages_of_fine_tuning_have_the_epochs_of_one(tier: str, dataset: str) -> None:
    how = made(tier, dataset)
    first, second = how.halves()
    assert first.epochs + second.epochs == how.fine_tuning.epochs
    assert 0 < first.epochs <= second.epochs <= first.epochs + 1
    assert {msgspec.structs.replace(part, epochs=how.fine_tuning.epochs) for part in (first, second)} == {
        how.fine_tuning
    }


@pytest.mark.parametrize(("tier", "dataset"), PLACES)
def test_the_ensemble_side_has_in_the_pool_the_steps_of_the_factorial(tier: str, dataset: str) -> None:
    how = made(tier, dataset)
    everyone = [how.member(number) for number in range(MEMBERS + 1)]
    everyone += [how.member(0, bootstrap=number) for number in range(MEMBERS)]
    assert {(recipe.epochs, recipe.batch_size) for recipe in everyone} == {(how.member_epochs, how.member_batch)}
    if dataset != POOL:
        assert (how.member_epochs, how.member_batch) == (how.recipe.epochs, how.recipe.batch_size)
        return
    assert {trained_on(recipe, dataset) % how.member_batch for recipe in everyone} == {0}, "no batch is cut short"
    # An epoch is not divided, so that steps agree but for half of one.
    assert steps(how.member(0), dataset) == {"smoke": 45, "laptop": 639}[tier]
    assert steps(how.recipe, dataset) == {"smoke": 48, "laptop": 640}[tier]


@pytest.mark.parametrize(("tier", "dataset"), PLACES)
def test_no_epoch_ends_in_a_small_batch(tier: str, dataset: str) -> None:
    """Batch norms would learn from it, and its gradient counts as much as that of a whole one."""
    how = made(tier, dataset)
    recipes = [how.recipe, how.fine_tuning, how.mixed("mixup"), how.mixed("cutmix"), how.decayed(), how.shifted()]
    recipes += [how.still(), how.with_unlabelled(), how.without_unlabelled(), *how.halves()]
    recipes += [*(how.of_size(share) for share in (4, 2, 1)), how.member(0), how.member(0, bootstrap=0)]
    for recipe in recipes:
        assert trained_on(recipe, dataset) % recipe.batch_size not in range(1, 40), recipe


# ------------------------------------------------------------------------------------- what differs from the one recipe


@pytest.mark.parametrize(("tier", "dataset"), PLACES)
def test_techniques_change_one_thing_each(tier: str, dataset: str) -> None:
    how = made(tier, dataset)

    def changed(recipe: Recipe) -> set[str]:
        return {name for name in recipe.__struct_fields__ if getattr(recipe, name) != getattr(how.recipe, name)}

    assert changed(how.mixed("mixup")) == changed(how.mixed("cutmix")) == {"mixing"}
    assert changed(how.decayed()) == {"optimizer"}
    assert msgspec.structs.replace(how.decayed().optimizer, weight_decay=1e-4) == how.recipe.optimizer
    assert changed(how.fine_tuning) == {"epochs", "optimizer"}
    # Inputs move at full anyway, and where they do not, standing still is the recipe itself.
    assert {how.shifted().augmentation, how.still().augmentation} == {how.shift, "none"}
    assert how.recipe in (how.shifted(), how.still())
    assert changed(how.shifted()) | changed(how.still()) == {"augmentation"}


def test_distillation_is_the_same_in_every_objective() -> None:
    how = made()
    for objective in (how.distillation, how.smoothed, how.several):
        assert (objective.temperature, objective.alpha) == (4.0, 0.9)
    assert how.smoothed.epsilon == how.smoothing().epsilon
    assert how.smoothed.over == how.smoothing().over == "all"
    assert how.several.combine == "probabilities"


def test_the_grid_holds_the_student_and_its_names_say_the_rest() -> None:
    nets = made().nets
    assert nets.grid["w1-d4"] == nets.student
    assert set(nets.grid) == set(GRID)
    assert {name: (net.width / nets.student.width, net.size) for name, net in nets.grid.items()} == GRID  # type: ignore[attr-defined]
    full = made("full", "cifar100").nets
    assert set(full.grid) < set(GRID)
    assert full.grid["w1-d6"] == full.student


def test_students_have_fewer_parameters_than_their_teachers() -> None:
    for tier, dataset in PLACES:
        data, nets = data_of(dataset), made(tier, dataset).nets
        small, large = (net.cost(data.input_shape, data.num_classes).parameters for net in (nets.student, nets.teacher))
        assert small < large


def test_the_slope_is_that_of_a_line_through_the_gains() -> None:
    assert slope(3.0, 2.0, 1.0) == pytest.approx(-1.0)
    assert slope(1.0, 1.0, 1.0) == pytest.approx(0.0, abs=1e-12)
    gains = np.random.default_rng(0).normal(size=3)
    assert slope(*gains) == pytest.approx((gains[2] - gains[0]) / 2)  # of three equally spaced places


# --------------------------------------------------------------------------------------------------------------- ledger


def line(paper: Paper, name: str) -> Deviation:
    (found,) = (each for each in paper.deviations if each.id == name)
    return found


def test_the_ledger_states_epochs_as_they_are(paper: Paper) -> None:
    def epochs(tier: str, dataset: str) -> tuple[int, int]:
        how = made(tier, dataset)
        return how.recipe.epochs, how.fine_tuning.epochs

    signals, images = epochs("laptop", POOL), epochs("laptop", "cifar10")
    assert line(paper, "scale-epochs").here.startswith(
        "{} and {} of fine-tuning on signals (ensembles: {}, see scale-members), {} and {} on images".format(
            *signals, made().member_epochs, *images
        )
    )
    assert line(paper, "scale-epochs-smoke").here.startswith("{} and {} of fine-tuning".format(*epochs("smoke", POOL)))
    assert "{} epochs, and {} of fine-tuning".format(*epochs("full", "cifar100")) in line(paper, "full-networks").here


def test_the_ledger_names_the_networks(paper: Paper) -> None:
    nets = made().nets
    said = line(paper, "scale-network").here
    assert f"({nets.student.name}) taught by 6 at full width ({nets.teacher.name})" in said
    assert said.endswith(", also in the ensembles")
    assert line(paper, "scale-members").here.startswith("the factorial's student and teacher, ")
    full, said = made("full", "cifar100").nets, line(paper, "full-networks").here.lower().replace("resnet-", "resnet")
    assert f"{full.student.name} taught by {full.teacher.name}, also in the ensembles" in said
    assert "the depths 8, 14 and 20" in said
    assert [net.name for net in full.grid.values()] == ["resnet8", "resnet14", "resnet20"]


def test_the_ledger_states_the_training_sets(paper: Paper) -> None:
    how = made()
    assert f"a training set of {how.set_size:,} that shares no example" in line(paper, "seeds").clean
    assert f"for seeds 0 to {POOL_SEEDS - 1} and repeats after them" in line(paper, "seeds").clean
    bagging = line(paper, "bagging-sets").clean
    assert f"{MEMBERS} sets a seed and 1 for the foreign teacher, a tenth of each held out" in bagging
    assert f"On signals sets have {how.member_size:,} and share no example" in bagging
    assert f"seeds 0 to {POOL_SEEDS - 1} have sets of their own, later seeds repeat them" in bagging
    images = made("full", "cifar100")
    assert data_of("cifar100").sizes["train"] // images.member_size == 6
    assert "On images, sets are a sixth of all each, and every seed has the same" in bagging
    sizes = [f"{how.set_size // 4:,}, {how.set_size // 2:,} and {how.set_size:,} signals"]
    sizes += [f"{images.set_size // 4:,}, {images.set_size // 2:,} and {images.set_size:,} images"]
    assert ", ".join(sizes) in line(paper, "sizes-of-training-sets").clean


def test_the_ledger_states_the_settings(paper: Paper) -> None:
    how, full = made(), made("full", "cifar100")
    said = line(paper, "recipes").clean
    for each in (how, full):
        assert isinstance(each.recipe.optimizer, SGD)
        assert (each.recipe.optimizer.momentum, each.recipe.optimizer.nesterov) == (0.9, True)
        assert (each.recipe.optimizer.weight_decay, each.recipe.batch_size) == (1e-4, 128)
        assert each.fine_tuning.optimizer.lr == each.recipe.optimizer.lr / 2.5
    assert "Nesterov momentum of .9, batches of 128, weight decay of 1e-4" in said
    assert (how.recipe.optimizer.lr, full.recipe.optimizer.lr) == (0.05, 0.1)
    assert "a one-cycle rate of at most .05, ResNets a rate of .1 cut to a tenth at half and at three quarters" in said
    assert "a temperature of 4 and a weight of .9" in line(paper, "distillation-settings").clean
    strengths = line(paper, "techniques").clean
    assert (recipes.MIXING, recipes.SMOOTHING, recipes.MORE_DECAY, recipes.DROPOUT) == (
        {"mixup": 0.2, "cutmix": 1.0}, 0.1, 1e-3, 0.2,
    )  # fmt: skip
    assert (
        "mixup (Beta of .2), cutmix (Beta of 1), label smoothing of .1, weight decay of 1e-3, dropout of .2"
        in strengths
    )
    assert (recipes.STEP, recipes.STACK_WIDTH) == (1 / 64, 1.5)
    assert "steps of 1/64" in line(paper, "stack").clean
    assert "begin at width factor 1.5 (plain networks) or as ResNet-20" in line(paper, "stack").clean
