"""Data sets: NumPy arrays, split into training and test samples. No torch here, and nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import DataError
from ..config import DataConfig
from .arrays import arrays, digits
from .augmentation import AUGMENTATIONS, Augment, crop_flip, shift
from .images import idx, image_folder
from .split import DataSet, FloatArray, Split

__all__ = ["AUGMENTATIONS", "DATA_SETS", "Augment", "DataSet", "FloatArray", "Split", "crop_flip", "load", "shift"]

DATA_SETS: dict[str, Callable[[DataConfig], DataSet]] = {
    "digits": digits,
    "arrays": arrays,
    "idx": idx,
    "imagefolder": image_folder,
}


def load(config: DataConfig) -> DataSet:
    """Load the data set of a recipe.

    Raises
    ------
    DataError
        If the name is unknown or files are absent or malformed; the message says where to put them.
    """
    if config.name not in DATA_SETS:
        raise DataError(f"data.name: unknown data set {config.name!r}; known: {', '.join(sorted(DATA_SETS))}")
    data = DATA_SETS[config.name](config)
    return data.held_out(config.validation, config.seed) if config.validation else data
