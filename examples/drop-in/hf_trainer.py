"""Distillation in a Hugging Face Trainer; :class:`DistillationTrainer` is the part to take along.

Run: ``python hf_trainer.py``. Tokens are classified; those with label -100 (padding, special tokens) do not count.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from kdbench.losses import distillation_loss


class DistillationTrainer(transformers.Trainer):
    """Trains ``model``, the student. The teacher is an attribute: no checkpoint and no optimiser holds it."""

    def __init__(self, *args: Any, teacher: nn.Module, temperature: float, alpha: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval().requires_grad_(False)
        self.mix = {"temperature": temperature, "alpha": alpha}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)  # a copy: the dictionary is the Trainer's
        labels = inputs.pop("labels").flatten()  # a model that gets labels computes a loss of its own, for nothing
        outputs = model(**inputs)
        with torch.no_grad(), self.accelerator.autocast():  # the Trainer sees to the student's mixed precision only
            teacher_logits = self.teacher(**inputs).logits
        student_rows = outputs.logits.flatten(0, -2)  # [batch * length, classes]
        teacher_rows = teacher_logits.flatten(0, -2).to(student_rows.dtype)
        # num_items_in_batch counts the labels (but -100) of all batches of one optimiser step; then the loss has to be
        # the sum over it. Where it is None, the loss is this batch's mean, and the Trainer divides by the batches.
        reduction = "batchmean" if num_items_in_batch is None else "sum"
        # "valid": a label of -100 takes out the KL too. By default it takes out only the cross-entropy.
        loss = distillation_loss(student_rows, teacher_rows, labels, kl_rows="valid", reduction=reduction, **self.mix)
        if num_items_in_batch is not None:
            # A count of all devices: their gradients are averaged, not added.
            devices = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * devices / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def network(layers: int, width: int) -> nn.Module:
    sizes = {"n_layers": layers, "n_heads": 4, "dim": width, "hidden_dim": 2 * width, "max_position_embeddings": 16}
    config = transformers.DistilBertConfig(vocab_size=12, num_labels=3, **sizes)
    return transformers.DistilBertForTokenClassification(config)


def sentences(rows: int, seed: int) -> list[dict[str, Tensor]]:
    """8 to 16 tokens; the class of each, out of 3, depends on itself and on the first one, which is 1 or 2."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 12, (rows, 16), generator=generator)
    tokens[:, 0] = torch.randint(1, 3, (rows,), generator=generator)
    mask = torch.arange(16) < torch.randint(8, 17, (rows, 1), generator=generator)
    labels = ((tokens + tokens[:, :1]) % 3).masked_fill(~mask, -100)
    labels[:, 0] = -100
    columns = zip(tokens * mask, mask.long(), labels, strict=True)
    return [{"input_ids": row[0], "attention_mask": row[1], "labels": row[2]} for row in columns]


def accuracy(judged: transformers.EvalPrediction) -> dict[str, float]:
    counts = judged.label_ids != -100
    return {"accuracy": (judged.predictions.argmax(-1) == judged.label_ids)[counts].mean().item()}


def fit(trainer: transformers.Trainer) -> float:
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer.evaluate()["eval_accuracy"]


def main() -> dict[str, float]:
    """Accuracy of teacher and student on data that neither was trained on."""
    torch.set_num_threads(1)  # networks as small as these gain nothing from more
    torch.manual_seed(0)
    teacher, student = network(layers=2, width=64), network(layers=1, width=32)
    recipe = {"num_train_epochs": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 50}
    silent = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    common = {
        "train_dataset": sentences(2000, seed=1),
        "eval_dataset": sentences(500, seed=2),
        "compute_metrics": accuracy,
    }
    with tempfile.TemporaryDirectory() as folder:
        common["args"] = transformers.TrainingArguments(folder, **recipe, **silent)
        scores = {"teacher": fit(transformers.Trainer(teacher, **common))}
        scores["student"] = fit(DistillationTrainer(student, **common, teacher=teacher, temperature=2.0, alpha=0.9))
    return scores


if __name__ == "__main__":
    print("accuracy on held-out data: " + ", ".join(f"{name} {value:.1%}" for name, value in main().items()))
