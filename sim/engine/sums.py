"""Synapse sums of the fast engine: what arrives at a population, for many steps and samples at once.

All goes through the compiled kernels, spikes as events and numbers as bytes, where those were built and the bounds say
that 32 bits hold every sum. What is left is NumPy: a sum of integers is a matrix product of floating-point numbers,
and exact in any order of summation as long as no partial sum exceeds the mantissa. ``2^(e + f)`` is folded into the
weights: it moves the exponent only. Spikes are summed by ONNX Runtime's integer product, once there are enough of them.
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
from ...bounds import largest_sum, population_bounds, source_range
from ...network import INPUT, Connection, Conv2d, Dense, Network, Population, Scale, Shape, Synapse
from . import kernels
from .graded import Graded
from .packing import Layout, Packed, lay_out, pack

Array: TypeAlias = npt.NDArray[Any]
Sums: TypeAlias = Callable[[Array], Array]  # [t, b, *source] to [t, b, *target]

FLOAT32_EXACT = 2**24  # every integer up to this magnitude is a float32
NEURON_WORK, STEP_WORK = 32, 2**13  # additions of a weight in the time of a neuron's step, of a step without neurons
INTEGER_WORK = 2**32  # products after which a connection that NumPy sums goes to ONNX Runtime: importing it takes 0.3 s
FLOAT64_EXACT = 2**52  # every integer up to this magnitude is a float64, and so is its sum with any u or v


@dataclass(frozen=True, eq=False)
class Prepared:
    """A connection made ready.

    Attributes
    ----------
    shift : int
        Weights count ``2^shift``.
    packed : Packed or None
        For the compiled kernel; None where NumPy has to do.
    graded : Graded or None
        How numbers become bytes for it; None for spikes.
    sums : callable or None
        NumPy's, in floating point, ``2^shift`` included; None where it is packed.
    bytes_per_row : int
        NumPy's buffers for one sample at one step.
    """

    connection: Connection
    shift: int
    packed: Packed | None
    graded: Graded | None = None
    sums: Sums | None = None
    bytes_per_row: int = 0


class Synapses:
    """All connections into one population, made ready once per network.

    Attributes
    ----------
    compiled : bool
        The population runs in the compiled kernel: sums and neurons, in int32.
    layout : Layout
        Of its neurons there.
    may_wrap : bool
        Whether the current can leave the state's width.
    bias : int32 [blocks, 1, lanes] or [*layout.shape]
        One value per channel, or per neuron.
    dtype : float32, float64 or int64
        The narrowest in which NumPy's sums, over all connections together, are exact.
    bytes_per_row : int
        Memory that one sample at one step needs in NumPy; 0 where the kernel does everything.
    """

    def __init__(self, network: Network, population: Population):
        connections = list(network.incoming(population.name))
        largest = largest_total(network, population, connections)
        self.population = population
        self.dtype = exact_dtype(network, population, connections)
        self.compiled = kernels.fits(population, largest)
        self.layout = _layout(network, population, connections)
        self.may_wrap = population_bounds(network, population).can_wrap
        self.bias = _arranged_bias(population, self.layout)
        layout = self.layout if self.compiled else None
        self.prepared = [_prepare(network, population, c, self.dtype, layout) for c in connections]
        # In NumPy: the drive, a second one while connections are added up, and a copy in float64 for the neurons, or
        # two as they lie in the kernel.
        buffers = max((p.bytes_per_row for p in self.prepared), default=0)
        if not self.compiled or buffers:
            buffers += population.size * (2 * self.dtype.itemsize + 8)
        self.bytes_per_row = buffers


def _layout(network: Network, population: Population, connections: list[Connection]) -> Layout:
    """As spikes arrive, which come at every step, and else as numbers do, which may be summed once."""
    by_spikes = [c.synapse for c in connections if not network.sends_graded(c.source)]
    decided = any(not isinstance(s, Scale) for s in by_spikes)
    return lay_out(population, by_spikes if decided else [c.synapse for c in connections])


def _arranged_bias(population: Population, layout: Layout) -> npt.NDArray[np.int32]:
    bias = np.broadcast_to(population.bias, population.shape).reshape(layout.targets, layout.pixels)
    if population.state_bits > kernels.WIDEST_STATE:
        return np.zeros(0, np.int32)  # not for the kernel
    return layout.arrange(bias[:, :1] if (bias == bias[:, :1]).all() else bias)


class LayerSums:
    """All connections into one population, while a batch runs through it.

    Attributes
    ----------
    once : list of Prepared
        Connections that an input which never changes arrives by.
    by_kernel, by_numpy : list of Prepared
        Which of the others the compiled kernel sums, and which NumPy.
    work : int
        Time that the kernel can need at most for one sample at one step, in additions of one weight.
    """

    def __init__(self, synapses: Synapses, frames: Array, constant: bool):
        self._synapses = synapses
        self._population = population = synapses.population
        self._frames = frames
        self._at_rest: dict[tuple[str, int, int], Array] = {}
        self.once = [p for p in synapses.prepared if constant and p.connection.source == INPUT]
        stepped = [p for p in synapses.prepared if p not in self.once]
        self.by_kernel = [p for p in stepped if p.packed is not None]
        self.by_numpy = [p for p in stepped if p.packed is None]
        weights = sum(p.packed.weight.size * (p.graded.planes if p.graded else 1) for p in self.by_kernel if p.packed)
        self.work = synapses.layout.pixels * weights + NEURON_WORK * population.size + STEP_WORK

    @property
    def buffered(self) -> bool:
        """Whether NumPy makes a drive for every step."""
        return bool(self.by_numpy)

    def drive(self, sent: Mapping[str, Array], steps: slice, samples: slice) -> Array | None:
        """What the kernel does not sum of ``I 2^f`` in a block, exact; may be a read-only or strided view.

        Everything where the population does not run in the compiled kernel: [t, b, *shape] in :attr:`Synapses.dtype`.
        Otherwise what :meth:`arriving` leaves out: int32 [t, b, *layout.shape]; None if that is nothing.

        Parameters
        ----------
        sent : dict of uint8 or int32 [T, B, *shape]
            Spikes of the populations so far.
        steps, samples : slice
        """
        rest = self._synapses.layout.shape if self._synapses.compiled else self._population.shape
        size = (steps.stop - steps.start, samples.stop - samples.start, *rest)
        total: Array | None = None
        for prepared in (*self.once, *self.by_numpy):
            part = self._summed(prepared, sent, steps, samples, size)
            total = part if total is None else total + part
        if total is None and not self._synapses.compiled:
            return np.broadcast_to(np.zeros((), self._synapses.dtype), size)
        return total

    def arriving(self, sent: Mapping[str, Array], steps: slice, samples: slice) -> list[kernels.Arriving]:
        """What the compiled kernel sums of a block; valid until the next block of this thread."""
        found = []
        for p in self.by_kernel:
            c = p.connection
            silent = min(max(c.delay - steps.start, 0), steps.stop - steps.start)
            source = self._frames if c.source == INPUT else sent[c.source]
            found += _for_the_kernel(
                p, source[max(steps.start - c.delay, 0) : max(steps.stop - c.delay, 0), samples], silent
            )
        return found

    def _summed(
        self, prepared: Prepared, sent: Mapping[str, Array], steps: slice, samples: slice, size: Shape
    ) -> Array:
        """Sums of one connection; before the first delayed spike can arrive they are zero."""
        c = prepared.connection
        first, last = max(steps.start - c.delay, 0), max(steps.stop - c.delay, 0)
        silent = min(max(c.delay - steps.start, 0), size[0])
        if silent == size[0]:
            return np.zeros(size, np.int32 if self._synapses.compiled else self._synapses.dtype)
        if prepared in self.once:
            key = (c.name, samples.start, samples.stop)
            if key not in self._at_rest:
                self._at_rest[key] = self._product(prepared, self._frames[:1, samples])
            arriving = np.broadcast_to(self._at_rest[key], (last - first, *size[1:]))
        else:
            source = self._frames if c.source == INPUT else sent[c.source]
            arriving = self._product(prepared, source[first:last, samples])
        if not silent:
            return arriving
        delayed = np.zeros(size, arriving.dtype)
        delayed[silent:] = arriving
        return delayed

    def _product(self, prepared: Prepared, x: Array) -> Array:
        layout = self._synapses.layout
        if prepared.packed is not None:
            return kernels.sums_of(layout, _for_the_kernel(prepared, x, 0), x.shape[1])
        assert prepared.sums is not None
        sums = prepared.sums(x)
        return layout.arrange(sums.reshape(*x.shape[:2], layout.targets, -1)) if self._synapses.compiled else sums


def _for_the_kernel(p: Prepared, x: Array, silent: int) -> list[kernels.Arriving]:
    """What a connection carries, as bytes: as they are, or in buffers of this thread."""
    assert p.packed is not None
    name, most = p.connection.name, 31  # weights that are all zero may have any exponent; others stay far below
    if p.graded is not None:
        planes = p.graded.bytes_of(x, lambda k, size: _buffer(f"{name}/{k}", size, np.uint8))
        return [
            kernels.Arriving(
                p.packed, plane, silent, min(p.shift + 8 * k, most), p.graded.zero(k), None if k else p.graded.offset
            )
            for k, plane in enumerate(planes)
        ]
    if x.dtype in (np.bool_, np.uint8) and x[:1, :1].flags.c_contiguous:
        return [kernels.Arriving(p.packed, x.view(np.uint8), silent, min(p.shift, most))]
    fired = _buffer(name, x.size, np.bool_).reshape(x.shape)
    np.copyto(fired, x, casting="unsafe")
    return [kernels.Arriving(p.packed, fired.view(np.uint8), silent, min(p.shift, most))]


_own = threading.local()


def _buffer(name: str, values: int, dtype: Any) -> Array:
    """Buffer of this thread: fresh memory costs more than what is done there."""
    buffer = _own.__dict__.get(name)
    if buffer is None or buffer.size < values:
        buffer = _own.__dict__[name] = np.empty(values, dtype)
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
    network: Network, population: Population, connection: Connection, dtype: np.dtype[Any], layout: Layout | None
) -> Prepared:
    source, target = network.shape_of(connection.source), population.shape
    shift = population.fraction_bits + connection.weight_exponent
    packed = pack(connection.synapse, source, target, layout) if layout else None
    if packed and layout:
        numbers = network.sends_graded(connection.source)
        sends = source_range(network, connection)
        graded = Graded.of(*sends, connection.synapse, layout) if numbers else None
        return Prepared(connection, shift, packed, graded)
    if dtype.kind == "i":
        sums, values = _exact_sums(connection.synapse, target, shift), 2 * math.prod(source)
    else:
        weight = connection.synapse.weight.astype(dtype) * dtype.type(2.0**shift)
        sums, values = prepare(connection.synapse, weight, source, target)
        synapse = connection.synapse
        narrow = not network.sends_graded(connection.source) and largest_sum(network, connection) < 2**31
        if narrow and not isinstance(synapse, Scale) and (isinstance(synapse, Dense) or synapse.groups == 1):
            sums = _integer_once_it_pays(sums, synapse, target, dtype.type(2.0**shift))
    return Prepared(connection, shift, None, None, sums, values * dtype.itemsize)


def _integer_once_it_pays(plain: Sums, synapse: Dense | Conv2d, target: Shape, factor: np.floating[Any]) -> Sums:
    """``plain``, and after :data:`INTEGER_WORK` the integer product, which is three to four times as fast."""
    each, done = synapse.weight.size * math.prod(target[1:]), 0
    integer: Sums | None = None

    def sums(x: Array) -> Array:
        nonlocal done, integer
        if integer is None and done < INTEGER_WORK:
            done += x.shape[0] * x.shape[1] * each
            return plain(x)
        if integer is None:
            from .integer_products import integer_sums

            integer = integer_sums(synapse, target)
        return integer(x).astype(factor.dtype) * factor

    return sums


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
