"""Fine-tuning: what is trained and how it is judged, on towers and tasks small enough to run here."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from vid_folder import VOCABULARY, howto100m, real_archive

from kdbench.component import pack, unpack
from kdbench.errors import KdbenchError, StageError
from kdbench.stage import PREDICTIONS, WEIGHTS, execute, read_record
from kdbench.training.seeds import derive_seed

pytest.importorskip("transformers", reason="needs kdbench-vidlankd[bert]")
pytest.importorskip("tokenizers", reason="needs kdbench-vidlankd[bert]")
pytest.importorskip("sklearn", reason="needs kdbench-vidlankd[bert]")

from vid_bench import TOWER, Bench, Killed, killing, make_recipe, untrained

from kdbench_vidlankd import finetune
from kdbench_vidlankd.classifier import Classifier, ClassifierTask, Examples, classify, packed
from kdbench_vidlankd.corpus import corpus
from kdbench_vidlankd.datasets import locate_features, locate_texts, locate_world
from kdbench_vidlankd.finetune import EXAMPLES, FineTune, judged
from kdbench_vidlankd.pretrain import PretrainStudent, language_of
from kdbench_vidlankd.texts import Example, text_task
from kdbench_vidlankd.wordpiece import build_tokenizer

PAIRS: list[Example] = [
    ("the cat sat", "a mat", 0),
    ("the mat", "the cat sat on a mat .", 1),
    ("a cat sat on the mat .", "the", 1),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("bench")
    return Bench(root, locate_world(None, root, None))


def acceptability(epochs: int, rate: float = 1e-2, trial: int = 0, length: int = 20, holdout: float = 0.0) -> FineTune:
    recipe = make_recipe(epochs, rate, holdout=holdout)
    return FineTune(task="acceptability", recipe=recipe, world=0, length=length, trial=trial)


def make_classifier(classes: int = 2, tower_seed: int = 0, head_seed: int = 1) -> Classifier:
    torch.manual_seed(tower_seed)
    tower = TOWER.build(len(VOCABULARY))
    torch.manual_seed(head_seed)
    return Classifier(tower, classes).eval()


# The stage


def test_a_task_is_learnt(bench: Bench) -> None:
    tuned = bench.run(acceptability(10), network=bench.run(untrained()))
    metrics, notes = tuned.record.metrics, tuned.record.notes
    assert metrics["test.score"] > metrics["test.accuracy-of-majority"] + 15
    assert metrics["test.collapsed"] == 0.0
    losses = tuned.record.curves["loss"]
    assert losses[-1] < 0.6 < losses[0]
    assert metrics["train.loss"] == losses[-1]
    assert "test.accuracy" not in metrics, "that is an image network's"
    assert notes["examples"] == {"train": 600, "test": 600}
    assert (notes["task"], notes["metric"], notes["classes"], notes["left_out"]) == ("acceptability", "accuracy", 2, 0)
    assert set(tuned.record.files) == {PREDICTIONS}
    found = tuned.tensors(PREDICTIONS)
    assert found["classes"].dtype == found["labels"].dtype == torch.int32
    assert judged(found["classes"], found["labels"], "accuracy")["score"] == metrics["test.score"]
    task = corpus(bench.data, 0).task("acceptability")
    assert found["labels"].tolist() == [label for *_, label in task.dev]


@pytest.mark.parametrize("rate", [3.0, 100.0])
def test_a_collapse_is_recorded_and_no_error(bench: Bench, rate: float) -> None:
    metrics = bench.run(acceptability(2, rate), network=bench.run(untrained())).record.metrics
    assert metrics["test.collapsed"] == 1.0
    assert metrics["test.commonest-answer"] >= finetune.NEARLY_ALL
    assert metrics["test.score"] <= metrics["test.accuracy-of-majority"]
    assert math.isfinite(metrics["train.loss"])


def test_training_begins_with_the_tower_of_the_input_and_fresh_layers(bench: Bench) -> None:
    tower = msgspec.structs.replace(TOWER, dropout=0.0)
    student = bench.run(PretrainStudent(tower=tower, recipe=make_recipe(1, batch_size=512), world=0, length=32))
    recipe = make_recipe(1, rate=1e-12, batch_size=350)  # the network stands still
    stage = FineTune(task="acceptability", recipe=recipe, world=0, length=20, trial=2)
    tuned = bench.run(stage, seed=3, network=student)

    found = corpus(bench.data, 0)
    batch = packed(found.tokenizer, found.task("acceptability").train, 20).batch(torch.arange(600), "cpu")
    torch.manual_seed(derive_seed(derive_seed(3, 2), "init", "classifier"))
    model = Classifier(language_of(student, bench.work(tuned)), 2).eval()
    assert torch.equal(model.net.bert.embeddings.word_embeddings.weight, student.tensors(WEIGHTS)[WORDS])
    with torch.no_grad():
        logits = model(batch.tokens, batch.attended, batch.segments)
    expected = torch.nn.functional.cross_entropy(logits, batch.labels).item()
    # The mean over examples, not over the batches of 350 and 250.
    assert tuned.record.metrics["train.loss"] == pytest.approx(expected, rel=1e-5)


def test_without_an_epoch_nothing_is_trained(bench: Bench) -> None:
    tuned = bench.run(acceptability(0), network=bench.run(untrained())).record
    assert tuned.curves == {"loss": [], "lr": []}
    assert tuned.metrics.keys() == {f"test.{name}" for name in judged(*tensors([0, 1], [0, 1]), "accuracy")}


WORDS = "net.bert.embeddings.word_embeddings.weight"


def test_killed_and_resumed_ends_as_if_undisturbed(bench: Bench, tmp_path: Path) -> None:
    network = bench.run(untrained())
    stage = acceptability(3)
    undisturbed = bench.run(stage, network=network).record
    elsewhere = Bench(tmp_path, bench.data)
    (elsewhere.store.stages / network.record.hash).symlink_to(network.folder)
    folder = elsewhere.prepare(stage, network=network)
    with killing(), pytest.raises(Killed):
        execute(folder)
    assert read_record(folder) is None
    assert torch.load(folder / "state.pt", weights_only=True)["epoch"] == 1
    execute(folder)
    resumed = read_record(folder)
    assert resumed is not None
    assert resumed.content() == undisturbed.content()
    assert resumed.files == undisturbed.files


def test_two_runs_are_one_and_trials_differ(bench: Bench, tmp_path: Path) -> None:
    first = bench.run(acceptability(2), network=bench.run(untrained())).record
    other = Bench(tmp_path, bench.data)
    network = other.run(untrained())
    assert other.run(acceptability(2), network=network).record.content() == first.content()
    trial = other.run(acceptability(2, trial=1), network=network).record
    seed = other.run(acceptability(2), seed=1, network=network).record
    assert len({each.curves["loss"][0] for each in (first, trial, seed)}) == 3


def test_what_is_held_out_is_judged_and_not_trained_on(bench: Bench) -> None:
    network = bench.run(untrained())
    tuned = bench.run(acceptability(1, holdout=0.2), network=network).record
    assert tuned.notes["examples"] == {"train": 480, "validation": 120, "test": 600}
    assert {name.partition(".")[2] for name in tuned.metrics if name.startswith("validation.")} == {
        name.partition(".")[2] for name in tuned.metrics if name.startswith("test.")
    }
    whole = bench.run(acceptability(1), network=network).record
    assert whole.metrics.keys() == {name for name in tuned.metrics if not name.startswith("validation.")}


def test_a_recipe_that_selects_is_refused() -> None:
    for change in ({"selection": "test"}, {"augmentation": "shift"}, {"label_noise": 0.1}):
        with pytest.raises(KdbenchError, match=f"no use for the recipe's {next(iter(change))}"):
            FineTune(task="CoLA", recipe=make_recipe(1, **change), world=0, length=20)
    stage = FineTune(task="CoLA", recipe=make_recipe(1, holdout=0.1), world=0, length=20, trial=2)
    assert unpack(pack(stage)) == stage


def test_examples_longer_than_the_tower_reads_are_refused(bench: Bench) -> None:
    with pytest.raises(StageError, match="examples have 33 tokens, and the tower reads 32"):
        bench.run(acceptability(1, length=33), network=bench.run(untrained()))


def test_work_is_priced_by_the_examples_that_there_are(bench: Bench) -> None:
    assert EXAMPLES["unspoken"]["acceptability"] == len(corpus(bench.data, 0).task("acceptability").train)
    one, two = (acceptability(epochs).effort(bench.data, {}) for epochs in (1, 2))
    assert (one.steps, two.steps) == (round(600 / 32), round(1_200 / 32))
    assert two.macs == 2 * one.macs > 0
    held = acceptability(1, holdout=0.5).effort(bench.data, {})
    assert held.macs == one.macs / 2


# What is trained


def test_the_encoder_is_the_towers_and_the_rest_is_fresh() -> None:
    one, same, other = make_classifier(), make_classifier(tower_seed=7), make_classifier(head_seed=2)
    torch.manual_seed(0)
    tower = TOWER.build(len(VOCABULARY)).net.bert.state_dict()
    encoder = {name: value for name, value in one.net.bert.state_dict().items() if not name.startswith("pooler.")}
    assert encoder.keys() == tower.keys()
    assert all(torch.equal(encoder[name], tower[name]) for name in tower)
    rest = {f"bert.pooler.dense.{part}" for part in ("weight", "bias")} | {"classifier.weight", "classifier.bias"}
    assert rest == one.net.state_dict().keys() - {f"bert.{name}" for name in tower}, "the masked-LM head is gone"
    for name in ("bert.pooler.dense.weight", "classifier.weight"):
        values = [each.net.state_dict()[name] for each in (one, same, other)]
        assert torch.equal(values[0], values[1]), "paired: towers of one size get the same fresh layers"
        assert not torch.equal(values[0], values[2])
    assert one.net.dropout.p == TOWER.dropout == 0.1


def test_everything_is_trained_and_the_tower_of_the_input_stays() -> None:
    torch.manual_seed(0)
    tower = TOWER.build(len(VOCABULARY)).requires_grad_(False)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    model = Classifier(tower, 2)
    task = ClassifierTask(model, packed(build_tokenizer(VOCABULARY), PAIRS, 16), make_recipe(1), 0, "cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    task.terms(next(task.batches(0)))["loss"].backward()
    assert all(each.grad is not None for each in model.parameters())
    optimizer.step()
    assert not torch.equal(model.net.bert.embeddings.word_embeddings.weight, before[WORDS])
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


def test_an_epoch_shows_every_example_once() -> None:
    count, recipe = 10, make_recipe(2, batch_size=4)
    ones = torch.ones(count, 3, dtype=torch.int32)
    train = Examples(ones, ones, ones.bool(), torch.arange(count))
    task = ClassifierTask(make_classifier(), train, recipe, 5, "cpu")
    epochs = [[batch.labels.tolist() for batch in task.batches(epoch)] for epoch in (0, 1, 0)]
    assert [len(batch) for batch in epochs[0]] == [4, 4, 2]
    assert task.steps == 3
    assert [task.weight(batch) for batch in task.batches(0)] == [4, 4, 2]
    for epoch in epochs:
        assert sorted(label for batch in epoch for label in batch) == list(range(count))
    assert epochs[0] == epochs[2] != epochs[1]


# Pairs and padding


def test_pairs_have_segments_that_the_network_reads() -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    examples = packed(tokenizer, PAIRS, 16)
    for row, (first, second, _) in zip(examples.segments, PAIRS, strict=True):
        left, right = (len(tokenizer.encode(each, add_special_tokens=False).ids) for each in (first, str(second)))
        assert row.tolist() == [0] * (left + 2) + [1] * (right + 1) + [0] * (16 - left - right - 3)
    single = packed(tokenizer, [(first, None, label) for first, _, label in PAIRS], 16)
    assert not single.segments.any()
    assert examples.labels.tolist() == [0, 1, 1]

    model, batch = make_classifier(), examples.batch(torch.arange(3), "cpu")
    with torch.no_grad():
        with_segments = model(batch.tokens, batch.attended, batch.segments)
        without = model(batch.tokens, batch.attended, torch.zeros_like(batch.segments))
    assert (with_segments - without).abs().min() > 1e-4


def test_padding_changes_no_answer() -> None:
    examples = packed(build_tokenizer(VOCABULARY), PAIRS, 30)
    model = make_classifier()
    batch = examples.batch(torch.tensor([2, 0]), "cpu")
    assert batch.tokens.shape == (2, int(examples.attended[[2, 0]].sum(1).max()))
    assert batch.tokens.dtype == batch.segments.dtype == torch.int64
    assert batch.labels.tolist() == [1, 0]
    whole = examples.rows(torch.tensor([2, 0]))
    with torch.no_grad():
        short = model(batch.tokens, batch.attended, batch.segments)
        padded = model(whole.tokens.long(), whole.attended, whole.segments.long())
    torch.testing.assert_close(short, padded, rtol=1e-5, atol=1e-6)


def test_answers_come_in_the_order_of_the_examples_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = packed(build_tokenizer(VOCABULARY), [*PAIRS, *PAIRS[::-1], *PAIRS], 16)
    model = make_classifier(classes=3).train()
    monkeypatch.setattr("kdbench_vidlankd.classifier.BATCH", 2)
    found = classify(model, examples, "cpu")
    alone = [int(classify(model, examples.rows(torch.tensor([row])), "cpu")) for row in range(9)]
    assert found.tolist() == alone
    assert not model.training


# How answers are judged


def tensors(classes: list[int], labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(classes), torch.tensor(labels)


@pytest.mark.parametrize("seed", range(4))
def test_matthews_is_the_correlation_of_answers_and_labels(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = (random.random(200) < 0.7).astype(int)
    classes = np.where(random.random(200) < 0.3, 1 - labels, labels)
    hit, miss, false, right = (
        int(((classes == one) & (labels == other)).sum()) for one, other in ((1, 1), (0, 1), (1, 0), (0, 0))
    )
    by_hand = (hit * right - false * miss) / math.sqrt((hit + false) * (hit + miss) * (right + false) * (right + miss))
    found = judged(torch.from_numpy(classes), torch.from_numpy(labels), "matthews")
    assert found["score"] == pytest.approx(100 * by_hand, rel=1e-12)
    assert found["score"] == pytest.approx(100 * np.corrcoef(classes, labels)[0, 1], rel=1e-9)
    assert found["accuracy-of-majority"] == pytest.approx(labels.mean() * 100)


def test_accuracy_and_majority_of_three_classes() -> None:
    found = judged(*tensors([0, 1, 2, 2, 1, 2, 2, 2], [0, 0, 2, 1, 1, 2, 2, 0]), "accuracy")
    assert found == {"score": 62.5, "accuracy-of-majority": 37.5, "commonest-answer": 62.5, "collapsed": 0.0}


@pytest.mark.parametrize(
    ("classes", "labels", "metric", "collapsed"),
    [
        # One answer to all: the larger class or not.
        ([0] * 100, [0] * 60 + [1] * 40, "accuracy", 1.0),
        ([1] * 100, [0] * 60 + [1] * 40, "accuracy", 1.0),
        ([1] * 100, [0] * 30 + [1] * 70, "matthews", 1.0),
        # To nearly all: one right answer more than the majority has is no learning, two begin to be.
        ([0] * 99 + [1], [0] * 60 + [1] * 40, "accuracy", 1.0),
        ([0] * 98 + [1] * 2, [0] * 60 + [1] * 40, "accuracy", 0.0),
        ([1] * 99 + [0], [1] * 70 + [0] * 30, "matthews", 1.0),
        ([1] * 98 + [0] * 2, [1] * 70 + [0] * 30, "matthews", 0.0),
        # Various answers that are worth no more than one answer to all.
        ([1] * 20 + [0] * 40 + [0] * 20 + [1] * 20, [0] * 60 + [1] * 40, "accuracy", 1.0),
        ([1] * 19 + [0] * 41 + [0] * 20 + [1] * 20, [0] * 60 + [1] * 40, "accuracy", 0.0),
        # Correlation is judged as such: here 55 % are right, the majority would be in 70 %.
        ([0] * 25 + [1] * 5 + [0] * 40 + [1] * 30, [0] * 30 + [1] * 70, "matthews", 0.0),
        ([1] * 25 + [0] * 5 + [1] * 40 + [0] * 30, [0] * 30 + [1] * 70, "matthews", 1.0),
        # Independent of each other: a correlation of exactly 0.
        ([0, 1, 0, 1], [0, 0, 1, 1], "matthews", 1.0),
    ],
)
def test_what_a_collapse_is(classes: list[int], labels: list[int], metric: finetune.Metric, collapsed: float) -> None:
    assert judged(*tensors(classes, labels), metric)["collapsed"] == collapsed


def test_as_many_right_as_the_majority_is_no_better_to_the_bit() -> None:
    for count in (29, 57, 113):
        for larger in range(count // 2 + 1, count):
            labels = [0] * larger + [1] * (count - larger)
            # One of each class is taken for the other.
            classes = [1] + [0] * (larger - 1) + [1] + [0] * (count - larger - 1)
            found = judged(*tensors(classes, labels), "accuracy")
            assert found["score"] == found["accuracy-of-majority"]
            assert found["collapsed"] == 1.0


# Tasks of files


def test_tasks_in_the_official_layout_run_with_what_they_left_out(tmp_path: Path) -> None:
    folder = howto100m(tmp_path / "features")
    with (folder / "glue" / "QQP" / "train.tsv").open("a") as file:
        file.write("7\t8\t9\ta question that is cut\n")
    bench = Bench(tmp_path / "store", locate_features(folder, tmp_path / "cache", None))
    network = bench.run(untrained(features=4_096, batch_size=2))
    for name, classes, left_out in (("QQP", 2, 1), ("MNLI", 3, 0), ("SST-2", 2, 0)):
        stage = FineTune(task=name, recipe=make_recipe(1), world=0, length=16)
        notes = bench.run(stage, network=network).record.notes
        assert (notes["task"], notes["classes"], notes["left_out"]) == (name, classes, left_out)


@pytest.mark.parametrize(("name", "metric", "rows"), [("CoLA", "matthews", 128), ("RTE", "accuracy", 32)])
def test_real_tasks_run(name: str, metric: finetune.Metric, rows: int, tmp_path: Path) -> None:
    data = locate_texts(real_archive(), tmp_path / "cache", None)
    bench = Bench(tmp_path / "store", data)
    stage = FineTune(task=name, recipe=make_recipe(1, 3e-3, batch_size=rows), world=0, length=24)
    tuned = bench.run(stage, network=bench.run(untrained()))
    task = text_task(Path(data.path), name)
    assert tuned.record.notes["metric"] == metric
    assert tuned.record.notes["examples"] == {"train": len(task.train), "test": len(task.dev)}
    assert EXAMPLES["unspoken-text"][name] == len(task.train)
    found = tuned.tensors(PREDICTIONS)
    assert found["labels"].tolist() == [label for *_, label in task.dev]
    expected = judged(found["classes"], found["labels"], metric)
    assert {key: tuned.record.metrics[f"test.{key}"] for key in expected} == expected
