"""Which neurons lie on which core, and how far their spikes travel.

A first, honest version, not an optimizer: every population is cut into contiguous ranges of neurons (in C order), as
large as one core can hold; every range gets a core of its own; cores are numbered along a snake through the mesh, so
that populations that follow each other are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..network import INPUT, Connection, Conv2d, IntArray, Network, Population, Scale
from .chip import Chip, load_chip
from .fan_in import kernel_weights, synapses_into

NO_LIMIT = "the population's size"


@dataclass(frozen=True)
class Shard:
    """A range of a population's neurons on one core.

    Attributes
    ----------
    population : str
    first, stop : int
        Neurons ``first .. stop - 1`` in C order.
    core : int
        Counted over all chips along the snake.
    compartments : int
        Hardware neurons taken.
    synapses, memory_bits : int
        Synapses stored, and the bits they take.
    axons_in, axons_out : int
        Source neurons that reach the core; (neuron, destination core) pairs that leave it.
    cut_by : str
        The limit that ended the range.
    """

    population: str
    first: int
    stop: int
    core: int
    compartments: int
    synapses: int
    memory_bits: int
    axons_in: int
    axons_out: int
    cut_by: str

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return self.stop - self.first


@dataclass(frozen=True)
class Traffic:
    """How the spikes of one connection travel, per spike of an average source neuron.

    Attributes
    ----------
    messages : float
        Messages, one to each destination core.
    within_tile : float
        Messages that stay in their tile.
    horizontal, vertical : float
        Tile hops, east-west and north-south, summed over the messages that stay on their chip.
    between_chips : float
        Messages that leave their chip; their way is not counted in hops.
    """

    messages: float
    within_tile: float | None
    horizontal: float | None
    vertical: float | None
    between_chips: float


@dataclass(frozen=True)
class Plan:
    """Where a network lies on a chip.

    Attributes
    ----------
    network : str
    chip : Chip
    shards : tuple of Shard
        One per core, in the order of the cores.
    traffic : dict of Traffic
        By connection. Spikes of the input enter from outside: their hops are not counted.
    notes : tuple of str
        What the numbers leave out.
    """

    network: str
    chip: Chip
    shards: tuple[Shard, ...]
    traffic: dict[str, Traffic]
    notes: tuple[str, ...]

    @property
    def cores(self) -> int:
        """Cores in use."""
        return len(self.shards)

    @cached_property
    def chips(self) -> int:
        """Chips in use."""
        return -(-self.cores // (self.chip.value("geometry.cores_per_chip") or 1))

    @cached_property
    def tiles(self) -> int | None:
        """Tiles in use, or None where the mesh is unknown."""
        if not self.chip.has_mesh:
            return None
        return len({tile_of(self.chip, s.core) for s in self.shards})

    @cached_property
    def compartments(self) -> dict[str, int]:
        """Hardware neurons per neuron, by population."""
        return {s.population: s.compartments // s.neurons for s in self.shards}

    def shards_of(self, population: str) -> tuple[Shard, ...]:
        """Shards of one population."""
        return tuple(s for s in self.shards if s.population == population)

    def utilization(self, shard: Shard) -> dict[str, float | None]:
        """Share of each of the core's limits that a shard takes (0..1); None where the limit is unknown."""
        found = {
            "neurons": (shard.compartments, "limits.neurons_per_core"),
            "memory": (shard.memory_bits, "limits.synaptic_memory"),
            "axons_in": (shard.axons_in, "limits.input_axons"),
            "axons_out": (shard.axons_out, "limits.output_axons"),
        }
        limits = {name: self.chip.value(key) for name, (_, key) in found.items()}
        return {name: None if limits[name] is None else n / limits[name] for name, (n, _) in found.items()}  # type: ignore[operator]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "network": self.network,
            "chip": self.chip.name,
            "cores": self.cores,
            "chips": self.chips,
            "tiles": self.tiles,
            "synapses": sum(s.synapses for s in self.shards),
            "memory_bits": sum(s.memory_bits for s in self.shards),
            "compartments": sum(s.compartments for s in self.shards),
            "shards": [asdict(s) | {"utilization": self.utilization(s)} for s in self.shards],
            "traffic": {name: asdict(t) for name, t in self.traffic.items()},
            "notes": list(self.notes),
        }

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table(title=f"{self.network} on {self.chip.title}: {self.cores} cores, {self.chips} chip(s)")
        for heading in ("population", "neurons", "cores", "neurons/core", "memory", "axons in", "axons out", "cut by"):
            table.add_column(heading, justify="left" if heading in ("population", "cut by") else "right")
        for name in dict.fromkeys(s.population for s in self.shards):
            shards = self.shards_of(name)
            used = [self.utilization(s) for s in shards]
            share = [
                "?" if used[0][key] is None else f"{max(u[key] or 0 for u in used):.0%}"
                for key in ("neurons", "memory", "axons_in", "axons_out")
            ]
            table.add_row(name, str(shards[-1].stop), str(len(shards)), *share, shards[0].cut_by)
        return Group(table, *(f"note: {note}" for note in self.notes))


def plan(network: Network, chip: str | Path | Chip) -> Plan:
    """Cut a network into cores and place them.

    Raises
    ------
    UnsupportedError
        If a single neuron does not fit a core, or a chip with binary spikes is to send graded ones; the message names
        the population and the limit.
    FileFormatError
        If the chip's profile is wrong.
    """
    chip = load_chip(chip)
    if reason := without_graded_spikes(network, chip):
        raise UnsupportedError(reason)
    cuts, edges = _cut_all(network, chip)
    numbered: list[Shard] = []
    for p in network.order:
        for first, stop, cut_by in cuts[p.name].ranges:
            need = cuts[p.name].need(first, stop)
            numbered.append(
                Shard(
                    population=p.name,
                    first=first,
                    stop=stop,
                    core=len(numbered),
                    compartments=need.compartments,
                    synapses=need.synapses,
                    memory_bits=need.memory_bits,
                    axons_in=need.axons_in,
                    axons_out=int(edges[p.name][first:stop].sum()),
                    cut_by=cut_by,
                )
            )
    traffic = {c.name: _traffic(network, chip, numbered, c) for c in network.connections}
    return Plan(network.name, chip, tuple(numbered), traffic, tuple(_notes(network, chip)))


def without_graded_spikes(network: Network, chip: Chip) -> str | None:
    """Why a chip with binary spikes cannot run a network whose populations send graded ones; None if it can."""
    graded = [p.name for p in network.populations if p.graded]
    if not graded or chip.value("neurons.graded_spikes") != 0:
        return None
    return f"population {graded[0]!r}: sends graded spikes, and {chip.title} has binary ones; choose another chip"


def tile_of(chip: Chip, core: int) -> tuple[int, int, int]:
    """(chip, column, row) of a core's tile: cores are numbered tile by tile along a snake through the mesh."""
    per_chip, per_tile = chip.value("geometry.cores_per_chip") or 1, chip.value("geometry.cores_per_tile") or 1
    columns = chip.value("geometry.tiles_horizontal") or 1
    which, on_chip = divmod(core, per_chip)
    row, column = divmod(on_chip // per_tile, columns)
    return which, column if row % 2 == 0 else columns - 1 - column, row


# What a range of neurons needs


@dataclass(frozen=True)
class _Need:
    compartments: int
    synapses: int
    memory_bits: int
    axons_in: int
    axons_out: int


@dataclass
class _Cut:
    ranges: list[tuple[int, int, str]]
    need: Callable[[int, int], _Need]


def _cut_all(network: Network, chip: Chip) -> tuple[dict[str, _Cut], dict[str, IntArray]]:
    """Cut every population, and count each neuron's destination cores.

    A finer cut gives its sources more axons out, so it is repeated until nothing needs a finer one.
    """
    cuts: dict[str, _Cut] = {}
    edges = {p.name: np.zeros(p.size, np.int64) for p in network.populations}
    while True:
        for p in reversed(network.order):
            cuts[p.name] = _cut(network, chip, p, edges[p.name])
        seen = {p.name: _edges(network, p, cuts) for p in network.populations}
        if all((seen[name] <= edges[name]).all() for name in edges):
            return cuts, seen
        edges = {name: np.maximum(seen[name], edges[name]) for name in edges}


def _cut(network: Network, chip: Chip, p: Population, edges: IntArray) -> _Cut:
    per_neuron = chip.compartments(p.reset)
    incoming = [c for c in network.incoming(p.name) if stored_on_chip(network, chip, c)]
    sum_of_edges = np.concatenate(([0], np.cumsum(edges)))

    def need(first: int, stop: int) -> _Need:
        synapses = memory = axons = 0
        for c in incoming:
            counts = synapses_into(c.synapse, network.shape_of(c.source), p.shape, first, stop)
            synapses += int(counts.sum())
            axons += int(np.count_nonzero(counts))
            memory += _memory_bits(chip, c, counts, p, first, stop, per_neuron)
        out = int(sum_of_edges[stop] - sum_of_edges[first])
        return _Need((stop - first) * per_neuron, synapses, memory, axons, out)

    def broken(first: int, stop: int) -> str:
        """The limit that a range exceeds, or nothing."""
        n = need(first, stop)
        for found, key, name in (
            (n.compartments, "limits.neurons_per_core", "neurons per core"),
            (n.memory_bits, "limits.synaptic_memory", "synaptic memory"),
            (n.axons_in, "limits.input_axons", "input axons"),
            (n.axons_out, "limits.output_axons", "output axons"),
        ):
            limit = chip.value(key)
            if limit is not None and found > limit:
                return f"{name}: {found} > {limit}" if stop - first == 1 else name
        return ""

    ranges: list[tuple[int, int, str]] = []
    most = max(1, (chip.value("limits.neurons_per_core") or p.size) // per_neuron)
    first = 0
    while first < p.size:
        top = min(p.size, first + most)
        stop, cut_by = top, NO_LIMIT if top == p.size else "neurons per core"
        if why := broken(first, top):
            stop, cut_by = first, why
            likely = [ranges[-1][1] - ranges[-1][0] + first + i for i in (0, 1)] if ranges else []  # as the last one
            while top - stop > 1:  # stop fits, top does not
                middle = next((m for m in likely if stop < m < top), (stop + top) // 2)
                if why := broken(first, middle):
                    top, cut_by = middle, why
                else:
                    stop = middle
        if stop == first:
            raise UnsupportedError(
                f"population {p.name!r}: neuron {first} alone does not fit a core of {chip.name} ({cut_by}); "
                "use fewer inputs per neuron, or a chip with larger cores"
            )
        ranges.append((first, stop, cut_by))
        first = stop
    return _Cut(ranges, need)


def stored_on_chip(network: Network, chip: Chip, c: Connection) -> bool:
    """Whether a connection takes synapses: a graded input to a chip with binary spikes is multiplied by the host."""
    return c.source != INPUT or network.input.binary or bool(chip.value("neurons.graded_spikes"))


def _memory_bits(
    chip: Chip, c: Connection, counts: IntArray, p: Population, first: int, stop: int, per_neuron: int
) -> int:
    """Bits of one connection's synapses on one core.

    Loihi 1 (nengo-loihi ``SynapseConfig.bits_per_axon``): each source neuron has its own list, in blocks of at most
    64 synapses of weight + delay + index bits, plus a header of 10 bits, rounded up to 64-bit words. A list that
    covers all compartments of the core needs no indices. Where the chip's packing is not public: the plain bits.
    """
    weight = chip.value("synapses.weight_bits") or c.weight_bits
    if isinstance(c.synapse, (Conv2d, Scale)) and chip.value("synapses.convolution_sharing"):
        if isinstance(c.synapse, Conv2d):
            return weight * kernel_weights(c.synapse, p.shape, first, stop)
        return weight * c.synapse.weight.size
    delay = c.delay.bit_length()
    n = counts[counts > 0]
    width = max(1, (stop - first) * per_neuron - 1).bit_length()
    index = next((b for b in chip.index_bits if b >= width and b > 0), width)
    indexed = _blocks(chip, n, weight + delay + index)
    complete = _blocks(chip, np.full_like(n, stop - first), weight + delay)
    return min(indexed, complete)


def _blocks(chip: Chip, n: IntArray, bits: int) -> int:
    """Bits of lists of ``n`` synapses of ``bits`` bits each."""
    size, header, word = (chip.value(f"synapses.{k}") for k in ("block_synapses", "block_header", "word"))
    if size is None:
        return int(n.sum()) * bits

    def block(m: npt.NDArray[np.int64] | int) -> Any:
        return -(-(m * bits + (header or 0)) // (word or 1)) * (word or 1)

    full, rest = n // size, n % size
    return int((full * block(size)).sum() + block(rest)[rest > 0].sum())


# Ways


def _edges(network: Network, p: Population, cuts: dict[str, _Cut]) -> IntArray:
    """Destination cores of each neuron of a population: int64 [N]."""
    total = np.zeros(p.size, np.int64)
    for c in network.outgoing(p.name):
        target = network.population(c.target)
        for first, stop, _ in cuts[target.name].ranges:
            total += (synapses_into(c.synapse, p.shape, target.shape, first, stop) > 0).ravel()
    return total


def _traffic(network: Network, chip: Chip, shards: list[Shard], c: Connection) -> Traffic:
    source, target = network.shape_of(c.source), network.population(c.target)
    neurons = int(np.prod(source))
    if not stored_on_chip(network, chip, c):
        return Traffic(0.0, None, None, None, 0.0)
    messages = within = horizontal = vertical = between = 0
    for destination in shards:
        if destination.population != c.target:
            continue
        reached = synapses_into(c.synapse, source, target.shape, destination.first, destination.stop).ravel() > 0
        messages += int(reached.sum())
        for origin in shards:
            if origin.population == c.source:
                n = int(reached[origin.first : origin.stop].sum())
                (chip_a, x_a, y_a), (chip_b, x_b, y_b) = (tile_of(chip, s.core) for s in (origin, destination))
                if chip_a != chip_b:
                    between += n
                else:
                    within += n * ((x_a, y_a) == (x_b, y_b))
                    horizontal += n * abs(x_a - x_b)
                    vertical += n * abs(y_a - y_b)
    if not chip.has_mesh or c.source == INPUT:
        return Traffic(messages / neurons, None, None, None, between / neurons)
    return Traffic(messages / neurons, within / neurons, horizontal / neurons, vertical / neurons, between / neurons)


def _notes(network: Network, chip: Chip) -> list[str]:
    notes = []
    if not chip.has_mesh:
        notes.append(f"{chip.name}: the mesh is unknown, so no hops are counted")
    if not chip.value("limits.input_axons"):
        notes.append(f"{chip.name}: axon limits are not public and not checked")
    if any(not stored_on_chip(network, chip, c) for c in network.connections):
        notes.append(
            f"{chip.name} has binary spikes only: the host multiplies the graded input by its weights and writes the "
            "result as bias; those synapses are not on the chip"
        )
    if any(isinstance(c.synapse, Conv2d) for c in network.connections):
        shared = chip.value("synapses.convolution_sharing")
        notes.append(
            "a convolution's kernel is stored once per core"
            if shared
            else "every synapse of a convolution is stored; compilers that share kernels between axons need less memory"
        )
    return notes
