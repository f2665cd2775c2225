"""The losses of :mod:`kdbench_vidlankd.losses` by their formulas: plain torch, loops, nothing shared with them.

Nobody trains with these. Tests hold the losses against them, value and gradient, in float64. States are of length 1
where the losses want them so; masks are required.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "contrast_by_pairs",
    "head_by_formula",
    "noise_contrast_by_formula",
    "nst_by_kernels",
    "regression_by_cosines",
    "soft_label_by_sum",
]


def nst_by_kernels(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """``[B]``: MMD^2 of each block from the ``H x H`` values of the kernel ``(x . y)^2`` between its neurons."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T).square().mean()

    found = []
    for s, t, real in zip(student, teacher, mask, strict=True):
        own, target = (states[real].T / states[real].T.norm(dim=1, keepdim=True) for states in (s, t))
        found.append(kernel(own, own) - 2 * kernel(own, target) + kernel(target, target))
    return torch.stack(found)


def regression_by_cosines(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """``2 - 2 cos``, mean over the real tokens."""
    return 2 - 2 * torch.cosine_similarity(student[mask], teacher[mask], dim=1).mean()


def contrast_by_pairs(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor) -> Tensor:
    """NT-Xent, anchor by anchor, mean over the anchors of all positions."""
    blocks, length, _ = student.shape
    found = []
    for place in range(length):
        real = [block for block in range(blocks) if mask[block, place]]
        for block in real:
            for own, other in ((student, teacher), (teacher, student)):
                anchor = own[block, place]
                others = [net[far, place] for far in real if far != block for net in (student, teacher)]
                odds = [torch.exp(anchor @ state / temperature) for state in [other[block, place], *others]]
                found.append(-torch.log(odds[0] / torch.stack(odds).sum()))
    return torch.stack(found).mean()


def noise_contrast_by_formula(
    features: Tensor, own: Tensor, noise: Tensor, z: float | None, slots: int, temperature: float, mask: Tensor
) -> Tensor:
    """One direction of CRD, as written.

    Parameters
    ----------
    features : ``[B, L, H]``.
    own : ``[B, L, H]``, the slot of each token.
    noise : ``[B, K, H]``, the slots drawn for each block.
    z : the normaliser; None for its estimate from these features.
    slots, temperature, mask : N, tau, ``[B, L]``.
    """
    joint = torch.exp((features * own).sum(-1) / temperature)[mask]
    apart = torch.exp(torch.einsum("blh,bkh->blk", features, noise) / temperature)[mask]
    if z is None:
        z = slots * torch.cat([joint[:, None], apart], dim=1).mean().item()
    expected = noise.shape[1] / slots
    positive = (joint / z) / (joint / z + expected)
    negative = (apart / z) / (apart / z + expected)
    return (-positive.log() - (1 - negative).log().sum(1)).mean()


def soft_label_by_sum(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``sum_v q_v log(q_v / p_v)``, mean over the tokens."""
    p, q = (torch.softmax(logits / temperature, dim=1) for logits in (student_logits, teacher_logits))
    return (q * (q / p).log()).sum(1).mean()


def head_by_formula(head: nn.Module, states: Tensor) -> Tensor:
    """What :class:`kdbench_vidlankd.distilling.DistillationHead` makes of states ``[..., H]``, from its parameters."""
    weights = dict(head.named_parameters())
    inner = states @ weights["inner.weight"].T + weights["inner.bias"]
    inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
    centred = inner - inner.mean(-1, keepdim=True)
    inner = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    inner = inner * weights["norm.weight"] + weights["norm.bias"]
    outer: Tensor = inner @ weights["outer.weight"].T + weights["outer.bias"]
    length: Tensor = outer.norm(dim=-1, keepdim=True)
    return outer / length
