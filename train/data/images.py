"""Images in files: one folder for each class, and the idx files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ..config import DataConfig
from .split import MAX_BYTES, DataSet, FloatArray, Split, UInt8Array

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
IDX_NAMES = {
    "train_x": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "train_y": ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte"),
    "test_x": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
    "test_y": ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"),
}


def image_folder(config: DataConfig, _steps: int | None = None) -> DataSet:
    """Images of one size, ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val``) in one folder; RGB.

    Classes are the names of the folders, sorted.
    """
    folder = folder_of(config, "train/CLASS/*.jpg and test/CLASS/*.jpg")
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder / "test")
    labels = classes_in(folder, folder / "train", test)
    train = _decoded(folder / "train", labels, None)
    held_out = _decoded(test, labels, train[0].shape[1:])
    return DataSet(folder.name, pixel_split(config, *train), pixel_split(config, *held_out), labels)


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


def _decoded(
    part: Path, labels: Sequence[str], shape: tuple[int, ...] | None
) -> tuple[UInt8Array, npt.NDArray[np.int64]]:
    """All images of a part, ``uint8 [n, 3, H, W]``, and their classes."""
    files = [(f, y) for y, label in enumerate(labels) for f in sorted((part / label).iterdir()) if _is_image(f)]
    if not files:
        raise DataError(f"{part}: has no images; put {', '.join(SUFFIXES)} files into its folders")
    x: UInt8Array | None = None
    for i, (file, _) in enumerate(files):
        pixels = _pixels(file, shape)
        if x is None:
            shape = pixels.shape
            check_size(part, len(files), shape)
            x = np.empty((len(files), *shape), np.uint8)
        x[i] = pixels
    return cast("UInt8Array", x), np.array([y for _, y in files], np.int64)


def _pixels(file: Path, shape: tuple[int, ...] | None) -> UInt8Array:
    """One image, ``uint8 [3, H, W]``; decoded only if it has the shape that is expected."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if shape is not None and (3, image.height, image.width) != shape:
                raise DataError(
                    f"{file}: is {image.width}x{image.height}, the images before are {shape[2]}x{shape[1]}; "
                    "resize all to one size"
                )
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not an image that can be decoded ({error}); replace or delete it") from None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


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
    scaled /= 255
    channels = x.shape[1]
    for name, values in (("mean", config.mean), ("std", config.std)):
        if values is not None and len(values) not in (1, channels):
            raise DataError(f"data.{name}: {len(values)} values for {channels} channels; give one for each, or one")
    if config.mean is not None:
        scaled -= np.array(config.mean, np.float32).reshape(-1, 1, 1)
    if config.std is not None:
        scaled /= np.array(config.std, np.float32).reshape(-1, 1, 1)
    return Split(scaled, y)
