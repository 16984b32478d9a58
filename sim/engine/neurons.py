"""The neuron loop of the fast engine: many steps of a block of neurons, in place.

Where the compiled kernel does not run, this is :func:`lapilli.arithmetic.neuron_step` in floating point, which is exact
here: the integers stay below the mantissa's limit, ``(4096 - d) / 4096`` has 12 bits, and truncation is truncation. The
range of the drive that really arrives tells before the loop whether a state can leave its width at all; only then does
the loop look for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ...arithmetic import decay_integer, neuron_step, saturate, wrap
from ...bounds import lowest_after_reset
from ...network import DECAY_ONE, IntArray, Population, Shape
from .packing import Layout
from .sums import FLOAT32_EXACT

Array: TypeAlias = npt.NDArray[Any]


@dataclass
class State:
    """Current and membrane of a population between blocks.

    Attributes
    ----------
    u : float64 [B, *shape] or int32 [B, *layout.shape], or None
        In the compiled kernel int32. None where the current has no memory (``du = 4096``).
    v : the same
    """

    u: Array | None
    v: Array

    @classmethod
    def at_rest(cls, population: Population, batch: int, layout: Layout | None = None, keep_u: bool = False) -> State:
        """State at the start of a window; ``keep_u``: also the current without memory, for a trace of it."""
        dtype = np.int32 if layout else np.float64
        v = np.full((batch, *(layout.shape if layout else population.shape)), population.v_init, dtype)
        if layout and layout.targets % layout.lanes:
            v[:, -1, :, layout.targets % layout.lanes :] = 0  # they fill up the block and never spike
        return cls(np.zeros_like(v) if keep_u or population.du != DECAY_ONE else None, v)

    def of(self, samples: slice) -> State:
        """View of some samples."""
        return State(None if self.u is None else self.u[samples], self.v[samples])


@dataclass
class Trace:
    """Where the steps of a traced population are written: int64 [T, B, *shape] each."""

    current: IntArray
    u: IntArray
    v: IntArray

    @classmethod
    def empty(cls, steps: int, batch: int, shape: Shape) -> Trace:
        """Room for a whole window."""
        return cls(*(np.zeros((steps, batch, *shape), np.int64) for _ in range(3)))

    def of(self, steps: slice, samples: slice) -> Trace:
        """View of a block."""
        return Trace(self.current[steps, samples], self.u[steps, samples], self.v[steps, samples])


class Events(NamedTuple):
    """What a block counted: overflow events, and images that were summed as products."""

    wraps: int
    saturations: int
    products: int = 0


class Reach(NamedTuple):
    """Largest magnitudes that a block can take the state to, if nothing wraps or saturates."""

    u_low: int
    u_high: int
    v_low: int
    v_high: int

    @property
    def largest(self) -> int:
        """Largest magnitude of any intermediate result of the update."""
        return max(-self.u_low, self.u_high) + max(-self.v_low, self.v_high)


def run_neurons(population: Population, drive: Array, state: State, spikes: Array, trace: Trace | None) -> Events:
    """Take all steps of a block; ``state`` is advanced, ``spikes`` and ``trace`` are filled in.

    Parameters
    ----------
    population : Population
    drive : float32, float64 or int64 [t, b, *shape]
        ``I 2^f``; not changed.
    state : State
        ``[b, *shape]``
    spikes : uint8 or int32 [t, b, *shape]
        Not touched with reset "none".
    trace : Trace or None
    """
    if not drive.size:
        return Events(0, 0)
    if drive.dtype == np.int64:
        return _reference_steps(population, drive, state, spikes, trace)
    reach = reach_of(population, drive, state)
    can_wrap = reach.u_low <= -population.v_max - 1 or reach.u_high > population.v_max + 1
    can_saturate = can_wrap or reach.v_low < -population.v_max or reach.v_high > population.v_max
    truncates = 0 < population.du < DECAY_ONE or 0 < population.dv < DECAY_ONE
    largest = max(reach.largest, population.reset_amount * population.payload_max)
    narrow = drive.dtype == np.float32 and not (truncates or can_saturate) and largest <= FLOAT32_EXACT
    dtype = np.dtype(np.float32 if narrow else np.float64)
    return _steps(population, drive, state, spikes, trace, dtype, can_wrap, can_saturate)


def reach_of(population: Population, drive: Array, state: State) -> Reach:
    """Bounds of ``u`` and ``v`` over a block, from the range of the drive and the state it starts with."""
    p = population
    seen = drive if drive.strides[0] else drive[:1]  # a constant drive repeats one step
    low, high = int(seen.min()), int(seen.max())
    u_low, u_high = (0, 0) if state.u is None else (int(state.u.min()), int(state.u.max()))
    v_low, v_high = int(state.v.min()), int(state.v.max())
    b_low, b_high = int(p.bias.min()), int(p.bias.max())
    u, v = [u_low, u_high], [v_low, v_high]
    for _ in range(len(drive)):
        before = (u_low, u_high, v_low, v_high)
        u_low, u_high = decay_integer(u_low, p.du) + low, decay_integer(u_high, p.du) + high
        v_low, v_high = decay_integer(v_low, p.dv) + u_low + b_low, decay_integer(v_high, p.dv) + u_high + b_high
        u += (u_low, u_high)
        v += (v_low, v_high)
        if p.spikes and v_high > p.threshold:
            # From the highest membrane, or without a reset, it stays highest; a spike takes rho at least.
            v_low = min(v_low, lowest_after_reset(p))
            v_high = max(p.threshold, v_high - p.reset_amount if p.reset == "subtract" else 0)
        v.append(v_low)
        if (u_low, u_high, v_low, v_high) == before:
            break
    return Reach(min(u), max(u), min(v), max(v))


def _steps(
    p: Population,
    drive: Array,
    state: State,
    spikes: Array,
    trace: Trace | None,
    dtype: np.dtype[Any],
    can_wrap: bool,
    can_saturate: bool,
) -> Events:
    wraps = saturations = 0
    limit = p.v_max + 1
    memory = state.u is not None
    u = state.u.astype(dtype) if state.u is not None else np.empty(drive.shape[1:], dtype)
    v = state.v.astype(dtype)
    lost = np.empty_like(v)
    bias = p.bias.astype(dtype) if p.bias.any() else None
    keep_u, keep_v = ((DECAY_ONE - d) / DECAY_ONE for d in (p.du, p.dv))
    for n in range(len(drive)):
        if memory:
            if p.du:
                np.multiply(u, keep_u, out=u)
                np.trunc(u, out=u)
            np.add(u, drive[n], out=u)
        else:
            np.copyto(u, drive[n])
        if can_wrap and (u.max() > limit or u.min() <= -limit):
            exact = u.astype(np.int64)
            wrapped = wrap(exact, p.state_bits)
            wraps += int(np.count_nonzero(wrapped != exact))
            np.copyto(u, wrapped)
        if p.dv == DECAY_ONE:
            np.copyto(v, u)
        else:
            if p.dv:
                np.multiply(v, keep_v, out=v)
                np.trunc(v, out=v)
            np.add(v, u, out=v)
        if bias is not None:
            np.add(v, bias, out=v)
        if can_saturate and (v.max() > p.v_max or v.min() < -p.v_max):
            exact = v.astype(np.int64)
            saturated = saturate(exact, p.state_bits)
            saturations += int(np.count_nonzero(saturated != exact))
            np.copyto(v, saturated)
        if p.spikes:
            if p.graded:
                fired = v > p.threshold
                np.copyto(spikes[n], np.clip(np.floor(v * 2.0**-p.payload_shift), 1, p.payload_max), casting="unsafe")
                spikes[n] *= fired
            else:
                fired = spikes[n].view(np.bool_)
                np.greater(v, p.threshold, out=fired)
            if p.reset == "zero":
                np.copyto(v, 0, where=fired)
            elif p.reset_amount:
                np.multiply(spikes[n], p.reset_amount, out=lost, dtype=dtype)
                np.subtract(v, lost, out=v)
        if trace is not None:
            trace.current[n], trace.u[n], trace.v[n] = drive[n], u, v
    state.v[...] = v
    if state.u is not None:
        state.u[...] = u
    return Events(wraps, saturations)


def _reference_steps(p: Population, drive: IntArray, state: State, spikes: Array, trace: Trace | None) -> Events:
    """The reference's own steps, for drives too large for float64; the state itself always fits."""
    wraps = saturations = 0
    v = state.v.astype(np.int64)
    u = np.zeros_like(v) if state.u is None else state.u.astype(np.int64)
    for n in range(len(drive)):
        step = neuron_step(p, u, v, drive[n])
        u, v = step.u, step.v
        wraps += int(step.wrapped.sum())
        saturations += int(step.saturated.sum())
        if p.spikes:
            spikes[n] = step.spikes
        if trace is not None:
            trace.current[n], trace.u[n], trace.v[n] = drive[n], u, v
    state.v[...] = v
    if state.u is not None:
        state.u[...] = u
    return Events(wraps, saturations)
