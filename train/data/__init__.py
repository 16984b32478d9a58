"""Data sets: NumPy arrays, split into training and test samples. No torch here, and nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import DataError
from ..config import DataConfig
from .arrays import arrays, digits
from .augmentation import augmentation, crop_flip, cutout, shift
from .events import events
from .images import idx, image_folder
from .sound import wav
from .split import Augment, DataSet, FloatArray, Split

__all__ = [
    "DATA_SETS",
    "Augment",
    "DataSet",
    "FloatArray",
    "Split",
    "augmentation",
    "crop_flip",
    "cutout",
    "load",
    "shift",
]

DATA_SETS: dict[str, Callable[[DataConfig, int | None], DataSet]] = {
    "digits": digits,
    "arrays": arrays,
    "idx": idx,
    "imagefolder": image_folder,
    "events": events,
    "wav": wav,
}


def load(config: DataConfig, steps: int | None = None) -> DataSet:
    """Load the data set of a recipe.

    Parameters
    ----------
    config : DataConfig
    steps : int, optional
        Time steps of the network: the number of frames of a sample, where data have frames.

    Raises
    ------
    DataError
        If the name is unknown, files are absent or malformed (the message says where to put them), or samples that
        are no images are to be augmented.
    """
    if config.name not in DATA_SETS:
        raise DataError(f"data.name: unknown data set {config.name!r}; known: {', '.join(sorted(DATA_SETS))}")
    data = DATA_SETS[config.name](config, steps)
    if augmentation(config) is not None and len(data.shape) != 3:
        raise DataError(f"data.augment and cutout are for images; these samples have shape {data.shape}")
    return data.held_out(config.validation, config.seed) if config.validation else data
