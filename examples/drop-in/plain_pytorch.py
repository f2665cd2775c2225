"""Distillation in a plain PyTorch loop; :func:`distil` is the part to take along. Run: ``python plain_pytorch.py``."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdbench.losses import cross_entropy, distillation_loss


def distil(
    student: nn.Module, teacher: nn.Module, batches: DataLoader, *, temperature: float, alpha: float, epochs: int
) -> list[float]:
    """Train ``student`` in place; returns the loss of every step."""
    device = next(student.parameters()).device
    # Eval mode: else the teacher's dropout is on, and its batch norm goes on learning from the student's batches.
    teacher.to(device).eval().requires_grad_(False)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)  # the student's parameters only
    losses = []
    for _ in range(epochs):
        for inputs, labels in batches:
            inputs, labels = inputs.to(device), labels.to(device)
            with torch.no_grad():
                teacher_logits = teacher(inputs)  # of the very inputs that the student sees, augmentation included
            loss = distillation_loss(student(inputs), teacher_logits, labels, temperature=temperature, alpha=alpha)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())  # .item() here would wait for the GPU at every step
    return torch.stack(losses).tolist()


def network(width: int, dropout: float = 0.0) -> nn.Module:
    first = nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
    return nn.Sequential(first, nn.Linear(width, 10))


def blobs(rows: int, seed: int) -> TensorDataset:
    """Overlapping Gaussian clouds, two for each of 10 classes: inputs ``[rows, 16]``, labels ``[rows]``."""
    centres = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    clouds = torch.randint(20, (rows,), generator=generator)
    return TensorDataset(centres[clouds] + torch.randn(rows, 16, generator=generator), clouds % 10)


def train(model: nn.Module, batches: DataLoader, *, epochs: int) -> None:
    """Plain training, for the teacher."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for inputs, labels in (batch for _ in range(epochs) for batch in batches):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    inputs, labels = data.tensors
    return (model.eval()(inputs).argmax(1) == labels).double().mean().item()


def main() -> dict[str, float]:
    """Accuracy of teacher and student on data that neither was trained on."""
    torch.set_num_threads(1)  # networks as small as these gain nothing from more
    torch.manual_seed(0)
    batches, held_out = DataLoader(blobs(2000, seed=1), 50, shuffle=True), blobs(4000, seed=2)
    teacher, student = network(256, dropout=0.5), network(16)
    train(teacher, batches, epochs=10)
    distil(student, teacher, batches, temperature=4.0, alpha=0.9, epochs=10)
    return {"teacher": accuracy(teacher, held_out), "student": accuracy(student, held_out)}


if __name__ == "__main__":
    print("accuracy on held-out data: " + ", ".join(f"{name} {value:.1%}" for name, value in main().items()))
