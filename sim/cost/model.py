"""Published constants as a report uses them: low, typical and high are whole cost sets, never a mixture.

A :class:`~lapilli.deploy.chip.CostSet` is one source's whole set of constants. Sets are never mixed: a paper that
charges 51 pJ to a synapse and one that charges part of it to the axon agree on the total and on nothing else, so the
smallest of each would describe no chip at all. :mod:`lapilli.sim.cost.estimate` evaluates every set in full and reports
the lowest, the calibrated and the highest total.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...deploy.chip import CostSet, EventCost

FREE = EventCost(0.0, 0.0)  # what a source does not charge for


@dataclass(frozen=True)
class Range:
    """A quantity as the lowest, the calibrated and the highest published model give it."""

    low: float
    typical: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.typical + other.typical, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.typical * factor, self.high * factor)

    def to_json(self) -> dict[str, float]:
        """``{"low": , "typical": , "high": }``."""
        return {"low": self.low, "typical": self.typical, "high": self.high}


ZERO = Range(0.0, 0.0, 0.0)


def event(model: CostSet, name: str, *otherwise: str) -> EventCost:
    """Cost of one event, or of the first of ``otherwise`` that the source has; free where it has none."""
    return next((model.events[key] for key in (name, *otherwise) if key in model.events), FREE)


def barrier_time(model: CostSet, tiles: int) -> float:
    """Time of the barrier over ``tiles`` tiles, s: linear between published points, held beyond them."""
    points = model.barrier
    if not points:
        return 0.0
    if tiles <= points[0][0]:
        return points[0][1]
    for (a, t_a), (b, t_b) in pairwise(points):
        if tiles <= b:
            return t_a + (t_b - t_a) * (tiles - a) / (b - a)
    return points[-1][1]


@dataclass(frozen=True)
class Scenario:
    """A cost model as one column of a report uses it.

    Attributes
    ----------
    model : CostSet
    all_active : bool
        Whether every neuron update counts as active. Sources price "active" and "inactive" updates without saying
        exactly what makes one active; False counts only those that must be (a bias, or a spike), True counts all.
    end : int
        Of the error bands that the model's source states: -1 the lower, 0 the middle, 1 the upper.
    """

    model: CostSet
    all_active: bool
    end: int = 0

    @property
    def energy_factor(self) -> float:
        """What energies of events are multiplied with."""
        return 1 + self.end * self.model.energy_spread

    @property
    def time_factor(self) -> float:
        """What times are multiplied with."""
        return 1 + self.end * self.model.time_spread

    @property
    def text(self) -> str:
        """In words, with the source."""
        counting = "all neuron updates active" if self.all_active else "updates active only with a bias or a spike"
        if self.end == 0 or (self.model.energy_spread == 0 and self.model.time_spread == 0):
            return f"{self.model.source}; {counting}"
        energy, time = (f"{factor - 1:+.0%}" for factor in (self.energy_factor, self.time_factor))
        return f"{self.model.source}; {counting}; at the end of its stated error: energy {energy}, time {time}"

    def to_json(self) -> dict[str, Any]:
        """Model, source and assumptions as JSON values."""
        return {
            "model": self.model.name,
            "source": self.model.source,
            "static_source": self.model.static_source,
            "all_updates_active": self.all_active,
            "energy_factor": self.energy_factor,
            "time_factor": self.time_factor,
            "text": self.text,
        }
