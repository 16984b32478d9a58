"""Changes to training images, another in every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from .split import FloatArray

Augment: TypeAlias = Callable[[FloatArray, np.random.Generator], FloatArray]


def shift(x: FloatArray, rng: np.random.Generator, pixels: int = 1) -> FloatArray:
    """Move each image by up to ``pixels`` in both directions, zeros coming in: ``[B, C, H, W]``."""
    _, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    top, left = rng.integers(0, 2 * pixels + 1, (2, len(x), 1))
    rows = top + np.arange(height)
    columns = left + np.arange(width)
    samples = np.arange(len(x))[:, None, None]
    return np.ascontiguousarray(padded[samples, :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2))


def crop_flip(x: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Move each image by up to 4 pixels and mirror every second one, as the DSR paper does for CIFAR: ``[B, C, H, W]``.

    The same as cropping after padding by 4 (code qymeng94/DSR ``cifar/main_single_gpu.py``).
    """
    moved = shift(x, rng, 4)
    mirrored = rng.random(len(x)) < 0.5
    moved[mirrored] = moved[mirrored, :, :, ::-1]
    return moved


AUGMENTATIONS: dict[str, Augment | None] = {"none": None, "shift": shift, "crop-flip": crop_flip}
