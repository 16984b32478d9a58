"""Folding: a trained network as plain spiking layers, in float64 NumPy and without loss.

With ``k = 1`` (IF) or ``1 - beta`` (LIF), ``A`` the amplitude of the spikes of the layer before (``th`` for IF,
``th/dt`` for LIF; 1 for the input), and batch normalization as ``g I + h`` with ``g = gamma / sqrt(var + eps)``,
``h = beta_bn - g mean``, a layer becomes

    W' = k A g W,   b' = k (g b + h)                      b' is added at every step

and its neurons, which now send plain spikes 0/1, are those of :mod:`lapilli.network` in real numbers::

    v = beta v + W' s + b'      fire where v >= threshold = alpha th      subtract reset_amount = th, or set to 0

Average pooling has no neurons: it becomes part of the weights that follow it. :mod:`lapilli.export.lowering` reads
all this from a torch network; nothing here knows torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UnsupportedError
from ..network import Conv2d, Dense, Reset, Shape

FloatArray: TypeAlias = npt.NDArray[np.float64]
Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Pool:
    """Average pooling without padding; rows and columns left over are dropped.

    Parameters
    ----------
    size, stride : (vertical, horizontal)
    divisor : int or None
        What the sum over a window is divided by; None: the size of the window.
    """

    size: Pair
    stride: Pair
    divisor: int | None = None

    @property
    def factor(self) -> float:
        """Weight of each value in a window."""
        return 1.0 / (self.divisor or math.prod(self.size))

    def output_shape(self, source: Shape) -> Shape:
        """``(C, Y, X)`` after pooling."""
        c, *rest = source
        y, x = ((n - p) // s + 1 for n, p, s in zip(rest, self.size, self.stride, strict=True))
        return (c, y, x)


@dataclass(frozen=True, eq=False)
class Affine:
    """Real weights and a bias: a :class:`~lapilli.network.Dense` or :class:`~lapilli.network.Conv2d` before rounding.

    Parameters
    ----------
    kind : {"dense", "conv2d"}
    weight : float64 [N_out, N_in] or [C_out, C_in / groups, K_y, K_x]
    bias : float64 [N_out] or [C_out]
    stride, padding, dilation : (vertical, horizontal)
        As in ``Conv2d``.
    groups : int
    """

    kind: Literal["dense", "conv2d"]
    weight: FloatArray
    bias: FloatArray
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def synapse(self, integers: npt.NDArray[Any]) -> Dense | Conv2d:
        """The description's synapse of this geometry with these integer weights."""
        if self.kind == "dense":
            return Dense(integers)
        return Conv2d(integers, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups)

    def output_shape(self, source: Shape) -> Shape:
        """Shape of the target; raises DescriptionError where the weights do not fit the source."""
        size = self.synapse(np.zeros(self.weight.shape, np.int8)).output_size(source)
        return (size,) if isinstance(size, int) else size

    def __call__(self, x: FloatArray) -> FloatArray:
        """``W x`` without bias: ``[B, *source]`` to ``[B, *target]``."""
        if self.kind == "dense":
            return x.reshape(len(x), -1) @ self.weight.T
        (py, px), (sy, sx), (dy, dx) = self.padding, self.stride, self.dilation
        c_out, c_in, k_y, k_x = self.weight.shape
        _, y_out, x_out = self.output_shape(x.shape[1:])
        padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
        grouped = padded.reshape(len(x), self.groups, c_in, *padded.shape[2:])
        weight = self.weight.reshape(self.groups, c_out // self.groups, c_in, k_y, k_x)
        total = np.zeros((len(x), self.groups, c_out // self.groups, y_out, x_out))
        for i in range(k_y):
            for j in range(k_x):
                y, x_ = i * dy, j * dx
                seen = grouped[..., y : y + (y_out - 1) * sy + 1 : sy, x_ : x_ + (x_out - 1) * sx + 1 : sx]
                total += np.einsum("goc,bgcyx->bgoyx", weight[..., i, j], seen, optimize=True)
        return total.reshape(len(x), c_out, y_out, x_out)


def after_batch_norm(affine: Affine, gain: FloatArray, offset: FloatArray) -> Affine:
    """``gain[c] (W x + b) + offset[c]`` as one affine map; ``gain`` and ``offset`` are float64 ``[C_out]``."""
    per_output = gain.reshape(-1, *[1] * (affine.weight.ndim - 1))
    return replace(affine, weight=affine.weight * per_output, bias=gain * affine.bias + offset)


def pool_then_linear(pool: Pool, affine: Affine, source: Shape) -> Affine:
    """Average pooling, flattening and a dense layer as one dense layer on the unpooled ``source (C, Y, X)``."""
    c, y, x = pool.output_shape(source)
    pooled = affine.weight.reshape(-1, c, y, x)
    spread = np.zeros((len(pooled), *source))
    for i in range(pool.size[0]):
        for j in range(pool.size[1]):
            rows = slice(i, i + (y - 1) * pool.stride[0] + 1, pool.stride[0])
            columns = slice(j, j + (x - 1) * pool.stride[1] + 1, pool.stride[1])
            spread[:, :, rows, columns] += pooled * pool.factor
    return replace(affine, weight=spread.reshape(len(pooled), -1))


def pool_then_conv(pool: Pool, affine: Affine, source: Shape) -> tuple[Affine, Shape]:
    """Average pooling and a convolution as one strided convolution.

    A tap at pooled offset ``i`` becomes the window of taps at ``i stride``: for pooling by ``p``, a kernel ``p k``,
    stride ``p s``, padding ``p pad``.

    Returns
    -------
    affine : Affine
    needed : tuple of int
        The part ``(C, Y, X)`` of ``source`` that may exist. It is smaller than ``source`` where pooling drops rows
        or columns and the convolution is padded: there the dropped ones would take the place of padding zeros, so
        :func:`cropped` must take them away.

    Raises
    ------
    UnsupportedError
        If windows overlap and the convolution is padded (padding zeros would have to cover real values).
    """
    pooled = pool.output_shape(source)
    k_y, k_x = affine.weight.shape[2:]
    size = [(k - 1) * d * s + p for k, d, s, p in zip((k_y, k_x), affine.dilation, pool.stride, pool.size, strict=True)]
    weight = np.zeros((*affine.weight.shape[:2], *size))
    for i in range(k_y):
        for j in range(k_x):
            y, x = i * affine.dilation[0] * pool.stride[0], j * affine.dilation[1] * pool.stride[1]
            weight[:, :, y : y + pool.size[0], x : x + pool.size[1]] += affine.weight[:, :, i : i + 1, j : j + 1]
    needed = list(source)
    for axis in (0, 1):
        if affine.padding[axis] == 0:
            continue
        if pool.size[axis] > pool.stride[axis]:
            raise UnsupportedError(
                f"average pooling with overlapping windows (size {pool.size}, stride {pool.stride}) before a padded "
                "convolution is not one convolution; use stride = size, or a convolution without padding"
            )
        needed[1 + axis] = min(source[1 + axis], pooled[1 + axis] * pool.stride[axis])
    merged = replace(
        affine,
        weight=weight * pool.factor,
        stride=_times(affine.stride, pool.stride),
        padding=_times(affine.padding, pool.stride),
        dilation=(1, 1),
    )
    if merged.output_shape(tuple(needed)) != affine.output_shape(pooled):
        raise UnsupportedError(f"average pooling {pool} of {source} and the convolution after it do not fold into one")
    return merged, tuple(needed)


def pool_alone(pool: Pool, channels: int) -> Affine:
    """Average pooling as a depthwise convolution, for neurons that follow it directly."""
    weight = np.full((channels, 1, *pool.size), pool.factor)
    return Affine("conv2d", weight, np.zeros(channels), stride=pool.stride, groups=channels)


def _times(a: Pair, b: Pair) -> Pair:
    return (a[0] * b[0], a[1] * b[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldedLayer:
    """A population of real-valued neurons that send spikes 0/1, and the weights into it.

    Parameters
    ----------
    name : str
    affine : Affine
        ``W'`` and ``b'`` (module text).
    shape : tuple of int
        Of the population.
    reset : {"subtract", "zero", "none"}
        "none": a readout accumulator.
    threshold : float
        Fires where ``v >= threshold`` (``alpha th``); not used with reset "none".
    reset_amount : float
        Subtracted at a spike (``th``) with reset "subtract".
    beta : float
        Membrane kept from one step to the next; 1 for IF.
    amplitude : float
        What a spike of this layer stood for in training; the weights that follow have it folded in.
    """

    name: str
    affine: Affine
    shape: Shape
    reset: Reset
    threshold: float = 0.0
    reset_amount: float = 0.0
    beta: float = 1.0
    amplitude: float = 1.0


def cropped(layer: FoldedLayer, shape: Shape) -> FoldedLayer:
    """The convolutional ``layer`` without its last rows and columns.

    Zero taps at the kernel's end leave no room for them.
    """
    weight = layer.affine.weight
    extra = []
    for axis in (0, 1):
        a = layer.affine
        # Materialize the dilation, so that taps can be added one by one.
        spread = np.zeros([(n - 1) * a.dilation[axis] + 1 if i == 2 + axis else n for i, n in enumerate(weight.shape)])
        spread[(slice(None),) * (2 + axis) + (slice(None, None, a.dilation[axis]),)] = weight
        weight = spread
        # Each output row takes one stride of room.
        extra.append((layer.shape[1 + axis] - shape[1 + axis]) * a.stride[axis])
    weight = np.pad(weight, ((0, 0), (0, 0), (0, extra[0]), (0, extra[1])))
    return replace(layer, affine=replace(layer.affine, weight=weight, dilation=(1, 1)), shape=shape)


@dataclass(frozen=True, eq=False)
class FoldedRun:
    """What :meth:`Folded.simulate` gives.

    Attributes
    ----------
    spikes : dict of uint8 [T, B, *shape]
        By layer; every layer that spikes.
    scores : float64 [B, N]
        Class scores in the units of the trained network: the (weighted) mean rate times the amplitude, or the
        (weighted) mean current into the accumulator.
    """

    spikes: dict[str, npt.NDArray[np.uint8]]
    scores: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Folded:
    """A sequential network after folding: what the trained network does in eval mode, with spikes 0/1.

    Parameters
    ----------
    layers : tuple of FoldedLayer
    steps : int
    input_shape : tuple of int
    name : str
    labels : tuple of str
        Class names, if known.
    """

    layers: tuple[FoldedLayer, ...]
    steps: int
    input_shape: Shape
    name: str = "network"
    labels: tuple[str, ...] = ()

    @property
    def readout(self) -> Literal["rate", "membrane"]:
        """Whether scores are rates of the last layer or its membrane."""
        return "membrane" if self.layers[-1].reset == "none" else "rate"

    def simulate(self, x: npt.ArrayLike) -> FoldedRun:
        """Run in float64, one step at a time.

        Parameters
        ----------
        x : [B, *input_shape] (the same at every step) or [T, B, *input_shape]

        Raises
        ------
        DataError
            If the shape does not fit.
        """
        x = np.asarray(x, np.float64)
        n = len(self.input_shape)
        if x.ndim not in (n + 1, n + 2) or x.shape[x.ndim - n :] != self.input_shape:
            raise DataError(
                f"input of shape {x.shape} does not fit: give [samples, *{self.input_shape}], or with steps"
            )
        if x.ndim == n + 2 and len(x) != self.steps:
            raise DataError(f"the network runs {self.steps} steps; the input has {len(x)} frames")
        sent = list(x) if x.ndim == n + 2 else [x] * self.steps
        spikes: dict[str, npt.NDArray[np.uint8]] = {}
        v = np.zeros(0)
        for layer in self.layers:
            bias = layer.affine.bias.reshape(-1, *[1] * (len(layer.shape) - 1))
            v = np.zeros((sent[0].shape[0], *layer.shape))
            current, seen = v, None
            fired: list[FloatArray] = []
            for s in sent:
                if s is not seen:  # direct coding repeats one and the same array
                    current, seen = layer.affine(s) + bias, s
                v = layer.beta * v + current
                spike = v >= layer.threshold
                if layer.reset != "none":
                    v = np.where(spike, 0.0, v) if layer.reset == "zero" else v - layer.reset_amount * spike
                fired.append(spike.astype(np.float64))
            sent = fired
            if layer.reset != "none":
                spikes[layer.name] = np.stack(fired).astype(np.uint8)
        last = self.layers[-1]
        weights = last.beta ** np.arange(self.steps - 1.0, -1.0, -1.0)
        if last.reset == "none":
            gain = 1.0 if last.beta == 1.0 else 1.0 - last.beta  # k, which folding put into the weights
            scores = v / (gain * weights.sum())
        else:
            scores = last.amplitude * np.tensordot(weights / weights.sum(), spikes[last.name], 1)
        return FoldedRun(spikes, scores.reshape(len(scores), -1))
