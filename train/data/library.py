"""Data sets of torchvision (images) and tonic (events), by the names that those packages give them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DataError, UnsupportedError
from ..config import DataConfig
from .events import Events, empty_frames, frames, needed
from .images import check_size, pixel_split
from .split import DataSet, Split, UInt8Array

EXTRAS = {"torchvision": "vision", "tonic": "events"}  # extra of ours that installs the package


def library_data(config: DataConfig, steps: int | None, *, download: bool) -> DataSet:
    """A data set ``torchvision:NAME`` or ``tonic:NAME``, whose files are in ``data.folder``.

    Where it has no split of its own, the last ``test_fraction`` of every class is the test set.

    Parameters
    ----------
    config : DataConfig
    steps : int or None
        Frames of a sample, for tonic.
    download : bool
        Whether the package may fetch the files; it looks for them first.

    Raises
    ------
    DataError
        If there is no such data set, its files are absent, or its samples are no images or events with one class each.
    UnsupportedError
        If the package is not installed, or cannot be imported.
    """
    package, _, name = config.name.partition(":")
    made = _data_sets(package)
    kind = getattr(made, name, None)
    if not inspect.isclass(kind) or name.startswith("_"):
        known = ", ".join(sorted(n for n in getattr(made, "__all__", ()) if inspect.isclass(getattr(made, n, None))))
        raise DataError(f"data.name: {package} has no data set {name!r}; it has {known}")
    if config.folder is None:
        raise DataError(f"data.folder is missing: name the folder that holds {config.name}, or that it goes into")
    parts = [_opened(kind, config, part, download) for part in _parts(kind, config.options)]
    labels = _labels(kind, parts)
    if package == "torchvision":
        splits = [pixel_split(config, *_images(config.name, part, labels)) for part in parts]
    else:
        splits = [_event_frames(config, part, labels, needed(steps)) for part in parts]
    if len(splits) == 2:
        train, test = splits
    else:
        train, test = _cut(splits[0], config.test_fraction)
    if (train.shape, train.framed) != (test.shape, test.framed):
        raise DataError(f"{config.name}: samples have shape {train.shape} for training and {test.shape} in the test")
    return DataSet(name, train, test, labels)


def _data_sets(package: str) -> Any:
    try:
        return import_module(f"{package}.datasets")
    except ModuleNotFoundError as error:
        if error.name in (package, f"{package}.datasets"):
            raise UnsupportedError(
                f"data.name: {package} is not installed; pip install 'lapilli[{EXTRAS[package]}]'"
            ) from None
        raise UnsupportedError(
            f"{package} cannot be imported: it needs {error.name}; pip install {error.name}"
        ) from None
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        reason = str(error).split("\n", 1)[0]
        versions = f"torch {import_module('torch').__version__}" if package == "torchvision" else "what is installed"
        raise UnsupportedError(
            f"{package} cannot be imported beside {versions} ({reason}); install the release of {package} that belongs "
            "to it"
        ) from None


def _parts(kind: type, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arguments of the training and the test part; one of all samples, where there is no such split."""
    parameters = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}
    if "train" in parameters:
        return [{"train": True}, {"train": False}]
    if "split" in parameters and "split" not in options:
        return [{"split": "train"}, {"split": "test"}]
    return [{}]


def _opened(kind: type, config: DataConfig, part: Mapping[str, Any], download: bool) -> Any:
    """The package's own data set; nothing is fetched without ``download``."""
    folder = Path(str(config.folder))
    parameters = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}
    remedy = f"put it there, or let it be fetched: lapilli train RECIPE --set data.folder={folder} --download"
    absent = f"{config.name} is not in {folder}; {remedy}"

    class Opened(kind):
        def download(self) -> None:  # tonic's data sets call this where they miss files
            if not download:
                raise DataError(absent)
            super().download()

    Opened.__name__ = kind.__name__  # names the folder of the files, in both packages
    arguments = {**config.options, **part}
    if "download" in parameters:
        arguments["download"] = download
    if not download and not folder.is_dir():
        raise DataError(absent)
    try:
        return Opened(str(folder), **arguments)
    except TypeError as error:
        reason = str(error).replace("Opened.", f"{kind.__name__}.")
        raise DataError(f"{config.name}: {reason}; see data.options") from None
    except (RuntimeError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and part.get("split") == "test":
            return _opened(kind, config, {"split": "val"}, download)  # as ImageNet calls it
        reason = str(error).split("\n", 1)[0]
        if download:
            raise DataError(f"{config.name}: could not be fetched into {folder} ({reason})") from None
        raise DataError(f"{absent} ({reason})") from None


def _labels(kind: type, parts: Sequence[Any]) -> tuple[str, ...]:
    named = getattr(parts[0], "classes", None)
    if isinstance(named, Mapping):
        named = sorted(named, key=named.__getitem__)
    if named:
        return tuple(str(name) if isinstance(name, str) else " or ".join(name) for name in named)
    found = {target for part in parts for target in _targets(kind.__name__, part)}
    numbers = [target for target in found if isinstance(target, int)]
    if len(numbers) == len(found):
        return tuple(str(c) for c in range(max(numbers) + 1))
    return tuple(sorted(str(target) for target in found))


def _targets(name: str, part: Any) -> list[int | str]:
    targets = getattr(part, "targets", None)
    targets = getattr(part, "labels", None) if targets is None else targets
    if targets is None or len(targets) != len(part):
        targets = [_sample(name, part, i)[1] for i in range(len(part))]
    return [_target(name, target) for target in targets]


def _target(name: str, target: Any) -> int | str:
    if isinstance(target, str):
        return target
    try:
        return int(target)
    except (TypeError, ValueError):
        raise DataError(f"{name}: its samples have no class each, but {target!r}; such data cannot be used") from None


def _class(name: str, target: Any, labels: Sequence[str]) -> int:
    found = _target(name, target)
    return labels.index(found) if isinstance(found, str) else found


def _sample(name: str, part: Any, index: int) -> tuple[Any, Any]:
    """A sample and its class."""
    try:
        sample, target = part[index][:2]
    except ImportError as error:  # tonic asks for a reader only when it meets a file for it
        raise UnsupportedError(f"{name}: sample {index} needs a package ({error}); install it with pip") from None
    except (OSError, ValueError, SyntaxError) as error:
        reason = str(error).split("\n", 1)[0]
        raise DataError(f"{name}: sample {index} cannot be read ({reason}); fetch its file again") from None
    return sample, target


def _images(name: str, part: Any, labels: Sequence[str]) -> tuple[UInt8Array, npt.NDArray[np.int64]]:
    """All images, uint8 ``[n, C, H, W]``, and their classes."""
    x, y = np.empty((0,), np.uint8), np.empty(len(part), np.int64)
    for i in range(len(part)):
        image, target = _sample(name, part, i)
        pixels = np.asarray(image.convert("RGB") if getattr(image, "mode", "L") not in ("L", "RGB") else image)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise DataError(f"{name}: sample {i} is no image of bytes, but {pixels.dtype} {pixels.shape}")
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if i == 0:
            check_size(name, len(part), pixels.shape)
            x = np.empty((len(part), *pixels.shape), np.uint8)
        elif pixels.shape != x.shape[1:]:
            raise DataError(
                f"{name}: sample {i} has shape {pixels.shape}, those before {x.shape[1:]}; resize all to one size and "
                "use data.name = 'imagefolder'"
            )
        x[i], y[i] = pixels, _class(name, target, labels)
    return x, y


def _event_frames(config: DataConfig, part: Any, labels: Sequence[str], steps: int) -> Split:
    settings = config.events
    sensor = getattr(part, "sensor_size", None)
    if sensor is not None:  # (columns, rows, polarities)
        own = {"size": settings.size or (sensor[1], sensor[0]), "polarities": settings.polarities or min(sensor[2], 2)}
        settings = settings.model_copy(update=own)
    x = empty_frames(config.name, steps, len(part), settings)
    y = np.empty(len(part), np.int64)
    for i, index in enumerate(_order(part)):
        raw, target = _sample(config.name, part, index)
        fields = getattr(getattr(raw, "dtype", None), "names", None) or ()
        if not {"x", "t"} <= set(fields):
            raise DataError(f"{config.name}: sample {i} is no array of events with x and t")
        column, row, t, p = (
            raw[name].astype(np.int64) if name in fields else np.zeros(len(raw), np.int64) for name in "xytp"
        )
        x[:, i] = frames(Events(column, row, t, p), steps, settings, f"{config.name}, sample {i}")
        y[i] = _class(config.name, target, labels)
    return Split(x, y, framed=True)


def _order(part: Any) -> list[int]:
    """Files in the order of their names, numbers by value: tonic lists some folders in the order of the disk."""
    files = getattr(part, "data", None)
    if not isinstance(files, list) or len(files) != len(part) or not all(isinstance(f, (str, Path)) for f in files):
        return list(range(len(part)))
    pieces = [[int(p) if p.isdigit() else p for p in re.split(r"(\d+)", str(file))] for file in files]
    return sorted(range(len(files)), key=lambda i: pieces[i])


def _cut(whole: Split, fraction: float) -> tuple[Split, Split]:
    """The first samples of every class, and the last ones."""
    test = np.zeros(len(whole), bool)
    for label in np.unique(whole.y):
        samples = np.flatnonzero(whole.y == label)
        count = round(fraction * len(samples))
        if not 0 < count < len(samples):
            raise DataError(
                f"data.test_fraction: {fraction} of the {len(samples)} samples of class {label} is {count}; both parts "
                "need samples of every class"
            )
        test[samples[-count:]] = True
    return whole.take(~test), whole.take(test)
