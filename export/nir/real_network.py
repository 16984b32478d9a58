"""A real-valued network in steps, in the words of the description: what a NIR graph becomes before rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import DataError
from ...network import INPUT, Reset, Shape
from ..folding import FloatArray
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
    """A NIR graph in steps: populations, connections and which population is read out.

    ``notes`` is what had to be decided because NIR does not say it.
    """

    name: str
    steps: int
    input_shape: Shape
    populations: tuple[RealPopulation, ...]
    connections: tuple[RealConnection, ...]
    readout: str
    notes: tuple[str, ...] = ()

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
