"""Images in files: one folder for each class, and the idx files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ..config import DataConfig
from .image_files import MAX_BYTES, FloatArray, ImageFiles, UInt8Array, scale
from .split import DataSet, Split

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
IDX_NAMES = {
    "train_x": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "train_y": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test_x": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "test_y": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}


def image_folder(config: DataConfig, _steps: int | None = None) -> DataSet:
    """Images ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val``) in one folder; RGB.

    Of one size, or of any size with ``data.size``. Classes are the names of the folders, sorted. What takes more than
    ``data.memory`` stays on disk, and so do training images of which random parts are taken.
    """
    folder = folder_of(config, "train/CLASS/*.jpg and test/CLASS/*.jpg")
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder / "test")
    labels = classes_in(folder, folder / "train", test)
    train, y = _image_files(config, folder / "train", labels, None)
    held_out, test_y = _image_files(config, test, labels, train.image)
    train = replace(train, random_part=config.augment == "resized-crop")
    return DataSet(folder.name, _kept(config, train, y), _kept(config, held_out, test_y), labels)


def _kept(config: DataConfig, images: ImageFiles, y: npt.NDArray[np.int64]) -> Split:
    """In memory where they fit there."""
    return Split(images if images.random_part or images.nbytes > config.memory * 2**30 else images[:], y)


def _image_files(
    config: DataConfig, part: Path, labels: Sequence[str], shape: tuple[int, int, int] | None
) -> tuple[ImageFiles, npt.NDArray[np.int64]]:
    """All images of a part, and their classes; ``shape`` is that of the part before."""
    files = [(f, y) for y, label in enumerate(labels) for f in _names(part / label)]
    if not files:
        raise DataError(f"{part}: has no images; put {', '.join(SUFFIXES)} files into its folders")
    if config.size is not None:
        shape = (3, config.size, config.size)
    resize = None if config.size is None else config.resize or round(config.size * 256 / 224)
    images = ImageFiles(
        tuple(file for file, _ in files), shape or _shape(files[0][0]), *_normalization(config, 3), resize
    )
    return images, np.array([y for _, y in files], np.int64)


def _names(folder: Path) -> list[str]:
    """Paths of the images in a folder, sorted by name; as text, which takes less memory where they are millions."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES))
    return [str(folder / name) for name in names]


def _shape(file: str) -> tuple[int, int, int]:
    """Of an image, as RGB."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return (3, image.height, image.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not an image that can be decoded ({error}); replace or delete it") from None


def folder_of(config: DataConfig, content: str) -> Path:
    """``data.folder``, which must exist and hold ``content``."""
    if config.folder is None:
        raise DataError(f"data.folder is missing: name the folder with {content}")
    folder = Path(config.folder)
    if not folder.is_dir():
        raise DataError(f"data.folder: {folder} does not exist; put {content} there")
    return folder


def classes_in(folder: Path, train: Path, test: Path) -> tuple[str, ...]:
    """Names of the folders of a training and a test part, sorted; both must have the same."""
    found = []
    for part in (train, test):
        if not part.is_dir():
            raise DataError(f"{part} does not exist; put one folder of files for each class there")
        found.append({p.name for p in part.iterdir() if p.is_dir()})
        if not found[-1]:
            raise DataError(f"{part}: has no folders; put one folder of files for each class there")
    odd = sorted(found[0] ^ found[1])
    if odd:
        raise DataError(f"{folder}: class {odd[0]!r} is in one of {train.name} and {test.name} only")
    return tuple(sorted(found[0]))


def check_size(where: str | Path, samples: int, shape: tuple[int, ...]) -> None:
    """Refuse samples that take more than ``MAX_BYTES`` as float32."""
    size = 4 * samples * math.prod(shape)
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: {samples} samples of shape {shape} take {size / 2**30:.1f} GiB as float32, more than "
            f"{MAX_BYTES >> 30}; use fewer or smaller images"
        )


def idx(config: DataConfig, _steps: int | None = None) -> DataSet:
    """The four idx files of MNIST and its likes in one folder, gzipped or not."""
    folder = folder_of(config, ", ".join(names[0] for names in IDX_NAMES.values()) + " (.gz or not)")
    files = {what: _find_idx(folder, names) for what, names in IDX_NAMES.items()}
    splits = []
    for part in ("train", "test"):
        x, y = _read_idx(files[f"{part}_x"], 3), _read_idx(files[f"{part}_y"], 1)
        if len(x) != len(y) or len(x) == 0:
            raise DataError(f"{folder}: {len(x)} images in {files[f'{part}_x'].name}, but {len(y)} labels")
        splits.append((x[:, None], y.astype(np.int64)))
    (train, y), (test, test_y) = splits
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{folder}: images have shape {train.shape[2:]} for training and {test.shape[2:]} for the test")
    classes = int(max(y.max(), test_y.max())) + 1
    return DataSet(folder.name, pixel_split(config, train, y), pixel_split(config, test, test_y), _digits(classes))


def _digits(classes: int) -> tuple[str, ...]:
    return tuple(str(c) for c in range(classes))


def _find_idx(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(f"{folder / names[0]} does not exist, nor does {names[0]}.gz; put it there")


def _read_idx(path: Path, axes: int) -> UInt8Array:
    """An idx file of unsigned bytes: two zero bytes, type 8, number of axes, sizes (big-endian), data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            file = cast("BinaryIO", opened)
            header = file.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes or header[:4] != bytes((0, 0, 8, axes)):
                raise DataError(
                    f"{path}: starts with {header[:4].hex(' ')}, an idx file of bytes with {axes} axes with "
                    f"00 00 08 {axes:02x}; is it another file?"
                )
            shape = tuple(int(n) for n in np.frombuffer(header, ">u4", offset=4))
            check_size(path, shape[0], shape[1:])
            size = math.prod(shape)
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot read ({error}); fetch it again") from None
    if len(data) != size:
        raise DataError(f"{path}: holds {'more' if len(data) > size else len(data)} than the {size} bytes of {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def pixel_split(config: DataConfig, x: UInt8Array, y: npt.NDArray[np.int64]) -> Split:
    """Pixels 0..255 become 0..1, then ``(x - mean) / std`` for each channel where given."""
    scaled: FloatArray = x.astype(np.float32)
    scale(scaled, *_normalization(config, x.shape[1]))
    return Split(scaled, y)


def _normalization(config: DataConfig, channels: int) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation, float32 ``[channels or 1, 1, 1]``; without them 0 and 1, which change nothing."""
    found = []
    for name, values, without in (("mean", config.mean, 0.0), ("std", config.std, 1.0)):
        if values is not None and len(values) not in (1, channels):
            raise DataError(f"data.{name}: {len(values)} values for {channels} channels; give one for each, or one")
        found.append(np.array(values or (without,), np.float32).reshape(-1, 1, 1))
    return found[0], found[1]
