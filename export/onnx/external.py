"""Large tensors in a file beside the model: ONNX external data, in one layout that follows from the network.

The file is named after the network's digest, so a model never reads the weights of another one, and its bytes follow
from the network as the model's do: tensors of at least 1 KiB in the model's order, each at a multiple of 4 KiB, zeros
between them. So a reader knows every offset and length beforehand and takes nothing from the model on trust.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from onnx import StringStringEntryProto, TensorProto

INLINE_BYTES = 1024  # smaller tensors stay in the model, as onnx's own tools do by default
ALIGNMENT = 4096  # ONNX asks for multiples of the page size, so that tensors can be mapped
MAX_EXTERNAL_BYTES = 64 * 2**30  # of one data file
CHUNK = 16 * 2**20

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Place(NamedTuple):
    """Where a tensor's bytes are."""

    offset: int
    length: int


class ExternalDataError(ValueError):
    """A data file is not what its model says; the message says what is wrong and what to do, but not where."""


@dataclass(frozen=True)
class External:
    """The data file of a model.

    Attributes
    ----------
    location : str
        Its name; it lies in the model's folder.
    places : mapping of str to Place
        By tensor, in the order of the file. Tensors that are not here are in the model.
    """

    location: str
    places: Mapping[str, Place]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return max((place.offset + place.length for place in self.places.values()), default=0)

    def entries(self, tensor: str) -> list[StringStringEntryProto]:
        """What the model says of a tensor."""
        place = self.places[tensor]
        found = {"location": self.location, "offset": str(place.offset), "length": str(place.length)}
        return [StringStringEntryProto(key=key, value=value) for key, value in found.items()]


def layout(digest: str, sizes: Iterable[tuple[str, int]]) -> External:
    """Where tensors go: ``(name, bytes)`` in the model's order.

    Raises
    ------
    ExternalDataError
        If the digest is none, or the file would be too large.
    """
    if not _DIGEST.fullmatch(digest):
        raise ExternalDataError("the digest in its metadata is not 64 hexadecimal digits")
    places: dict[str, Place] = {}
    end = 0
    for name, size in sizes:
        if size >= INLINE_BYTES:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            places[name] = Place(start, size)
            end = start + size
    if end > MAX_EXTERNAL_BYTES:
        raise ExternalDataError(f"its tensors take {end} bytes, more than {MAX_EXTERNAL_BYTES}")
    return External(f"lapilli-{digest[:32]}.data", places)


def write(file: BinaryIO, external: External, tensors: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write the data file; no tensor is copied as a whole."""
    for name, (offset, _) in external.places.items():
        file.write(bytes(offset - file.tell()))
        array = np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<"))
        content = _bytes_of(array)
        for start in range(0, len(content), CHUNK):
            file.write(content[start : start + CHUNK])


def said_of(tensor: TensorProto) -> tuple[str, Place]:
    """Location and place that a model gives for a tensor.

    Raises
    ------
    ExternalDataError
        If an entry is missing, unknown, double or malformed.
    """
    if tensor.data_location != TensorProto.EXTERNAL or tensor.HasField("raw_data"):
        raise ExternalDataError("its data are both here and in another file, or somewhere unknown")
    entries = [(entry.key, entry.value) for entry in tensor.external_data[:8]]
    found = dict(entries)
    if len(tensor.external_data) != 3 or found.keys() != {"location", "offset", "length"}:
        raise ExternalDataError("its external data need one location, offset and length each, and nothing else")
    numbers = [found[key] for key in ("offset", "length")]
    if not all(re.fullmatch(r"0|[1-9][0-9]{0,17}", number) for number in numbers):
        raise ExternalDataError("offset or length of its external data is not a number of bytes")
    return found["location"], Place(int(numbers[0]), int(numbers[1]))


def read(
    model: Path, external: External, kinds: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
) -> dict[str, npt.NDArray[np.generic]]:
    """Read a data file beside a model: a regular file of exactly the size that the layout says, and no link.

    Parameters
    ----------
    model : Path
    external : External
        The layout that the tensors of the model have.
    kinds : mapping
        Shape and dtype by tensor; they make the lengths of the layout.

    Returns
    -------
    dict of arrays, read-only

    Raises
    ------
    ExternalDataError
        With what is wrong and what to do.
    """
    path = model.with_name(external.location)
    again = f"copy it there from where {model.name} came from, or export the network again"
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():
            raise ExternalDataError(f"its data file {path.name} is a link, which is not followed; {again}")
        if path.exists() and not path.is_file():
            raise ExternalDataError(f"its data file {path.name} is not a regular file; {again}")
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise ExternalDataError(f"its data file {path.name} is not beside it; {again}") from None
    except OSError as error:
        raise ExternalDataError(f"its data file {path.name} cannot be read ({error.strerror}); {again}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ExternalDataError(f"its data file {path.name} is not a regular file; {again}")
        if status.st_size != external.size:
            raise ExternalDataError(
                f"its data file {path.name} has {status.st_size} bytes and should have {external.size}; {again}"
            )
        return {name: _array(file, place, *kinds[name]) for name, place in external.places.items()}


def _array(
    file: BinaryIO, place: Place, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> npt.NDArray[np.generic]:
    array = np.empty(shape, dtype)
    content = _bytes_of(array)
    file.seek(place.offset)
    done = 0
    while done < len(content):
        count = file.readinto(content[done : done + CHUNK])  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise ExternalDataError("its data file was cut while it was read; try again")
        done += count
    array.setflags(write=False)
    return array


def _bytes_of(array: npt.NDArray[np.generic]) -> memoryview:
    return memoryview(cast("Any", array)).cast("B")
