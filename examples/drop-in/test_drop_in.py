"""The examples as somebody runs them, and the faults that their idioms prevent.

Lightning and transformers are imported as they are: where these tests are meant to run, a missing one is a failure.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import hf_trainer
import lightning as L
import lightning_module
import plain_pytorch
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

HERE = Path(__file__).parent
MIX = {"temperature": 3.0, "alpha": 0.7}
SILENT = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)

pytestmark = pytest.mark.filterwarnings("ignore:::lightning")


class Loop(NamedTuple):
    """One of the examples, in the words that the tests share."""

    distil: Callable[..., list[float]]
    student: Callable[[], nn.Module]
    train: Any
    held_out: Any
    chance: float


def distil_plain(
    student: nn.Module, teacher: nn.Module, data: TensorDataset, folder: Path, *, batch: int, epochs: int, **mix: float
) -> list[float]:
    return plain_pytorch.distil(student, teacher, DataLoader(data, batch), epochs=epochs, **mix)


def fit_lightning(
    module: L.LightningModule, data: TensorDataset, folder: Path, *, batch: int, **options: Any
) -> tuple[L.Trainer, list[float]]:
    """The trainer after ``fit``, and the loss of every step."""
    losses = []

    class Recorder(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Mapping[str, Tensor], *_: Any) -> None:
            losses.append(outputs["loss"].item())

    trainer = L.Trainer(
        accelerator="cpu", devices=1, callbacks=[Recorder()], default_root_dir=folder, **SILENT, **options
    )
    trainer.fit(module, DataLoader(data, batch))
    return trainer, losses


def distil_lightning(
    student: nn.Module, teacher: nn.Module, data: TensorDataset, folder: Path, *, batch: int, epochs: int, **mix: float
) -> list[float]:
    module = lightning_module.Distillation(student, teacher, **mix)
    return fit_lightning(module, data, folder, batch=batch, max_epochs=epochs)[1]


class RecordingTrainer(hf_trainer.DistillationTrainer):
    """Notes the loss of every step and prints nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.losses: list[float] = []
        self.remove_callback(transformers.PrinterCallback)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def arguments(folder: Path, **changes: Any) -> transformers.TrainingArguments:
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    fixed = {"use_cpu": True, "train_sampling_strategy": "sequential", "learning_rate": 1e-2}
    return transformers.TrainingArguments(str(folder), **(quiet | fixed | changes))


def distil_hf(
    student: nn.Module, teacher: nn.Module, data: list[Any], folder: Path, *, batch: int, epochs: int, **mix: float
) -> list[float]:
    args = arguments(folder, per_device_train_batch_size=batch, num_train_epochs=epochs)
    trainer = RecordingTrainer(student, args, train_dataset=data, teacher=teacher, **mix)
    trainer.train()
    return trainer.losses


def blob_loop(distil: Callable[..., list[float]], example: Any) -> Loop:
    return Loop(distil, lambda: example.network(16), example.blobs(2000, seed=1), example.blobs(2000, seed=2), 1 / 10)


LOOPS = {
    "plain_pytorch": blob_loop(distil_plain, plain_pytorch),
    "lightning_module": blob_loop(distil_lightning, lightning_module),
    "hf_trainer": Loop(
        distil_hf,
        lambda: hf_trainer.network(layers=1, width=32),
        hf_trainer.sentences(2000, seed=1),
        hf_trainer.sentences(500, seed=2),
        1 / 3,
    ),
}


def columns(data: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs of a data set, named as in ``forward``, and its labels."""
    if isinstance(data, TensorDataset):
        return {"input": data.tensors[0]}, data.tensors[1]
    stacked = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    return stacked, stacked.pop("labels")


def data_set(inputs: dict[str, Tensor], labels: Tensor) -> Any:
    """The reverse of :func:`columns`."""
    if "input" in inputs:
        return TensorDataset(inputs["input"], labels)
    names, tensors = [*inputs, "labels"], [*inputs.values(), labels]
    return [dict(zip(names, row, strict=True)) for row in zip(*tensors, strict=True)]


def logits_of(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


@torch.no_grad()
def accuracy(network: nn.Module, data: Any) -> float:
    inputs, labels = columns(data)
    right = logits_of(network.eval()(**inputs)).argmax(-1) == labels
    return right[labels != -100].double().mean().item()


def hinton(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, alpha: float) -> float:
    """The formula, term by term in float64, over the rows that have a label."""
    counts = labels.flatten() != -100
    s, t = (logits.double().flatten(0, -2)[counts] for logits in (student, teacher))
    log_q, log_p = (torch.log_softmax(logits / temperature, 1) for logits in (s, t))
    divergence = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    entropy = -torch.log_softmax(s, 1)[torch.arange(len(s)), labels.flatten()[counts]].mean()
    return ((1 - alpha) * entropy + alpha * temperature**2 * divergence).item()


@pytest.fixture(scope="module")
def blob_teacher() -> nn.Module:
    torch.manual_seed(0)
    teacher = plain_pytorch.network(256, dropout=0.5)
    plain_pytorch.train(teacher, DataLoader(plain_pytorch.blobs(2000, seed=1), 50, shuffle=True), epochs=10)
    return teacher


@pytest.fixture(scope="module")
def token_teacher(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    torch.manual_seed(0)
    teacher = hf_trainer.network(layers=2, width=64)
    args = arguments(tmp_path_factory.mktemp("hf"), per_device_train_batch_size=50, num_train_epochs=3)
    trainer = transformers.Trainer(teacher, args, train_dataset=LOOPS["hf_trainer"].train)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return teacher


@pytest.fixture(params=sorted(LOOPS))
def loop(request: pytest.FixtureRequest) -> Loop:
    return LOOPS[request.param]


@pytest.fixture
def teacher(loop: Loop, request: pytest.FixtureRequest) -> nn.Module:
    """A trained teacher of this test's own, left in train mode and with gradients on, as training leaves it."""
    trained = request.getfixturevalue("token_teacher" if loop.distil is distil_hf else "blob_teacher")
    return copy.deepcopy(trained).train().requires_grad_(True)


@pytest.fixture
def student(loop: Loop) -> nn.Module:
    torch.manual_seed(1)
    return loop.student()


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_the_script_prints_one_line_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HF_HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    scores = re.fullmatch(r"accuracy on held-out data: (?:teacher [\d.]+%, )?student ([\d.]+)%\n", done.stdout)
    assert scores, done.stdout
    assert float(scores[1]) / 100 > 2 * LOOPS[name].chance
    assert not list(tmp_path.iterdir())


def test_a_student_learns_from_the_teacher_alone(
    loop: Loop, teacher: nn.Module, student: nn.Module, tmp_path: Path
) -> None:
    """Labels dealt out at random, and not used with alpha = 1: all that is learnt comes from the teacher."""
    inputs, labels = columns(loop.train)
    known = labels != -100
    labels = labels.masked_scatter(known, labels[known][torch.randperm(int(known.sum()))])
    shuffled = data_set(inputs, labels)
    losses = loop.distil(student, teacher, shuffled, tmp_path, batch=50, epochs=5, temperature=2.0, alpha=1.0)
    assert losses[-1] < losses[0] / 2
    assert accuracy(student, loop.held_out) > 2 * loop.chance
    assert accuracy(student, loop.held_out) > 0.8 * accuracy(teacher, loop.held_out)


def test_the_teacher_is_frozen(loop: Loop, teacher: nn.Module, student: nn.Module, tmp_path: Path) -> None:
    before = copy.deepcopy(teacher.state_dict())
    calls = []

    def note(module: nn.Module, *_: Any) -> None:
        calls.append((any(part.training for part in module.modules()), torch.is_grad_enabled(), student.training))

    teacher.register_forward_hook(note)
    start = copy.deepcopy(student.state_dict())
    student.eval()  # as from_pretrained() leaves it
    loop.distil(student, teacher, loop.train, tmp_path, batch=500, epochs=1, **MIX)
    assert set(calls) == {(False, False, True)}, "(teacher in train mode, with a graph, student in train mode)"
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(weight.requires_grad or weight.grad is not None for weight in teacher.parameters())
    assert not all(torch.equal(start[name], value) for name, value in student.state_dict().items())


def test_the_loss_of_a_step_is_hintons(loop: Loop, teacher: nn.Module, student: nn.Module, tmp_path: Path) -> None:
    inputs, labels = columns(loop.train)
    inputs, labels = {name: rows[:200] for name, rows in inputs.items()}, labels[:200]
    with torch.no_grad():
        teacher_logits = logits_of(copy.deepcopy(teacher).double().eval()(**as_double(inputs)))
    student_logits = []
    student.register_forward_hook(
        lambda module, args, output: student_logits.append(logits_of(output).detach().clone())
    )
    losses = loop.distil(student, teacher, data_set(inputs, labels), tmp_path, batch=200, epochs=1, **MIX)
    assert len(losses) == len(student_logits) == 1
    assert losses[0] == pytest.approx(hinton(student_logits[0], teacher_logits, labels, **MIX), rel=1e-5)


def as_double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: rows.double() if rows.is_floating_point() else rows for name, rows in inputs.items()}


def test_lightning_keeps_the_teacher_out_of_the_module(blob_teacher: nn.Module, tmp_path: Path) -> None:
    """What Lightning saves, optimises and puts into train mode is the student; its checkpoint needs no teacher."""
    teacher, student = copy.deepcopy(blob_teacher), lightning_module.network(16)
    module = lightning_module.Distillation(student, teacher, **MIX)
    trainer, _ = fit_lightning(module, lightning_module.blobs(200, seed=1), tmp_path, batch=50, max_epochs=1)
    optimised = [weight for group in trainer.optimizers[0].param_groups for weight in group["params"]]
    assert list(map(id, optimised)) == list(map(id, student.parameters()))
    module.train()
    assert student.training
    assert not teacher.training

    trainer.save_checkpoint(tmp_path / "student.ckpt")
    saved = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"student.{name}" for name in student.state_dict()}
    loaded = lightning_module.Distillation.load_from_checkpoint(
        tmp_path / "student.ckpt", student=lightning_module.network(16), teacher=None
    )
    assert dict(loaded.hparams) == MIX
    inputs = torch.randn(8, 16)
    assert torch.equal(loaded.student.eval()(inputs), student.eval()(inputs))


@pytest.mark.parametrize(("precision", "within"), [("64-true", 1e-5), ("bf16-mixed", 0.02), ("bf16-true", 0.02)])
def test_lightning_in_another_precision(precision: str, within: float, blob_teacher: nn.Module, tmp_path: Path) -> None:
    """Lightning converts the student and the inputs; the teacher has to follow."""
    torch.manual_seed(0)
    student, data = lightning_module.network(16), lightning_module.blobs(500, seed=1)
    losses = {}
    for name in ("32-true", precision):
        module = lightning_module.Distillation(copy.deepcopy(student), copy.deepcopy(blob_teacher), **MIX)
        _, (losses[name],) = fit_lightning(module, data, tmp_path, batch=500, max_epochs=1, precision=name)
    assert losses[precision] == pytest.approx(losses["32-true"], rel=within)


def without_dropout(network: nn.Module) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return network


@pytest.fixture
def hf(token_teacher: nn.Module, tmp_path: Path) -> Callable[..., RecordingTrainer]:
    """A trainer of a student without dropout, which starts from the same weights at every call."""

    def trainer(data: list[Any], **changes: Any) -> RecordingTrainer:
        torch.manual_seed(1)
        student = without_dropout(hf_trainer.network(layers=1, width=32))
        descent = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
        args = arguments(tmp_path, **(descent | {"max_steps": 1} | changes))
        teacher = copy.deepcopy(token_teacher)
        return RecordingTrainer(student, args, train_dataset=data, eval_dataset=data, teacher=teacher, **MIX)

    return trainer


@pytest.mark.parametrize("counted", [True, False])
def test_hf_accumulated_batches_are_one_batch(counted: bool, hf: Callable[..., RecordingTrainer]) -> None:
    """With the Trainer's count of labels for sentences of any length, without it for sentences of one length."""
    data = hf_trainer.sentences(400, seed=4)
    if not counted:
        data = [sentence for sentence in data if sentence["attention_mask"].all()]
    data, weights = data[:16], []
    for size in (16, 4):
        trainer = hf(data, per_device_train_batch_size=size, gradient_accumulation_steps=16 // size)
        trainer.model_accepts_loss_kwargs = counted  # False for a model whose forward takes no **kwargs
        start = nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()
        trainer.train()
        assert len(trainer.losses) == 16 // size
        weights.append(nn.utils.parameters_to_vector(trainer.model.parameters()).detach())
    moved = (weights[0] - start).norm()
    assert moved > 0.01
    assert (weights[1] - weights[0]).norm() < 1e-3 * moved


def test_hf_evaluates_the_same_loss(hf: Callable[..., RecordingTrainer]) -> None:
    data = hf_trainer.sentences(40, seed=4)
    trainer = hf(data, per_device_eval_batch_size=40)
    inputs, labels = columns(data)
    with torch.no_grad():
        logits = [network.eval()(**inputs).logits for network in (trainer.model, trainer.teacher)]
    expected = hinton(*logits, labels, **MIX)
    predicted = trainer.predict(data)
    assert predicted.metrics["test_loss"] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), logits[0])
    batch = {**inputs, "labels": labels}
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-5)
    assert "labels" in batch


def test_hf_counts_the_labels_of_all_devices(
    hf: Callable[..., RecordingTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices with equal batches: their gradients are averaged, so the loss of each is that of one device alone."""
    data = hf_trainer.sentences(40, seed=4)
    inputs, labels = columns(data)
    trainer = hf(data)
    alone = trainer.compute_loss(trainer.model, {**inputs, "labels": labels})
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    both = trainer.compute_loss(
        trainer.model, {**inputs, "labels": labels}, num_items_in_batch=2 * (labels != -100).sum()
    )
    torch.testing.assert_close(both, alone)


def test_hf_in_mixed_precision(hf: Callable[..., RecordingTrainer]) -> None:
    """Accelerate casts the student's logits back to float32; the teacher, autocast beside it, has to follow."""
    losses, dtypes = {}, []
    for bf16 in (False, True):
        trainer = hf(hf_trainer.sentences(40, seed=4), bf16=bf16, per_device_train_batch_size=40)
        trainer.teacher.classifier.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
        trainer.train()
        (losses[bf16],) = trainer.losses
    assert dtypes == [torch.float32, torch.bfloat16]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)


def test_hf_saves_the_student_alone(hf: Callable[..., RecordingTrainer], tmp_path: Path) -> None:
    trainer = hf(hf_trainer.sentences(40, seed=4))
    trainer.train()
    optimised = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    assert optimised == set(map(id, trainer.model.parameters()))
    trainer.save_model(tmp_path / "student")
    loaded = transformers.DistilBertForTokenClassification.from_pretrained(tmp_path / "student")
    saved, kept = loaded.state_dict(), trainer.model.state_dict()
    assert list(saved) == list(kept)
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
