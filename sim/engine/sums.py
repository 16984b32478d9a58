"""Synapse sums of the fast engine: what arrives at a population, for many steps and samples at once.

Spikes go through the compiled kernels, where those were built and the bounds say that 32 bits hold every sum. All else
is NumPy: a sum of integers is a matrix product of floating-point numbers, and exact in any order of summation as long
as no partial sum exceeds the mantissa. ``2^(e + f)`` is folded into the weights: it moves the exponent only.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from ...arithmetic import synapse_sum
from ...bounds import largest_sum
from ...network import INPUT, Connection, Conv2d, Dense, Network, Population, Scale, Shape, Synapse
from . import kernels
from .packing import Packed, pack

Array: TypeAlias = npt.NDArray[Any]
Sums: TypeAlias = Callable[[Array], Array]  # [t, b, *source] to [t, b, *target]

FLOAT32_EXACT = 2**24  # every integer up to this magnitude is a float32
FLOAT64_EXACT = 2**52  # every integer up to this magnitude is a float64, and so is its sum with any u or v


@dataclass(frozen=True)
class Prepared:
    """A connection made ready for one number type.

    Attributes
    ----------
    sums : callable
        In floating point, ``2^(e + f)`` included.
    packed : Packed or None
        For the compiled kernel; None where NumPy has to do.
    """

    connection: Connection
    shift: int
    sums: Sums
    packed: Packed | None
    bytes_per_row: int  # buffers for one sample at one step


class Synapses:
    """All connections into one population, made ready once per network.

    Attributes
    ----------
    compiled : bool
        The population runs in the compiled kernels: sums and neurons, in int32.
    dtype : float32, float64 or int64
        The narrowest in which NumPy's sums, over all connections together, are exact.
    bytes_per_row : int
        Memory that one sample at one step needs in :meth:`LayerSums.drive`.
    """

    def __init__(self, network: Network, population: Population):
        connections = list(network.incoming(population.name))
        self.population = population
        self.dtype = exact_dtype(network, population, connections)
        self.compiled = kernels.fits(population, largest_total(network, population, connections))
        self.prepared = [_prepare(network, population, c, self.dtype, self.compiled) for c in connections]
        # The drive itself; in NumPy a second one while connections are added up, and a copy in float64 for the neurons.
        own = population.size * (4 if self.compiled else 2 * self.dtype.itemsize + 8)
        self.bytes_per_row = own + max((c.bytes_per_row for c in self.prepared), default=0)


class LayerSums:
    """All connections into one population, while a batch runs through it."""

    def __init__(self, synapses: Synapses, frames: Array, constant: bool):
        self._synapses = synapses
        self._population = synapses.population
        self._frames = frames
        self._constant = constant
        self._at_rest: dict[tuple[str, int, int], Array] = {}

    def drive(self, sent: Mapping[str, Array], steps: slice, samples: slice) -> Array:
        """``I 2^f`` of a block, exact: [t, b, *shape]; may be a read-only or strided view.

        Valid until the next block of this thread. The numbers are int32 where the population runs in the compiled
        kernels, else of :attr:`Synapses.dtype`.

        Parameters
        ----------
        sent : dict of uint8 [T, B, *shape]
            Spikes of the populations so far.
        steps, samples : slice
        """
        size = (steps.stop - steps.start, samples.stop - samples.start, *self._population.shape)
        if self._synapses.compiled:
            return self._compiled_drive(sent, steps, samples, size)
        total: Array | None = None
        for prepared in self._synapses.prepared:
            part = self._arriving(prepared, sent, steps, samples, size)
            total = part if total is None else total + part
        return np.broadcast_to(np.zeros((), self._synapses.dtype), size) if total is None else total

    def _compiled_drive(self, sent: Mapping[str, Array], steps: slice, samples: slice, size: Shape) -> Array:
        """The same in int32: NumPy's part first, events onto it."""
        by_events = [p for p in self._synapses.prepared if self._runs_on_events(p)]
        rest = [p for p in self._synapses.prepared if not self._runs_on_events(p)]
        parts = [self._arriving(p, sent, steps, samples, size) for p in rest]
        if not by_events and len(parts) == 1:
            return parts[0]
        drive = _scratch(size)
        written = bool(parts) or not by_events
        if written:
            np.copyto(drive, sum(parts[1:], start=parts[0]) if parts else 0)
        for p in by_events:
            delay = p.connection.delay
            silent = min(max(delay - steps.start, 0), size[0])
            if not written:
                drive[:silent] = 0
            source = self._frames if p.connection.source == INPUT else sent[p.connection.source]
            x = source[max(steps.start - delay, 0) : max(steps.stop - delay, 0), samples]
            if p.connection.source == INPUT:
                x = _as_spikes(x)
            assert p.packed is not None
            kernels.event_sums(p.packed, x, drive[silent:], p.shift, add=written)
            written = True
        return drive

    def _runs_on_events(self, p: Prepared) -> bool:
        """Whether a connection carries spikes to a packed synapse; an input that never changes is summed once."""
        return p.packed is not None and not (p.connection.source == INPUT and self._constant)

    def _arriving(
        self, prepared: Prepared, sent: Mapping[str, Array], steps: slice, samples: slice, size: Shape
    ) -> Array:
        """Sums of one connection by NumPy; before the first delayed spike can arrive they are zero."""
        c = prepared.connection
        first, last = max(steps.start - c.delay, 0), max(steps.stop - c.delay, 0)
        silent = min(max(c.delay - steps.start, 0), size[0])
        if silent == size[0]:
            return np.zeros(size, np.int32 if self._synapses.compiled else self._synapses.dtype)
        if c.source == INPUT and self._constant:
            key = (c.name, samples.start, samples.stop)
            if key not in self._at_rest:
                self._at_rest[key] = self._by_numpy(prepared, self._frames[:1, samples])
            arriving = np.broadcast_to(self._at_rest[key], (last - first, *size[1:]))
        else:
            source = self._frames if c.source == INPUT else sent[c.source]
            arriving = self._by_numpy(prepared, source[first:last, samples])
        if not silent:
            return arriving
        delayed = np.zeros(size, arriving.dtype)
        delayed[silent:] = arriving
        return delayed

    def _by_numpy(self, prepared: Prepared, x: Array) -> Array:
        sums = prepared.sums(x)
        return np.ascontiguousarray(sums, np.int32) if self._synapses.compiled else sums


_own = threading.local()


def _scratch(size: Shape) -> npt.NDArray[np.int32]:
    """Buffer of this thread for the drive of a block: fresh memory costs more than the sums that go there."""
    return _buffer("drive", math.prod(size), np.int32).reshape(size)


def _as_spikes(x: Array) -> npt.NDArray[np.uint8]:
    """Binary input as bytes of 0 and 1, which the kernel relies on; in a buffer of this thread."""
    fired = _buffer("input", x.size, np.bool_).reshape(x.shape)
    np.copyto(fired, x, casting="unsafe")
    return fired.view(np.uint8)


def _buffer(name: str, values: int, dtype: Any) -> Array:
    buffer = getattr(_own, name, None)
    if buffer is None or buffer.size < values:
        buffer = np.empty(values, dtype)
        setattr(_own, name, buffer)
    return buffer[:values]


def largest_total(network: Network, population: Population, connections: list[Connection]) -> int:
    """Largest magnitude of ``I 2^f`` over all connections together, in any order of summation."""
    return sum(largest_sum(network, c) << (population.fraction_bits + c.weight_exponent) for c in connections)


def exact_dtype(network: Network, population: Population, connections: list[Connection]) -> np.dtype[Any]:
    """The narrowest type in which the total of all connections into a population is exact, in any order."""
    shifts = [population.fraction_bits + c.weight_exponent for c in connections]
    total = largest_total(network, population, connections)
    if total > FLOAT64_EXACT:
        return np.dtype(np.int64)
    return np.dtype(np.float32 if total >> min(shifts, default=0) <= FLOAT32_EXACT else np.float64)


def _prepare(
    network: Network, population: Population, connection: Connection, dtype: np.dtype[Any], compiled: bool
) -> Prepared:
    source, target = network.shape_of(connection.source), population.shape
    shift = population.fraction_bits + connection.weight_exponent
    spikes = connection.source != INPUT or network.input.binary
    packed = pack(connection.synapse, source, target) if compiled and spikes else None
    if dtype.kind == "i":
        sums, values = _exact_sums(connection.synapse, target, shift), 2 * math.prod(source)
    else:
        weight = connection.synapse.weight.astype(dtype) * dtype.type(2.0**shift)
        sums, values = prepare(connection.synapse, weight, source, target)
    return Prepared(connection, shift, sums, packed, 0 if packed else values * dtype.itemsize)


def _exact_sums(synapse: Synapse, target: Shape, shift: int) -> Sums:
    """The reference's own arithmetic, for sums too large for float64."""

    def sums(x: Array) -> Array:
        flat = x.reshape(-1, *x.shape[2:]).astype(np.int64)
        return (synapse_sum(synapse, flat, target) << shift).reshape(*x.shape[:2], *target)

    return sums


@singledispatch
def prepare(synapse: Synapse, weight: Array, source: Shape, target: Shape) -> tuple[Sums, int]:
    """Return the function that sums a synapse, and the number of values it buffers per sample and step.

    Parameters
    ----------
    synapse : Dense, Conv2d or Scale
    weight : float32 or float64
        The synapse's weight times ``2^(e + f)``.
    source, target : tuple of int
    """
    raise NotImplementedError(type(synapse).__name__)


@prepare.register
def _(synapse: Dense, weight: Array, source: Shape, target: Shape) -> tuple[Sums, int]:  # noqa: ARG001
    transposed = np.ascontiguousarray(weight.T)

    def sums(x: Array) -> Array:
        rows = x.reshape(x.shape[0] * x.shape[1], -1).astype(weight.dtype)
        return (rows @ transposed).reshape(*x.shape[:2], *target)

    return sums, weight.shape[1]


@prepare.register
def _(synapse: Scale, weight: Array, source: Shape, target: Shape) -> tuple[Sums, int]:  # noqa: ARG001
    per_channel = weight.reshape(-1, *[1] * (len(target) - 1))
    return (lambda x: x.astype(weight.dtype) * per_channel), math.prod(source)


@prepare.register
def _(synapse: Conv2d, weight: Array, source: Shape, target: Shape) -> tuple[Sums, int]:
    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    c_out, c_in, k_y, k_x = weight.shape
    _, y_out, x_out = target
    groups, per_group = synapse.groups, c_out // synapse.groups
    kernel = (dy * (k_y - 1) + 1, dx * (k_x - 1) + 1)
    matrix = weight.reshape(groups, per_group, c_in * k_y * k_x)
    padded_size = source[0] * (source[1] + 2 * py) * (source[2] + 2 * px)

    def patches(x: Array) -> Array:
        """Every input under every kernel tap: strided view [C, K_y, K_x, t, b, Y_out, X_out]."""
        t, b, c, y, x_in = x.shape
        padded = np.zeros((c, t, b, y + 2 * py, x_in + 2 * px), weight.dtype)
        padded[..., py : py + y, px : px + x_in] = x.transpose(2, 0, 1, 3, 4)
        windows = sliding_window_view(padded, kernel, axis=(3, 4))  # pyright: ignore[reportCallIssue, reportArgumentType]
        return windows[..., ::sy, ::sx, ::dy, ::dx].transpose(0, 5, 6, 1, 2, 3, 4)

    def product(x: Array) -> Array:
        seen = patches(x).reshape(groups, c_in * k_y * k_x, -1)  # the copy that im2col is named for
        return (matrix @ seen).reshape(c_out, *x.shape[:2], y_out, x_out).transpose(1, 2, 0, 3, 4)

    def depthwise(x: Array) -> Array:
        """One input channel per group: a product would be a matrix with a single row, so taps are added up."""
        seen = patches(x)
        total = np.zeros((groups, per_group, *seen.shape[3:]), weight.dtype)
        for i in range(k_y):
            for j in range(k_x):
                total += weight[:, 0, i, j].reshape(groups, per_group, 1, 1, 1, 1) * seen[:, None, i, j]
        return total.reshape(c_out, *seen.shape[3:]).transpose(1, 2, 0, 3, 4)

    if c_in == 1 and groups > 1:
        return depthwise, padded_size + 2 * c_out * y_out * x_out
    return product, padded_size + (source[0] * k_y * k_x + c_out) * y_out * x_out
