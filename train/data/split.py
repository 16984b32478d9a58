"""Samples and their classes, split into training and test samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import DataError

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
    validation : Split, optional
        Samples that were held out of the training samples to choose by.
    """

    name: str
    train: Split
    test: Split
    labels: tuple[str, ...]
    validation: Split | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.train.x.shape[1:]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.labels)

    def held_out(self, fraction: float, seed: int) -> DataSet:
        """The data set with a part of its training samples held out for validation, the same part of every class.

        Raises
        ------
        DataError
            If a class has no sample left on one side.
        """
        rng = np.random.default_rng(seed)
        chosen = np.zeros(len(self.train), bool)
        for label, name in enumerate(self.labels):
            samples = rng.permutation(np.flatnonzero(self.train.y == label))
            count = round(fraction * len(samples))
            if len(samples) and not 0 < count < len(samples):
                raise DataError(
                    f"data.validation: {fraction} of the {len(samples)} training samples of class {name!r} is {count}; "
                    "both parts need samples of every class"
                )
            chosen[samples[:count]] = True
        train, validation = (Split(self.train.x[part], self.train.y[part]) for part in (~chosen, chosen))
        return replace(self, train=train, validation=validation)
