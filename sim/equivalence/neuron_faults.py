"""What could be wrong with a neuron's arithmetic: small named faults, tried by replaying one neuron.

Each fault is a function from the evidence to sentences with the neuron that they describe. It is a likely cause if this
neuron, replayed on the currents that arrived, does exactly what the other executor's neuron did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from ...arithmetic import saturate, wrap
from ...network import DECAY_ONE, Population
from .evidence import Evidence


def neuron_causes(evidence: Evidence) -> Iterator[str]:
    """Every fault that explains all that the other executor shows of the neuron."""
    for fault in FAULTS:
        for text, neuron in fault(evidence):
            if behaves_like_other(evidence, neuron):
                yield text


@dataclass(frozen=True)
class Neuron:
    """One neuron with all that may deviate; the defaults of the last six are the description's."""

    threshold: int
    reset: str
    reset_amount: int
    du: int
    dv: int
    bias: int
    v_init: int
    bits: int
    payload_max: int = 1
    payload_shift: int = 0
    u_init: int = 0
    rounding: str = "zero"
    strict: bool = True
    u_overflow: str = "wrap"
    v_overflow: str = "saturate"
    takes_payload: bool = True

    @classmethod
    def of(cls, p: Population, neuron: int) -> Neuron:
        """The neuron of a population at a flat index."""
        bias = int(np.broadcast_to(p.bias, p.shape).ravel()[neuron])
        payload = p.payload_max, p.payload_shift
        return cls(p.threshold, p.reset, p.reset_amount, p.du, p.dv, bias, p.v_init, p.state_bits, *payload)

    def payload(self, charged: int) -> int:
        """What a spike carries."""
        return max(1, min(charged >> self.payload_shift, self.payload_max))


class Replay(NamedTuple):
    """A replayed neuron, by step; ``charged`` is the membrane before the reset, ``v`` after it."""

    spike: list[int]
    u: list[int]
    v: list[int]
    charged: list[int]


def replay(neuron: Neuron, currents: list[int], forced: list[int] | None = None) -> Replay:
    """Run a neuron on what arrives at it; ``forced`` spikes override its own decision."""
    u, v = neuron.u_init, neuron.v_init
    fired: list[int] = []
    currents_after: list[int] = []
    membranes: list[int] = []
    charged: list[int] = []
    for n, current in enumerate(currents):
        u = _fit(_decayed(u, neuron.du, neuron.rounding) + current, neuron.bits, neuron.u_overflow)
        v = _fit(_decayed(v, neuron.dv, neuron.rounding) + u + neuron.bias, neuron.bits, neuron.v_overflow)
        charged.append(v)
        fires = v > neuron.threshold if neuron.strict else v >= neuron.threshold
        spike = (neuron.payload(v) if fires else 0) if forced is None else forced[n]
        if neuron.reset == "none":
            spike = 0
        if spike:
            taken = neuron.reset_amount * (spike if neuron.takes_payload else 1)
            v = 0 if neuron.reset == "zero" else v - taken
        fired.append(spike)
        currents_after.append(u)
        membranes.append(v)
    return Replay(fired, currents_after, membranes, charged)


def _decayed(x: int, d: int, rounding: str) -> int:
    product = x * (DECAY_ONE - d)
    if rounding == "floor":
        return product // DECAY_ONE
    if rounding == "nearest":
        return (product + DECAY_ONE // 2) // DECAY_ONE
    return product // DECAY_ONE if product >= 0 else -(-product // DECAY_ONE)


def _before_decay(x: int, d: int) -> int:
    """The smallest magnitude that decays to ``x``."""
    magnitude = -(-abs(x) * DECAY_ONE // (DECAY_ONE - d))
    return magnitude if x >= 0 else -magnitude


def _fit(x: int, bits: int, policy: str) -> int:
    if policy == "unlimited":
        return x
    return int((wrap if policy == "wrap" else saturate)(np.array(x), bits))


def arrived(evidence: Evidence) -> list[int]:
    """Currents to replay: the other side's own where visible, else the baseline's up to the divergence."""
    if evidence.other.current is not None:
        return evidence.other.current
    return (evidence.baseline.current or [])[: evidence.step + 1]


def behaves_like_other(evidence: Evidence, neuron: Neuron) -> bool:
    """Whether the neuron, replayed, gives every spike, ``u`` and ``v`` that the other executor shows."""
    mine, other = replay(neuron, arrived(evidence)), evidence.other
    pairs = ((mine.spike, other.spike), (mine.u, other.u), (mine.v, other.v))
    return all(theirs is None or ours == theirs[: len(ours)] for ours, theirs in pairs)


Fault: TypeAlias = Callable[[Evidence], Iterator[tuple[str, Neuron]]]


def fires_at_threshold(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """``v >= theta`` instead of ``v > theta``."""
    theta = e.population.threshold
    text = f"it fires at v >= theta; the description fires at v > theta, and here v is theta = {theta} exactly"
    yield text, replace(Neuron.of(e.population, e.neuron), strict=False)


def rounds_decay(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """Decays are not truncated toward zero."""
    for rounding, words in (("floor", "down (toward minus infinity)"), ("nearest", "to the nearest integer")):
        text = f"it rounds decays {words}; the description truncates toward zero"
        yield text, replace(Neuron.of(e.population, e.neuron), rounding=rounding)


def decays_by_one_more_or_less(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """Decay register off by one (Loihi adds 1 to du: Davies 2018)."""
    neuron = Neuron.of(e.population, e.neuron)
    for name in ("du", "dv"):
        for by in (1, -1):
            value = getattr(neuron, name) + by
            if 0 <= value <= DECAY_ONE:
                yield f"it decays with {name} = {value} instead of {value - by}", replace(neuron, **{name: value})


def adds_another_bias(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """Another bias at every step."""
    neuron = Neuron.of(e.population, e.neuron)
    for by in _offsets(e):
        yield f"its bias is {neuron.bias + by} instead of {neuron.bias}", replace(neuron, bias=neuron.bias + by)


def starts_elsewhere(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """Membrane or current not at its start value in the first step."""
    neuron = Neuron.of(e.population, e.neuron)
    for by in _offsets(e):
        if neuron.dv < DECAY_ONE:
            first = _before_decay(_decayed(neuron.v_init, neuron.dv, "zero") + by, neuron.dv)
            text = f"its membrane starts the window at about {first} instead of v_init = {neuron.v_init} (window reset)"
            yield text, replace(neuron, v_init=first)
        if neuron.du < DECAY_ONE:
            first = _before_decay(by, neuron.du)
            text = f"its current starts the window at about {first} instead of 0 (window reset)"
            yield text, replace(neuron, u_init=first)
    if neuron.v_init:
        text = f"its membrane starts the window at 0 instead of v_init = {neuron.v_init} (window reset)"
        yield text, replace(neuron, v_init=0)


def fires_at_another_threshold(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """The membrane is right and the decision is not: the threshold lies where the spikes say."""
    neuron = Neuron.of(e.population, e.neuron)
    spikes = e.other.spike
    if spikes is None:
        return
    currents = arrived(e)
    charged = replay(neuron, currents, spikes).charged
    fired = [v for v, s in zip(charged, spikes, strict=False) if s]
    quiet = [v for v, s in zip(charged, spikes, strict=False) if not s]
    lowest, highest = max(quiet, default=None), min(fired, default=None)
    if lowest is not None and highest is not None and lowest >= highest:
        return
    at_least = "" if lowest is None else f" at least {lowest}"
    below = "" if highest is None else f" below {highest}"
    theta = lowest if lowest is not None and lowest > neuron.threshold else highest - 1 if highest is not None else None
    if theta is not None:
        text = f"its threshold is{at_least}{' and' if at_least and below else ''}{below} instead of {neuron.threshold}"
        yield text, replace(neuron, threshold=theta)


def resets_otherwise(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """The spike agrees and the membrane after it does not."""
    neuron = Neuron.of(e.population, e.neuron)
    if neuron.reset == "subtract":
        yield f"it resets to zero instead of subtracting {neuron.reset_amount}", replace(neuron, reset="zero")
    if neuron.reset == "zero":
        text = "it subtracts the threshold at a spike instead of resetting to zero"
        yield text, replace(neuron, reset="subtract", reset_amount=neuron.threshold, takes_payload=False)
    yield "it does not reset", replace(neuron, reset="subtract", reset_amount=0)
    n, theirs = e.origin, e.other
    if n is not None and theirs.v is not None and theirs.spike is not None and theirs.spike[n]:
        charged = replay(neuron, arrived(e)).charged
        amount, rest = divmod(charged[n] - theirs.v[n], theirs.spike[n])
        each = " for each unit sent" if e.population.graded else " at a spike"
        text = f"it subtracts {amount}{each} instead of {neuron.reset_amount}"
        if not rest:
            yield text, replace(neuron, reset="subtract", reset_amount=amount)


def sends_other_payloads(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """A graded spike that is plain, of another unit or without a limit, or is subtracted as if it were plain."""
    if not e.population.graded:
        return
    neuron = Neuron.of(e.population, e.neuron)
    yield "its spikes are plain, 1 instead of a payload", replace(neuron, payload_max=1)
    for by in (1, -1):
        shift = neuron.payload_shift + by
        if shift >= 0:
            text = f"its payload is the membrane shifted right by {shift} instead of {neuron.payload_shift}"
            yield text, replace(neuron, payload_shift=shift)
    yield f"it does not limit payloads to {neuron.payload_max}", replace(neuron, payload_max=2**31)
    if neuron.reset == "subtract":
        text = f"it subtracts {neuron.reset_amount} once at a spike, not for each unit sent"
        yield text, replace(neuron, takes_payload=False)


def overflows_otherwise(e: Evidence) -> Iterator[tuple[str, Neuron]]:
    """Another policy where a state leaves its width."""
    neuron = Neuron.of(e.population, e.neuron)
    bits = neuron.bits
    for policy, words in (("wrap", "wraps"), ("unlimited", "does not limit")):
        text = f"it {words} the membrane beyond {bits} bits; the description saturates"
        yield text, replace(neuron, v_overflow=policy)
    for policy, words in (("saturate", "saturates"), ("unlimited", "does not limit")):
        text = f"it {words} the current beyond {bits} bits; the description wraps"
        yield text, replace(neuron, u_overflow=policy)
    yield f"it limits nothing to {bits} bits", replace(neuron, u_overflow="unlimited", v_overflow="unlimited")


FAULTS: tuple[Fault, ...] = (
    fires_at_threshold,
    rounds_decay,
    fires_at_another_threshold,
    adds_another_bias,
    starts_elsewhere,
    decays_by_one_more_or_less,
    resets_otherwise,
    sends_other_payloads,
    overflows_otherwise,
)


def _offsets(e: Evidence) -> list[int]:
    """Difference of the membranes (and of the currents) where they first differ."""
    n = e.origin
    if n is None:
        return []
    pairs = ((e.baseline.v, e.other.v), (e.baseline.u, e.other.u))
    by = [theirs[n] - mine[n] for mine, theirs in pairs if mine is not None and theirs is not None]
    charged = replay(Neuron.of(e.population, e.neuron), arrived(e)).charged
    if e.other.v is not None and e.other.spike is not None and e.other.spike[n] and e.population.reset == "subtract":
        by.append(e.other.v[n] + e.population.reset_amount * e.other.spike[n] - charged[n])  # only the other has fired
    if e.other.v is not None and e.other.spike is not None and not e.other.spike[n]:
        by.append(e.other.v[n] - charged[n])  # only the baseline has fired, or neither
    return [b for b in dict.fromkeys(by) if b]


def overflow_note(e: Evidence) -> list[str]:
    """Say so where the baseline overflowed at or before the divergence: policies differ between executors."""
    if e.baseline.current is None:
        return []
    neuron = replace(Neuron.of(e.population, e.neuron), u_overflow="unlimited", v_overflow="unlimited")
    limited = replay(Neuron.of(e.population, e.neuron), e.baseline.current)
    free = replay(neuron, e.baseline.current, limited.spike)
    last = e.step if e.origin is None else e.origin
    for what, mine, exact in (("current wraps", limited.u, free.u), ("membrane saturates", limited.v, free.v)):
        steps = [n for n in range(last + 1) if mine[n] != exact[n]]
        if steps:
            return [f"an overflow precedes it: the {what} at step {steps[0]} ({neuron.bits} bits)"]
    return []
