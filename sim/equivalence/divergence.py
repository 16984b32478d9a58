"""Where two executors part, and why.

The first divergence is the first sample with any difference, in it the earliest step, there the first population in
topological order, and there the lowest neuron index. Everything that feeds this neuron still agrees, so the cause is
local: a synapse into it, or its own arithmetic. Synapses are searched by the difference of the currents; the arithmetic
by replaying the neuron alone with one fault at a time until the other side's behaviour comes out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ExecutionError
from ...network import DECAY_ONE, INPUT, Connection, IntArray, Network
from ...recording import Executor, Recording, at_every_step
from .evidence import Evidence, History
from .neuron_faults import neuron_causes, overflow_note
from .synapse_faults import synapse_causes


class Place(NamedTuple):
    """A spike, or a final membrane of a population that does not spike (then ``step`` is the last one)."""

    sample: int
    step: int
    population: str
    neuron: int


@dataclass(frozen=True)
class Side:
    """One executor's values at a place; None where it cannot show them. ``v`` is the membrane after the reset."""

    spike: int | None
    current: int | None
    u: int | None
    v: int | None


@dataclass(frozen=True)
class Divergence:
    """The first difference between the baseline and another executor.

    Attributes
    ----------
    executor : str
    sample, step : int
        Index of the sample in the data set; step in its window, from 0.
    population : str
    neuron : int
        Flat index in C order.
    coordinates : dict
        ``channel, row, column`` for a population of shape (C, Y, X), else one index per axis.
    theta : int
        Threshold in state units.
    baseline, other : Side
    origin : int or None
        Earliest step at which current, ``u``, ``v`` or the spike of this neuron differ; None if that cannot be seen.
    causes : tuple of str
        Deviations that would explain the other executor's behaviour, likeliest first.
    reproduced : bool
        Whether the sample, run alone, parts at the same place.
    """

    executor: str
    sample: int
    step: int
    population: str
    neuron: int
    coordinates: dict[str, int]
    theta: int
    baseline: Side
    other: Side
    origin: int | None
    causes: tuple[str, ...]
    reproduced: bool

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON values."""
        return asdict(self) | {"causes": list(self.causes)}

    def __str__(self) -> str:
        at = ", ".join(f"{k} {v}" for k, v in self.coordinates.items())
        sides = [("baseline", self.baseline), (self.executor, self.other)]
        width = max(len(name) for name, _ in sides)
        place = f"sample {self.sample}, step {self.step}, population {self.population!r}, neuron {self.neuron} ({at})"
        lines = [f"first divergence of {self.executor}: {place}, theta {self.theta}"]
        lines += [
            f"  {name:<{width}}  "
            + "  ".join(f"{k} {'not visible' if v is None else v}" for k, v in asdict(side).items())
            for name, side in sides
        ]
        if self.origin is not None and self.origin != self.step:
            lines.append(f"  the neuron's state differs since step {self.origin}")
        lines += [f"  likely cause: {cause}" for cause in self.causes]
        return "\n".join(lines)


def flow(network: Network) -> dict[str, int]:
    """Rank of each population in topological order."""
    return {p.name: rank for rank, p in enumerate(network.order)}


def differences(network: Network, baseline: Recording, other: Recording) -> dict[str, npt.NDArray[np.bool_]]:
    """Where two recordings differ, flat: [T, B, N] for populations that spike, [1, B, N] for final membranes.

    Raises
    ------
    ExecutionError
        If the other recording lacks a population or has it in another shape.
    """
    found = {}
    for p in network.populations:
        mine, theirs = (r.spikes.get(p.name) if p.spikes else r.v_final.get(p.name) for r in (baseline, other))
        what = "spikes" if p.spikes else "final membrane"
        assert mine is not None
        if theirs is None or theirs.shape != mine.shape:
            got = "nothing" if theirs is None else f"shape {theirs.shape}"
            raise ExecutionError(
                f"population {p.name!r}: its {what} should have shape {mine.shape}, the executor gave {got}"
            )
        lead = mine.shape[:2] if p.spikes else (1, len(mine))
        found[p.name] = (mine != theirs).reshape(*lead, p.size)
    return found


def first_place(network: Network, differing: dict[str, npt.NDArray[np.bool_]]) -> Place | None:
    """The first difference: by sample, step, topological order, neuron."""
    samples = [int(found[0]) for d in differing.values() if (found := np.flatnonzero(d.any(axis=(0, 2)))).size]
    if not samples:
        return None
    sample, rank = min(samples), flow(network)
    candidates = []
    for name, d in differing.items():
        steps = np.flatnonzero(d[:, sample].any(axis=1))
        if steps.size:
            step = int(steps[0]) if network.population(name).spikes else network.steps - 1
            candidates.append((step, rank[name], int(d[int(steps[0]), sample].argmax()), name))
    step, _, neuron, name = min(candidates)
    return Place(sample, step, name, neuron)


def examine(
    network: Network, name: str, baseline: Executor, other: Executor, x: IntArray, place: Place, offset: int
) -> Divergence:
    """Run one sample again on both executors, traced, and find the cause.

    Parameters
    ----------
    x : int64 [B, *shape] or [T, B, *shape]
        The batch in which the divergence occurred.
    place : Place
        With the sample's index in the batch.
    offset : int
        Index of the batch's first sample in the data set.
    """
    one = slice(place.sample, place.sample + 1)
    alone = x[one] if x.ndim == len(network.input.shape) + 1 else x[:, one]
    recordings = [run(network, alone, [place.population]) for run in (baseline, other)]
    again = first_place(network, differences(network, *recordings))
    histories = [_history(network, r, place) for r in recordings]
    reproduced = again is not None and again[1:] == place[1:]
    step, origin = place.step, None
    if reproduced:
        into = list(network.incoming(place.population))
        arriving = [{c.name: _arriving(network, c, alone, r) for c in into} for r in recordings]
        evidence = Evidence(
            network=network,
            population=network.population(place.population),
            neuron=place.neuron,
            step=step,
            baseline=histories[0],
            other=histories[1],
            arriving=arriving[0],
            agreed=_agreed(network, *arriving),
        )
        origin = evidence.origin
        if origin is not None and not evidence.population.spikes:
            step = origin  # a membrane is only compared at the end; the trace knows when it parted
        causes = explain(evidence)
    else:
        causes = (_not_reproduced(again),)
        histories[1] = History()  # what it does alone says nothing about what it did in the batch
    p = network.population(place.population)
    return Divergence(
        executor=name,
        sample=offset + place.sample,
        step=step,
        population=p.name,
        neuron=place.neuron,
        coordinates=coordinates(p.shape, place.neuron),
        theta=p.threshold,
        baseline=_side(histories[0], step),
        other=_side(histories[1], step),
        origin=origin,
        causes=causes,
        reproduced=reproduced,
    )


def explain(evidence: Evidence) -> tuple[str, ...]:
    """Likely causes of a divergence, likeliest first; never empty."""
    if evidence.current_differs:
        return tuple(synapse_causes(evidence))
    causes = list(neuron_causes(evidence)) or [_unexplained(evidence)]
    return tuple(dict.fromkeys(causes + overflow_note(evidence)))


def _unexplained(e: Evidence) -> str:
    if e.other.v is None:
        return (
            "it shows no membrane, and no single known fault of the neuron gives its spikes; compare weights, constants"
        )
    if e.origin == 0:
        return "the neuron differs at its first step: v_init, window reset, bias or threshold"
    return "the current agrees and the neuron does not: its update deviates in more than one known way"


def coordinates(shape: tuple[int, ...], neuron: int) -> dict[str, int]:
    """Named position of a flat index."""
    names = ("channel", "row", "column") if len(shape) == 3 else tuple(f"axis {i}" for i in range(len(shape)))
    if len(shape) == 1:
        names = ("index",)
    return dict(zip(names, (int(i) for i in np.unravel_index(neuron, shape)), strict=True))


def _not_reproduced(again: Place | None) -> str:
    alone = "agrees" if again is None else f"parts elsewhere (step {again.step}, {again.population!r}, {again.neuron})"
    return (
        f"run alone, this sample {alone}: the executor carries state from one sample into the next "
        "(window reset missing or late), or depends on what else is in the batch"
    )


def _history(network: Network, recording: Recording, place: Place) -> History:
    """Everything a one-sample recording shows of one neuron, by step."""
    p = network.population(place.population)

    def of(values: dict[str, Any]) -> list[int] | None:
        return values[p.name].reshape(network.steps, -1)[:, place.neuron].tolist() if p.name in values else None

    current, u = of(recording.current), of(recording.u)
    if current is None and p.du == DECAY_ONE:
        current = u  # without memory, u is what arrives
    return History(spike=of(recording.spikes), current=current, u=u, v=of(recording.v))


def _side(history: History, step: int) -> Side:
    values = (history.spike, history.current, history.u, history.v)
    return Side(*(None if value is None else value[step] for value in values))


def _arriving(network: Network, c: Connection, x: IntArray, recording: Recording) -> IntArray:
    """What a connection's source neurons deliver at each step: int64 [T, N_source], delay included."""
    sent = at_every_step(network, x) if c.source == INPUT else recording.spikes[c.source]
    flat = np.asarray(sent, np.int64).reshape(network.steps, -1)
    return np.concatenate([np.zeros((c.delay, flat.shape[1]), np.int64), flat])[: network.steps]


def _agreed(network: Network, mine: dict[str, IntArray], theirs: dict[str, IntArray]) -> int:
    """Steps until the first at which something different arrives."""
    first = [np.flatnonzero((mine[name] != theirs[name]).any(axis=1)) for name in mine]
    return min((int(steps[0]) for steps in first if steps.size), default=network.steps)
