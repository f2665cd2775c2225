"""Normalisation and augmentation of whole batches, on whatever device they lie.

Crops and flips are drawn with the generator given, on the generator's device: a CPU generator gives the same batch on
every device, a CUDA generator saves the copy. Augment raw images and normalise afterwards, so that the border of a
crop is black, as in the usual recipe (crop, flip, to tensor, normalise).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

__all__ = ["normalise", "random_crop", "random_flip"]


def normalise(x: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """``(x - mean) / std`` by channel, after bringing uint8 images to the scale 0 to 1.

    Parameters
    ----------
    x : ``[N, C, H, W]``, uint8 or floating point; it is not changed.
    mean, std : ``C`` numbers on the scale 0 to 1 for images; pass tensors on ``x``'s device to spare their transfer.

    Returns
    -------
    ``[N, C, H, W]``; float32 for uint8 inputs, else of ``x``'s type.
    """
    values = x if x.is_floating_point() else x.to(torch.float32).div_(255)
    centre = torch.as_tensor(mean, dtype=values.dtype, device=values.device).view(-1, 1, 1)
    spread = torch.as_tensor(std, dtype=values.dtype, device=values.device).view(-1, 1, 1)
    return values.sub(centre).div_(spread)


def random_crop(x: Tensor, padding: int, generator: Generator) -> Tensor:
    """Pad every image with zeros and cut the original size out of it at a place of its own.

    Parameters
    ----------
    x : ``[N, C, H, W]`` of any type; of signals (H = 1) only the length is padded.
    padding : pixels on each side; the shifts are uniform over ``-padding .. padding``.
    generator : source of the shifts, advanced by the call.

    Returns
    -------
    ``[N, C, H, W]``, a new tensor.
    """
    count, _, height, width = x.shape
    vertical = 0 if height == 1 else padding
    padded = F.pad(x, (padding, padding, vertical, vertical))
    # A view of every crop there is, [N, C, 2 * vertical + 1, 2 * padding + 1, H, W]; only the chosen ones are copied.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    top = _draw(2 * vertical + 1, count, generator).to(x.device)
    left = _draw(2 * padding + 1, count, generator).to(x.device)
    return crops[torch.arange(count, device=x.device), :, top, left]


def random_flip(x: Tensor, generator: Generator) -> Tensor:
    """Mirror every image left to right with probability one half.

    Parameters
    ----------
    x : ``[N, C, H, W]`` of any type.
    generator : source of the choices, advanced by the call.

    Returns
    -------
    ``[N, C, H, W]``, a new tensor.
    """
    mirrored = _draw(2, len(x), generator).to(x.device, torch.bool)
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def _draw(choices: int, count: int, generator: Generator) -> Tensor:
    return torch.randint(choices, (count,), generator=generator, device=generator.device)
