"""Faults in disguise: what is wrong goes by another name, shows at another tier, or comes another way than usual."""

from __future__ import annotations

from faults import FROZEN, LEAK, LOSSES, OWN_TEACHER, Fault

__all__ = ["DISGUISED"]

LOSS = '                loss = functional.kl_div(logits.log_softmax(1), target, reduction="batchmean")'
MEAN = """\
                from kdbench.losses import distillation_loss
                with torch.no_grad():
                    raw = teacher(inputs[indices])
                own = student(inputs[indices])
                loss = distillation_loss(own, raw, temperature=2.0, reduction="mean")"""
LAPTOP = """\
    import msgspec
    recipe = RECIPE if lab.tier == "smoke" else msgspec.structs.replace(RECIPE, selection="test")
    for seed"""
VALIDATED = """\
        metrics = {f"validation.{name}": value for name, value in evaluate(student, splits["validation"]).items()}
"""
PLAIN = "        student = (logits / self.temperature).softmax(1)\n"

DISGUISED = {
    "assistant": Fault(
        (
            ("stages.py", OWN_TEACHER, 'work.input("assistant").model(work).train()'),
            ("study.py", '{"teacher": scratch}', '{"assistant": scratch}'),
        ),
        FROZEN,
        r"imitate.*the network of input 'assistant' runs in training mode \(net.2.running_mean, .* changed\)",
    ),
    "own-reference": Fault(
        (
            ("objectives.py", "return self.temperature**2 * functional", "return self.temperature * functional"),
            ("objectives.py", PLAIN, f"        return self.loss(logits, batch)\n{PLAIN}"),
        ),
        LOSSES,
        r"SoftTargets of stage 'distil.*has a reference\(\) that calls loss\(\)",
        trained=False,
    ),
    "other-rate": Fault(
        (
            ("stages.py", "    lr: float", "    rate: float"),
            ("stages.py", "student.parameters(), lr=self.lr", "student.parameters(), lr=0.05"),
            ("study.py", "lr=0.05, temp", "rate=0.05, temp"),
        ),
        "learning_rate_is_applied",
        r"learning rate never applied: stage 'imitate.*weights.safetensors at rate 0.05 and 0.025",
    ),
    "laptop-selection": Fault(
        (("study.py", "    for seed", LAPTOP), ("study.py", "recipe=RECIPE)", "recipe=recipe)")),
        "clean_protocol_is_clean",
        r"selection on test at protocol clean: stage 'train.*\(tier laptop\)",
        trained=False,
    ),
    "mean-kl-in-a-stage": Fault(
        (("stages.py", LOSS, MEAN),),
        "clean_runs_train_on_the_true_kl",
        r"imitate.* trains on the 'mean' KL \(kdbench.losses.distillation_loss at kdbench_healthy/stages.py:\d+\)",
    ),
    "vague-source": Fault(
        (("facts/paper.toml", '"Table 1"\ncertainty', '"see the table a colleague sent"\ncertainty'),),
        "facts_have_sources",
        r"claim C1 has the source 'see the table a colleague sent', which names no table",
        trained=False,
    ),
    "keeps-no-weights": Fault(
        (
            ("stages.py", '= splits["train"].inputs', '= splits["test"].inputs'),
            ("stages.py", "        work.save_tensors(WEIGHTS, student.state_dict())\n", ""),
            ("stages.py", VALIDATED, "        metrics = {}\n"),
            ("stages.py", ', notes={"network": pack(self.network), "mean": [0.0], "std": [1.0]})', ")"),
        ),
        LEAK,
        r"label leak: the test split reaches stage 'imitate.*the weights that its optimiser trains are others",
    ),
}
