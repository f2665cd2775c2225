"""The ledger of deviations: where its lines apply, the traps that it must name, and its numbers against the recipes."""

from __future__ import annotations

import math

import pytest

from kdbench.data import DATASETS
from kdbench.networks import Plain
from kdbench.paper import TIERS, Paper
from kdbench_orthogonality.recipes import FILTERS_PRUNED, Method, method
from kdbench_orthogonality.sizes import without_filters


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper.load("kdbench_orthogonality", study=lambda lab: iter(()))


@pytest.fixture(scope="module")
def made() -> Method:
    """How the default run of the laptop trains: what the ledger states of it in numbers."""
    return method(tier="laptop", data=DATASETS["mnist1d-pool"].expected(), seed=0)


def test_the_ledger_has_the_epochs_of_the_recipes(paper: Paper, made: Method) -> None:
    text = {line.id: line.text("clean") for line in paper.deviations}
    first, further = made.recipe.epochs, made.fine_tuning.epochs
    assert f"at laptop on signals {further}, {first} and {first + further}" in text["integration"]
    member = made.member(0)
    assert member.sample is not None
    kept = round(member.sample.size * (1 - member.holdout))
    steps = member.epochs * math.ceil(kept / member.batch_size)
    of_factorial = first * math.ceil(made.set_size / made.recipe.batch_size)
    assert text["scale-members"].startswith(
        f"the factorial's student and teacher, for {member.epochs} epochs on {kept} signals in batches of "
        f"{member.batch_size}: {steps} steps, as the factorial's {of_factorial} on {made.set_size:,}"
    )
    assert text["scale-epochs"].startswith(
        f"{first} and {further} of fine-tuning on signals (ensembles: {member.epochs}, see scale-members)"
    )


def test_the_ledger_has_the_filters_that_are_left(paper: Paper, made: Method) -> None:
    (line,) = (each for each in paper.deviations if each.id == "filters")
    data = DATASETS["mnist1d-pool"].expected()
    left = without_filters(made.nets.student, data, FILTERS_PRUNED)
    filters = [
        [layer.outputs for layer in network.layers(data.input_shape, data.num_classes) if layer.kind == "conv"]
        for network in (made.nets.student, left)
        if isinstance(network, Plain)
    ]
    whole, kept = (sorted(set(each)) for each in filters)
    gone = [before - after for before, after in zip(whole, kept, strict=True)]
    pairs = [f"{small} and {large}" for small, large in (whole, kept, gone)]
    assert f"of {pairs[0]} filters ({made.nets.student.name}) {pairs[1]}, so that {pairs[2]} are removed" in line.clean
    share = 1 - sum(filters[1]) / sum(filters[0])
    assert f"{100 * share:g} %" in line.effect


def test_protocol_seeds_and_data_sets(paper: Paper) -> None:
    assert [protocol.id for protocol in paper.protocols] == ["clean"]
    assert paper.default_seeds == {"smoke": 1, "laptop": 5, "full": 5}
    (seeds,) = (line for line in paper.deviations if line.id == "seeds")
    assert "(1 by default at smoke, 5 at laptop and full)" in seeds.clean
    assert paper.datasets == ("mnist1d-pool", "cifar10", "cifar100")
    assert paper.default_dataset == {"smoke": "mnist1d-pool", "laptop": "mnist1d-pool", "full": "cifar100"}


def test_every_line_covers_its_protocol_and_prose_stays_on_one_line(paper: Paper) -> None:
    for line in paper.deviations:
        assert not any((line.released, line.protocols, line.axes)), line.id
        assert "not found" in line.written, line.id
        assert bool(line.clean) != bool(line.here), line.id
        assert all(part.strip() for part in (line.text("clean"), line.effect, line.source)), line.id
        text = (line.item, line.written, line.clean, line.here, line.effect, line.source)
        assert not any("\n" in part or "  " in part for part in text), line.id
    for each in paper.claims:
        prose = (each.title, each.sentence, each.source, each.metric, each.margin_reason, each.note, each.not_tested)
        assert not any("\n" in part or "  " in part for part in prose), each.id
        assert each.sentence.endswith("."), each.id
        assert not each.title.endswith("."), each.id


@pytest.mark.parametrize(
    ("tier", "dataset", "expected"),
    [
        ("smoke", "mnist1d-pool", {"scale-data", "scale-network", "scale-epochs-smoke"}),
        ("laptop", "mnist1d-pool", {"scale-data", "scale-network", "scale-epochs", "scale-members"}),
        ("laptop", "cifar10", {"cifar-images", "scale-network", "scale-epochs"}),
        ("full", "cifar100", {"cifar-images", "full-networks"}),
    ],
)
def test_lines_of_a_scale_apply_there_alone(paper: Paper, tier: str, dataset: str, expected: set[str]) -> None:
    limited = {line.id for line in paper.deviations if line.tiers or line.datasets}
    applying = {line.id for line in paper.deviations if line.applies(protocol="clean", tier=tier, dataset=dataset)}
    assert applying & limited == expected
    assert {line.id for line in paper.deviations} - limited <= applying
    for line in paper.deviations:
        assert set(line.tiers) <= set(TIERS), line.id
        assert set(line.datasets) <= set(paper.datasets), line.id


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("body", "no number of the paper"),
        ("distillation-settings", "tuned for none"),
        ("teacher-training", "never with the student's mixup"),
        ("sizes", "MACs in every record"),
        ("selection", "the test split chooses nothing"),
        ("seeds", "a teacher of its own"),
        ("recovery", "after fine-tuning"),
        ("masks", "weight decay does not move what is masked"),
        ("batch-norm", "estimated"),
        ("grades", "never called additive"),
        ("regulariser-control", "one temperature a seed"),
        ("filters", "3 and 6 are removed"),
        ("integration", "25, 40 and 65"),
        ("member-starts", "the same for all arms of one training set"),
        ("bagging-sets", "every seed has the same"),
        ("int8", "fails where there is none"),
        ("cifar-images", "no copies as JPEG"),
    ],
)
def test_every_trap_has_its_line(paper: Paper, line: str, words: str) -> None:
    (found,) = (each for each in paper.deviations if each.id == line)
    assert words in found.text("clean")
