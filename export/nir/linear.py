"""What stands between two populations of a NIR graph: chains of linear nodes, and the one synapse each chain is.

Pooling before a convolution becomes one strided convolution, scales go into the weights; any other chain (two
convolutions in a row, pooling and a linear layer) is written out as one dense matrix, which is exact too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import DescriptionError, UnsupportedError
from ...network import Conv2d, Dense, Scale, Shape, Synapse
from ..folding import Affine, FloatArray, Pair, Pool, pool_then_conv

MAX_DENSE = 2**25  # elements of a matrix that no node of the file spells out


@dataclass(frozen=True, eq=False)
class Gain:
    """One factor for each value; the factors broadcast to the shape."""

    factor: FloatArray

    def output_shape(self, source: Shape) -> Shape:
        """The shape of the source; raises DescriptionError where the factors do not fit it."""
        try:
            np.broadcast_to(self.factor, source)
        except ValueError:
            raise DescriptionError(f"factors of shape {self.factor.shape} do not fit {source}") from None
        return source

    def __call__(self, x: FloatArray) -> FloatArray:
        """Scale a batch."""
        return x * self.factor


@dataclass(frozen=True)
class Reshape:
    """Another shape for the same values in C order (flattening)."""

    shape: Shape

    def output_shape(self, source: Shape) -> Shape:
        """The new shape."""
        if math.prod(source) != math.prod(self.shape):
            raise DescriptionError(f"{math.prod(source)} values cannot have the shape {self.shape}")
        return self.shape

    def __call__(self, x: FloatArray) -> FloatArray:
        """Reshape a batch."""
        return x.reshape(len(x), *self.shape)


@dataclass(frozen=True)
class Pooling:
    """Average or sum pooling; padding adds zeros that an average counts."""

    size: Pair
    stride: Pair
    padding: Pair
    factor: float  # 1, or 1 / size of the window

    def convolution(self, channels: int) -> Affine:
        """The same as a depthwise convolution."""
        weight = np.full((channels, 1, *self.size), self.factor)
        return Affine("conv2d", weight, np.zeros(channels), stride=self.stride, padding=self.padding, groups=channels)

    def output_shape(self, source: Shape) -> Shape:
        """``(C, Y, X)`` after pooling."""
        if len(source) != 3:
            raise DescriptionError(f"pooling needs (C, Y, X), not {source}")
        sizes = zip(source[1:], self.size, self.stride, self.padding, strict=True)
        y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
        if min(x, y) < 1:
            raise DescriptionError(f"windows of {self.size} do not fit {source}")
        return (source[0], y, x)

    def __call__(self, x: FloatArray) -> FloatArray:
        """Pool a batch."""
        return self.convolution(x.shape[1])(x)


Operation: TypeAlias = Affine | Gain | Reshape | Pooling


def constant(operation: Operation, x: FloatArray, shape: Shape) -> FloatArray:
    """A constant ``x`` of the source's shape through one node, bias included; ``shape`` is the target's."""
    out = operation(x[None])[0]
    if isinstance(operation, Affine):
        out = out + operation.bias.reshape(-1, *[1] * (out.ndim - 1))
    return out.reshape(shape)


@dataclass(frozen=True, eq=False)
class RealSynapse:
    """A synapse of the description before rounding.

    Parameters
    ----------
    kind : {"dense", "conv2d", "scale"}
    weight : float64
        As in :class:`~lapilli.network.Dense`, ``Conv2d`` or ``Scale``.
    stride, padding, dilation, groups
        As in ``Conv2d``.
    """

    kind: Literal["dense", "conv2d", "scale"]
    weight: FloatArray
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def integers(self, weight: npt.NDArray[Any]) -> Synapse:
        """The description's synapse of this geometry."""
        if self.kind == "scale":
            return Scale(weight)
        if self.kind == "dense":
            return Dense(weight)
        return Conv2d(weight, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups)

    def __call__(self, x: FloatArray, target: Shape) -> FloatArray:
        """``W x``: ``[B, *source]`` to ``[B, *target]``."""
        if self.kind == "scale":
            return x * _per_channel(self.weight, x.ndim - 1)
        if self.kind == "dense":
            return (x.reshape(len(x), -1) @ self.weight.T).reshape(len(x), *target)
        return self._convolved(x, target)

    def _convolved(self, x: FloatArray, target: Shape) -> FloatArray:
        """Windows as rows of a matrix, so that the product is one of matrices (a float run has hundreds of steps)."""
        (py, px), (sy, sx), (dy, dx) = self.padding, self.stride, self.dilation
        c_out, c_in, k_y, k_x = self.weight.shape
        padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
        spans = ((k_y - 1) * dy + 1, (k_x - 1) * dx + 1)
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, (2, 3))[  # pyright: ignore
            :, :, ::sy, ::sx, ::dy, ::dx
        ]
        total = np.empty((len(x), *target))
        per_group = c_out // self.groups
        for g in range(self.groups):
            rows = windows[:, g * c_in : (g + 1) * c_in].transpose(0, 2, 3, 1, 4, 5).reshape(-1, c_in * k_y * k_x)
            outputs = slice(g * per_group, (g + 1) * per_group)
            product = rows @ self.weight[outputs].reshape(per_group, -1).T
            total[:, outputs] = product.reshape(len(x), *target[1:], per_group).transpose(0, 3, 1, 2)
        return total

    def with_gain(self, gain: FloatArray) -> RealSynapse | None:
        """With one more factor for each target neuron (``gain``: the target's shape); None if that cannot be said."""
        if self.kind == "dense":
            return replace(self, weight=self.weight * gain.reshape(-1, 1))
        channels = gain.reshape(len(gain), -1)
        if not np.array_equal(channels, np.broadcast_to(channels[:, :1], channels.shape)):
            return None
        if self.kind == "scale":
            factor = channels[:1, 0] if (channels == channels[0]).all() else channels[:, 0]
            return replace(self, weight=self.weight * factor)
        return replace(self, weight=self.weight * _per_channel(channels[:, 0], 4))


def _per_channel(values: FloatArray, axes: int) -> FloatArray:
    return values.reshape(-1, *[1] * (axes - 1))


def compose(where: str, chain: Sequence[Operation], source: Shape) -> RealSynapse:
    """The linear part of a chain of nodes as one synapse on ``source``.

    Raises
    ------
    UnsupportedError
        If the chain is one only as a matrix that would be too large.
    """
    target = source
    for operation in chain:
        target = operation.output_shape(target)
    gains = [o for o in chain if isinstance(o, Gain)]
    if len(gains) == len(chain):
        factor = np.ones(source)
        for gain in gains:
            factor = factor * gain.factor
        scale = RealSynapse("scale", np.ones(1)).with_gain(factor)
        if scale is not None:
            return scale
    if not any(isinstance(o, Reshape) for o in chain):
        convolution = _as_convolution(chain, source)
        if convolution is not None:
            return convolution
    *before, last = chain
    if isinstance(last, Affine) and last.kind == "dense" and all(isinstance(o, Reshape) for o in before):
        return RealSynapse("dense", last.weight)
    return _as_matrix(where, chain, source, target)


def _as_convolution(chain: Sequence[Operation], source: Shape) -> RealSynapse | None:
    """One convolution, if the chain has at most one, with pooling before it and gains that it can take in."""
    if len(source) != 3:
        return None
    shape = source
    whole = _one_to_one(shape[0])
    for operation in chain:
        if isinstance(operation, Gain):
            gain = np.broadcast_to(operation.factor, shape)
            per_channel = gain[:, :1, :1]
            if not np.array_equal(gain, np.broadcast_to(per_channel, shape)):
                return None
            joined = replace(whole, weight=whole.weight * per_channel[..., None])
        elif isinstance(operation, Pooling):
            joined = _joined(whole, operation.convolution(shape[0]), source)
        elif isinstance(operation, Affine) and operation.kind == "conv2d":
            joined = _joined(whole, operation, source)
        else:
            joined = None
        if joined is None:
            return None
        whole, shape = joined, operation.output_shape(shape)
    if whole.output_shape(source) != shape:
        return None
    return RealSynapse("conv2d", whole.weight, whole.stride, whole.padding, whole.dilation, whole.groups)


def _one_to_one(channels: int) -> Affine:
    return Affine("conv2d", np.ones((channels, 1, 1, 1)), np.zeros(channels), groups=channels)


def _joined(first: Affine, then: Affine, source: Shape) -> Affine | None:
    """``then`` after ``first``, where ``first`` is pooling (constant weights for each channel, no padding)."""
    depthwise = first.groups == len(first.weight) and first.weight.shape[1] == 1
    factor = float(first.weight.flat[0])
    if not depthwise or first.padding != (0, 0) or first.dilation != (1, 1) or (first.weight != factor).any():
        return None
    y, x = first.weight.shape[2:]
    (k_y, k_x), (d_y, d_x), (s_y, s_x) = then.weight.shape[2:], then.dilation, first.stride
    kernel = ((k_y - 1) * d_y * s_y + y) * ((k_x - 1) * d_x * s_x + x)
    if kernel * math.prod(then.weight.shape[:2]) > MAX_DENSE:
        return None
    scaled = replace(then, weight=then.weight * factor)
    try:
        merged, needed = pool_then_conv(Pool((y, x), first.stride, divisor=1), scaled, source)
    except UnsupportedError:
        return None
    return merged if needed == source else None


def _as_matrix(where: str, chain: Sequence[Operation], source: Shape, target: Shape) -> RealSynapse:
    """The chain written out, column by column."""
    n_in, n_out = math.prod(source), math.prod(target)
    if n_in * n_out > MAX_DENSE:
        raise UnsupportedError(
            f"{where}: this chain of {len(chain)} linear nodes is one synapse only as a matrix of {n_out} x {n_in}; "
            "put neurons between them, or merge them before export"
        )
    weight = np.empty((n_out, n_in))
    width = max(1, 2**22 // max(n_in, n_out))
    for start in range(0, n_in, width):
        columns = range(start, min(start + width, n_in))
        x = np.zeros((len(columns), n_in))
        x[np.arange(len(columns)), columns] = 1.0
        y = x.reshape(-1, *source)
        for operation in chain:
            y = operation(y)
        weight[:, start : start + len(columns)] = y.reshape(len(columns), n_out).T
    return RealSynapse("dense", weight)
