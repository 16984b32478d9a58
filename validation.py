"""Checks that the description's classes share: every value is checked where it enters."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import DescriptionError

IntArray: TypeAlias = npt.NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]

MAX_ELEMENTS = 2**31 - 1  # of one population or weight tensor: bounds what a file can make us allocate


def check(condition: bool, message: str) -> None:
    """Raise :class:`DescriptionError` with ``message`` unless ``condition``."""
    if not condition:
        raise DescriptionError(message)


def check_shape(where: str, shape: Shape) -> None:
    """Refuse shapes with no or more than four axes, an empty axis, or too many elements."""
    check(1 <= len(shape) <= 4, f"{where}: shape {shape} has {len(shape)} axes; give 1 to 4")
    check(all(d >= 1 for d in shape), f"{where}: shape {shape} has an axis below 1")
    check(math.prod(shape) <= MAX_ELEMENTS, f"{where}: shape {shape} has more than {MAX_ELEMENTS} elements")


def as_int(where: str, value: Any) -> int:
    """``value`` as an int, refused unless it is exactly one."""
    try:
        exact = not isinstance(value, bool) and int(value) == value
    except (TypeError, ValueError, OverflowError):
        exact = False
    check(exact, f"{where}: {value!r} is not an integer")
    return int(value)


def as_integers(where: str, values: npt.ArrayLike, low: int, high: int) -> IntArray:
    """``values`` as int64, refused unless every one is exactly an integer in ``low..high``."""
    array = np.asarray(values)
    check(1 <= array.size <= MAX_ELEMENTS, f"{where}: {array.size} elements; give 1 to {MAX_ELEMENTS}")
    check(array.dtype.kind in "biuf", f"{where}: dtype {array.dtype}; give integers")
    least, most = array.min(), array.max()
    in_range = bool(low <= least) and bool(most <= high)  # false for nan too
    check(in_range, f"{where}: values {least}..{most} are outside {low}..{high}")
    integers = array.astype(np.int64)
    check(bool(np.array_equal(integers, array)), f"{where}: not made of integers; quantize first (lapilli.export)")
    return integers


def freeze(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only private copy: descriptions are shared between threads and must not change.

    An array that is read-only and owns its memory is taken as it is: the readers of large files make such.
    """
    if array.flags.owndata and array.flags.c_contiguous and not array.flags.writeable:
        return array
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy
