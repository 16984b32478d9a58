"""How a connection's weights join two populations: dense, convolution, one-to-one.

Average and sum pooling are convolutions with constant weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from .validation import MAX_ELEMENTS, Shape, as_int, as_integers, check, freeze


def _pair(where: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
    check(len(pair) == 2, f"{where}: {value!r} is not an integer or a pair (vertical, horizontal)")
    return (as_int(where, pair[0]), as_int(where, pair[1]))


def _as_weight(where: str, weight: npt.ArrayLike) -> npt.NDArray[np.int8]:
    if isinstance(weight, np.ndarray) and weight.dtype == np.int8:  # as large ones are: no copy in int64
        check(1 <= weight.size <= MAX_ELEMENTS, f"{where}: weight: {weight.size} elements; give 1 to {MAX_ELEMENTS}")
        return freeze(weight)
    return freeze(as_integers(f"{where}: weight", weight, -128, 127).astype(np.int8))


@dataclass(frozen=True, eq=False)
class Dense:
    """All-to-all connection; the source is flattened in C order.

    Parameters
    ----------
    weight : int8 [N_out, N_in]
    """

    weight: npt.NDArray[np.int8]
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _as_weight("dense", self.weight))
        check(self.weight.ndim == 2, f"dense: weight has shape {self.weight.shape}; give [N_out, N_in]")

    def output_size(self, source: Shape) -> int | Shape:
        """Number of target neurons (any target shape of that size fits)."""
        n_out, n_in = self.weight.shape
        check(
            math.prod(source) == n_in, f"dense: weight takes {n_in} inputs, the source {source} has {math.prod(source)}"
        )
        return n_out


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Two-dimensional cross-correlation (PyTorch's convention), zero padding.

    Average and sum pooling are convolutions with constant weights (``groups = C``).

    Parameters
    ----------
    weight : int8 [C_out, C_in / groups, K_y, K_x]
    stride, padding, dilation : int or (vertical, horizontal)
    groups : int
    """

    weight: npt.NDArray[np.int8]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    kind: ClassVar[str] = "conv2d"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _as_weight("conv2d", self.weight))
        check(
            self.weight.ndim == 4, f"conv2d: weight has shape {self.weight.shape}; give [C_out, C_in/groups, K_y, K_x]"
        )
        for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
            pair = _pair(f"conv2d: {name}", getattr(self, name))
            check(min(pair) >= least, f"conv2d: {name} {pair} is below {least}")
            check(max(pair) <= MAX_ELEMENTS, f"conv2d: {name} {pair} is too large")
            object.__setattr__(self, name, pair)
        groups = as_int("conv2d: groups", self.groups)
        check(groups >= 1, f"conv2d: groups {groups} is below 1")
        check(self.weight.shape[0] % groups == 0, f"conv2d: {self.weight.shape[0]} output channels in {groups} groups")
        object.__setattr__(self, "groups", groups)

    def output_size(self, source: Shape) -> int | Shape:
        """Shape (C_out, Y_out, X_out) of the target."""
        check(len(source) == 3, f"conv2d: the source has shape {source}; a convolution needs (C, Y, X)")
        c_out, c_in_group, *kernel = self.weight.shape
        c_in = c_in_group * self.groups
        check(source[0] == c_in, f"conv2d: weight takes {c_in} channels, the source {source} has {source[0]}")
        out = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(source[1:], kernel, self.stride, self.padding, self.dilation, strict=True)
        ]
        check(min(out) >= 1, f"conv2d: kernel {tuple(kernel)} does not fit into the padded source {source}")
        return (c_out, out[0], out[1])


@dataclass(frozen=True, eq=False)
class Scale:
    """One-to-one connection with one weight for all neurons or one per channel (identity branches of residual blocks).

    Parameters
    ----------
    weight : int8 [1] or [C]
        ``C`` is the first axis of the source.
    """

    weight: npt.NDArray[np.int8]
    kind: ClassVar[str] = "scale"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _as_weight("scale", np.atleast_1d(np.asarray(self.weight))))
        check(self.weight.ndim == 1, f"scale: weight has shape {self.weight.shape}; give [1] or [C]")

    def output_size(self, source: Shape) -> int | Shape:
        """The source's own shape."""
        n = self.weight.shape[0]
        check(n in (1, source[0]), f"scale: {n} weights for a source {source} with {source[0]} channels")
        return source


Synapse: TypeAlias = Dense | Conv2d | Scale
SYNAPSE_KINDS: dict[str, type[Dense] | type[Conv2d] | type[Scale]] = {c.kind: c for c in (Dense, Conv2d, Scale)}
