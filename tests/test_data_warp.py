from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from throughtime.data.warp import Warp


def changed(image: Tensor, seed: int, **most: float) -> Tensor:
    return Warp(**most)(image[None], np.random.default_rng(seed))[0]  # type: ignore[arg-type]


def dot(rows: int, columns: int, row: int, column: int) -> Tensor:
    image = torch.zeros(rows, columns, dtype=torch.float64)
    image[row, column] = 1
    return image


def test_images_are_shifted_whole() -> None:
    seen = set()
    for seed in range(200):
        image = changed(dot(5, 7, 2, 3), seed, shift=1)
        assert image.dtype == torch.float64
        row, column = np.unravel_index(int(image.argmax()), image.shape)
        torch.testing.assert_close(
            image, dot(5, 7, int(row), int(column))
        )  # nothing is lost, blurred or wrapped around
        seen.add((int(row), int(column)))
    assert seen == {(r, c) for r in (1, 2, 3) for c in (2, 3, 4)}


def test_what_leaves_the_image_is_lost_and_what_comes_in_is_dark() -> None:
    sums = {round(float(changed(dot(3, 3, 0, 1), seed, shift=1).sum())) for seed in range(60)}
    assert sums == {0, 1}


class Drawn:
    """Draws what it is told, for one image."""

    def __init__(self, angle: float = 0, tall: float = 0, wide: float = 0) -> None:
        self._angle, self._zoom = [angle], [[tall], [wide]]

    def integers(self, low: int, high: int, size: object) -> object:
        return np.zeros(size, dtype=np.int64)  # type: ignore[call-overload]

    def uniform(self, low: float, high: float, size: object) -> object:
        return np.array(self._angle if size == 1 else self._zoom)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_square_turned_by_quarters_is_as_numpy_turns_it(turns: int) -> None:
    image = torch.rand(5, 5, dtype=torch.float64)
    turned = Warp(rotate=180)(image[None], Drawn(angle=90 * turns))[0]  # type: ignore[arg-type]
    torch.testing.assert_close(turned, torch.from_numpy(np.rot90(image.numpy(), turns).copy()))


def test_a_turn_keeps_distances_where_height_and_width_differ() -> None:
    turned = Warp(rotate=180)(dot(7, 11, 3, 7)[None], Drawn(angle=90))[0]  # type: ignore[arg-type]
    torch.testing.assert_close(turned, dot(7, 11, 1, 5))  # two right of the middle: two above it


@pytest.mark.parametrize(("tall", "wide"), [(1.0, 0.0), (0.0, 1.0)])
def test_zoom_makes_height_and_width_larger(tall: float, wide: float) -> None:
    image = torch.zeros(8, 8, dtype=torch.float64)
    image[3:5, 3:5] = 1
    zoomed = Warp(zoom=1)(image[None], Drawn(tall=tall, wide=wide))[0]  # type: ignore[arg-type]
    assert zoomed.sum().item() == pytest.approx(8)
    down, across = zoomed.sum(1), zoomed.sum(0)
    assert ((down > 0).sum() > (across > 0).sum()) == (tall > wide)
    torch.testing.assert_close(zoomed, zoomed.flip(0, 1))  # about the middle


def test_bends_are_smooth_and_as_wide_as_said() -> None:
    rows, columns = 24, 48
    down, across = torch.meshgrid(torch.arange(rows) * 1.0, torch.arange(columns) * 1.0, indexing="ij")
    for values in (down, across):  # an image of where each pixel was taken from
        drawn = np.random.default_rng(1)
        moved = Warp(bend=0.5)(values.expand(200, rows, columns), drawn) - values  # (B, R, C), in pixels
        inside = moved[:, 4:-4, 4:-4]
        assert 0.3 < inside.std() < 0.6
        assert inside.mean().abs() < 0.02
        steps = inside.diff(dim=1).abs().max(), inside.diff(dim=2).abs().max()
        assert max(map(float, steps)) < 0.5  # a pixel's neighbour stays its neighbour


def test_each_image_goes_its_own_way_and_the_draw_decides() -> None:
    images = torch.rand(1, 6, 6).expand(4, 6, 6)
    warp = Warp(shift=2, rotate=30, zoom=0.2, bend=0.5)
    once, again, other = (warp(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert len({tuple(image.flatten().tolist()) for image in once}) == 4


def test_nothing_asked_and_nothing_there() -> None:
    images = torch.rand(2, 3, 4)
    assert Warp()(images, np.random.default_rng(1)) is images
    assert Warp(shift=1)(images[:0], np.random.default_rng(1)).shape == (0, 3, 4)
