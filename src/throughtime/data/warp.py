"""Images moved, turned, resized and bent at random, so that a network sees each of them anew in every epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

_KNOTS = 4  # each way: strokes are bent, and stay strokes


@dataclass(frozen=True)
class Warp:
    """Images as they could have been written too; what comes in is dark.

    Bends are as in Simard et al. (2003), but smooth by the few places they are drawn for.

    >>> image = torch.zeros(1, 3, 3)  # a dot in the middle
    >>> image[0, 1, 1] = 1
    >>> Warp(shift=1)(image, np.random.default_rng(2))[0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    """

    shift: int = 0  # whole pixels either way, down and across, at most
    rotate: float = 0.0  # degrees either way, at most
    zoom: float = 0.0  # share by which the height, and apart from it the width, grows or shrinks, at most
    bend: float = 0.0  # pixels, the deviation of how far each of 4 x 4 places is drawn away; smooth between them

    def __call__(self, images: Tensor, drawn: np.random.Generator) -> Tensor:
        """``(B, R, C) -> (B, R, C)`` of floats, each image in its own way; values between pixels are bilinear."""
        count, rows, columns = images.shape
        if not images.numel() or self == Warp():
            return images
        down, across = drawn.integers(-self.shift, self.shift + 1, (2, count))
        angle = np.radians(drawn.uniform(-self.rotate, self.rotate, count))
        tall, wide = 1 + drawn.uniform(-self.zoom, self.zoom, (2, count))
        # where each pixel is taken from: x = cos(angle) x' - sin(angle) y', over the size, and moved; in half-images
        cos, sin, slant = np.cos(angle), np.sin(angle), rows / columns
        from_x = np.stack([cos / wide, -sin * slant / wide, -2 * across / columns], axis=1)
        from_y = np.stack([sin / slant / tall, cos / tall, -2 * down / rows], axis=1)
        taken = torch.from_numpy(np.stack([from_x, from_y], axis=1)).to(images)  # (B, 2, 3)
        grid = affine_grid(taken, [count, 1, rows, columns], align_corners=False)  # (B, R, C, 2)
        if self.bend:
            pulls = torch.from_numpy(drawn.standard_normal((count, 2, _KNOTS, _KNOTS))).to(images)
            bends = interpolate(pulls, (rows, columns), mode="bicubic", align_corners=True)  # (B, 2, R, C)
            half = torch.tensor([columns / 2, rows / 2], dtype=images.dtype, device=images.device)
            grid = grid + self.bend * bends.permute(0, 2, 3, 1) / half
        return grid_sample(images[:, None], grid, align_corners=False)[:, 0]
