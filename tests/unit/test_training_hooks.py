"""What an objective may do beside its loss, and which of equal epochs is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor
from toy_paper import RECIPE, STUDENT, toy_lab
from toy_training import SHORT, Memory, same, split, trained

from kdbench.stage import Finished, execute
from kdbench.store import Store
from kdbench.training import Constant, CrossEntropy, LabelSmoothing, loop
from kdbench.training.batch import Batch
from kdbench.training.seeds import derive_seed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As stages run; and two threads on tiny tensors only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --------------------------------------------------------------------------------------------------------------- ties


@pytest.mark.parametrize(
    ("ties", "scores", "kept"),
    [
        ("first", [50.0, 70.0, 70.0, 60.0], 1),
        ("last", [50.0, 70.0, 70.0, 60.0], 2),
        ("last", [50.0, 70.0, 60.0, 70.0], 3),
        ("first", [70.0, 70.0, 70.0, 70.0], 0),
        ("last", [70.0, 70.0, 70.0, 70.0], 3),
        ("last", [9.0, 8.0, 7.0, 6.0], 0),  # not the latest as such
        ("last", [1.0, 2.0, 3.0, 4.0], 3),
    ],
)
def test_of_equally_good_epochs_the_declared_one_is_kept(
    monkeypatch: pytest.MonkeyPatch, ties: Any, scores: list[float], kept: int
) -> None:
    constant = msgspec.structs.replace(SHORT, schedule=Constant(), ties=ties)
    expected, _ = trained(msgspec.structs.replace(constant, epochs=kept + 1))  # the first k epochs of 4 are those of k
    given = iter(scores)
    monkeypatch.setattr(loop, "evaluate", lambda net, on: {"accuracy": next(given)})
    state, history = trained(constant, selection=split(seed=9))
    assert history.selected_epoch == kept
    assert same(state, expected)


def test_a_tie_with_an_epoch_before_the_kill_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    constant = msgspec.structs.replace(SHORT, schedule=Constant(), ties="last")
    given = iter([70.0, 70.0])
    monkeypatch.setattr(loop, "evaluate", lambda net, on: {"accuracy": next(given)})
    memory = Memory(stop_at=2, save=True)
    with pytest.raises(KeyboardInterrupt):
        trained(constant, checkpoints=memory, selection=split(seed=9))
    memory.stop_at = None
    given = iter([70.0, 69.0])
    _, history = trained(constant, checkpoints=memory, selection=split(seed=9))
    assert history.selected_epoch == 2
    assert history.curves["selection.accuracy"] == [70.0, 70.0, 70.0, 69.0]


# ------------------------------------------------------------------------------------------------------- observations


class Watched(CrossEntropy, frozen=True):
    """Tells the size of every batch, the epoch, and a number of the logits."""

    def observe(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert not logits.requires_grad
        return {
            "rows": torch.tensor(len(batch.labels)),
            "epoch": torch.tensor(float(batch.epoch)),
            "peak": logits.softmax(1).amax(1).mean(),
        }


def test_observations_become_means_over_the_epoch() -> None:
    state, history = trained(objective=Watched())
    assert set(history.curves) == {"loss", "lr", "objective.rows", "objective.epoch", "objective.peak"}
    # Batches of 20, 20 and 10, each counted by its examples.
    assert history.curves["objective.rows"] == [(400 + 400 + 100) / 50] * 4
    assert history.curves["objective.epoch"] == [0, 1, 2, 3]
    assert all(0.1 < peak < 1 for peak in history.curves["objective.peak"])
    expected, plain = trained(objective=CrossEntropy())
    assert same(state, expected)
    assert {name: history.curves[name] for name in plain.curves} == plain.curves


def test_an_objective_that_observes_nothing_leaves_no_curve() -> None:
    _, history = trained(objective=CrossEntropy())
    assert set(history.curves) == {"loss", "lr"}


def test_observations_of_a_resumed_run_are_whole() -> None:
    _, expected = trained(objective=Watched())
    memory = Memory(stop_at=2, save=True)
    with pytest.raises(KeyboardInterrupt):
        trained(objective=Watched(), checkpoints=memory)
    memory.stop_at = 0
    _, resumed = trained(objective=Watched(), checkpoints=memory)
    assert resumed == expected


def test_a_record_has_the_mean_over_the_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.stages.mkdir(parents=True)
    folders = {}
    for objective in (Watched(), LabelSmoothing(epsilon=0.3, over="all")):
        folders[objective] = store.prepare(toy_lab().train(STUDENT, seed=0, recipe=RECIPE, objective=objective).spec)
        execute(folders[objective])
    watched, smoothed = (Finished(folder).record for folder in folders.values())
    observed = {name for name in watched.metrics if name.startswith("objective.")}
    assert observed == {"objective.rows", "objective.epoch", "objective.peak"}
    for name in observed:
        assert watched.metrics[name] == sum(watched.curves[name]) / RECIPE.epochs
    assert watched.metrics["objective.epoch"] == 0.5
    assert smoothed.metrics["objective.target"] == pytest.approx(1 - 0.3 * 9 / 10, rel=1e-6)


# --------------------------------------------------------------------------------------------------- the seed of a step

SEEDS: list[tuple[int, int]] = []


class Draws(CrossEntropy, frozen=True):
    """Notes the seed of every step."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        SEEDS.append((batch.epoch, batch.seed))
        return super().loss(logits, batch)


def seeds_of(run_seed: int) -> list[int]:
    found = []
    for epoch in range(3):
        found += [batch.seed for batch in loop._batches(split(), SHORT, None, run_seed, epoch, None)]
    return found


def test_every_step_of_every_run_has_a_seed_of_its_own() -> None:
    one, other = seeds_of(0), seeds_of(1)
    assert len({*one, *other}) == 2 * 9  # three steps, three epochs
    assert seeds_of(0) == one
    # None of them is a seed that the loop draws from itself.
    own = {derive_seed(0, stream, epoch) for stream in ("order", "augment", "torch") for epoch in range(3)}
    assert not own & set(one)
    for seed in one:
        torch.Generator().manual_seed(seed)  # takes it as it is


def test_a_resumed_run_has_the_seeds_of_one_that_was_not_stopped() -> None:
    SEEDS.clear()
    trained(objective=Draws())
    expected = SEEDS.copy()
    assert len(set(expected)) == 12
    memory = Memory(stop_at=2, save=True)
    SEEDS.clear()
    with pytest.raises(KeyboardInterrupt):
        trained(objective=Draws(), checkpoints=memory)
    assert len(SEEDS) == 6
    memory.stop_at = 0
    trained(objective=Draws(), checkpoints=memory)
    assert expected == SEEDS


def test_objectives_of_one_seed_have_the_same_seeds() -> None:
    """So that arms which draw differ in what they do with the draws alone."""
    SEEDS.clear()
    trained(objective=Draws())
    seeds = [seed for _, seed in SEEDS]
    batches = (batch for epoch in range(4) for batch in loop._batches(split(), SHORT, None, 7, epoch, None))
    assert [batch.seed for batch in batches] == seeds
