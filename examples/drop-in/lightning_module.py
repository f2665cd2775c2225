"""Distillation in Lightning; :class:`Distillation` is the part to take along. Run: ``python lightning_module.py``."""

from __future__ import annotations

import logging
import warnings

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdbench.losses import cross_entropy, distillation_loss


class Distillation(L.LightningModule):
    """A student that learns from a frozen teacher; only ``fit`` needs the teacher."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None, *, temperature: float, alpha: float):
        super().__init__()
        self.save_hyperparameters("temperature", "alpha")
        self.student = student
        # In a tuple the teacher is no submodule: no checkpoint and no optimiser holds it, and train() passes it by.
        self._teacher = (teacher,)

    def on_fit_start(self) -> None:
        (teacher,) = self._teacher
        teacher.to(self.device, self.dtype).eval().requires_grad_(False)  # Lightning moves submodules only
        self.train()  # fit() keeps the mode that it finds, and from_pretrained() leaves eval mode

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        inputs, labels = batch
        (teacher,) = self._teacher
        with torch.no_grad():
            teacher_logits = teacher(inputs)
        temperature, alpha = self.hparams.temperature, self.hparams.alpha
        return distillation_loss(self.student(inputs), teacher_logits, labels, temperature=temperature, alpha=alpha)

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        inputs, labels = batch
        self.log("accuracy", (self.student(inputs).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def network(width: int, dropout: float = 0.0) -> nn.Module:
    first = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
    return nn.Sequential(first, nn.Linear(width, 10))


def blobs(rows: int, seed: int) -> TensorDataset:
    """Overlapping Gaussian clouds, two for each of 10 classes: inputs ``[rows, 16]``, labels ``[rows]``."""
    centres = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    clouds = torch.randint(20, (rows,), generator=generator)
    return TensorDataset(centres[clouds] + torch.randn(rows, 16, generator=generator), clouds % 10)


def pretrained_teacher(batches: DataLoader) -> nn.Module:
    """Stands for the network that you have already."""
    teacher = network(256, dropout=0.5)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.05, momentum=0.9)
    for inputs, labels in (batch for _ in range(10) for batch in batches):
        optimizer.zero_grad()
        cross_entropy(teacher(inputs), labels).backward()
        optimizer.step()
    return teacher


def main() -> dict[str, float]:
    """Accuracy of the student on data that it was not trained on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)  # networks as small as these gain nothing from more
    torch.manual_seed(0)
    batches, held_out = DataLoader(blobs(2000, seed=1), 50, shuffle=True), DataLoader(blobs(4000, seed=2), 1000)
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_epochs=10, devices=1, **silent)
    module = Distillation(network(16), pretrained_teacher(batches), temperature=4.0, alpha=0.9)
    trainer.fit(module, batches, held_out)
    return {"student": trainer.callback_metrics["accuracy"].item()}


if __name__ == "__main__":
    print("accuracy on held-out data: " + ", ".join(f"{name} {value:.1%}" for name, value in main().items()))
