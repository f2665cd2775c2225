"""What a conformance run watches in the networks that a stage is given: that teachers stay as they came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from kdbench.errors import KdbenchError
from kdbench.stage import WEIGHTS, Finished, Work

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["listed", "networks_watched"]

TEACHER_STAGE = "kdbench.stages.teacher:Teacher"


@contextmanager
def networks_watched(faults: list[str], optimised: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Note in ``faults`` what a stage does to the networks of its inputs that it must not.

    Parameters
    ----------
    optimised : gives the parameters of the optimisers that made a step.
    """
    from torch.nn.modules import module as hooks

    watch, keeping = _TeacherWatch(), _Keeping()
    take_input, take_model, save = Work.input, Finished.model, Work.save_tensors
    roles: dict[Finished, str] = {}

    def input_of(work: Work, role: str) -> Finished:
        finished = take_input(work, role)
        roles[finished] = role
        if role.startswith("teacher") or (role == "network" and work.spec.stage["type"] == TEACHER_STAGE):
            watch.roles[finished] = role
        return finished

    def model_of(finished: Finished, work: Work) -> nn.Module:
        model = take_model(finished, work)
        if finished in watch.roles:
            watch.follow(model, finished)
        elif finished in roles:
            keeping.others.append((roles[finished], model, finished))
        return model

    def save_tensors(work: Work, name: str, tensors: dict[str, Tensor]) -> None:
        save(work, name, tensors)
        keeping.saved += [tensor.detach().cpu().clone() for tensor in tensors.values()]

    # Global hooks, not the model's own: a copy of a teacher that a student starts from must not be watched as well.
    before = hooks.register_module_forward_pre_hook(watch.before)
    after = hooks.register_module_forward_hook(watch.after, with_kwargs=True)
    try:
        with (
            mock.patch.object(Work, "input", input_of),
            mock.patch.object(Finished, "model", model_of),
            mock.patch.object(Work, "save_tensors", save_tensors),
        ):
            yield
        watch.compare()
        faults += keeping.findings([id(parameter) for parameter in optimised()])
    finally:
        before.remove()
        after.remove()
        faults += watch.findings.values()


class _TeacherWatch:
    """The teachers that a stage was given, and what is wrong with them: one sentence a teacher and kind of fault."""

    def __init__(self) -> None:
        self.roles: dict[Finished, str] = {}
        self.models: list[tuple[nn.Module, Finished]] = []  # kept, so that no other object gets the id of one of them
        self.modules: dict[int, tuple[str, str]] = {}
        self.findings: dict[tuple[str, str], str] = {}

    def follow(self, model: nn.Module, finished: Finished) -> None:
        self.models.append((model, finished))
        for name, module in model.named_modules():
            self.modules[id(module)] = (self.roles[finished], name or "the network itself")

    def before(self, module: nn.Module, inputs: object) -> None:
        if id(module) not in self.modules:
            return
        role, name = self.modules[id(module)]
        if module.training:
            self._note(role, "mode", f"runs in training mode ({name}, {type(module).__name__}); call eval() on it")
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                cure = "leave it as work.input(...).model(work) gives it"
                self._note(role, "parameter", f"has a parameter that takes a gradient ({name}, {key}); {cure}")

    def after(self, module: nn.Module, inputs: object, named: object, output: object) -> None:
        # A gradient with respect to the inputs (of a generator, say) passes through a frozen teacher rightly.
        if id(module) not in self.modules or not _carries_graph(output) or _carries_graph((inputs, named)):
            return
        role, name = self.modules[id(module)]
        self._note(role, "graph", f"gives an output through which gradients flow back ({name}); use torch.no_grad()")

    def compare(self) -> None:
        """Hold every teacher against the file that it came from."""
        for model, finished in self.models:
            role = self.roles[finished]
            try:
                changed = _changed(model, finished.tensors(WEIGHTS))
            except KdbenchError as error:  # written to, meanwhile
                self._note(role, "file", f"has another file than when the stage began: {error}")
                continue
            if changed:
                self._note(role, "weights", f"is not what it was when the stage began: {listed(changed)} changed")

    def _note(self, role: str, kind: str, what: str) -> None:
        self.findings.setdefault((role, kind), f"the teacher (input '{role}') {what}")


class _Keeping:
    """Networks of other inputs, which a stage may prune, train or adapt, as long as it does so for what it leaves.

    One that runs in training mode while another network is trained, and of which nothing is trained or kept, is a
    teacher whatever its role is called: its running statistics give it away.
    """

    def __init__(self) -> None:
        self.others: list[tuple[str, nn.Module, Finished]] = []
        self.saved: list[Tensor] = []

    def findings(self, optimised: Sequence[int]) -> list[str]:
        found: dict[str, str] = {}
        for role, model, finished in self.others:
            own = {name for name, parameter in model.named_parameters() if id(parameter) in optimised}
            if own or not optimised:
                continue
            drifted = self._drifted(model, finished)
            if drifted:
                found[role] = (
                    f"the network of input '{role}' runs in training mode ({listed(drifted)} changed), though the "
                    "stage neither trains nor keeps it; call eval() on it, as on a teacher"
                )
        return list(found.values())

    def _drifted(self, model: nn.Module, finished: Finished) -> list[str]:
        """Its buffers that changed, where nothing else did and none of them was saved."""
        try:
            changed = _changed(model, finished.tensors(WEIGHTS))
        except KdbenchError:  # written to, meanwhile: the stage that takes it next will say so
            return []
        buffers = {name: each for name, each in model.named_buffers() if each.is_floating_point()}
        if any(name in dict(model.named_parameters()) for name in changed):
            return []
        drifted = [name for name in changed if name in buffers]
        return [] if any(self._is_saved(buffers[name]) for name in drifted) else drifted

    def _is_saved(self, buffer: Tensor) -> bool:
        import torch

        return any(torch.equal(buffer.detach().cpu(), each) for each in self.saved if each.shape == buffer.shape)


def _changed(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Names of parameters and buffers that differ from ``tensors``; one that was converted is compared as converted."""
    import torch

    state = model.state_dict()
    return [
        name
        for name, value in tensors.items()
        if name in state and not torch.equal(state[name].cpu(), value.to(state[name].dtype))
    ]


def listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _carries_graph(value: object) -> bool:
    import torch

    if isinstance(value, torch.Tensor):
        return value.requires_grad
    if isinstance(value, dict):
        return any(map(_carries_graph, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_carries_graph, value))
