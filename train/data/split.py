"""Samples and their classes, split into training and test samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from .image_files import MAX_BYTES, FloatArray, ImageFiles, UInt8Array  # noqa: F401

Augment: TypeAlias = Callable[[FloatArray, np.random.Generator], FloatArray]  # of images [B, C, H, W]
CALIBRATION_SAMPLES = 1024  # of images on disk


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their classes.

    Attributes
    ----------
    x : float32 [n, *shape], the same at every step, or [T, n, *shape] where ``framed``
        Real values. Counts of events may be uint8, which means the same in a quarter of the memory. Images may stay
        on disk; indexing decodes them.
    y : int64 [n]
    framed : bool
        Whether a sample is ``T`` frames, one for each time step.
    """

    x: FloatArray | UInt8Array | ImageFiles
    y: npt.NDArray[np.int64]
    framed: bool = False

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample at one step."""
        return self.x.shape[1 + self.framed :]

    @property
    def on_disk(self) -> bool:
        """Whether samples are read when they are asked for."""
        return isinstance(self.x, ImageFiles)

    def values(self, chosen: Any = slice(None)) -> FloatArray:
        """Real values of the chosen samples (a slice, indices or a mask), as a network takes them.

        Returns
        -------
        float32 [B, *shape] or, where framed, [T, B, *shape]
        """
        return self._part(chosen).astype(np.float32, copy=False)

    def _part(self, chosen: Any) -> npt.NDArray[Any]:
        if self.framed and not isinstance(self.x, ImageFiles):
            return self.x[:, chosen]
        return self.x[chosen]

    def augmented(self, chosen: Any, augment: Augment | None, rng: np.random.Generator) -> FloatArray:
        """As :meth:`values`, changed at random; all frames of a sample are changed in the same way."""
        x = self.x.for_training(chosen, rng) if isinstance(self.x, ImageFiles) else self.values(chosen)
        if augment is None:
            return x
        if not self.framed:
            return augment(x, rng)
        steps, samples, channels, *size = x.shape
        stacked = x.swapaxes(0, 1).reshape(samples, steps * channels, *size)
        return augment(stacked, rng).reshape(samples, steps, channels, *size).swapaxes(0, 1)

    def take(self, chosen: Any) -> Split:
        """The chosen samples; those on disk stay there."""
        x = self.x.take(chosen) if isinstance(self.x, ImageFiles) else self._part(chosen)
        return replace(self, x=x, y=self.y[chosen])

    def calibration(self) -> npt.NDArray[Any]:
        """Samples to calibrate with: all of those in memory, :data:`CALIBRATION_SAMPLES` spread over those on disk."""
        if not isinstance(self.x, ImageFiles):
            return self.x
        return self.x[np.linspace(0, len(self) - 1, min(len(self), CALIBRATION_SAMPLES)).astype(np.int64)]

    def pictures(self) -> npt.NDArray[Any]:
        """Something to look at for each sample: images as they are, the mean of frames, a time series [T, features]."""
        if isinstance(self.x, ImageFiles) or not self.framed:
            return self.values()
        return self.x.mean(0) if len(self.shape) == 3 else self.x.swapaxes(0, 1)


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
        return self.train.shape

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
        return replace(self, train=self.train.take(~chosen), validation=self.train.take(chosen))
