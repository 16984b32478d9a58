"""The fast engine: every bit of the reference, by layers, batches and matrix products.

Where the reference walks step by step, this one takes as many steps of a population at once as the graph allows: all
``T`` if it is acyclic, else as many as the shortest delay. A population is worked off in blocks of steps and samples,
and each block is two calls, which is all that a compiled kernel would have to replace::

    drive = layer.drive(...)         synapses (sim/sums.py): what arrives at every neuron at every step of the block
    run_neurons(..., drive, ...)     neurons (sim/neurons.py): the steps of the block, one after another, in place
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from ...network import IntArray, Network, Population
from ...recording import Recording, at_every_step
from .neurons import State, Trace, run_neurons
from .sums import LayerSums

BLOCK_BYTES = 2**25  # buffers of one block; larger gains nothing, smaller cuts the matrix products into slivers


def fast(network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
    """Run a batch; see :class:`lapilli.recording.Executor`.

    Besides what it returns, a call holds the state of the populations (up to 16 bytes per neuron and sample) and one
    block of buffers (about ``BLOCK_BYTES``, or one sample at one step where that is larger).
    """
    traced = {network.population(name).name for name in trace}
    frames = at_every_step(network, x)
    constant = x.ndim == len(network.input.shape) + 1
    batch = frames.shape[1]
    layers = [_Layer(network, p, frames, constant, p.name in traced) for p in flow_order(network)]
    spikes = {layer.population.name: layer.spikes for layer in layers}
    stride = steps_at_once(network)
    out = Recording()
    for first in range(0, network.steps, stride):
        last = min(first + stride, network.steps)
        for layer in layers:
            layer.advance(first, last, batch, spikes)
            if last == network.steps:
                layer.finish(out)
    return out


def flow_order(network: Network) -> list[Population]:
    """Populations in topological order of all connections, delayed ones too, where they form no cycle.

    In a cyclic network, of the connections without delay only.
    """
    if not network.acyclic:
        return list(network.order)
    waiting = {p.name: {c.source for c in network.incoming(p.name)} for p in network.populations}
    order: list[Population] = []
    while waiting:
        ready = [name for name, sources in waiting.items() if not sources & waiting.keys()]
        order += [network.population(name) for name in ready]
        for name in ready:
            del waiting[name]
    return order


def steps_at_once(network: Network) -> int:
    """Steps that a population can take before it needs a spike of a population later in :func:`flow_order`."""
    if network.acyclic:
        return network.steps
    return min(c.delay for c in network.connections if c.delay > 0)


class _Layer:
    """A population while it runs: its synapses, its state and what it has left behind."""

    def __init__(self, network: Network, population: Population, frames: IntArray, constant: bool, traced: bool):
        steps, batch = frames.shape[:2]
        self.population = population
        self.sums = LayerSums(network, population, frames, constant)
        self.state: State | None = None
        self.spikes = np.zeros((steps if population.spikes else 0, batch, *population.shape), np.uint8)
        self.trace = Trace.empty(steps, batch, population.shape) if traced else None
        self.wraps = self.saturations = 0

    def advance(self, first: int, last: int, batch: int, sent: dict[str, np.ndarray]) -> None:
        """Take the steps ``first`` to ``last - 1`` of all samples."""
        if self.state is None:
            self.state = State.at_rest(self.population, batch)
        for steps, samples in self._blocks(first, last, batch):
            drive = self.sums.drive(sent, steps, samples)
            events = run_neurons(
                self.population,
                drive,
                self.state.of(samples),
                self.spikes[steps, samples],
                self.trace.of(steps, samples) if self.trace else None,
            )
            self.wraps += events.wraps
            self.saturations += events.saturations

    def _blocks(self, first: int, last: int, batch: int) -> Iterator[tuple[slice, slice]]:
        """Cut steps x samples into blocks of about ``BLOCK_BYTES``; the steps of a sample come in order."""
        rows = max(1, BLOCK_BYTES // self.sums.bytes_per_row)
        n_steps = min(last - first, rows)
        n_samples = max(1, rows // n_steps)
        for sample in range(0, batch, n_samples):
            for step in range(first, last, n_steps):
                yield slice(step, min(step + n_steps, last)), slice(sample, min(sample + n_samples, batch))

    def finish(self, out: Recording) -> None:
        """Hand over the recording and drop the state."""
        assert self.state is not None
        name = self.population.name
        if self.population.spikes:
            out.spikes[name] = self.spikes
        out.v_final[name] = self.state.v.astype(np.int64)
        out.wraps[name], out.saturations[name] = self.wraps, self.saturations
        if self.trace:
            out.current[name], out.u[name], out.v[name] = self.trace.current, self.trace.u, self.trace.v
        self.state = None
