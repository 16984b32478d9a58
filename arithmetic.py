"""The integer arithmetic of the description, once, to be read beside :mod:`lapilli.network`.

Everything is int64 and NumPy. Nothing here is meant to be fast; every fast path is tested against it.
"""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import ExecutionError
from .network import DECAY_ONE, Conv2d, Dense, IntArray, Population, Scale, Shape, Synapse
from .overflow import LAVA, OverflowPolicy

LARGEST = 2**50  # times 4096 it still is an int64


def decay(x: IntArray, d: int) -> IntArray:
    """``trunc(x (4096 - d) / 4096)``, rounding as Loihi (Lava ``PyLifModelBitAcc``, nengo-loihi ``decay_int``)."""
    return np.sign(x) * (np.abs(x) * (DECAY_ONE - d) // DECAY_ONE)


def decay_integer(x: int, d: int) -> int:
    """:func:`decay` of one Python integer, of any size."""
    kept = abs(x) * (DECAY_ONE - d) // DECAY_ONE
    return kept if x >= 0 else -kept


def wrap(x: IntArray, bits: int) -> IntArray:
    """``x`` modulo ``2^bits`` in ``-2^(bits-1) < x <= 2^(bits-1)``, the half-open side that Lava's ``u`` has."""
    half = 2 ** (bits - 1)
    return half - (half - x) % (2 * half)


def twos_complement(x: IntArray, bits: int) -> IntArray:
    """``x`` modulo ``2^bits`` in ``-2^(bits-1) <= x < 2^(bits-1)``."""
    half = 2 ** (bits - 1)
    return (x + half) % (2 * half) - half


def unlimited(x: IntArray, bits: int) -> IntArray:  # noqa: ARG001
    """``x`` itself.

    Raises
    ------
    ExecutionError
        If a decay of ``x`` would no longer fit int64.
    """
    if x.size and max(int(x.max()), -int(x.min())) > LARGEST:
        raise ExecutionError(f"a state without limit grew beyond ±2^50 (policy 'unlimited'): {int(np.abs(x).max())}")
    return x


def saturate(x: IntArray, bits: int) -> IntArray:
    """``x`` clipped to ``±(2^(bits-1) - 1)``."""
    limit = 2 ** (bits - 1) - 1
    return np.clip(x, -limit, limit)


class Step(NamedTuple):
    """What one time step of a population leaves behind; all arrays ``[B, *shape]``."""

    u: IntArray  # current after the step
    v: IntArray  # membrane after the reset
    spikes: IntArray  # what is sent: 0 and 1, or payloads
    wrapped: npt.NDArray[np.bool_]  # the current left the state width
    saturated: npt.NDArray[np.bool_]  # the membrane left the state width
    exact_u: IntArray  # current before it was wrapped
    exact_v: IntArray  # membrane before it was saturated, and before the reset


_LIMITS = {"wrap": wrap, "twos_complement": twos_complement, "unlimited": unlimited, "saturate": saturate}


def neuron_step(
    population: Population, u: IntArray, v: IntArray, drive: IntArray, policy: OverflowPolicy = LAVA
) -> Step:
    """Advance a population by one time step.

    Parameters
    ----------
    population : Population
    u, v : int64 [B, *shape]
        Current and membrane after the previous step.
    drive : int64 [B, *shape]
        ``I 2^f``: the sum over incoming connections, in state units.
    policy : OverflowPolicy
        The description's, unless another is to be compared with it.
    """
    bits = population.state_bits
    if policy.accumulator_bits is not None:
        drive = twos_complement(drive, policy.accumulator_bits)
    exact_u = decay(u, population.du) + drive
    u = _LIMITS[policy.current](exact_u, bits)
    exact_v = decay(v, population.dv) + _LIMITS[policy.biased](u + population.bias, bits)
    v = _LIMITS[policy.membrane](exact_v, bits)
    wrapped, saturated = u != exact_u, v != exact_v
    if population.reset == "none":
        return Step(u, v, np.zeros_like(v), wrapped, saturated, exact_u, exact_v)
    spikes = payload(population, v) * (v > population.threshold)
    v = np.where(spikes, 0, v) if population.reset == "zero" else v - population.reset_amount * spikes
    return Step(u, v, spikes, wrapped, saturated, exact_u, exact_v)


def payload(population: Population, v: IntArray) -> IntArray:
    """What a spike at the charged membrane ``v`` carries: ``clip(floor(v / 2^g), 1, m)``, 1 for plain spikes."""
    return np.clip(v >> population.payload_shift, 1, population.payload_max)


@singledispatch
def synapse_sum(synapse: Synapse, x: IntArray, target: Shape) -> IntArray:
    """``W x`` without exponent: int64 ``[B, *source]`` to int64 ``[B, *target]``."""
    raise NotImplementedError(type(synapse).__name__)


@synapse_sum.register
def _(synapse: Dense, x: IntArray, target: Shape) -> IntArray:
    return (x.reshape(len(x), -1) @ synapse.weight.astype(np.int64).T).reshape(len(x), *target)


@synapse_sum.register
def _(synapse: Scale, x: IntArray, target: Shape) -> IntArray:
    per_channel = synapse.weight.astype(np.int64).reshape(-1, *[1] * (len(target) - 1))
    return x * per_channel


@synapse_sum.register
def _(synapse: Conv2d, x: IntArray, target: Shape) -> IntArray:
    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    c_out, c_in, k_y, k_x = synapse.weight.shape
    _, y_out, x_out = target
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px))).reshape(
        len(x), synapse.groups, c_in, x.shape[2] + 2 * py, x.shape[3] + 2 * px
    )
    weight = synapse.weight.astype(np.int64).reshape(synapse.groups, c_out // synapse.groups, c_in, k_y, k_x)
    total = np.zeros((len(x), synapse.groups, c_out // synapse.groups, y_out, x_out), np.int64)
    for i in range(k_y):
        for j in range(k_x):
            seen = padded[..., i * dy : i * dy + (y_out - 1) * sy + 1 : sy, j * dx : j * dx + (x_out - 1) * sx + 1 : sx]
            total += np.einsum("goc,bgcyx->bgoyx", weight[..., i, j], seen)
    return total.reshape(len(x), *target)


@singledispatch
def fan_out(synapse: Synapse, source: Shape, target: Shape) -> IntArray:
    """Synapses with a non-zero weight that leave each source neuron: int64 ``[*source]``.

    A spike of neuron ``i`` causes ``fan_out[i]`` synaptic operations (NeuroBench's effective operations: zero
    weights and padding do not count).
    """
    raise NotImplementedError(type(synapse).__name__)


@fan_out.register
def _(synapse: Dense, source: Shape, target: Shape) -> IntArray:  # noqa: ARG001
    return np.count_nonzero(synapse.weight, axis=0).astype(np.int64).reshape(source)


@fan_out.register
def _(synapse: Scale, source: Shape, target: Shape) -> IntArray:  # noqa: ARG001
    per_channel = (synapse.weight != 0).astype(np.int64).reshape(-1, *[1] * (len(source) - 1))
    return np.broadcast_to(per_channel, source).copy()


@fan_out.register
def _(synapse: Conv2d, source: Shape, target: Shape) -> IntArray:
    (py, px), (sy, sx), (dy, dx) = synapse.padding, synapse.stride, synapse.dilation
    c_out, c_in, k_y, k_x = synapse.weight.shape
    _, y_out, x_out = target
    used = np.count_nonzero(synapse.weight.reshape(synapse.groups, c_out // synapse.groups, c_in, k_y, k_x), axis=1)
    padded = np.zeros((synapse.groups, c_in, source[1] + 2 * py, source[2] + 2 * px), np.int64)
    for i in range(k_y):
        for j in range(k_x):
            padded[..., i * dy : i * dy + (y_out - 1) * sy + 1 : sy, j * dx : j * dx + (x_out - 1) * sx + 1 : sx] += (
                used[..., i, j, None, None]
            )
    return padded[..., py : py + source[1], px : px + source[2]].reshape(source)
