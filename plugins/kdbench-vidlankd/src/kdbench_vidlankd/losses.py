r"""Losses on token states, as pure functions of tensors.

Notation: ``s`` and ``t`` are states of student and teacher, ``[B, L, H]``: B blocks of L tokens with H hidden units
(neurons), ``tau`` a temperature. Every loss but :func:`nst` and :func:`soft_label` takes states of length 1, as
:func:`unit` makes them, so that a product is a cosine. A mask ``[B, L]`` is True at real tokens; what stands at the
others, padding, changes neither value nor gradient. Gradients flow to the student, and to the teacher where it has a
graph.

Sources: VidLanKD is Tang, Cho, Tan, Bansal, NeurIPS 2021; "released" is zinengtang/VidLanKD at 46bae35, read and not
copied. The same losses by their formulas, slower and plainer, are in :mod:`kdbench_vidlankd.references`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from kdbench.errors import KdbenchError
from kdbench.losses import kl

__all__ = [
    "halves",
    "hinge",
    "log_normaliser",
    "noise_contrastive",
    "nst",
    "nt_xent",
    "regression",
    "soft_label",
    "token_mean",
    "unit",
]


def unit(states: Tensor) -> Tensor:
    """The states ``[..., H]`` scaled to length 1."""
    return functional.normalize(states, dim=-1)


def token_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of one value a token, ``[B, L]``, over the real tokens; 0 where there are none."""
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def nst(
    student: Tensor,
    teacher: Tensor,
    *,
    divide: Literal["batch", "length"] = "batch",
    whole: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Neuron selectivity transfer: squared maximum mean discrepancy of the neurons, kernel ``k(x, y) = (x . y)^2``.

    The samples are neurons: the states of a block, transposed, are H vectors over its tokens, each scaled to length 1
    over them (rows of ``S^`` and ``T^``). Per block

        MMD^2 = mean k(s, s) - 2 mean k(s, t) + mean k(t, t) = || S^' S^ / H - T^' T^ / H ||_F^2

    (Huang and Wang 2017; the identity since ``sum_ij (s_i . t_j)^2 = <S^' S^, T^' T^>_F``). The right side, of
    ``L x L`` matrices, is what is computed: as exact, cheaper where H > L, and a square, so nothing cancels. It is a
    loss of token-token relations within a block, then, and does not see a permutation of the neurons of either.

    Parameters
    ----------
    student, teacher : ``[B, L, H]``, each its own H.
    divide : ``batch``: mean over the blocks. ``length``: their sum divided by L, which weighs it B / L times as much
        (released: .25 at B 32, L 128). L counts padding.
    whole : with ``mean k(t, t)``, which is constant in the student; the released code leaves it out.
    mask : ``[B, L]``; neurons are vectors over the real tokens.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    KdbenchError : the shapes do not fit.
    """
    _check(student, teacher, mask, hidden=False)
    own, target = _gram(student, mask), _gram(teacher, mask)
    per_block = (own - target).square() if whole else (own - 2 * target) * own
    return per_block.sum() / (len(student) if divide == "batch" else student.shape[1])


def regression(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """``|| s - t ||^2``, the sum over the hidden units, mean over the tokens.

    For states of length 1 it is ``2 - 2 cos(s, t)``: between 0 and 4 whatever H is. (A mean over the hidden units too,
    torch's mean squared error, is H times as small.) The released code has it in comments alone.

    Parameters
    ----------
    student, teacher : ``[B, L, H]``, of length 1.
    mask : ``[B, L]``.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    KdbenchError : the shapes do not fit.
    """
    _check(student, teacher, mask)
    return token_mean((student - teacher).square().sum(-1), mask)


def nt_xent(
    student: Tensor, teacher: Tensor, *, temperature: float, released: bool = False, mask: Tensor | None = None
) -> Tensor:
    """In-batch contrast (NT-Xent, Chen et al. 2020), at each token position apart.

    At one position the batch holds 2B states: B of the student and B of the teacher. Each of them is an anchor a; its
    positive a+ is the other network's state of the same token, its negatives are all the others, those of both networks
    at this position in the B - 1 other blocks: 2 (B - 1) of them. The loss is

        - log( e^(a . a+ / tau) / sum over a+ and the negatives n of e^(a . n / tau) ),

    mean over anchors and positions. Products of matrices, ``[L, 2B, 2B]``: no ``(2B)^2 H`` numbers are held.

    Parameters
    ----------
    student, teacher : ``[B, L, H]``, of length 1.
    temperature : tau, positive.
    released : divide by 2B once more, as the released code does (there tau is 1).
    mask : ``[B, L]``; padding is neither an anchor nor a negative.

    Returns
    -------
    Tensor
        Nats; a scalar.

    Raises
    ------
    KdbenchError : the shapes do not fit.
    """
    _check(student, teacher, mask)
    blocks = len(student)
    states = torch.cat([student, teacher]).transpose(0, 1)  # [L, 2B, H]
    scores = states @ states.mT / temperature
    barred = torch.eye(2 * blocks, dtype=torch.bool, device=scores.device)
    anchors = None
    if mask is not None:
        anchors = mask.T.repeat(1, 2)  # [L, 2B]
        # An anchor of padding keeps its row, which is then left out: a row that is barred throughout would be NaN.
        barred = barred | (anchors[:, :, None] & ~anchors[:, None, :])
    scores = scores.masked_fill(barred, float("-inf"))
    positive = scores.diagonal(blocks, 1, 2)  # of the student's anchors; the teacher's have the same
    loss = token_mean(scores.logsumexp(2) - positive.repeat(1, 2), anchors)
    return loss / (2 * blocks) if released else loss


def log_normaliser(
    positive: Tensor, negative: Tensor, *, slots: int, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """``log Z`` as CRD estimates it at the first step: Z is N times the mean of ``e^(cosine / tau)``.

    Parameters
    ----------
    positive, negative : cosines ``[B, L]`` and ``[B, L, K]``; the mean is over both, at real tokens.
    slots : N, of the memory.
    temperature : tau.
    mask : ``[B, L]``.

    Returns
    -------
    Tensor
        A scalar without a graph. Of logarithms, so it cannot overflow at any temperature.
    """
    scores = torch.cat([positive[..., None], negative], dim=-1).detach() / temperature
    count: Tensor | int = scores[..., 0].numel()
    if mask is not None:
        scores = scores.masked_fill(~mask[..., None], float("-inf"))
        count = mask.sum()
    entries = torch.as_tensor(count, dtype=scores.dtype, device=scores.device) * scores.shape[-1]
    return scores.flatten().logsumexp(0) - entries.log() + math.log(slots)


def noise_contrastive(
    positive: Tensor,
    negative: Tensor,
    log_z: Tensor,
    *,
    slots: int,
    temperature: float,
    mask: Tensor | None = None,
) -> Tensor:
    """One direction of CRD (Tian, Krishnan, Isola 2020): is a pair joint, or are its sides from K draws of noise?

        h(c) = (e^(c / tau) / Z) / (e^(c / tau) / Z + K / N),    loss = - log h(c+) - sum over K of log(1 - h(c-)),

    c a cosine of a feature with a slot of the memory, mean over the tokens. ``h`` is the logistic function of
    ``c / tau - log Z - log(K / N)``, and is computed so: no exponential overflows, no logarithm needs a floor.

    Parameters
    ----------
    positive : ``[B, L]``, cosines with the own slot.
    negative : ``[B, L, K]``, with the K slots drawn.
    log_z : scalar, from :func:`log_normaliser`.
    slots : N, of the memory.
    temperature : tau, positive.
    mask : ``[B, L]``.

    Returns
    -------
    Tensor
        Nats; a scalar.
    """
    offset = log_z + math.log(negative.shape[-1] / slots)
    joint = functional.logsigmoid(positive / temperature - offset)
    noise = functional.logsigmoid(offset - negative / temperature).sum(-1)
    return -token_mean(joint + noise, mask)


def soft_label(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """``KL(softmax(t / tau) || softmax(s / tau))`` over the vocabulary, mean over the tokens; not scaled by tau^2.

    By kdbench's fused kernel. Traces in the released code's history have it at tau 1 as a mean over all elements, times
    1000: for V words that is 1000 / V of this.

    Parameters
    ----------
    student_logits, teacher_logits : ``[n, V]``, of the real tokens. None of the gradient reaches the teacher's.
    temperature : tau, positive.

    Returns
    -------
    Tensor
        Nats; a scalar.

    Raises
    ------
    KdbenchError : shapes, dtypes or devices do not fit, the teacher's logits require a gradient, or temperature is not
        positive.
    """
    return kl(student_logits, teacher_logits, temperature=temperature, reduction="batchmean")


def hinge(tokens: Tensor, clip: Tensor, negative: Tensor, *, margin: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """The teacher's contrastive loss: each token against the vector of its clip and of one other clip.

        sum over tokens of max(0, m - t . v + t . v_neg) / number of tokens

    (released, with m = 1 and one negative: :func:`halves`). Only the clip is swapped, never the text.

    Parameters
    ----------
    tokens : ``[B, L, H]``, states of the teacher's language tower, of length 1.
    clip, negative : ``[B, H]``, of length 1.
    margin : m.
    mask : ``[B, L]``.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    KdbenchError : the shapes do not fit.
    """
    blocks, _, hidden = tokens.shape
    if clip.shape != (blocks, hidden) or negative.shape != clip.shape:
        raise KdbenchError(
            f"tokens {_size(tokens)} need one clip and one negative a block, {blocks} x {hidden}, "
            f"and not {_size(clip)} and {_size(negative)}"
        )
    _check_mask(tokens, mask)
    nearer = (tokens @ (negative - clip)[:, :, None])[..., 0]
    return token_mean((margin + nearer).clamp(min=0), mask)


def halves(blocks: int, *, device: torch.device | str | None = None) -> Tensor:
    """The pairing of a halved batch: item k of one half is the only negative of item k of the other.

    Parameters
    ----------
    blocks : B, even.

    Returns
    -------
    Tensor
        ``[B]`` int64: the partner of each item. ``hinge(tokens, clip, clip[halves(len(clip))])``.

    Raises
    ------
    KdbenchError : B is odd, or 0.
    """
    if blocks < 2 or blocks % 2:
        raise KdbenchError(f"a batch of {blocks} cannot be halved", cure="make batches of an even number of clips")
    return torch.arange(blocks, device=device).roll(blocks // 2)


def _gram(states: Tensor, mask: Tensor | None) -> Tensor:
    """``S^' S^ / H`` of each block, ``[B, L, L]``, of neurons scaled to length 1 over the real tokens."""
    if mask is not None:
        states = states.masked_fill(~mask[..., None], 0.0)
    neurons = functional.normalize(states, dim=1)
    return neurons @ neurons.mT / states.shape[2]


def _check(student: Tensor, teacher: Tensor, mask: Tensor | None, *, hidden: bool = True) -> None:
    compared = 3 if hidden else 2
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:compared] != teacher.shape[:compared]:
        raise KdbenchError(
            f"states of the student ({_size(student)}) and of the teacher ({_size(teacher)}) do not fit",
            cure="both read the same blocks" + (" and have the same hidden size" if hidden else ""),
        )
    _check_mask(student, mask)


def _check_mask(states: Tensor, mask: Tensor | None) -> None:
    if mask is not None and (mask.shape != states.shape[:2] or mask.dtype != torch.bool):
        raise KdbenchError(
            f"a mask of {_size(mask)} {str(mask.dtype).removeprefix('torch.')} for states {_size(states)}",
            cure="give one bool a token, True where it is real",
        )


def _size(tensor: Tensor) -> str:
    return " x ".join(str(length) for length in tensor.shape)
