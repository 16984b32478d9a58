"""Where a network lies on a chip, as far as its cost depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...network import Network

if TYPE_CHECKING:
    from ...deploy.placement import Plan


@dataclass(frozen=True)
class Route:
    """How spikes travel over one connection.

    Attributes
    ----------
    messages : float
        Messages per spike, one to each destination core.
    within_tile : float
        Messages per spike that stay in their tile.
    horizontal, vertical : float
        Tile hops per spike, summed over its messages.
    """

    messages: float
    within_tile: float = 0.0
    horizontal: float = 0.0
    vertical: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Where a network lies, as far as its cost depends on it.

    Attributes
    ----------
    cores : tuple of mappings
        Per core: the share (0..1) of each population's neurons that it holds.
    tiles, chips : int
        In use.
    compartments : mapping of str to int
        Hardware neurons per neuron, by population (2 for a soft reset on Loihi 1).
    routes : mapping of str to Route
        By connection.
    source : str
        Where the layout comes from, for the reader of a report.
    """

    cores: tuple[Mapping[str, float], ...]
    tiles: int
    chips: int
    compartments: Mapping[str, int]
    routes: Mapping[str, Route]
    source: str


def one_core_each(network: Network, compartments: Mapping[str, int] | None = None) -> Layout:
    """A layout for when there is no plan: every population alone on one core, all within one tile.

    A spike then is one message per connection: the least traffic there can be, and no parallel work inside a
    population. Energy is at its lowest, time at its highest.
    """
    return Layout(
        cores=tuple({p.name: 1.0} for p in network.populations),
        tiles=1,
        chips=1,
        compartments=compartments or {p.name: 1 for p in network.populations},
        routes={c.name: Route(1.0, within_tile=1.0) for c in network.connections},
        source="no plan: every population on one core, all cores in one tile",
    )


def from_plan(network: Network, plan: Plan) -> Layout:
    """The layout of a plan; where the mesh is unknown there are no hops, and every core counts as a tile."""
    cores: dict[int, dict[str, float]] = {}
    for shard in plan.shards:
        share = shard.neurons / network.population(shard.population).size
        held = cores.setdefault(shard.core, {})
        held[shard.population] = held.get(shard.population, 0.0) + share
    tiles = plan.cores if plan.tiles is None else plan.tiles
    return Layout(
        cores=tuple(cores[core] for core in sorted(cores)),
        tiles=tiles,
        chips=plan.chips,
        compartments=plan.compartments,
        routes={
            name: Route(t.messages, t.within_tile or 0.0, t.horizontal or 0.0, t.vertical or 0.0)
            for name, t in plan.traffic.items()
        },
        source=f"{plan.cores} cores, {tiles} tiles, {plan.chips} chip{'s' if plan.chips > 1 else ''} (lapilli's plan)"
        if plan.tiles is not None
        else f"{plan.cores} cores, {plan.chips} chip{'s' if plan.chips > 1 else ''} (lapilli's plan)",
    )
