"""What a command's ``DATA`` argument names: a registered data set, the folder of one, or a NumPy file."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .network import IntArray, Network

MAX_FILE_BYTES = 16 * 2**30


@dataclass(frozen=True)
class Samples:
    """Inputs for a network and, where known, what they show.

    Attributes
    ----------
    name : str
        As the user wrote it.
    x : [B, *shape] or [T, B, *shape]
    y : int64 [B] or None
    """

    name: str
    x: npt.NDArray[Any]
    y: IntArray | None


def read_samples(data: str, network: Network, limit: int | None = None) -> Samples:
    """Samples for a network.

    Parameters
    ----------
    data : str
        ``NAME`` or ``NAME:train`` of a registered data set; a folder, ``FOLDER`` or ``FOLDER:train``, read the way the
        network's recipe reads its data; or the path of a ``.npz`` (arrays ``x`` and, if known, ``y``) or ``.npy`` file.
    network : Network
        Says how many axes a sample has, and with which data and split it was trained.
    limit : int, optional
        Use the first samples only.

    Raises
    ------
    DataError
        If there is no such data, or it does not fit the network.
    """
    if Path(data.removesuffix(":train").removesuffix(":test")).is_dir():
        samples = _from_folder(data, network, limit)
    elif data.endswith((".npz", ".npy")) or "/" in data:
        samples = _from_file(Path(data))
    else:
        samples = _from_registry(data, network, limit)
    samples = Samples(samples.name, _fitting(samples, network), samples.y)
    return samples if limit is None else _first(samples, network, limit)


def _from_registry(data: str, network: Network, limit: int | None) -> Samples:
    # A name may have a colon itself: torchvision:MNIST:train.
    name, _, split = data.rpartition(":")
    if name in ("", "torchvision", "tonic"):
        name, split = data, ""
    if split not in ("", "train", "test"):
        raise DataError(f"data {data!r}: {split!r} is not a split; give {name}:train or {name}:test")
    trained_on = network.metadata.get("recipe", {}).get("data", {})
    return _load(data, trained_on if trained_on.get("name") == name else {"name": name}, split, network.steps, limit)


def _from_folder(data: str, network: Network, limit: int | None) -> Samples:
    folder, _, split = data.rpartition(":") if data.endswith((":train", ":test")) else (data, "", "test")
    trained_on = network.metadata.get("recipe", {}).get("data", {})
    if not trained_on.get("name"):
        raise DataError(
            f"data {data}: a folder, but network {network.name!r} holds no recipe that says how to read it; "
            "give a .npz or .npy file"
        )
    return _load(data, {**trained_on, "folder": folder}, split, network.steps, limit)


def _load(data: str, section: dict[str, Any], split: str, steps: int, limit: int | None) -> Samples:
    from pydantic import ValidationError

    from .train.config import DataConfig
    from .train.data import load

    try:
        config = DataConfig.model_validate(section)
    except ValidationError as error:
        wrong = "; ".join(f"data.{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
        raise DataError(f"data {data}: the network's recipe is not one that this lapilli reads ({wrong})") from None
    # Images are decoded when they are chosen, not all of both splits.
    config = config.model_copy(update={"memory": 0.0})
    chosen = getattr(load(config, steps), split or "test").take(slice(limit))
    return Samples(data, chosen.values(), chosen.y)


def _from_file(path: Path) -> Samples:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB; split it")
        loaded = np.load(path, allow_pickle=False)  # object arrays are refused: they would run code
        if isinstance(loaded, np.ndarray):
            return Samples(str(path), loaded, None)
        with loaded:
            if "x" not in loaded:
                raise DataError(f"{path}: has no array 'x' (it has {', '.join(loaded.files) or 'none'})")
            y = np.asarray(loaded["y"]) if "y" in loaded else None
            return Samples(str(path), loaded["x"], y)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or 'not a NumPy file'})") from None
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{path}: not a NumPy file of plain numbers ({error})") from None


def _fitting(samples: Samples, network: Network) -> npt.NDArray[Any]:
    """``x`` with the network's sample shape; flat samples are reshaped where only one reading is possible."""
    x, shape = samples.x, network.input.shape
    if x.ndim >= 1 and x.shape[x.ndim - len(shape) :] != shape and x.ndim == 2 and x.shape[1] == math.prod(shape):
        x = x.reshape(len(x), *shape)
    network.input.encode(x[:0] if x.ndim == len(shape) + 1 else x[:, :0])  # shape and dtype are checked here
    batch = x.shape[x.ndim - len(shape) - 1]
    if batch == 0:
        raise DataError(f"{samples.name}: there is no sample in it")
    if samples.y is not None and (samples.y.shape != (batch,) or samples.y.dtype.kind not in "iu"):
        raise DataError(
            f"{samples.name}: y has shape {samples.y.shape} and dtype {samples.y.dtype}; give integers [{batch}]"
        )
    return x


def _first(samples: Samples, network: Network, limit: int) -> Samples:
    framed = samples.x.ndim == len(network.input.shape) + 2
    x = samples.x[:, :limit] if framed else samples.x[:limit]
    return Samples(samples.name, x, None if samples.y is None else samples.y[:limit])
