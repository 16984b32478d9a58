"""A look at an HDF5 file's global heaps before the HDF5 library reads them.

Strings of variable length lie in *global heaps* (HDF5 file format 3.0, section III.E): collections of objects, each
with its size in front. The library walks a collection by those sizes and does not check that they lead anywhere: a free
object of size 0 keeps it walking for ever (found by flipping bytes; HDF5 2.0). So they are walked here first.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from ..errors import FileFormatError

_SIGNATURE = b"GCOL"
_HEADER = 16  # signature, version, three reserved bytes, size of the collection: 64 bits
_OBJECT = struct.Struct("<HHIQ")  # index, references, reserved, size
_SMALLEST = 4096  # collections are never smaller


def check_global_heaps(path: Path) -> None:
    """Refuse a file with a global heap that the HDF5 library could not leave.

    Bytes that only look like a heap (in the middle of an array) are told apart by their header.

    Raises
    ------
    FileFormatError
        If such a heap is found.
    OSError
        If the file cannot be read.
    """
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_SIGNATURE)
        while at >= 0:
            if at + _HEADER <= len(data):
                _check_heap(path, data, at)
            at = data.find(_SIGNATURE, at + 1)


def _check_heap(path: Path, data: mmap.mmap, start: int) -> None:
    version, reserved = data[start + 4], data[start + 5 : start + 8]
    (size,) = struct.unpack_from("<Q", data, start + 8)
    if version != 1 or any(reserved) or not _SMALLEST <= size <= len(data) - start:
        return  # not a heap, or one that the library refuses by itself
    at, end = start + _HEADER, start + size
    while at + _OBJECT.size <= end:
        index, _, _, length = _OBJECT.unpack_from(data, at)
        # The free space (index 0) counts its own header, an object does not and is padded to 8 bytes.
        step = length if index == 0 else _OBJECT.size + (length + 7) // 8 * 8
        if not _OBJECT.size <= step <= end - at:
            raise FileFormatError(f"{path}: damaged: an HDF5 heap at byte {start} does not add up; get the file again")
        at += step
