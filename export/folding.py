"""Folding: a trained network as plain spiking layers, in float64 NumPy and without loss.

With ``k = 1`` (IF) or ``1 - beta`` (LIF), ``A`` the amplitude of the spikes of the layer before (``th`` for IF,
``th/dt`` for LIF; 1 for the input), and batch normalization as ``g I + h`` with ``g = gamma / sqrt(var + eps)``,
``h = beta_bn - g mean``, a layer becomes

    W' = k A g W,   b' = k (g b + h)                      b' is added at every step

and its neurons, which now send plain spikes 0/1, are those of :mod:`lapilli.network` in real numbers::

    v = beta v + W' s + b'      fire where v >= threshold = alpha th      subtract reset_amount = th, or set to 0

TSSL-BP has ``k = 1/tau_s``, ``A = 1``, no biases, and a synaptic current ``i = current_beta i + W' s`` in place of
``W' s``; it fires where ``v > threshold``.

Average pooling has no neurons: it becomes part of the weights that follow it. Where a layer adds up several branches
(residual blocks), each is scaled by the ``g`` that follows the sum and by the ``A`` of its own source, and one bias
``b'`` holds for all; an identity branch has one weight for each channel. :mod:`lapilli.export.lowering` reads all this
from a torch network; nothing here knows torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import DataError, UnsupportedError
from ..network import INPUT, Conv2d, Dense, Reset, Scale, Shape, Synapse

FloatArray: TypeAlias = npt.NDArray[np.float64]
Pair: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Pool:
    """Average pooling; rows and columns left over are dropped.

    Parameters
    ----------
    size, stride : (vertical, horizontal)
    divisor : int or None
        What the sum over a window is divided by; None: the size of the window.
    padding : (vertical, horizontal)
        Zeros on every side, which count in the mean.
    gain : float
        Factor on what pooling gives.
    """

    size: Pair
    stride: Pair
    divisor: int | None = None
    padding: Pair = (0, 0)
    gain: float = 1.0

    @property
    def factor(self) -> float:
        """Weight of each value in a window."""
        return self.gain / (self.divisor or math.prod(self.size))

    def output_shape(self, source: Shape) -> Shape:
        """``(C, Y, X)`` after pooling."""
        c, *rest = source
        geometry = zip(rest, self.size, self.stride, self.padding, strict=True)
        y, x = ((n + 2 * z - p) // s + 1 for n, p, s, z in geometry)
        return (c, y, x)


@dataclass(frozen=True)
class AdaptivePool:
    """Average pooling to a map of a given size (torch's ``AdaptiveAvgPool2d``); a smaller map is repeated.

    Parameters
    ----------
    size : (vertical, horizontal)
        Of the result.
    """

    size: Pair

    def output_shape(self, source: Shape) -> Shape:
        """``(C, Y, X)`` after pooling."""
        return (source[0], *self.size)

    def means(self, axis: int, length: int) -> FloatArray:
        """Row ``i`` averages from ``floor(i n / m)`` up to ``ceil((i + 1) n / m)``: ``[m, n]`` for one axis."""
        m = self.size[axis]
        rows = np.zeros((m, length))
        for i in range(m):
            start, stop = i * length // m, -(-(i + 1) * length // m)
            rows[i, start:stop] = 1.0 / (stop - start)
        return rows

    def plain(self, source: Shape) -> Pool | None:
        """The same as a :class:`Pool`, where all windows are of one size and none overlap."""
        if any(n % m for n, m in zip(source[1:], self.size, strict=True)):
            return None
        size = (source[1] // self.size[0], source[2] // self.size[1])
        return Pool(size, size)


AnyPool: TypeAlias = Pool | AdaptivePool


@dataclass(frozen=True, eq=False)
class Affine:
    """Real weights and a bias: one of the description's synapses before rounding.

    Parameters
    ----------
    kind : {"dense", "conv2d", "scale"}
    weight : float64 [N_out, N_in], [C_out, C_in / groups, K_y, K_x] or, of a scale, [C]
    bias : float64 [N_out] or [C_out]
    stride, padding, dilation : (vertical, horizontal)
        As in ``Conv2d``.
    groups : int
    """

    kind: Literal["dense", "conv2d", "scale"]
    weight: FloatArray
    bias: FloatArray
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def synapse(self, integers: npt.NDArray[Any]) -> Synapse:
        """The description's synapse of this geometry with these integer weights."""
        if self.kind == "dense":
            return Dense(integers)
        if self.kind == "scale":
            return Scale(integers)
        return Conv2d(integers, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups)

    def output_shape(self, source: Shape) -> Shape:
        """Shape of the target; raises DescriptionError where the weights do not fit the source."""
        size = self.synapse(np.zeros(self.weight.shape, np.int8)).output_size(source)
        return (size,) if isinstance(size, int) else size

    def __call__(self, x: FloatArray) -> FloatArray:
        """``W x`` without bias: ``[B, *source]`` to ``[B, *target]``."""
        if self.kind == "dense":
            return x.reshape(len(x), -1) @ self.weight.T
        if self.kind == "scale":
            return x * self.weight.reshape(-1, *[1] * (x.ndim - 2))
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


def identity(channels: int) -> Affine:
    """What goes through as it is: a weight of 1 for each channel."""
    return Affine("scale", np.ones(channels), np.zeros(channels))


def pools_then_linear(pools: Sequence[AnyPool], affine: Affine, source: Shape) -> Affine:
    """Poolings of any kind, flattening and a dense layer as one dense layer on the unpooled ``source (C, Y, X)``."""
    shapes = [source]
    for pool in pools:
        shapes.append(pool.output_shape(shapes[-1]))
    for pool, before in zip(reversed(pools), reversed(shapes[:-1]), strict=True):
        if isinstance(pool, Pool):
            affine = pool_then_linear(pool, affine, before)
        else:
            weight = affine.weight.reshape(-1, *pool.output_shape(before))
            spread = np.einsum("ocyx,yv,xh->ocvh", weight, pool.means(0, before[1]), pool.means(1, before[2]))
            affine = replace(affine, weight=spread.reshape(len(weight), -1))
    return affine


def pool_then_linear(pool: Pool, affine: Affine, source: Shape) -> Affine:
    """Average pooling, flattening and a dense layer as one dense layer on the unpooled ``source (C, Y, X)``."""
    c, y, x = pool.output_shape(source)
    pooled = affine.weight.reshape(-1, c, y, x)
    top, left = pool.padding
    spread = np.zeros((len(pooled), c, source[1] + 2 * top, source[2] + 2 * left))
    for i in range(pool.size[0]):
        for j in range(pool.size[1]):
            rows = slice(i, i + (y - 1) * pool.stride[0] + 1, pool.stride[0])
            columns = slice(j, j + (x - 1) * pool.stride[1] + 1, pool.stride[1])
            spread[:, :, rows, columns] += pooled * pool.factor
    inside = spread[:, :, top : top + source[1], left : left + source[2]]
    return replace(affine, weight=inside.reshape(len(pooled), -1))


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
        If windows overlap, or pooling is padded, and the convolution is padded too (padding zeros would have to
        cover real values).
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
        if pool.size[axis] > pool.stride[axis] or pool.padding[axis]:
            raise UnsupportedError(
                f"average pooling with overlapping or padded windows (size {pool.size}, stride {pool.stride}, padding "
                f"{pool.padding}) before a padded convolution is not one convolution; use stride = size and padding "
                "0, put neurons between, or use a convolution without padding"
            )
        needed[1 + axis] = min(source[1 + axis], pooled[1 + axis] * pool.stride[axis])
    merged = replace(
        affine,
        weight=weight * pool.factor,
        stride=_times(affine.stride, pool.stride),
        # One of the two is 0, see above.
        padding=_plus(_times(affine.padding, pool.stride), pool.padding),
        dilation=(1, 1),
    )
    if merged.output_shape(tuple(needed)) != affine.output_shape(pooled):
        raise UnsupportedError(f"average pooling {pool} of {source} and the convolution after it do not fold into one")
    return merged, tuple(needed)


def pool_alone(pool: Pool, channels: int) -> Affine:
    """Average pooling as a depthwise convolution, for neurons that follow it directly."""
    weight = np.full((channels, 1, *pool.size), pool.factor)
    return Affine("conv2d", weight, np.zeros(channels), stride=pool.stride, padding=pool.padding, groups=channels)


def _times(a: Pair, b: Pair) -> Pair:
    return (a[0] * b[0], a[1] * b[1])


def _plus(a: Pair, b: Pair) -> Pair:
    return (a[0] + b[0], a[1] + b[1])


@dataclass(frozen=True, eq=False)
class Branch:
    """Weights from one source into a layer.

    Parameters
    ----------
    source : str
        Name of a layer, or "input".
    affine : Affine
    """

    source: str
    affine: Affine


@dataclass(frozen=True, eq=False, kw_only=True)
class FoldedLayer:
    """A population of real-valued neurons that send spikes 0/1, and the weights into it.

    Parameters
    ----------
    name : str
    affine : Affine
        ``W'`` and ``b'`` (module text) of the first branch, in most layers the only one.
    shape : tuple of int
        Of the population.
    source : str
        Where that branch comes from: the name of an earlier layer, or "input"; empty: from the layer before.
    shortcuts : tuple of Branch
        Further branches, all of which are added; the whole bias is that of ``affine``, theirs is not used.
    reset : {"subtract", "zero", "none"}
        "none": a readout accumulator.
    threshold : float
        Fires where ``v >= threshold`` (``alpha th``), with synaptic current where ``v > threshold``; not used with
        reset "none".
    reset_amount : float
        Subtracted at a spike (``th``) with reset "subtract".
    beta : float
        Membrane kept from one step to the next; 1 for IF.
    current_beta : float
        Synaptic current kept from one step to the next; 0: none, as in DSR.
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
    current_beta: float = 0.0
    amplitude: float = 1.0
    source: str = ""
    shortcuts: tuple[Branch, ...] = ()


def cropped(layer: FoldedLayer, shape: Shape) -> FoldedLayer:
    """The convolutional ``layer`` without its last rows and columns.

    Zero taps at the kernel's end leave no room for them.
    """
    dropped = (layer.shape[1] - shape[1], layer.shape[2] - shape[2])
    shortcuts = tuple(replace(b, affine=_without_last(b.affine, dropped)) for b in layer.shortcuts)
    return replace(layer, affine=_without_last(layer.affine, dropped), shortcuts=shortcuts, shape=shape)


def _without_last(affine: Affine, dropped: Pair) -> Affine:
    if affine.kind == "scale":
        channels = len(affine.weight)
        affine = replace(affine, kind="conv2d", weight=affine.weight.reshape(channels, 1, 1, 1), groups=channels)
    weight = affine.weight
    extra = []
    for axis in (0, 1):
        # Materialize the dilation, so that taps can be added one by one.
        step = affine.dilation[axis]
        spread = np.zeros([(n - 1) * step + 1 if i == 2 + axis else n for i, n in enumerate(weight.shape)])
        spread[(slice(None),) * (2 + axis) + (slice(None, None, step),)] = weight
        weight = spread
        # Each output row takes one stride of room.
        extra.append(dropped[axis] * affine.stride[axis])
    weight = np.pad(weight, ((0, 0), (0, 0), (0, extra[0]), (0, extra[1])))
    return replace(affine, weight=weight, dilation=(1, 1))


@dataclass(frozen=True, eq=False)
class FoldedRun:
    """What :meth:`Folded.simulate` gives.

    Attributes
    ----------
    spikes : dict of uint8 [T, B, *shape]
        By layer; every layer that spikes.
    scores : float64 [B, N]
        Class scores in the units of the trained network: the (weighted) mean rate times the amplitude, or the
        (weighted) mean current into the accumulator; of a network that is read "plain", the number of spikes times the
        amplitude, or the last membrane.
    """

    spikes: dict[str, npt.NDArray[np.uint8]]
    scores: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class Folded:
    """A network after folding: what the trained network does in eval mode, with spikes 0/1.

    Parameters
    ----------
    layers : tuple of FoldedLayer
        A layer comes after all its sources; the last one is read.
    steps : int
    input_shape : tuple of int
    name : str
    labels : tuple of str
        Class names, if known.
    corrected : bool
        Whether biases make up for the rounding of weights (:mod:`.calibration`); then it is no longer quite the trained
        network.
    gradient : str
        What trained it, and trains it on in integers: "dsr", or a version of TSSL-BP.
    read : {"weighted", "plain"}
        What scores are: means over the steps, in which a step counts as much as a membrane of the last layer keeps of
        it (DSR's rates), or the number of spikes and the last membrane (as in other frameworks).
    """

    layers: tuple[FoldedLayer, ...]
    steps: int
    input_shape: Shape
    name: str = "network"
    labels: tuple[str, ...] = ()
    corrected: bool = False
    gradient: str = "dsr"
    read: Literal["weighted", "plain"] = "weighted"

    @property
    def readout(self) -> Literal["rate", "membrane"]:
        """Whether scores are rates of the last layer or its membrane."""
        return "membrane" if self.layers[-1].reset == "none" else "rate"

    def branches(self, layer: FoldedLayer) -> tuple[Branch, ...]:
        """All branches into a layer, the one with the bias first."""
        source = layer.source
        if not source:
            i = self.layers.index(layer)
            source = self.layers[i - 1].name if i else INPUT
        return (Branch(source, layer.affine), *layer.shortcuts)

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
        sent = {INPUT: list(x) if x.ndim == n + 2 else [x] * self.steps}
        spikes: dict[str, npt.NDArray[np.uint8]] = {}
        v = np.zeros(0)
        for layer in self.layers:
            bias = layer.affine.bias.reshape(-1, *[1] * (len(layer.shape) - 1))
            branches = self.branches(layer)
            v = np.zeros((sent[INPUT][0].shape[0], *layer.shape))
            current = np.zeros_like(v)
            fired: list[FloatArray] = []
            currents = [_currents(branch.affine, sent[branch.source]) for branch in branches]
            for parts in zip(*currents, strict=True):
                current = layer.current_beta * current + sum(part.reshape(v.shape) for part in parts)
                v = layer.beta * v + (current + bias)
                spike = v > layer.threshold if layer.current_beta else v >= layer.threshold
                if layer.reset != "none":
                    v = np.where(spike, 0.0, v) if layer.reset == "zero" else v - layer.reset_amount * spike
                fired.append(spike.astype(np.float64))
            sent[layer.name] = fired
            if layer.reset != "none":
                spikes[layer.name] = np.stack(fired).astype(np.uint8)
        last = self.layers[-1]
        weights = last.beta ** np.arange(self.steps - 1.0, -1.0, -1.0)
        if self.read == "plain":
            scores = v if last.reset == "none" else last.amplitude * spikes[last.name].sum(0, dtype=np.float64)
        elif last.reset == "none":
            gain = 1.0 if last.beta == 1.0 else 1.0 - last.beta  # k, which folding put into the weights
            scores = v / (gain * weights.sum())
        else:
            scores = last.amplitude * np.tensordot(weights / weights.sum(), spikes[last.name], 1)
        return FoldedRun(spikes, scores.reshape(len(scores), -1))


def _currents(affine: Affine, frames: list[FloatArray]) -> Iterator[FloatArray]:
    """``W x`` of each step; direct coding repeats one and the same array."""
    current, seen = frames[0], None
    for x in frames:
        if x is not seen:
            current, seen = affine(x), x
        yield current
