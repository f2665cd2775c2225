"""Random resized crops and plain resizing: which boxes are drawn, and what is made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional

from kdbench.data import transforms
from kdbench.data.transforms import Boxes, random_resized_crop, resize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 24, height: int = 64, width: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator(9))


def one_at_a_time(x: Tensor, boxes: Boxes, size: tuple[int, int]) -> Tensor:
    """Every box cut out and given to torch's own resizing, in float64."""
    out = []
    for image, top, left, height, width in zip(x.double(), *(each.tolist() for each in boxes), strict=True):
        crop = image[None, :, top : top + height, left : left + width]
        out.append(functional.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True))
    return torch.cat(out)


# which boxes


def draw(count: int, shape: tuple[int, int], seed: int = 0) -> Boxes:
    return transforms._random_boxes(count, shape, generator(seed))


@pytest.mark.parametrize("shape", [(64, 64), (32, 48), (7, 5), (200, 20), (20, 200), (1, 40), (1, 1)])
def test_boxes_lie_inside_their_image(shape: tuple[int, int]) -> None:
    top, left, height, width = draw(5_000, shape)
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= shape[0]
    assert (left + width).max() <= shape[1]


def test_areas_and_aspects_are_distributed_as_documented() -> None:
    """A box of share s fits a square at every aspect a with s * max(a, 1 / a) <= 1, else it is drawn again."""
    side = 4_000  # so large that whole pixels do not matter
    _, _, height, width = (each.double() for each in draw(20_000, (side, side)))
    share, log_aspect = height * width / side**2, (width / height).log()
    widest = math.log(4 / 3)

    def fits_up_to(s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Integral over the shares up to s of the part of the aspects that fit."""
        above = np.maximum(s, 3 / 4)
        part = above * (1 - np.log(above)) - 3 / 4 * (1 - math.log(3 / 4))
        return np.minimum(s, 3 / 4) - 0.08 + part / widest

    assert stats.kstest(share.numpy(), lambda s: fits_up_to(s) / fits_up_to(np.ones(1))).pvalue > 1e-3
    # Where every aspect fits, it is log-uniform and does not depend on the share.
    free = share < 0.74
    assert stats.kstest(log_aspect[free].numpy(), stats.uniform(-widest, 2 * widest).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(share[free].numpy(), log_aspect[free].numpy()).statistic) < 0.04
    assert log_aspect.abs().max() < widest + 1e-3


def test_every_place_occurs_equally_often() -> None:
    top, left, height, width = draw(30_000, (6, 6))
    for start, length in ((top, height), (left, width)):
        for each in length.unique().tolist():
            counts = start[length == each].bincount(minlength=6 - each + 1)
            assert len(counts) == 6 - each + 1
            assert len(counts) == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("shape", "middle"), [((400, 20), (27, 20)), ((20, 400), (20, 27))])
def test_an_image_too_long_for_any_box_gives_its_middle(shape: tuple[int, int], middle: tuple[int, int]) -> None:
    """The smallest share, 640 pixels, is wider than 20 at every aspect."""
    top, left, height, width = draw(100, shape)
    assert {*zip(height.tolist(), width.tolist(), strict=True)} == {middle}
    assert {*zip(top.tolist(), left.tolist(), strict=True)} == {
        ((shape[0] - middle[0] + 1) // 2, (shape[1] - middle[1] + 1) // 2)
    }


def test_of_a_signal_the_length_is_cut() -> None:
    top, _, height, width = draw(20_000, (1, 1_000))
    assert (top == 0).all()
    assert (height == 1).all()
    assert stats.kstest(width.double().numpy(), stats.uniform(80, 920).cdf).pvalue > 1e-3


# what is made of them


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (9, 21), (80, 80)])
@pytest.mark.parametrize("shape", [(64, 64), (24, 40)])
def test_crops_are_torchs_own_resizing_of_each_box(size: tuple[int, int], shape: tuple[int, int]) -> None:
    x = images(40, *shape).double()
    cropped = random_resized_crop(x, size, generator(3))
    assert cropped.shape == (40, 3, *size)
    torch.testing.assert_close(cropped, one_at_a_time(x, draw(40, shape, 3), size), rtol=0, atol=1e-11)


def test_bytes_are_rounded_to_the_nearest() -> None:
    x = images(40)
    before = x.clone()
    cropped = random_resized_crop(x, (32, 32), generator(3))
    exact = one_at_a_time(x, draw(40, (64, 64), 3), (32, 32))
    assert cropped.dtype == torch.uint8
    assert (cropped.double() - exact).abs().max() <= 0.5 + 1e-4
    assert torch.equal(x, before)
    extremes = random_resized_crop(torch.full((8, 3, 64, 64), 255, dtype=torch.uint8), (32, 32), generator())
    assert (extremes == 255).all()


def test_signals_are_cropped_along_their_length() -> None:
    x = torch.randn(30, 2, 1, 40, generator=generator(1), dtype=torch.float64)
    cropped = random_resized_crop(x, (1, 40), generator(4))
    torch.testing.assert_close(cropped, one_at_a_time(x, draw(30, (1, 40), 4), (1, 40)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_a_box_of_the_whole_image_is_plain_resizing(dtype: torch.dtype) -> None:
    x = images().to(dtype)
    whole = Boxes(*(torch.full((len(x),), number) for number in (0, 0, 64, 64)))
    made, plain = transforms._resized_boxes(x, whole, (32, 32)), resize(x, (32, 32))
    assert made.dtype == plain.dtype == dtype
    # Halving has weights of eighths inside the image; at its border two ways of adding up may round a half differently.
    torch.testing.assert_close(made, plain, rtol=0, atol=1 if dtype == torch.uint8 else 1e-4)
    assert (made != plain).double().mean() < 1e-3 or dtype != torch.uint8


def test_resizing_to_its_own_size_changes_nothing() -> None:
    assert torch.equal(resize(images(), (64, 64)), images())


def test_resizing_weighs_the_neighbours() -> None:
    """A single bright pixel, halved: the triangle has the weights 1/8, 3/8, 3/8, 1/8 along each side."""
    x = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    x[0, 0, 3, 3] = 192
    weights = torch.tensor([0, 3, 1, 0]) / 8
    assert torch.equal(resize(x, (4, 4))[0, 0].double(), (192 * weights[:, None] * weights).double())


# generators and determinism


def test_crops_follow_their_generator_and_nothing_else() -> None:
    state, source = torch.get_rng_state(), generator(1)
    first, second = (random_resized_crop(images(), (32, 32), source) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(random_resized_crop(images(), (32, 32), generator(1)), first)
        assert torch.equal(resize(images(), (32, 32)), resize(images(), (32, 32)))
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_generator_moves_by_the_number_of_images_alone() -> None:
    """Whatever the images and their size: so the flips that follow do not depend on how often a box was drawn again."""
    sources = [generator(2) for _ in range(3)]
    random_resized_crop(images(10), (32, 32), sources[0])
    random_resized_crop(images(10, 20, 200), (32, 32), sources[1])
    random_resized_crop(torch.zeros(10, 1, 1, 40), (1, 40), sources[2])
    states = [source.get_state() for source in sources]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
