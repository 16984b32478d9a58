"""Data sets: NumPy arrays, split into training and test samples.

No torch here, and nothing is downloaded but by torchvision and tonic, where they are told to.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import DataError
from ..config import DataConfig
from .arrays import arrays, digits
from .augmentation import augmentation, crop_flip, cutout, shift
from .events import events
from .images import idx, image_folder
from .library import EXTRAS, library_data
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


def load(config: DataConfig, steps: int | None = None, *, download: bool = False) -> DataSet:
    """Load the data set of a recipe.

    Parameters
    ----------
    config : DataConfig
    steps : int, optional
        Time steps of the network: the number of frames of a sample, where data have frames.
    download : bool
        Whether torchvision or tonic may fetch what is not in the folder.

    Raises
    ------
    DataError
        If the name is unknown, files are absent or malformed (the message says where to put them), or samples that
        are no images are to be augmented.
    UnsupportedError
        If torchvision or tonic is needed and cannot be imported.
    """
    package, colon, _ = config.name.partition(":")
    if colon and package in EXTRAS:
        data = library_data(config, steps, download=download)
    elif config.name in DATA_SETS:
        if download:
            raise DataError(
                f"--download: {config.name!r} is read from files of yours; only torchvision and tonic fetch"
            )
        data = DATA_SETS[config.name](config, steps)
    else:
        known = ", ".join([*sorted(DATA_SETS), "torchvision:NAME", "tonic:NAME"])
        raise DataError(f"data.name: unknown data set {config.name!r}; known: {known}")
    if augmentation(config) is not None and len(data.shape) != 3:
        raise DataError(f"data.augment and cutout are for images; these samples have shape {data.shape}")
    return data.held_out(config.validation, config.seed) if config.validation else data
