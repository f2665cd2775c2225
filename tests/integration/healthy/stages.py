from kdbench.component import pack
from kdbench.networks.base import Network
from kdbench.record import Outcome
from kdbench.stage import WEIGHTS, Stage


class Imitate(Stage, frozen=True):
    """A loop of the paper's own: the student takes the teacher's soft targets, by its own optimiser."""

    network: Network
    lr: float
    temperature: float
    epochs: int = 2

    def run(self, work):
        import torch
        from torch.nn import functional

        from kdbench.stages.splits import splits_of
        from kdbench.training.evaluate import evaluate
        from kdbench.training.model import build_model
        from kdbench.training.seeds import derive_seed

        splits = splits_of(work, 0.1)
        inputs = splits["train"].inputs
        teacher = work.input("teacher").model(work)
        torch.manual_seed(derive_seed(work.seed, "init"))
        student = build_model(self.network, work.spec.data, [0.0], [1.0])
        optimizer = torch.optim.SGD(student.parameters(), lr=self.lr, momentum=0.9)
        first = 0
        state = work.load_state()
        if state is not None:
            first = state["epoch"]
            student.load_state_dict(state["student"])
            optimizer.load_state_dict(state["optimizer"])
        for epoch in range(first, self.epochs):
            generator = torch.Generator().manual_seed(derive_seed(work.seed, "order", epoch))
            student.train()
            for indices in torch.randperm(len(inputs), generator=generator).split(600):
                with torch.no_grad():
                    target = (teacher(inputs[indices]) / self.temperature).softmax(1)
                logits = student(inputs[indices]) / self.temperature
                loss = functional.kl_div(logits.log_softmax(1), target, reduction="batchmean")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if epoch + 1 < self.epochs and work.state_due():
                work.save_state(
                    {"epoch": epoch + 1, "student": student.state_dict(), "optimizer": optimizer.state_dict()}
                )
        work.save_tensors(WEIGHTS, student.state_dict())
        metrics = {f"validation.{name}": value for name, value in evaluate(student, splits["validation"]).items()}
        metrics.update({f"test.{name}": value for name, value in evaluate(student, splits["test"]).items()})
        return Outcome(metrics=metrics, notes={"network": pack(self.network), "mean": [0.0], "std": [1.0]})
