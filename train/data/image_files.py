"""Images that stay in their files and are decoded when they are asked for: ImageNet does not fit in memory.

Every image that is changed at random has a random generator of its own, seeded in order from that of the training, so
which thread decodes which image, and when, changes nothing.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FloatArray: TypeAlias = npt.NDArray[np.float32]
UInt8Array: TypeAlias = npt.NDArray[np.uint8]
MAX_BYTES = 8 * 2**30  # in memory at once, as float32
THREADS = min(8, os.cpu_count() or 1)  # decoding lets go of Python's lock

# RandomResizedCrop of torchvision, as everybody trains on ImageNet: area of the part, its width over its height, tries.
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images ``float32 [n, 3, H, W]`` as an array of them would be, decoded by indexing.

    Attributes
    ----------
    files : tuple of str
    image : (3, H, W)
        Shape of one.
    mean, std : float32 [3, 1, 1]
        Pixels 0..1 become ``(x - mean) / std``.
    resize : int or None
        Scale the shorter side to this and cut the middle out; None: every file has the shape already.
    random_part : bool
        In training, take a random part of each image instead, scaled to the shape, and mirror every second one.
    """

    files: tuple[str, ...]
    image: tuple[int, int, int]
    mean: FloatArray
    std: FloatArray
    resize: int | None = None
    random_part: bool = False

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(n, 3, H, W)``."""
        return (len(self), *self.image)

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    @property
    def nbytes(self) -> int:
        """If all were decoded."""
        return 4 * math.prod(self.shape)

    def take(self, chosen: Any) -> ImageFiles:
        """Some of the files, not decoded: a slice, indices or a mask."""
        return replace(self, files=tuple(self.files[i] for i in np.arange(len(self))[chosen]))

    def __getitem__(self, chosen: Any) -> FloatArray:
        """Decode some images (a slice, indices or a mask), as they are for evaluation.

        Raises
        ------
        DataError
            If a file is no image that can be decoded or has another size, or they do not fit in memory together.
        """
        return self._decoded(np.arange(len(self))[chosen], None)

    def for_training(self, chosen: Any, rng: np.random.Generator) -> FloatArray:
        """As by indexing; with ``random_part``, changed at random.

        Raises
        ------
        DataError
            As by indexing.
        """
        return self._decoded(np.arange(len(self))[chosen], rng if self.random_part else None)

    def _decoded(self, chosen: npt.NDArray[np.int64], rng: np.random.Generator | None) -> FloatArray:
        if 4 * len(chosen) * math.prod(self.image) > MAX_BYTES:
            raise DataError(
                f"{Path(self.files[chosen[0]]).parent.parent}: {len(chosen)} images of shape {self.image} take more "
                f"than {MAX_BYTES >> 30} GiB as float32; use fewer at a time, or smaller ones"
            )
        out = np.empty((len(chosen), *self.image), np.float32)
        seeds = [None] * len(chosen) if rng is None else rng.integers(2**63, size=len(chosen)).tolist()

        def one(place: int) -> None:
            out[place] = self._pixels(self.files[chosen[place]], seeds[place])
            scale(out[place], self.mean, self.std)

        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(one, range(len(chosen))):
                pass
        return out

    def _pixels(self, file: str, seed: int | None) -> UInt8Array:
        """One image, ``uint8 [3, H, W]``."""
        from PIL import Image

        try:
            with Image.open(file) as opened:
                if self.resize is None and (3, opened.height, opened.width) != self.image:
                    raise DataError(
                        f"{file}: is {opened.width}x{opened.height}, the images before are "
                        f"{self.image[2]}x{self.image[1]}; resize all to one size, or set data.size"
                    )
                picture = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: not an image that can be decoded ({error}); replace or delete it") from None
        if seed is not None:
            picture = random_part(picture, self.image[1], np.random.default_rng(seed))
        elif self.resize is not None:
            picture = middle(picture, self.resize, self.image[1])
        return np.asarray(picture).transpose(2, 0, 1)


def scale(x: FloatArray, mean: FloatArray, std: FloatArray) -> None:
    """Pixels 0..255 become ``(x / 255 - mean) / std``, in place."""
    x /= 255
    x -= mean
    x /= std


def middle(image: Image, resize: int, size: int) -> Image:
    """Scale the shorter side to ``resize``, cut out the middle: what ImageNet networks are evaluated on."""
    from PIL.Image import Resampling

    shorter = min(image.size)
    scaled = image.resize((resize * image.width // shorter, resize * image.height // shorter), Resampling.BILINEAR)
    left, top = round((scaled.width - size) / 2), round((scaled.height - size) / 2)
    return scaled.crop((left, top, left + size, top + size))


def random_part(image: Image, size: int, rng: np.random.Generator) -> Image:
    """A random part, scaled to ``size x size``, and mirrored or not: what ImageNet networks are trained on."""
    from PIL.Image import Resampling, Transpose

    for _ in range(TRIES):
        area = image.width * image.height * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= image.width and 0 < height <= image.height:
            break
    else:  # a very long image: as much of it as the ratios allow
        width = min(image.width, round(image.height * RATIO[1]))
        height = min(image.height, round(image.width / RATIO[0]))
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    part = image.crop((left, top, left + width, top + height)).resize((size, size), Resampling.BILINEAR)
    return part.transpose(Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part
