"""Networks that train along: what the average is an average of, and that a killed run goes on with the same one."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_paper import RECIPE, STUDENT, TEACHER, toy_lab
from toy_training import SHORT, Memory, model, same, split, trained

import kdbench.stage
from kdbench.errors import StageError
from kdbench.stage import WEIGHTS, Finished, Work, execute
from kdbench.store import Store
from kdbench.study import Lab, Node
from kdbench.training import Constant, CrossEntropy, Distillation, Objective, loop
from kdbench.training.followers import Follower, Fresh, WeightAverage, decay
from kdbench.training.seeds import derive_seed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As stages run; and two threads on tiny tensors only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class FromAverage(Distillation, frozen=True):
    """Distils from the average of the student's own past: what it learns rests on the follower."""

    cap: float = 0.9

    def follower(self, fresh: Fresh) -> Follower | None:
        return WeightAverage(fresh(), self.cap)


class Followed(CrossEntropy, frozen=True):
    """Has a follower and does not listen to it."""

    def follower(self, fresh: Fresh) -> Follower | None:
        return WeightAverage(fresh(), 0.9)


FROM_AVERAGE = FromAverage(temperature=2.0, alpha=0.7)


# -------------------------------------------------------------------------------------------------------------- decay


def test_decay_has_the_released_values() -> None:
    assert decay(1, 0.999) == 0.5
    assert decay(2, 0.999) == pytest.approx(2 / 3)
    assert decay(998, 0.999) == pytest.approx(1 - 1 / 999)
    assert decay(998, 0.999) < 0.999
    assert {decay(step, 0.999) for step in (999, 1000, 5000, 10**9)} == {0.999}
    assert decay(1, 0.4) == 0.4


class One(nn.Module):
    """A network of one number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight * inputs


def value_of(average: WeightAverage) -> float:
    return float(average(torch.ones(1, dtype=torch.float64), torch.zeros(1)))


def test_the_start_fades_as_one_over_the_steps_until_the_cap_binds() -> None:
    average, zero = WeightAverage(One(1.0), 0.999), One(0.0)
    assert value_of(average) == 1.0
    for step in range(1, 1200):
        average.follow(zero)
        expected = 1 / (step + 1) if step <= 999 else 0.999 ** (step - 999) / 1000
        assert value_of(average) == pytest.approx(expected, rel=1e-10), step


def states_of(count: int, dtype: torch.dtype) -> list[nn.Module]:
    """Networks with random weights and statistics, as an optimiser would leave them one after the other."""
    found = [model(seed=seed, dtype=dtype) for seed in range(count)]
    for number, net in enumerate(found):
        net.train()(split(8, seed=number, dtype=dtype).inputs)  # its running statistics move
    return list(found)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_below_the_cap_it_is_the_mean_of_the_start_and_of_all_states(dtype: torch.dtype, atol: float) -> None:
    start, *students = states_of(12, dtype)
    before = copy.deepcopy(start.state_dict())
    average = WeightAverage(start, 0.999)
    for step, student in enumerate(students, 1):
        average.follow(student)
        nets = [dict(net.named_parameters()) for net in (start, *students[:step])]
        for name, found in average.average.module.named_parameters():
            mean = torch.stack([net[name].detach().double() for net in nets]).mean(0)
            torch.testing.assert_close(found.double(), mean, rtol=0, atol=atol)
    assert same(start.state_dict(), before), "the network that it began from was changed"
    assert not any(same(student.state_dict(), before) for student in students)


def test_above_the_cap_it_keeps_that_share_of_itself() -> None:
    start, *students = states_of(12, torch.float64)
    average = WeightAverage(start, 0.75)
    expected = {name: value.detach().clone() for name, value in start.named_parameters()}
    for step, student in enumerate(students, 1):
        average.follow(student)
        share = (0.5, 2 / 3)[step - 1] if step < 3 else 0.75
        for name, value in student.named_parameters():
            expected[name] = share * expected[name] + (1 - share) * value.detach()
    for name, found in average.average.module.named_parameters():
        torch.testing.assert_close(found.detach(), expected[name], rtol=0, atol=1e-13)


# ---------------------------------------------------------------------------------------------------------- the network


def test_buffers_are_the_students() -> None:
    start, student = states_of(2, torch.float32)
    assert list(start.buffers()), "the network has no statistics to follow"
    average = WeightAverage(start, 0.999)
    average.follow(student)
    for (name, found), theirs in zip(average.average.module.named_buffers(), student.buffers(), strict=True):
        assert torch.equal(found, theirs), name


def test_it_answers_in_train_mode_and_without_a_graph() -> None:
    start, inputs = model(3), split(16).inputs
    # What a batch's own statistics give, whatever the running ones are.
    twin = copy.deepcopy(start).train()
    expected = twin(inputs).detach()
    average = WeightAverage(start.eval(), 0.999)
    assert all(part.training for part in average.average.modules())
    assert not start.training, "the network that was given is the caller's"
    weights = [weight.detach().clone() for weight in average.average.parameters()]
    found = average(inputs, torch.arange(16))
    assert torch.equal(found, expected)
    assert not torch.equal(found, copy.deepcopy(start).eval()(inputs).detach())
    assert not found.requires_grad
    assert not any(weight.requires_grad for weight in average.average.parameters())
    average.follow(model(4).eval())
    assert all(part.training for part in average.average.modules())
    assert any(not torch.equal(a, b) for a, b in zip(weights, average.average.parameters(), strict=True))


def test_the_student_is_not_changed_by_being_followed() -> None:
    student = model(4)
    before = copy.deepcopy(student.state_dict())
    average = WeightAverage(model(3), 0.999)
    average.follow(student)
    average(split(16).inputs, torch.arange(16))  # moves the statistics of its own
    assert same(student.state_dict(), before)
    assert all(weight.requires_grad for weight in student.parameters())


def test_a_state_read_back_goes_on_with_the_same_bits() -> None:
    start, *students = states_of(8, torch.float32)
    whole = WeightAverage(start, 0.8)
    for student in students:
        whole.follow(student)
    half = WeightAverage(start, 0.8)
    for student in students[:3]:
        half.follow(student)
    buffer = io.BytesIO()
    torch.save(half.state_dict(), buffer)
    buffer.seek(0)
    resumed = WeightAverage(model(99), 0.8)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for student in students[3:]:
        resumed.follow(student)
    assert same(whole.state_dict(), resumed.state_dict())
    assert torch.equal(whole(split().inputs, torch.arange(50)), resumed(split().inputs, torch.arange(50)))


# ----------------------------------------------------------------------------------------------------------- the loop


def test_loop_equals_one_written_by_hand() -> None:
    """The follower answers on the student's batch before the step and hears of the student after it."""
    recipe = msgspec.structs.replace(SHORT, schedule=Constant(), epochs=2)
    objective = FromAverage(temperature=2.0, alpha=0.7, cap=0.8)
    state, history = trained(
        recipe, objective, dtype=torch.float64, follower=objective.follower(lambda: model(5, torch.float64))
    )
    data, net, other = split(dtype=torch.float64), model(dtype=torch.float64), model(5, torch.float64)
    net.train()
    other.train()
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    step, losses = 0, []
    for epoch in range(2):
        generator = torch.Generator().manual_seed(derive_seed(7, "order", epoch))
        total = 0.0
        for indices in torch.split(torch.randperm(50, generator=generator), 20):
            with torch.no_grad():
                soft = functional.softmax(other(data.inputs[indices]) / 2, dim=1)
            logits = net(data.inputs[indices])
            divergence = functional.kl_div(functional.log_softmax(logits / 2, 1), soft, reduction="batchmean")
            loss = 0.3 * functional.cross_entropy(logits, data.labels[indices]) + 0.7 * 4 * divergence
            sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            step += 1
            share = min(step / (step + 1), 0.8)
            with torch.no_grad():
                for mine, theirs in zip(other.parameters(), net.parameters(), strict=True):
                    mine.copy_(share * mine + (1 - share) * theirs)
            total += loss.item() * len(indices)
        losses.append(total / 50)
    assert history.curves["loss"] == pytest.approx(losses, rel=1e-9)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kill", [1, 3])
def test_stopped_and_resumed_run_is_bit_identical(kill: int) -> None:
    def go(memory: Memory, start: int) -> tuple[dict[str, Tensor], Any]:
        follower = FROM_AVERAGE.follower(lambda: model(start))
        return trained(objective=FROM_AVERAGE, checkpoints=memory, follower=follower, selection=split(40, seed=9))

    expected, history = go(Memory(), 5)
    assert not same(expected, trained()[0])
    memory = Memory(stop_at=kill, save=True)
    with pytest.raises(KeyboardInterrupt):
        go(memory, 5)
    assert int(memory.load_state()["task"]["follower"]["n_averaged"]) == 1 + 3 * kill
    memory.stop_at = 0  # a run that began anew instead of resuming would stop again
    torch.manual_seed(12345)
    state, resumed = go(memory, 6)  # the state that is read back replaces whatever start there is
    assert same(state, expected)
    assert resumed == history


def test_a_follower_that_nobody_listens_to_changes_nothing() -> None:
    state, history = trained(objective=Followed(), follower=Followed().follower(lambda: model(5)))
    expected, plain = trained(objective=CrossEntropy())
    assert same(state, expected)
    assert history == plain


def test_a_teacher_and_a_follower_together_are_refused() -> None:
    with pytest.raises(StageError, match=r"FromAverage brings a network of its own.*train it without a teacher"):
        trained(
            objective=FROM_AVERAGE,
            teacher=lambda inputs, indices: torch.zeros(len(inputs), 10),
            follower=FROM_AVERAGE.follower(lambda: model(5)),
        )


# ----------------------------------------------------------------------------------------------------------- the stage

STARTS: list[dict[str, Tensor]] = []


class Spies(FromAverage, frozen=True):
    """Notes the network that it is given to begin from."""

    def follower(self, fresh: Fresh) -> Follower | None:
        start = fresh()
        STARTS.append(copy.deepcopy(start.state_dict()))
        return WeightAverage(start, self.cap)


class Bench:
    """A store for stages that are executed in this process."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.store.stages.mkdir(parents=True)
        self.lab: Lab = toy_lab()

    def prepared(self, node: Node) -> Path:
        for parent in node.inputs.values():
            self.run(parent)
        return self.store.prepare(node.spec)

    def run(self, node: Node) -> Finished:
        folder = self.prepared(node)
        execute(folder)
        return Finished(folder)

    def train(self, objective: Objective, seed: int = 0, restart: int = 0) -> Node:
        return self.lab.train(STUDENT, seed=seed, recipe=RECIPE, objective=objective, restart=restart)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "one")


@pytest.fixture
def another(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "two")


def test_it_begins_from_weights_that_no_student_has(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    students: list[dict[str, Tensor]] = []
    fit = loop.fit

    def spied(net: nn.Module, *given: Any, **named: Any) -> loop.History:
        students.append(copy.deepcopy(net.state_dict()))
        return fit(net, *given, **named)

    monkeypatch.setattr(loop, "fit", spied)
    STARTS.clear()
    for seed, restart in ((0, 0), (0, 1), (1, 0)):
        bench.run(bench.train(Spies(temperature=2.0, alpha=0.7), seed, restart))
    everybody = [*STARTS, *students]
    assert len(everybody) == 6
    drawn = [name for name, value in everybody[0].items() if value.is_floating_point() and value.std() > 0]
    assert drawn
    for one, other in combinations(everybody, 2):
        assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_the_student_begins_as_it_does_without_one(bench: Bench) -> None:
    """Building another network first must not move the student's own start, nor anything else of it."""
    followed, plain = bench.run(bench.train(Followed())), bench.run(bench.train(CrossEntropy()))
    assert same(followed.tensors(WEIGHTS), plain.tensors(WEIGHTS))
    assert followed.record.curves == plain.record.curves


def test_a_stage_killed_between_epochs_ends_as_one_that_was_not(
    bench: Bench, another: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bench.run(bench.train(FROM_AVERAGE))
    monkeypatch.setattr(kdbench.stage, "STATE_EVERY", 0.0)
    folder = another.prepared(another.train(FROM_AVERAGE))
    with monkeypatch.context() as patch:
        patch.setattr(Work, "progress", _stopping_at(1))
        with pytest.raises(KeyboardInterrupt):
            execute(folder)
    assert (folder / "state.pt").exists()
    began: list[int] = []
    monkeypatch.setattr(Work, "progress", lambda work, done, total: began.append(done))
    execute(folder)
    assert began == [1]
    assert Finished(folder).record.content() == expected.record.content()
    assert same(Finished(folder).tensors(WEIGHTS), expected.tensors(WEIGHTS))


def _stopping_at(epoch: int) -> Callable[[Work, int, int], None]:
    def progress(work: Work, done: int, total: int) -> None:
        if done == epoch:
            raise KeyboardInterrupt

    return progress


def test_a_stage_with_a_teacher_too_says_what_to_do(bench: Bench) -> None:
    teacher = bench.lab.train(TEACHER, seed=0, recipe=RECIPE)
    node = bench.lab.distil(STUDENT, teacher, seed=0, recipe=RECIPE, objective=FROM_AVERAGE)
    with pytest.raises(StageError, match=r"brings a network of its own") as caught:
        bench.run(node)
    assert "lab.train" in str(caught.value)
    assert node.spec.label in str(caught.value)
