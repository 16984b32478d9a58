"""Data sets that are arrays already: scikit-learn's digits, and ``.npy`` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ..config import DataConfig
from .images import folder_of
from .split import DataSet, Split


def digits(config: DataConfig, _steps: int | None = None) -> DataSet:
    """scikit-learn's 1,797 handwritten 8x8 digits (UCI optdigits, test part); pixels 0..16 become 0..1."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    x = (np.asarray(pixels).reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    y = np.asarray(classes, np.int64)
    train, test = train_test_split(
        np.arange(len(y)), test_size=config.test_fraction, random_state=config.seed, stratify=y
    )
    return DataSet("digits", Split(x[train], y[train]), Split(x[test], y[test]), tuple(str(c) for c in range(10)))


def arrays(config: DataConfig, steps: int | None = None) -> DataSet:
    """Arrays of your own: ``train_x.npy, train_y.npy, test_x.npy, test_y.npy`` in one folder."""
    folder = folder_of(config, "train_x.npy, train_y.npy, test_x.npy and test_y.npy")
    train, test = (_read_split(folder, part, steps) for part in ("train", "test"))
    if (train.shape, train.framed) != (test.shape, test.framed):
        raise DataError(f"{folder}: samples have shape {train.shape} in train_x.npy and {test.shape} in test_x.npy")
    classes = int(max(train.y.max(), test.y.max())) + 1
    return DataSet(folder.name, train, test, tuple(str(c) for c in range(classes)))


def _read_split(folder: Path, part: str, steps: int | None) -> Split:
    x, y = (_read_array(folder / f"{part}_{what}.npy") for what in "xy")
    framed = x.ndim in (3, 5)
    if len(x) != len(y) or len(x) == 0 or y.ndim != 1 or not 2 <= x.ndim <= 5:
        raise DataError(
            f"{folder}: {part}_x.npy has shape {x.shape} and {part}_y.npy {y.shape}; give x [samples, features] or "
            "[samples, channels, height, width], with an axis of steps after the samples where they change, "
            "and y [samples]"
        )
    if framed and steps is not None and x.shape[1] != steps:
        raise DataError(f"{folder / part}_x.npy: has {x.shape[1]} steps; set network.steps, which is {steps}, to that")
    if y.dtype.kind not in "iu" or y.min() < 0:
        raise DataError(f"{folder / part}_y.npy: classes must be integers from 0, not {y.dtype} from {y.min()}")
    if x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise DataError(f"{folder / part}_x.npy: values must be finite numbers, not {x.dtype}")
    values = x.astype(np.float32)
    return Split(np.ascontiguousarray(values.swapaxes(0, 1)) if framed else values, y.astype(np.int64), framed)


def _read_array(path: Path) -> npt.NDArray[np.generic]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; save the array there with numpy.save")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a NumPy array file, or truncated ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise DataError(f"{path}: not one array as numpy.save writes it")
    return array
