"""Reading the HDF5 of a NIR file without trusting it: plain dictionaries of strings and small arrays of numbers.

A NIR file is a group ``node`` (nested groups and data sets) beside a string ``version``. Sizes are added up from the
file's headers before anything is read; links, storage outside the file, foreign filters (HDF5 would load a plug-in
for them) and types other than numbers and strings are refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import FileFormatError
from ..hdf5_heaps import check_global_heaps

MAX_FILE_BYTES = 2 * 2**30
MAX_ITEMS = 100_000  # groups and data sets
MAX_DEPTH = 24
MAX_NAME = 500
MAX_EDGES = 20_000
MAX_TEXT = 16_000_000  # of one string: a lapilli description
DEFLATE_AT_BEST = 1100  # gzip shrinks at most 1032 times, so a larger array than that has no data in the file
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}


def read_tree(path: str | Path) -> dict[str, Any]:
    """The group ``node`` of a NIR file as nested dictionaries.

    Returns
    -------
    dict
        Values are dict (groups), str, or NumPy arrays of numbers; ``edges`` is a list of pairs of names.

    Raises
    ------
    FileFormatError
        If the file is missing, not HDF5, damaged, larger than it pretends, or holds what NIR does not.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise FileFormatError(f"{path}: {size} bytes; a NIR file has at most {MAX_FILE_BYTES}")
        check_global_heaps(path)
        with h5py.File(path, "r") as file:
            root = file["node"] if _is_hard(file, "node") else None
            if not isinstance(root, h5py.Group):
                raise FileFormatError(f"{path}: has no group 'node'; it is HDF5, but not NIR")
            return _Reader(path, size).group(root, "node", 0)
    except FileNotFoundError:
        raise FileFormatError(f"{path}: no such file") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, OverflowError, MemoryError) as error:
        said = " ".join(str(error).split())[:200]
        raise FileFormatError(f"{path}: not a readable HDF5 file ({said})") from None


def _is_hard(group: h5py.Group, name: str) -> bool:
    return isinstance(group.get(name, getlink=True), h5py.HardLink)


class _Reader:
    """Walks a file and keeps count of what it has promised so far."""

    def __init__(self, path: Path, file_bytes: int) -> None:
        self.path = path
        self.bytes_left = DEFLATE_AT_BEST * file_bytes + 2**20
        self.items_left = MAX_ITEMS
        self.text_left = file_bytes + 2**20

    def refuse(self, where: str, why: str) -> FileFormatError:
        return FileFormatError(f"{self.path}: {where[:MAX_NAME]}: {why}")

    def group(self, group: h5py.Group, where: str, depth: int) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            raise self.refuse(where, f"groups nest deeper than {MAX_DEPTH}")
        tree: dict[str, Any] = {}
        for name in map(str, group):
            inside = f"{where}/{name}"
            self.items_left -= 1
            if self.items_left < 0:
                raise self.refuse(where, f"more than {MAX_ITEMS} groups and data sets")
            if len(name) > MAX_NAME or not name.isprintable():
                raise self.refuse(where, f"a name is longer than {MAX_NAME} characters or not printable")
            if not _is_hard(group, name):
                raise self.refuse(inside, "is a link; a NIR file holds its data itself")
            item = group[name]
            if isinstance(item, h5py.Group):
                tree[name] = self.group(item, inside, depth + 1)
            elif isinstance(item, h5py.Dataset):
                tree[name] = self.edges(item, inside) if name == "edges" else self.dataset(item, inside)
            else:
                raise self.refuse(inside, "is neither a group nor a data set")
        return tree

    def dataset(self, data: h5py.Dataset, where: str) -> Any:
        self.check_storage(data, where)
        if h5py.check_string_dtype(data.dtype) is not None:
            if data.shape != ():
                raise self.refuse(where, "is an array of strings; only 'edges' is one")
            return self.text(data[()], where, MAX_TEXT)
        if data.dtype.kind not in "biuf":
            raise self.refuse(where, f"has dtype {data.dtype}; NIR has numbers and strings")
        return np.asarray(data[()])

    def edges(self, data: h5py.Dataset, where: str) -> list[tuple[str, str]]:
        self.check_storage(data, where)
        if data.size == 0:
            return []
        if h5py.check_string_dtype(data.dtype) is None or data.ndim != 2 or data.shape[1] != 2:
            raise self.refuse(where, f"has shape {data.shape} and dtype {data.dtype}; edges are pairs of names")
        if len(data) > MAX_EDGES:
            raise self.refuse(where, f"{len(data)} edges; at most {MAX_EDGES} are read")
        # Row by row: the length of a string is not known before it is read.
        rows = (data[i] for i in range(len(data)))
        return [(self.text(a, where, MAX_NAME), self.text(b, where, MAX_NAME)) for a, b in rows]

    def text(self, value: Any, where: str, most: int) -> str:
        text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        self.text_left -= len(text)
        if len(text) > most or self.text_left < 0:
            raise self.refuse(where, f"a string of {len(text)} characters is too long")
        return text

    def check_storage(self, data: h5py.Dataset, where: str) -> None:
        """Refuse, by its header alone, a data set that must not be read."""
        if data.shape is None:
            raise self.refuse(where, "is empty (a null data space)")
        if data.is_virtual or data.external:
            raise self.refuse(where, "keeps its data in other files")
        plan = data.id.get_create_plist()
        for i in range(plan.get_nfilters()):
            code = plan.get_filter(i)[0]
            if code not in _FILTERS:
                raise self.refuse(where, f"is compressed by HDF5 filter {code}; use {' or '.join(_FILTERS.values())}")
        size = math.prod(data.shape) * data.dtype.itemsize
        if data.chunks is not None:
            size = max(size, math.prod(data.chunks) * data.dtype.itemsize)  # HDF5 unpacks whole chunks
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise self.refuse(where, f"promises {size} bytes, more than a file of this size can hold")
