"""Energy and latency of a simulated run on a chip, from counted events and published constants.

Per inference::

    E = sum over connections  synaptic operations x E_synop
      + sum over populations  active updates x E_active + inactive updates x E_inactive
                              + spikes x E_spike + messages x (E_out + E_in) + hops x E_hop
      + static power x time

    time of a step = slowest core's (synaptic operations, updates, spikes and messages x their times) + barrier

The counts come from the simulator, never from an assumed spike rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from ...deploy.chip import Chip, CostSet, load_chip
from ...deploy.placement import Plan, stored_on_chip, without_graded_spikes
from ...deploy.placement import plan as make_plan
from ...errors import DataError, UnsupportedError
from ...network import Network, Population
from ..units import si_range
from .energy_report import ConnectionCost, EnergyReport, Latency, PopulationCost
from .events import (
    Cost,
    Counts,
    dynamic_energy,
    mean_step_time,
    spike_cost,
    static_energy,
    step_times,
    synapse_cost,
    update_cost,
)
from .layout import Layout, from_plan, one_core_each
from .model import Range, Scenario
from .operations import Counted, compare, sparsity


def energy(
    network: Network, run: Counted, chip: str | PathLike[str] | Chip = "loihi1", plan: Plan | None = None
) -> EnergyReport:
    """Estimate what one inference costs on a chip, in energy and time.

    Low, typical and high come from whole published cost sets (see :func:`choose`). Where a chip has none, counts are
    given and energies and times are None.

    Parameters
    ----------
    network : Network
    run : Run
        Of this network; the more samples, the better the mean.
    chip : str, path or Chip
        Name or TOML file of a profile (see :func:`lapilli.deploy.load_chip`).
    plan : Plan, optional
        Cores and traffic; made if not given. If the network does not fit the chip, every population is taken to have
        a core of its own, and the report says so.

    Raises
    ------
    FileFormatError
        If the profile does not exist or is malformed.
    DataError
        If the run is of another network.
    """
    profile = load_chip(chip if isinstance(chip, (str, Chip)) else Path(chip))
    _check(network, run)
    layout, notes = _layout(network, profile, plan)
    on_host = frozenset(c.name for c in network.connections if not stored_on_chip(network, profile, c))
    if on_host:
        notes.append(
            f"{profile.title} takes no graded input: the host computes {', '.join(sorted(on_host))}, at no chip energy "
            "in this estimate, and hands its result to the chip; that transfer has no published cost."
        )
    elif network.input.binary:
        notes.append("The way of the input's spikes from the host onto the chip has no published cost and is left out.")
    if any(p.graded for p in network.populations):
        notes.append(
            "A graded spike counts as one message and one operation for each synapse that it reaches; no source says "
            "what its payload adds to their energy."
        )
    notes.append("Reading the answer out by the host has no published cost and is left out.")
    notes += [f"{model.name}: {model.note}" for model in profile.costs if model.note]
    shared = profile.value("synapses.convolution_sharing") != 0
    counts = Counts(network, run, layout, on_host, shared)
    cannot = without_graded_spikes(network, profile)
    reason = cannot or profile.unknown.get("cost", f"the profile of {profile.title} holds no energies")
    models = () if cannot else profile.costs
    return estimate(counts, models, profile.name, f"No energy in joules: {reason}.", notes)


def _check(network: Network, run: Counted) -> None:
    """Refuse the run of another network, as far as its counts show it."""
    same_connections = set(run.synop_totals) == {c.name for c in network.connections}
    same_populations = set(run.spike_totals) == {p.name for p in network.populations if p.spikes}
    if not (same_connections and same_populations):
        raise DataError(f"the run is not one of network {network.name!r}; simulate this network and give that run")


def _layout(network: Network, profile: Chip, plan: Plan | None) -> tuple[Layout, list[str]]:
    """Where the network lies, and what the costs leave out because of it."""
    if plan is None:
        try:
            plan = make_plan(network, profile)
        except UnsupportedError as error:
            compartments = {p.name: profile.compartments(p.reset) for p in network.populations}
            return one_core_each(network, compartments), [f"The network does not fit {profile.title}: {error}"]
    _check_plan(network, profile, plan)
    notes = []
    if plan.chips > 1:
        many = profile.get("time.barrier_many_chips")
        measured = f"; over many chips it takes {si_range(many.low, many.high, 's')} ({many.source})" if many else ""
        notes.append(
            f"Messages between the {plan.chips} chips have no published cost and are priced like those within one, "
            f"and so is the barrier{measured}."
        )
    return from_plan(network, plan), notes


def _check_plan(network: Network, profile: Chip, plan: Plan) -> None:
    if plan.chip.name != profile.name:
        raise DataError(
            f"the plan is for {plan.chip.name}, the energy was asked for {profile.name}; plan for that chip"
        )
    if set(plan.traffic) != {c.name for c in network.connections}:
        raise DataError(f"the plan is not one of network {network.name!r}; make one with lapilli.deploy.plan")


def choose(models: Sequence[CostSet], cost: Callable[[Scenario], float]) -> dict[str, Scenario]:
    """The three columns of a report: the scenarios with the lowest and the highest cost, and the typical one.

    Low and high are sought among all models, with either counting of active updates, at both ends of the error band
    that a model's source states. Typical is the model calibrated on real boards (the first one where none is), all
    updates active, in the middle of its band.
    """
    ends = [Scenario(model, active, end) for model in models for active in (False, True) for end in (-1, 1)]
    calibrated = next((m for m in models if m.calibrated), models[0])
    return {
        "low": min(ends, key=lambda s: (cost(s), s.all_active)),
        "typical": Scenario(calibrated, all_active=True),
        "high": max(ends, key=lambda s: (cost(s), s.all_active)),
    }


def _range(scenarios: dict[str, Scenario], cost: Callable[[Scenario], float]) -> Range:
    return Range(*(cost(scenarios[column]) for column in ("low", "typical", "high")))


def estimate(counts: Counts, models: Sequence[CostSet], chip: str, reason: str, notes: Sequence[str]) -> EnergyReport:
    """Price the counts with published models; without any, energies and times are None and ``reason`` says why."""
    network = counts.network
    scenarios = choose(models, lambda s: dynamic_energy(counts, s) + static_energy(counts, s)) if models else {}

    def priced(cost: Callable[[Scenario], Cost]) -> Range | None:
        return _range(scenarios, lambda s: s.energy_factor * cost(s).energy) if scenarios else None

    connections = tuple(
        ConnectionCost(
            name=c.name,
            source=c.source,
            target=c.target,
            synops=counts.run.synop_totals[c.name] / counts.run.n_samples,
            on_host=c.name in counts.on_host,
            energy=None if c.name in counts.on_host else priced(lambda s, c=c: synapse_cost(counts, s, c)),
        )
        for c in network.connections
    )
    populations = tuple(_population_cost(counts, p, priced) for p in network.populations)
    dynamic = _range(scenarios, lambda s: dynamic_energy(counts, s)) if scenarios else None
    has_static = any(m.static_power is not None for m in models)
    static = _range(scenarios, lambda s: static_energy(counts, s)) if has_static else None
    return EnergyReport(
        chip=chip,
        network=network.name,
        samples=counts.run.n_samples,
        steps=network.steps,
        energy=dynamic + static if dynamic and static else dynamic,
        dynamic=dynamic,
        static=static,
        reason="" if models else reason,
        connections=connections,
        populations=populations,
        latency=_latency(counts, models) if any(m.barrier for m in models) else None,
        comparison=compare(network, counts.run),
        sparsity=sparsity(network, counts.run),
        scenarios=scenarios,
        layout=counts.layout.source,
        notes=tuple(notes),
    )


def _population_cost(
    counts: Counts, p: Population, priced: Callable[[Callable[[Scenario], Cost]], Range | None]
) -> PopulationCost:
    spikes, routes = float(counts.spikes(p.name).sum()), counts.layout.routes
    outgoing = list(counts.network.outgoing(p.name))
    return PopulationCost(
        name=p.name,
        neurons=p.size,
        compartments=counts.layout.compartments[p.name],
        updates=round(counts.updates(p).sum()),
        must_be_active=float(counts.must_be_active(p).sum()),
        spikes=spikes,
        spike_rate=spikes / (p.size * counts.network.steps),
        messages=sum(float(counts.messages(c).sum()) for c in outgoing),
        hops=spikes * sum(routes[c.name].horizontal + routes[c.name].vertical for c in outgoing),
        update_energy=priced(lambda s: update_cost(counts, s, p)),
        spike_energy=priced(lambda s: spike_cost(counts, s, p)),
    )


def _latency(counts: Counts, models: Sequence[CostSet]) -> Latency:
    timed = [m for m in models if m.barrier]

    scenarios = choose(timed, lambda s: mean_step_time(counts, s))
    step = _range(scenarios, lambda s: mean_step_time(counts, s))
    _, slowest = step_times(counts, scenarios["typical"])
    held = counts.layout.cores[slowest]
    return Latency(
        step=step,
        inference=step * (counts.network.steps + counts.depth),
        interval=step * counts.network.steps,
        depth=counts.depth,
        slowest=", ".join(f"{share:.0%} of {name}" for name, share in held.items()),
        scenarios=scenarios,
    )
