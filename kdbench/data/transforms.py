"""Normalisation and augmentation of whole batches, on whatever device they lie.

Crops and flips are drawn with the generator given, on the generator's device: a CPU generator gives the same batch on
every device, a CUDA generator saves the copy. Augment raw images and normalise afterwards, so that the border of a
crop is black, as in the usual recipe (crop, flip, to tensor, normalise). Images keep their type throughout: what was
uint8 is rounded after resizing, as it would be in an image file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

__all__ = ["as_type", "normalise", "random_crop", "random_flip", "random_resized_crop", "resize"]

_SHARES = (0.08, 1.0)  # of the image's area, and
_ASPECTS = (3 / 4, 4 / 3)  # width by height, of a random resized crop: the usual ones
_TRIES = 10  # boxes drawn for an image until one lies inside it, also as usual


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


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring images to another height and width: bilinear, antialiased, as image libraries do it.

    Parameters
    ----------
    x : ``[N, C, H, W]``, uint8 or floating point.
    size : height and width in pixels.

    Returns
    -------
    ``[N, C, *size]`` of ``x``'s type; uint8 is rounded to the nearest.
    """
    values = x if x.is_floating_point() else x.to(torch.float32)
    return as_type(F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=True), x)


def random_resized_crop(x: Tensor, size: tuple[int, int], generator: Generator) -> Tensor:
    """Cut a box of random area, shape and place out of every image and resize it as :func:`resize` does.

    The box has a share of the image's area that is uniform over .08 to 1, and an aspect (width by height) that is
    log-uniform over 3/4 to 4/3. One that does not fit is drawn again, ten times at most; then the largest box in the
    middle is taken whose aspect is in that range. Of signals (H = 1) the share is of the length.

    Parameters
    ----------
    x : ``[N, C, H, W]``, uint8 or floating point.
    size : height and width of the result in pixels.
    generator : source of the boxes, advanced by the call.

    Returns
    -------
    ``[N, C, *size]``, a new tensor of ``x``'s type; uint8 is rounded to the nearest.
    """
    boxes = _random_boxes(len(x), (x.shape[2], x.shape[3]), generator)
    return _resized_boxes(x, Boxes(*(each.to(x.device) for each in boxes)), size)


class Boxes(NamedTuple):
    """A box in each of ``N`` images, in whole pixels: four int64 tensors ``[N]``."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def _random_boxes(count: int, shape: tuple[int, int], generator: Generator) -> Boxes:
    """Boxes as :func:`random_resized_crop` describes them, on the generator's device."""
    # The same number of draws for every image, used or not: so one image's luck does not move another's.
    draws = torch.rand(count, 2 * _TRIES + 2, generator=generator, device=generator.device, dtype=torch.float64)
    share = _SHARES[0] + (_SHARES[1] - _SHARES[0]) * draws[:, :_TRIES]
    least, most = (math.log(aspect) for aspect in _ASPECTS)
    aspect = torch.exp(least + (most - least) * draws[:, _TRIES : 2 * _TRIES])
    full_height, full_width = shape
    if full_height == 1:
        heights, widths = torch.ones_like(share), (share * full_width).round().clamp_min(1)
    else:
        area = share * (full_height * full_width)
        heights, widths = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (heights >= 1) & (heights <= full_height) & (widths >= 1) & (widths <= full_width)
    first = fits.to(torch.int8).argmax(1, keepdim=True)  # of equals, argmax gives the first
    found = fits.gather(1, first)[:, 0]
    middle = _middle_box(shape)
    height = torch.where(found, heights.gather(1, first)[:, 0], float(middle[0]))
    width = torch.where(found, widths.gather(1, first)[:, 0], float(middle[1]))
    # A draw is below 1, so the last place is the last at which the box lies inside.
    place = torch.where(found[:, None], draws[:, -2:], 0.5)
    top = (place[:, 0] * (full_height - height + 1)).floor()
    left = (place[:, 1] * (full_width - width + 1)).floor()
    return Boxes(*(each.to(torch.int64) for each in (top, left, height, width)))


def _middle_box(shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the largest box whose aspect is in the range, for an image that no drawn box fits."""
    height, width = shape
    if width < _ASPECTS[0] * height:
        return max(1, round(width / _ASPECTS[0])), width
    if width > _ASPECTS[1] * height:
        return height, max(1, round(height * _ASPECTS[1]))
    return height, width


def _resized_boxes(x: Tensor, boxes: Boxes, size: tuple[int, int]) -> Tensor:
    # Resizing is linear and separable: a matrix for the rows and one for the columns of every image, zero outside its
    # box. So boxes of all sizes go through two batched products, without a loop and without atomics on a GPU.
    values = x if x.is_floating_point() else x.to(torch.float32)
    rows = _weights(boxes.top, boxes.height, x.shape[2], size[0]).to(values.dtype)
    columns = _weights(boxes.left, boxes.width, x.shape[3], size[1]).to(values.dtype)
    narrowed = torch.einsum("nchw,nxw->nchx", values, columns)
    return as_type(torch.einsum("nchx,nyh->ncyx", narrowed, rows).contiguous(), x)


def _weights(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """``[N, size, pixels]``: share of each pixel in each pixel of the result, float64; every row sums to 1.

    A triangle around the place of the result's pixel in the box, one pixel wide to each side where the box is enlarged
    and one pixel of the result where it is reduced (the antialiasing).
    """
    scale = (length.to(torch.float64) / size)[:, None, None]
    at = torch.arange(pixels, device=start.device) - start[:, None, None]  # [N, 1, pixels], within the box
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # [N, size, 1]
    triangle = (1 - (at + 0.5 - centre).abs() / scale.clamp_min(1)).clamp_min(0)
    inside = (at >= 0) & (at < length[:, None, None])
    weights = triangle * inside
    return weights / weights.sum(2, keepdim=True)


def as_type(values: Tensor, like: Tensor) -> Tensor:
    """Floating-point ``values`` in the type of ``like``: rounded where that is uint8. They are not to be used again."""
    return values if like.is_floating_point() else values.round_().to(like.dtype)


def _draw(choices: int, count: int, generator: Generator) -> Tensor:
    return torch.randint(choices, (count,), generator=generator, device=generator.device)
