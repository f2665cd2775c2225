"""Mixup and cutmix of whole batches: every input with a partner from the batch, all by one share.

All draws come from numpy's frozen ``RandomState``: torch draws from a Beta distribution with its global generator
alone, and numpy's newer generators may draw otherwise in a later version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kdbench.data.transforms import as_type

if TYPE_CHECKING:
    from numpy.random import RandomState

__all__ = ["Mixed", "cutmix", "mixup"]


class Mixed(NamedTuple):
    """A batch that was mixed.

    Attributes
    ----------
    inputs : ``[N, C, H, W]``, a new tensor of the batch's type.
    partners : ``[N]`` int64, the place in the batch of what each input was mixed with; some may be its own.
    share : what is left of each input itself, in [0, 1].
    """

    inputs: Tensor
    partners: Tensor
    share: float


def mixup(x: Tensor, strength: float, random: RandomState) -> Mixed:
    """``share * x + (1 - share) * x[partners]`` with ``share ~ Beta(strength, strength)`` (Zhang et al. 2018).

    Parameters
    ----------
    x : ``[N, C, H, W]``, uint8 or floating point; images are mixed on their scale of 0 to 255 and rounded.
    strength : positive.
    random : source of the share and the partners, advanced by the call.
    """
    share, partners = _drawn(x, strength, random)
    values = x if x.is_floating_point() else x.to(torch.float32)
    return Mixed(as_type(share * values + (1 - share) * values[partners], x), partners, share)


def cutmix(x: Tensor, strength: float, random: RandomState) -> Mixed:
    """A box of every input is its partner's (Yun et al. 2019).

    The box has the share ``1 - Beta(strength, strength)`` of the area and the input's aspect; its middle is uniform,
    and what lies outside is cut off. ``share`` is what is left after that. Of signals (H = 1) it is a segment.

    Parameters
    ----------
    x : ``[N, C, H, W]`` of any type.
    strength : positive.
    random : source of share, partners and box, advanced by the call.
    """
    drawn, partners = _drawn(x, strength, random)
    height, width = x.shape[2:]
    side = (1 - drawn) if height == 1 else (1 - drawn) ** 0.5
    top, bottom = (0, 1) if height == 1 else _cut(height, side, random)
    left, right = _cut(width, side, random)
    inputs = x.clone()
    inputs[:, :, top:bottom, left:right] = x[partners, :, top:bottom, left:right]
    return Mixed(inputs, partners, 1 - (bottom - top) * (right - left) / (height * width))


def _drawn(x: Tensor, strength: float, random: RandomState) -> tuple[float, Tensor]:
    """A share, and a partner for every input."""
    share = float(random.beta(strength, strength))
    return share, torch.from_numpy(random.permutation(len(x))).to(x.device, torch.int64)


def _cut(length: int, share: float, random: RandomState) -> tuple[int, int]:
    """First place and end of a segment of ``share`` of ``length`` places around a uniform middle, as far as inside."""
    size, middle = int(length * share), int(random.randint(length))
    return max(middle - size // 2, 0), min(middle + size // 2, length)
