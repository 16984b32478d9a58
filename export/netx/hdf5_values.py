"""Values of an HDF5 file that nobody has to trust: checked before they are read, so memory stays bounded.

HDF5 can point out of a file (external and soft links, external storage, virtual datasets), can hold Python objects,
and can claim sizes that it does not store. None of that is needed for a network, so all of it is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ...errors import DescriptionError, FileFormatError, MissingDependencyError
from ..hdf5_heaps import check_global_heaps

MAX_FILE_BYTES = 4 * 2**30
MAX_UNSTORED_BYTES = 64 * 2**20  # what compression may add to the bytes that a file has
MAX_MEMBERS = 4096  # of one group
MAX_TEXT_BYTES = 4 * 2**20
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HARMLESS_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # others load plugins


def import_h5py() -> ModuleType:
    """Import h5py, or say in one line how to get it."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "lava-dl's .net files need the package 'h5py', which is not installed; pip install h5py"
        ) from None
    return h5py


class Section:
    """One group of an HDF5 file.

    Attributes
    ----------
    file : Path
    where : str
        The group's name in the file, for messages.
    """

    def __init__(self, file: Path, group: Any, where: str, budget: list[int]) -> None:
        self.file, self.where = file, where
        self._group, self._budget = group, budget
        if len(group) > MAX_MEMBERS:
            self.refuse(f"has {len(group)} members, more than {MAX_MEMBERS}")
        self.names: tuple[str, ...] = tuple(group)

    def refuse(self, what: str, key: str = "") -> NoReturn:
        """Raise :class:`FileFormatError` about this group, or one member of it."""
        place = "/".join(part for part in (self.where, key) if part)
        raise FileFormatError(_one_line(f"{self.file}: {place + ': ' if place else ''}{what}"))

    def _member(self, key: str) -> Any:
        h5py = import_h5py()
        if key not in self.names:
            self.refuse(f"has no {key!r}")
        link = self._group.get(key, getlink=True)
        if not isinstance(link, h5py.HardLink):
            self.refuse("is a link to somewhere else, which lapilli never follows; store the data here", key)
        return self._group[key]

    def section(self, key: str) -> Section:
        """The group of that name in this one."""
        member = self._member(key)
        if not isinstance(member, import_h5py().Group):
            self.refuse("is not a group", key)
        return Section(self.file, member, f"{self.where}/{key}".lstrip("/"), self._budget)

    def _dataset(self, key: str) -> Any:
        member = self._member(key)
        if not isinstance(member, import_h5py().Dataset):
            self.refuse("is not a dataset", key)
        if member.shape is None:
            self.refuse("is empty", key)
        if member.is_virtual or member.external:
            self.refuse("keeps its data in another file, which lapilli never opens", key)
        layout = member.id.get_create_plist()
        filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
        unknown = [f for f in filters if f not in _HARMLESS_FILTERS]
        if unknown:
            self.refuse(f"is compressed with filter {unknown[0]}; use gzip or none", key)
        size = math.prod(member.shape) * member.dtype.itemsize
        stored = int(member.id.get_storage_size())
        if size > max(stored, MAX_UNSTORED_BYTES):
            self.refuse(f"claims the shape {member.shape} and stores {stored} bytes of it", key)
        self._budget[0] -= size
        if self._budget[0] < 0:
            self.refuse("more data than the file has bytes; its parts are stored more than once", key)
        return member

    def numbers(self, key: str) -> npt.NDArray[Any]:
        """An array of numbers or truth values, of any shape."""
        dataset = self._dataset(key)
        if dataset.dtype.kind not in "biuf" or dataset.dtype.itemsize > 8:
            self.refuse(f"has type {dataset.dtype}; only numbers of at most 64 bits are read", key)
        return np.asarray(dataset[()])

    def integers(self, key: str, low: int, high: int) -> npt.NDArray[np.int64]:
        """An array of integers in ``low..high``, whatever its type in the file."""
        array = self.numbers(key)
        if not array.size:
            self.refuse("is empty", key)
        least, most = array.min(), array.max()
        if not (low <= least and most <= high):  # true for nan too
            self.refuse(f"has values {least}..{most}, outside {low}..{high}", key)
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            odd = array.reshape(-1)[(whole != array).reshape(-1)][0]
            self.refuse(f"has the value {odd}, which is not an integer (lava-dl would cut it to {int(odd)})", key)
        return whole

    def integer(self, key: str, low: int, high: int) -> int:
        """A single integer: a scalar, or an array of one element."""
        array = self.integers(key, low, high)
        if array.size != 1:
            self.refuse(f"has shape {array.shape}; give one number", key)
        return int(array.reshape(())[()])

    def text(self, key: str) -> str:
        """A single string: fixed width or variable, scalar or an array of one element."""
        h5py = import_h5py()
        dataset = self._dataset(key)
        is_text = dataset.dtype.kind == "S" or h5py.check_string_dtype(dataset.dtype) is not None
        if not is_text or math.prod(dataset.shape) != 1:
            self.refuse(f"has type {dataset.dtype} and shape {dataset.shape}; give one string", key)
        value = dataset[()]
        value = value.reshape(-1)[0] if isinstance(value, np.ndarray) else value
        if not isinstance(value, bytes) or len(value) > MAX_TEXT_BYTES:
            self.refuse(f"is not a string of at most {MAX_TEXT_BYTES} bytes", key)
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("is not text", key)


@contextmanager
def open_hdf5(path: Path) -> Iterator[Section]:
    """The root group of a file; whatever goes wrong inside becomes a :class:`FileFormatError` in one line."""
    h5py = import_h5py()
    try:
        if not path.exists():
            raise FileFormatError(f"{path}: there is no such file; check the path")
        if not path.is_file():
            raise FileFormatError(f"{path}: is not a regular file; name the file in it or copy it to one")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise FileFormatError(f"{path}: has {size} bytes, more than the {MAX_FILE_BYTES} that lapilli reads")
        with path.open("rb") as start:
            if start.read(len(_SIGNATURE)) != _SIGNATURE:
                raise FileFormatError(f"{path}: is not an HDF5 file; lava-dl's .net files are HDF5")
        check_global_heaps(path)
        with h5py.File(path, "r", locking=False) as file:
            yield Section(path, file, "", [size + MAX_UNSTORED_BYTES])
    except DescriptionError as error:
        raise FileFormatError(_one_line(f"{path}: {error}")) from None
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise FileFormatError(
            _one_line(f"{path}: is truncated or damaged ({type(error).__name__}: {error}); copy or export it again")
        ) from None


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:600]
