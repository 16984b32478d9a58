"""What an estimate of energy and latency says: by connection, by population, in total, with its sources."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from .model import ZERO, Range, Scenario
from .operations import Comparison, Sparsity

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class ConnectionCost:
    """Synaptic operations of one connection, per inference.

    Attributes
    ----------
    synops : float
        Effective synaptic operations.
    on_host : bool
        The chip cannot take this connection's graded input: the host computes it, at no chip energy.
    energy : Range or None
        J; None on the host and where no energies are published.
    """

    name: str
    source: str
    target: str
    synops: float
    on_host: bool
    energy: Range | None

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class PopulationCost:
    """Updates, spikes and messages of one population (or the spike input), per inference.

    Attributes
    ----------
    neurons, compartments : int
        Neurons, and hardware compartments that each of them takes.
    updates : int
        Compartment updates: neurons x compartments x steps.
    must_be_active : float
        Updates that are active beyond doubt (see :class:`~lapilli.sim.cost.model.Scenario`).
    spikes, spike_rate : float
        Spikes, and spikes per neuron and step.
    messages, hops : float
        Spike messages to destination cores, and tile hops of all of them.
    update_energy, spike_energy : Range or None
        J; the second holds spikes, messages and hops.
    """

    name: str
    neurons: int
    compartments: int
    updates: int
    must_be_active: float
    spikes: float
    spike_rate: float
    messages: float
    hops: float
    update_energy: Range | None
    spike_energy: Range | None

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """Time on the chip, s.

    Attributes
    ----------
    step : Range
        One time step: the slowest core's mean load plus the barrier.
    inference : Range
        From the first step of a sample's window to its answer: ``steps + depth`` chip steps.
    interval : Range
        Between answers when samples run back to back: ``steps`` chip steps.
    depth : int
        Chip steps that a spike needs through the network (its longest path).
    slowest : str
        What the slowest core holds (typical).
    scenarios : dict of Scenario
        Which model each column is, under ``low``, ``typical`` and ``high``.
    """

    step: Range
    inference: Range
    interval: Range
    depth: int
    slowest: str
    scenarios: dict[str, Scenario]

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON values; ``throughput`` in inferences per second is 1 / interval."""
        fields = {name: getattr(self, name).to_json() for name in ("step", "inference", "interval")}
        per_second = Range(1 / self.interval.high, 1 / self.interval.typical, 1 / self.interval.low)
        return {
            **fields,
            "throughput": per_second.to_json(),
            "depth": self.depth,
            "slowest": self.slowest,
            "scenarios": {name: s.to_json() for name, s in self.scenarios.items()},
        }


@dataclass(frozen=True)
class EnergyReport:
    """What one inference costs, by layer and in total.

    Attributes
    ----------
    chip, network : str
    samples, steps : int
        Samples that the counts are averaged over; steps of a window.
    energy, dynamic, static : Range or None
        J per inference: total = dynamic (all connections and populations) + static (leakage over the interval
        between answers, all chips in use). None where the chip has no published energies.
    reason : str
        One sentence why there is no energy; empty otherwise.
    connections : tuple of ConnectionCost
    populations : tuple of PopulationCost
    latency : Latency or None
    comparison : Comparison
        The same network as a conventional ANN.
    sparsity : Sparsity
    scenarios : dict of Scenario
        Which model each column of the energies is, under ``low``, ``typical`` and ``high``.
    layout : str
        Where the placement comes from.
    notes : tuple of str
    """

    chip: str
    network: str
    samples: int
    steps: int
    energy: Range | None
    dynamic: Range | None
    static: Range | None
    reason: str
    connections: tuple[ConnectionCost, ...]
    populations: tuple[PopulationCost, ...]
    latency: Latency | None
    comparison: Comparison
    sparsity: Sparsity
    scenarios: dict[str, Scenario]
    layout: str
    notes: tuple[str, ...]

    @property
    def energy_per_step(self) -> Range | None:
        """J per time step."""
        return None if self.energy is None else self.energy * (1 / self.steps)

    @property
    def synops(self) -> float:
        """Synaptic operations on the chip, per inference."""
        return sum(c.synops for c in self.connections if not c.on_host)

    @property
    def host_synops(self) -> float:
        """Operations with the graded input that the host computes, per inference."""
        return sum(c.synops for c in self.connections if c.on_host)

    def layers(self) -> list[LayerCost]:
        """Populations with their incoming connections; they sum to ``dynamic``."""
        return [LayerCost(p, tuple(c for c in self.connections if c.target == p.name)) for p in self.populations]

    def to_json(self) -> dict[str, Any]:
        """The whole report as JSON values."""
        per_step = self.energy_per_step

        def plain(value: Any) -> Any:
            return None if value is None else value.to_json()

        return {
            "chip": self.chip,
            "network": self.network,
            "samples": self.samples,
            "steps": self.steps,
            "unit": {"energy": "J per inference", "time": "s"},
            "energy": plain(self.energy),
            "energy_per_step": plain(per_step),
            "dynamic": plain(self.dynamic),
            "static": plain(self.static),
            "reason": self.reason,
            "synops": self.synops,
            "host_synops": self.host_synops,
            "connections": [c.to_json() for c in self.connections],
            "populations": [p.to_json() for p in self.populations],
            "layers": [layer.to_json() for layer in self.layers()],
            "latency": plain(self.latency),
            "comparison": self.comparison.to_json(),
            "sparsity": self.sparsity.to_json(),
            "scenarios": {name: s.to_json() for name, s in self.scenarios.items()},
            "layout": self.layout,
            "notes": list(self.notes),
        }

    def render(self) -> RenderableType:
        """Tables for the terminal (needs rich)."""
        from .table import render

        return render(self)

    def __str__(self) -> str:
        from rich.console import Console

        with Console(width=110, file=StringIO()) as console, console.capture() as text:
            console.print(self.render())
        return text.get()


@dataclass(frozen=True)
class LayerCost:
    """A population together with the connections into it."""

    population: PopulationCost
    incoming: tuple[ConnectionCost, ...]

    @property
    def synops(self) -> float:
        """Synaptic operations on the chip, per inference."""
        return sum(c.synops for c in self.incoming if not c.on_host)

    @property
    def synapse_energy(self) -> Range | None:
        """Of the connections into the population, J."""
        if self.population.update_energy is None:
            return None
        return sum((c.energy for c in self.incoming if c.energy is not None), ZERO)

    @property
    def energy(self) -> Range | None:
        """Synapses, updates, spikes and their messages, J."""
        synapse, update, spike = self.synapse_energy, self.population.update_energy, self.population.spike_energy
        if synapse is None or update is None or spike is None:
            return None
        return synapse + update + spike

    def to_json(self) -> dict[str, Any]:
        """Energies by cause, JSON values."""
        p, synapse, total = self.population, self.synapse_energy, self.energy
        return {
            "name": p.name,
            "synops": self.synops,
            "synapse_energy": synapse.to_json() if synapse else None,
            "update_energy": p.update_energy.to_json() if p.update_energy else None,
            "spike_energy": p.spike_energy.to_json() if p.spike_energy else None,
            "energy": total.to_json() if total else None,
        }
