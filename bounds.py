"""Worst-case bounds on the description: what can overflow, and how wide a sum must be.

Exact for the synaptic sums (every spike pattern is possible); a membrane is bounded only where its leak bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arithmetic import decay_integer, payload
from .network import Connection, Conv2d, Dense, IntArray, Network, Population, Scale
from .overflow import OverflowPolicy


def source_range(network: Network, connection: Connection) -> tuple[int, int]:
    """Smallest and largest value that one source neuron can send over a connection in one step."""
    return network.sent_range(connection.source)


def synapse_bounds(network: Network, connection: Connection) -> tuple[int, int]:
    """Smallest and largest possible ``W x`` (no exponent) of one connection over all its target neurons.

    Zero padding only removes terms, so the bound of a neuron in the middle holds for those at the border.
    """
    low, high = source_range(network, connection)
    low, high = min(low, 0), max(high, 0)
    w = connection.synapse.weight.astype(np.int64)
    terms_low = np.minimum(w * low, w * high)
    terms_high = np.maximum(w * low, w * high)
    match connection.synapse:
        case Dense():
            return int(terms_low.sum(axis=1).min()), int(terms_high.sum(axis=1).max())
        case Conv2d():
            return int(terms_low.sum(axis=(1, 2, 3)).min()), int(terms_high.sum(axis=(1, 2, 3)).max())
        case Scale():
            return int(terms_low.min()), int(terms_high.max())


@dataclass(frozen=True)
class PopulationBounds:
    """Worst case of one population, in state units.

    Attributes
    ----------
    drive : (int, int)
        Range of ``I 2^f`` in one step.
    current : (int, int) or None
        Range of ``u``; None where no bound exists (a current that does not decay).
    membrane : (int, int) or None
        Range of ``v`` before fire and reset; None where the membrane does not leak, so that only the reset
        and the window's length bound it from above and nothing bounds it per step from below.
    """

    drive: tuple[int, int]
    current: tuple[int, int] | None
    membrane: tuple[int, int] | None
    can_wrap: bool
    can_saturate: bool


def _accumulated(low: int, high: int, decay: int, steps: int, start: int = 0) -> tuple[int, int]:
    """Range of ``x`` over ``steps`` steps of ``x = trunc(x (4096 - decay) / 4096) + [low, high]``, from ``start``."""
    if decay == 0:  # in one go: a window may have a million steps
        return start + steps * min(low, 0), start + steps * max(high, 0)
    least = most = start
    lowest, highest = start, start
    for _ in range(steps):
        following = decay_integer(least, decay) + low, decay_integer(most, decay) + high
        if following == (least, most):
            break
        least, most = following
        lowest, highest = min(lowest, least), max(highest, most)
    return lowest, highest


def lowest_after_reset(population: Population) -> int:
    """Lowest membrane that a reset leaves: 0, or ``v - rho s`` at the least ``v`` that fires with the payload ``s``."""
    if population.reset == "zero":
        return 0
    p, least = population, population.threshold + 1
    first = int(payload(p, np.array(least)))
    # The others begin at v = s 2^g, where v - rho s is linear in s: one of its ends is the lowest.
    others = [s for s in (first + 1, p.payload_max) if first < s <= p.payload_max]
    return min(v - p.reset_amount * s for s, v in [(first, least), *((s, s << p.payload_shift) for s in others)])


def _highest_charged(population: Population, most: int, steps: int) -> int:
    """Largest membrane before fire and reset, where a step adds at most ``most``.

    What lies above the threshold has fired: it falls to 0, or by at least ``rho``. So from ``h`` and all below it, a
    membrane keeps at most ``max(theta, h - rho)``.
    """
    p = population
    lost = {"subtract": p.reset_amount, "zero": p.v_max * 2, "none": 0}[p.reset]
    highest = kept = p.v_init
    for _ in range(steps):
        charged = decay_integer(kept, p.dv) + most
        highest = max(highest, charged)
        following = charged if not p.spikes or charged <= p.threshold else max(p.threshold, charged - lost)
        if following == kept:
            break
        kept = following
    return highest


def population_bounds(network: Network, population: Population) -> PopulationBounds:
    """Worst case of a population over one sample window of ``network.steps`` steps.

    The upper bound of the membrane knows the reset, the lower one only where it leads (:func:`lowest_after_reset`):
    safe, not always tight.
    """
    low = high = 0
    for connection in network.incoming(population.name):
        shift = population.fraction_bits + connection.weight_exponent
        c_low, c_high = synapse_bounds(network, connection)
        low, high = low + (c_low << shift), high + (c_high << shift)
    u_low, u_high = _accumulated(low, high, population.du, network.steps)
    limit = 2 ** (population.state_bits - 1)
    can_wrap = not (-limit < u_low and u_high <= limit)
    if can_wrap:
        u_low, u_high = -limit + 1, limit
    b_low, b_high = int(population.bias.min()), int(population.bias.max())
    # A reset may leave the membrane lower than it ever was without one.
    lowest_start = min(population.v_init, lowest_after_reset(population)) if population.spikes else population.v_init
    v_low, _ = _accumulated(u_low + b_low, 0, population.dv, network.steps, lowest_start)
    v_high = _highest_charged(population, u_high + b_high, network.steps)
    return PopulationBounds(
        drive=(low, high),
        current=(u_low, u_high),
        membrane=(v_low, v_high),
        can_wrap=can_wrap,
        can_saturate=v_low < -population.v_max or v_high > population.v_max,
    )


def policy_gaps(population: Population, bounds: PopulationBounds, policy: OverflowPolicy) -> tuple[str, ...]:
    """Why a policy may treat this population otherwise than the description, worst case; empty: it provably cannot.

    Parameters
    ----------
    population : Population
    bounds : PopulationBounds
        Of :func:`population_bounds`.
    policy : OverflowPolicy

    Returns
    -------
    tuple of str
        One sentence per number that can reach a value on which the two differ.
    """
    limit = population.v_max + 1
    assert bounds.current is not None
    (d_low, d_high), (u_low, u_high) = bounds.drive, bounds.current
    gaps = []
    if policy.accumulator_bits is not None:
        half = 2 ** (policy.accumulator_bits - 1)
        if not (-half <= d_low and d_high < half):
            gaps.append(
                f"the input of one step can reach {d_low:,}..{d_high:,}, and {policy.name} wraps it beyond "
                f"{-half:,}..{half - 1:,}"
            )
    if policy.current == "twos_complement" and (bounds.can_wrap or u_high == limit):
        gaps.append(f"the current can be {limit:,}, which {policy.name} turns into {-limit:,}")
    if policy.current == "unlimited" and bounds.can_wrap:
        gaps.append(f"the current can wrap, and {policy.name} does not limit it")
    b_low, b_high = int(population.bias.min()), int(population.bias.max())
    if policy.biased == "twos_complement" and not (-limit <= u_low + b_low and u_high + b_high < limit):
        gaps.append(
            f"current and bias together can reach {u_low + b_low:,}..{u_high + b_high:,}, and {policy.name} wraps them "
            f"beyond {-limit:,}..{limit - 1:,}"
        )
    if policy.membrane == "unlimited" and bounds.can_saturate:
        gaps.append(f"the membrane can saturate, and {policy.name} does not limit it")
    return tuple(gaps)


def largest_sum(network: Network, connection: Connection) -> int:
    """Largest magnitude that any partial sum of ``W x`` of this connection can reach, in any order of summation."""
    low, high = source_range(network, connection)
    reach = max(abs(low), abs(high))
    w: IntArray = np.abs(connection.synapse.weight.astype(np.int64))
    per_neuron = w if isinstance(connection.synapse, Scale) else w.reshape(len(w), -1).sum(axis=1)
    return int(per_neuron.max()) * reach
