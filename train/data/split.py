"""Samples and their classes, split into training and test samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their classes.

    Attributes
    ----------
    x : float32 [n, *shape]
    y : int64 [n]
    """

    x: FloatArray
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, split.

    Attributes
    ----------
    name : str
    train, test : Split
    labels : tuple of str
        Name of each class.
    """

    name: str
    train: Split
    test: Split
    labels: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.train.x.shape[1:]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.labels)
