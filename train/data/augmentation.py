"""Changes to training images, another in every epoch."""

from __future__ import annotations

import numpy as np

from ..config import DataConfig
from .split import Augment, FloatArray


def shift(x: FloatArray, rng: np.random.Generator, pixels: int = 1) -> FloatArray:
    """Move each image by up to ``pixels`` in both directions, zeros coming in: ``[B, C, H, W]``."""
    _, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    top, left = rng.integers(0, 2 * pixels + 1, (2, len(x), 1))
    rows = top + np.arange(height)
    columns = left + np.arange(width)
    samples = np.arange(len(x))[:, None, None]
    return np.ascontiguousarray(padded[samples, :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2))


def crop_flip(x: FloatArray, rng: np.random.Generator, pixels: int = 4) -> FloatArray:
    """Move each image by up to 4 pixels and mirror every second one, as the DSR paper does for CIFAR: ``[B, C, H, W]``.

    The same as cropping after padding by 4 (code qymeng94/DSR ``cifar/main_single_gpu.py``).
    """
    moved = shift(x, rng, pixels)
    mirrored = rng.random(len(x)) < 0.5
    moved[mirrored] = moved[mirrored, :, :, ::-1]
    return moved


def cutout(x: FloatArray, rng: np.random.Generator, side: int) -> FloatArray:
    """A square of zeros in each image ``[B, C, H, W]``, its centre anywhere (DeVries and Taylor, 2017)."""
    _, _, height, width = x.shape
    row, column = (rng.integers(0, size, (len(x), 1)) - side // 2 for size in (height, width))
    down, right = np.arange(height) - row, np.arange(width) - column
    inside = ((down >= 0) & (down < side))[:, :, None] & ((right >= 0) & (right < side))[:, None, :]
    return np.where(inside[:, None], np.float32(0), x)


def augmentation(config: DataConfig) -> Augment | None:
    """What a recipe does to its training images; None where that is nothing."""
    if config.augment in ("none", "resized-crop") and not config.cutout:  # the latter is part of reading
        return None

    def change(x: FloatArray, rng: np.random.Generator) -> FloatArray:
        if config.augment == "shift":
            x = shift(x, rng, config.augment_pixels or 1)
        elif config.augment == "crop-flip":
            x = crop_flip(x, rng, config.augment_pixels or 4)
        return cutout(x, rng, config.cutout) if config.cutout else x

    return change
