from kdbench.training import Objective


class SoftTargets(Objective, frozen=True):
    """``T^2 KL(softmax(t/T) || softmax(s/T))``."""

    temperature: float

    def loss(self, logits, batch):
        from torch.nn import functional

        student = functional.log_softmax(logits / self.temperature, dim=1)
        teacher = functional.softmax(batch.teacher_logits.detach() / self.temperature, dim=1)
        return self.temperature**2 * functional.kl_div(student, teacher, reduction="batchmean")

    def reference(self, logits, batch):
        student = (logits / self.temperature).softmax(1)
        teacher = (batch.teacher_logits.detach() / self.temperature).softmax(1)
        return self.temperature**2 * (teacher * (teacher / student).log()).sum(1).mean()
