"""Normalisation and augmentation of batches."""

from __future__ import annotations

import pytest
import torch

from kdbench.data import Split, channel_statistics
from kdbench.data.transforms import normalise, random_crop, random_flip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 64) -> torch.Tensor:
    return torch.randint(1, 256, (count, 3, 6, 8), dtype=torch.uint8, generator=generator(9))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_normalise_takes_mean_and_deviation_away(dtype: torch.dtype) -> None:
    x = images().to(dtype)
    before = x.clone()
    normal = normalise(x, *channel_statistics(Split(x, torch.zeros(len(x), dtype=torch.int64))))
    assert torch.equal(x, before)
    assert normal.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3, dtype=normal.dtype), rtol=0, atol=1e-5)
    torch.testing.assert_close(normal.std((0, 2, 3), correction=0), torch.ones(3, dtype=normal.dtype))


def test_normalise_has_the_usual_scale_for_images() -> None:
    x = torch.tensor([[[[255]], [[0]]]], dtype=torch.uint8)
    assert normalise(x, (0.5, 0.25), (0.25, 0.5)).flatten().tolist() == [2.0, -0.5]
    by_tensor = normalise(x, torch.tensor([0.5, 0.25]), torch.tensor([0.25, 0.5]))
    assert by_tensor.flatten().tolist() == [2.0, -0.5]


def crop_by_loop(x: torch.Tensor, padding: int, seed: int) -> torch.Tensor:
    """One image at a time, with the same draws."""
    count, _, height, width = x.shape
    vertical = 0 if height == 1 else padding
    source = generator(seed)
    tops = torch.randint(2 * vertical + 1, (count,), generator=source)
    lefts = torch.randint(2 * padding + 1, (count,), generator=source)
    out = []
    for image, top, left in zip(x, tops.tolist(), lefts.tolist(), strict=True):
        canvas = image.new_zeros(image.shape[0], height + 2 * vertical, width + 2 * padding)
        canvas[:, vertical : vertical + height, padding : padding + width] = image
        out.append(canvas[:, top : top + height, left : left + width])
    return torch.stack(out)


@pytest.mark.parametrize("x", [images(), images()[:, :1, :1], images().float()], ids=["uint8", "signal", "float"])
@pytest.mark.parametrize("padding", [1, 4])
def test_crops_are_those_of_a_loop(x: torch.Tensor, padding: int) -> None:
    before = x.clone()
    cropped = random_crop(x, padding, generator(5))
    assert cropped.dtype == x.dtype
    assert torch.equal(cropped, crop_by_loop(x, padding, 5))
    assert torch.equal(x, before)


def test_every_shift_occurs_equally_often() -> None:
    """A single bright pixel in the middle shows where each crop was cut."""
    x = torch.zeros(9_000, 1, 3, 3, dtype=torch.uint8)
    x[:, 0, 1, 1] = 1
    places = random_crop(x, 1, generator()).sum(0).flatten()
    assert places.sum() == 9_000
    assert ((places > 850) & (places < 1_150)).all()  # five standard deviations of the binomial


def test_no_padding_changes_nothing() -> None:
    assert torch.equal(random_crop(images(), 0, generator()), images())


def test_flips_mirror_about_half_of_the_images_and_leave_the_others() -> None:
    x = images(1_000)
    flipped = random_flip(x, generator())
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], x[~mirrored])
    assert 420 < mirrored.sum() < 580


@pytest.mark.parametrize("augment", [lambda x, g: random_crop(x, 4, g), random_flip], ids=["crop", "flip"])
def test_augmentation_follows_its_generator_and_nothing_else(augment: object) -> None:
    state = torch.get_rng_state()
    source = generator(1)
    first, second = augment(images(), source), augment(images(), source)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    assert torch.equal(augment(images(), generator(1)), first)
