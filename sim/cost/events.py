"""Events of a run on a chip, and what they cost by one published cost set: see :mod:`lapilli.sim.cost.estimate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ...deploy.chip import EventCost
from ...network import INPUT, Connection, Conv2d, Dense, Network, Population
from .model import Scenario, barrier_time, event

if TYPE_CHECKING:
    from .layout import Layout
    from .operations import Counted

Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Events of one inference (exact means over a run's samples) on one layout, at each step: float64 [T]."""

    network: Network
    run: Counted
    layout: Layout
    on_host: frozenset[str]
    shared_kernels: bool = True

    def synop_event(self, connection: Connection) -> str:
        """Which published cost a synaptic operation has: a kernel that the chip cannot share is stored as sparse."""
        if isinstance(connection.synapse, Conv2d):
            return "synop_conv" if self.shared_kernels else "synop_sparse"
        return "synop_dense" if isinstance(connection.synapse, Dense) else "synop_sparse"

    def synops(self, connection: Connection) -> Array:
        """Synaptic operations of a connection that the chip executes."""
        per_step = self.run.synops_per_step[connection.name] / self.run.n_samples
        return np.zeros_like(per_step) if connection.name in self.on_host else per_step

    def updates(self, population: Population) -> Array:
        """Compartment updates."""
        return np.full(self.network.steps, float(population.size * self.layout.compartments[population.name]))

    def must_be_active(self, population: Population) -> Array:
        """Updates that are active beyond doubt: those of neurons with a bias, and those that end in a spike.

        What the host computes of a graded input arrives as a bias, too.
        """
        fed = any(c.name in self.on_host for c in self.network.incoming(population.name))
        biased = np.broadcast_to((population.bias != 0) | fed, population.shape)
        share_unbiased = 1.0
        if population.spikes and (total := self.run.events[population.name].sum()):
            share_unbiased = float(self.run.events[population.name][~biased].sum() / total)
        per_step = np.count_nonzero(biased) + share_unbiased * self.spikes(population.name)
        return per_step * self.layout.compartments[population.name]

    def spikes(self, name: str) -> Array:
        """Spikes of a population; a readout accumulator has none."""
        if not self.network.population(name).spikes:
            return np.zeros(self.network.steps)
        return self.run.events_per_step[name] / self.run.n_samples

    def messages(self, connection: Connection) -> Array:
        """Spike messages over a connection; what the host feeds in is not among them."""
        if connection.source == INPUT:
            return np.zeros(self.network.steps)
        return self.spikes(connection.source) * self.layout.routes[connection.name].messages

    @cached_property
    def depth(self) -> int:
        """Connections on the longest path to any population: each takes one step of the chip."""
        depth: dict[str, int] = {INPUT: 0}
        for p in self.network.order:
            before = [depth[c.source] for c in self.network.incoming(p.name) if c.delay == 0]
            depth[p.name] = 1 + max(before, default=0)
        return max(depth.values())


@dataclass(frozen=True)
class Cost:
    """Energy of an inference, J, and time at each of its steps, s [T]."""

    energy: float
    time: Array

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.energy + other.energy, self.time + other.time)


def _times(events: Array, each: EventCost) -> Cost:
    return Cost(float(events.sum()) * each.energy, events * each.time)


def synapse_cost(counts: Counts, scenario: Scenario, connection: Connection) -> Cost:
    """A connection's synaptic operations."""
    return _times(counts.synops(connection), event(scenario.model, counts.synop_event(connection), "synop_dense"))


def update_cost(counts: Counts, scenario: Scenario, population: Population) -> Cost:
    """A population's neuron updates."""
    updates = counts.updates(population)
    active = updates if scenario.all_active else counts.must_be_active(population)
    model = scenario.model
    return _times(active, event(model, "update_active")) + _times(updates - active, event(model, "update_inactive"))


def spike_cost(counts: Counts, scenario: Scenario, population: Population) -> Cost:
    """A population's spikes and their messages; of time, only what its own core spends."""
    model, spikes = scenario.model, counts.spikes(population.name)
    cost = _times(spikes, event(model, "spike"))
    for c in counts.network.outgoing(population.name):
        route = counts.layout.routes[c.name]
        cost += _times(spikes * route.messages, event(model, "message_out"))
        for per_spike, name in (
            (route.messages, "message_in"),
            (route.within_tile, "within_tile"),
            (route.horizontal, "hop_horizontal"),
            (route.vertical, "hop_vertical"),
        ):
            cost += _times(spikes * per_spike, EventCost(event(model, name).energy, 0.0))
    return cost


def step_times(counts: Counts, scenario: Scenario) -> tuple[Array, int]:
    """Time of each step, s [T], and the index of the core that is the slowest in most of them.

    At each step, the slowest core and then the barrier. Loads are means over samples; a core's share of a
    population's work is its share of the population's neurons. Messages overlap in the mesh: hops add no time.
    """
    model, network = scenario.model, counts.network
    load: dict[str, Array] = {}
    for p in network.populations:
        cost = update_cost(counts, scenario, p) + spike_cost(counts, scenario, p)
        for c in network.incoming(p.name):
            cost += synapse_cost(counts, scenario, c)
            cost += _times(counts.messages(c), EventCost(0.0, event(model, "message_in").time))
        load[p.name] = cost.time
    idle = np.zeros(network.steps)
    cores = np.stack([sum((share * load[name] for name, share in core.items()), idle) for core in counts.layout.cores])
    slowest = int(np.bincount(cores.argmax(axis=0)).argmax())
    return cores.max(axis=0) + barrier_time(model, counts.layout.tiles), slowest


def dynamic_energy(counts: Counts, scenario: Scenario) -> float:
    """Energy of all events, J per inference."""
    connections, populations = counts.network.connections, counts.network.populations
    return scenario.energy_factor * (
        sum(synapse_cost(counts, scenario, c).energy for c in connections)
        + sum(update_cost(counts, scenario, p).energy + spike_cost(counts, scenario, p).energy for p in populations)
    )


def mean_step_time(counts: Counts, scenario: Scenario) -> float:
    """Time of a step, s, mean over the steps."""
    return scenario.time_factor * float(step_times(counts, scenario)[0].mean())


def static_energy(counts: Counts, scenario: Scenario) -> float:
    """Leakage of all chips in use over the interval between answers, J per inference."""
    power = scenario.model.static_power or 0.0
    return power * counts.layout.chips * counts.network.steps * mean_step_time(counts, scenario)
