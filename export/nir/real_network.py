"""A real-valued network in steps, in the words of the description: what a NIR graph becomes before rounding.

Folded networks become one too where they get what folded layers have not, synaptic currents and recurrent weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...network import INPUT, Reset, Shape
from ..folding import Affine, FloatArray, Folded
from .linear import RealSynapse


class NIRWarning(UserWarning):
    """NIR and a description do not say the same; with ``strict`` this is an error."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RealPopulation:
    """Real-valued neurons, in the words of :class:`lapilli.network.Population`.

    Parameters
    ----------
    name : str
    shape : tuple of int
    reset : {"subtract", "zero", "none"}
    threshold, reset_amount : float
    keep_u, keep_v : float
        What current and membrane keep from one step to the next.
    bias : float64 [*shape]
        Added to the membrane at every step.
    """

    name: str
    shape: Shape
    reset: Reset
    threshold: float
    reset_amount: float
    keep_u: float
    keep_v: float
    bias: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class RealConnection:
    """Real weights from a population (or the input) to another, with a delay in steps."""

    source: str
    target: str
    name: str
    synapse: RealSynapse
    delay: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class RealNetwork:
    """Populations, connections and which population is read out.

    ``notes`` is what had to be decided because a NIR graph does not say it.
    """

    name: str
    steps: int
    input_shape: Shape
    populations: tuple[RealPopulation, ...]
    connections: tuple[RealConnection, ...]
    readout: str
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def simulate(self, x: npt.ArrayLike) -> tuple[dict[str, npt.NDArray[np.uint8]], FloatArray]:
        """Run in float64, one step at a time.

        Parameters
        ----------
        x : [B, *input_shape] (the same at every step) or [T, B, *input_shape]

        Returns
        -------
        spikes : dict of uint8 [T, B, *shape]
            Of every population that spikes.
        scores : float64 [B, N]
            Spike counts of the readout, or its last membrane.

        Raises
        ------
        DataError
            If the shape does not fit.
        """
        x = np.asarray(x)
        n = len(self.input_shape)
        if x.ndim not in (n + 1, n + 2) or x.shape[x.ndim - n :] != self.input_shape:
            raise DataError(
                f"input of shape {x.shape} does not fit: give [samples, *{self.input_shape}], or with steps"
            )
        if x.ndim == n + 2 and len(x) != self.steps:
            raise DataError(f"the network runs {self.steps} steps; the input has {len(x)} frames")
        frames = x if x.ndim == n + 2 else np.broadcast_to(x, (self.steps, *x.shape))
        batch = frames.shape[1]
        order = self.order()
        shapes = {p.name: p.shape for p in self.populations}
        sent: dict[str, list[npt.NDArray[np.uint8]]] = {p.name: [] for p in order}
        u = {p.name: np.zeros((batch, *p.shape)) for p in order}
        v = {p.name: np.zeros((batch, *p.shape)) for p in order}
        incoming = {p.name: [c for c in self.connections if c.target == p.name] for p in order}
        for step in range(self.steps):
            for p in order:
                current = np.zeros((batch, *p.shape))
                for c in incoming[p.name]:
                    if step >= c.delay:
                        past = frames[step - c.delay] if c.source == INPUT else sent[c.source][step - c.delay]
                        current += c.synapse(past.astype(np.float64), shapes[p.name])
                u[p.name] = p.keep_u * u[p.name] + current
                v[p.name] = p.keep_v * v[p.name] + u[p.name] + p.bias
                spike = v[p.name] > p.threshold
                if p.reset == "zero":
                    v[p.name] = np.where(spike, 0.0, v[p.name])
                elif p.reset == "subtract":
                    v[p.name] = v[p.name] - p.reset_amount * spike
                sent[p.name].append(spike.astype(np.uint8))
        spikes = {p.name: np.stack(sent[p.name]) for p in self.populations if p.reset != "none"}
        out = spikes[self.readout].sum(0, dtype=np.float64) if self.readout in spikes else v[self.readout]
        return spikes, out.reshape(batch, -1)

    def order(self) -> list[RealPopulation]:
        """Populations so that connections without delay lead forward."""
        waiting = {
            p.name: sum(1 for c in self.connections if c.target == p.name and c.source != INPUT and c.delay == 0)
            for p in self.populations
        }
        named = {p.name: p for p in self.populations}
        ready = [name for name, n in waiting.items() if n == 0]
        for name in ready:  # grows while it is walked
            for c in self.connections:
                if c.source == name and c.delay == 0:
                    waiting[c.target] -= 1
                    if waiting[c.target] == 0:
                        ready.append(c.target)
        return [named[name] for name in ready]


def constant_source(name: str, drive: FloatArray) -> tuple[RealPopulation, RealConnection]:
    """A neuron that always spikes, and weights ``drive`` from it into the current of population ``name``.

    A bias acts on membranes; before a current that decays it would have to fill the current.
    """
    always = RealPopulation(
        name=f"{name}.bias",
        shape=(1,),
        reset="zero",
        threshold=0.5,
        reset_amount=0.0,
        keep_u=0.0,
        keep_v=0.0,
        bias=np.ones(1),
    )
    column = RealSynapse("dense", drive.reshape(-1, 1))
    return always, RealConnection(source=always.name, target=name, name=f"{always.name}->{name}", synapse=column)


def from_folded(folded: Folded, keep_u: Mapping[str, float], recurrent: Mapping[str, Affine]) -> RealNetwork:
    """A folded network whose layers also have synaptic currents and weights to themselves.

    Parameters
    ----------
    folded : Folded
    keep_u : mapping of float
        By layer: what its current keeps from one step to the next. Its bias then goes into the current.
    recurrent : mapping of Affine
        By layer: weights from its spikes to its current in the next step; their bias is not used.
    """
    populations: list[RealPopulation] = []
    connections: list[RealConnection] = []
    for layer in folded.layers:
        bias = np.broadcast_to(layer.affine.bias.reshape(-1, *[1] * (len(layer.shape) - 1)), layer.shape).copy()
        decays = keep_u.get(layer.name, 0.0)
        if decays and bias.any():
            always, column = constant_source(layer.name, bias)
            populations.append(always)
            connections.append(column)
            bias = np.zeros(layer.shape)
        into = [(branch.source, branch.affine, 0) for branch in folded.branches(layer)]
        if layer.name in recurrent:
            into.append((layer.name, recurrent[layer.name], 1))
        for i, (source, affine, delay) in enumerate(into):
            number = sum(source == earlier for earlier, *_ in into[:i])
            connections.append(
                RealConnection(
                    source=source,
                    target=layer.name,
                    name=f"{source}->{layer.name}" + (f"#{number + 1}" if number else ""),
                    synapse=RealSynapse(
                        affine.kind, affine.weight, affine.stride, affine.padding, affine.dilation, affine.groups
                    ),
                    delay=delay,
                )
            )
        populations.append(
            RealPopulation(
                name=layer.name,
                shape=layer.shape,
                reset=layer.reset,
                # A folded layer fires at its threshold, this one above it.
                threshold=float(np.nextafter(layer.threshold, -np.inf)),
                reset_amount=layer.reset_amount,
                keep_u=decays,
                keep_v=layer.beta,
                bias=bias,
            )
        )
    return RealNetwork(
        name=folded.name,
        steps=folded.steps,
        input_shape=folded.input_shape,
        populations=tuple(populations),
        connections=tuple(connections),
        readout=folded.layers[-1].name,
        labels=folded.labels,
    )
