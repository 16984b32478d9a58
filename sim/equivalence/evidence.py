"""What is known about the neuron at which two executors part first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ...network import IntArray, Network, Population


@dataclass(frozen=True)
class History:
    """What an executor shows of one neuron in one sample, by step; None where it cannot."""

    spike: list[int] | None = None
    current: list[int] | None = None
    u: list[int] | None = None
    v: list[int] | None = None


@dataclass(frozen=True)
class Evidence:
    """All that is known about the neuron at which two executors part first.

    Attributes
    ----------
    step : int
        Of the first differing spike; the last step for a membrane.
    arriving : dict of int64 [T, N_source]
        By incoming connection: what its sources deliver at each step in the baseline.
    agreed : int
        Number of first steps at which the same arrives on both sides; at least ``step + 1``.
    """

    network: Network
    population: Population
    neuron: int
    step: int
    baseline: History
    other: History
    arriving: Mapping[str, IntArray]
    agreed: int

    @cached_property
    def origin(self) -> int | None:
        """Earliest step at which anything visible of the neuron differs; None if the other side shows only spikes."""
        pairs = [
            (mine, theirs)
            for mine, theirs in (
                (self.baseline.current, self.other.current),
                (self.baseline.u, self.other.u),
                (self.baseline.v, self.other.v),
            )
            if mine is not None and theirs is not None
        ]
        steps = [n for mine, theirs in pairs for n in range(self.step + 1) if mine[n] != theirs[n]]
        return min(steps, default=None if not pairs else self.step)

    @property
    def current_differs(self) -> bool:
        """Whether what arrives differs at the origin: then the synapses are at fault, not the neuron."""
        mine, theirs, n = self.baseline.current, self.other.current, self.origin
        return mine is not None and theirs is not None and n is not None and mine[n] != theirs[n]
