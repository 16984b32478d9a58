"""The fast engine: every bit of the reference, by layers, batches and matrix products.

Where the reference walks step by step, this one takes as many steps of a population at once as the graph allows: all
``T`` if it is acyclic, else as many as the shortest delay. A population is worked off in blocks of steps and samples,
and each block is two calls, compiled (``kernels.c``) where they can be and NumPy where they cannot::

    drive = layer.drive(...)         synapses (sums.py): what arrives at every neuron at every step of the block
    run_neurons(..., drive, ...)     neurons (neurons.py): the steps of the block, one after another, in place
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from itertools import chain

import numpy as np

from ...network import IntArray, Network
from ...recording import Recording, at_every_step
from . import kernels, threads
from .neurons import Events, State, Trace, run_neurons
from .sums import LayerSums, Synapses

BLOCK_BYTES = 2**25  # NumPy: buffers of one block; larger gains nothing, smaller cuts the matrix products into slivers
CACHE_BYTES = 2**21  # compiled: a block's drive is written and read once, best while it is in the cache
THREAD_BYTES = 2**18  # less drive than this is not worth waking another thread for


def fast(network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
    """Run a batch; see :class:`lapilli.recording.Executor`.

    Besides what it returns, a call holds the state of the populations (up to 16 bytes per neuron and sample) and one
    block of buffers per thread (``CACHE_BYTES`` in the compiled kernels, about ``BLOCK_BYTES`` in NumPy, or one sample
    at one step where that is larger). Threads share the samples; the bits do not depend on their number.
    """
    traced = {network.population(name).name for name in trace}
    plan = plan_of(network)
    frames = at_every_step(network, x)
    constant = x.ndim == len(network.input.shape) + 1
    batch = frames.shape[1]
    layers = [_Layer(s, LayerSums(s, frames, constant), frames.shape[:2], s.population.name in traced) for s in plan]
    spikes = {layer.population.name: layer.spikes for layer in layers}
    stride = network.steps_at_once
    out = Recording()
    for first in range(0, network.steps, stride):
        last = min(first + stride, network.steps)
        for layer in layers:
            layer.advance(first, last, batch, spikes)
            if last == network.steps:
                layer.finish(out)
    return out


_plans: dict[tuple[int, int], list[Synapses]] = {}


def plan_of(network: Network) -> list[Synapses]:
    """The populations in the order they run, their synapses made ready; kept as long as the network lives."""
    key = (id(network), kernels.level)
    if key not in _plans:
        _plans[key] = [Synapses(network, p) for p in network.flow]
        weakref.finalize(network, _plans.pop, key, None)
    return _plans[key]


class _Layer:
    """A population while it runs: its synapses, its state and what it has left behind."""

    def __init__(self, synapses: Synapses, sums: LayerSums, window: tuple[int, ...], traced: bool):
        steps, batch = window
        self.population = population = synapses.population
        self.synapses = synapses
        self.sums = sums
        self.state: State | None = None
        self.spikes = np.zeros((steps if population.spikes else 0, batch, *population.shape), np.uint8)
        self.trace = Trace.empty(steps, batch, population.shape) if traced else None
        self.wraps = self.saturations = 0

    def advance(self, first: int, last: int, batch: int, sent: dict[str, np.ndarray]) -> None:
        """Take the steps ``first`` to ``last - 1`` of all samples."""
        if self.state is None:
            dtype = np.int32 if self.synapses.compiled else np.float64
            self.state = State.at_rest(self.population, batch, dtype, keep_u=self.trace is not None)

        def run(blocks: list[tuple[slice, slice]]) -> list[Events]:
            return [self._block(sent, steps, samples) for steps, samples in blocks]

        work = self._blocks(first, last, batch)
        pool = threads.pool() if self._worth_threads(first, last, batch) and len(work) > 1 else None
        for events in chain.from_iterable((pool.map if pool else map)(run, work)):
            self.wraps += events.wraps
            self.saturations += events.saturations

    def _block(self, sent: dict[str, np.ndarray], steps: slice, samples: slice) -> Events:
        assert self.state is not None
        drive = self.sums.drive(sent, steps, samples)
        trace = self.trace.of(steps, samples) if self.trace else None
        return run_neurons(self.population, drive, self.state.of(samples), self.spikes[steps, samples], trace)

    def _worth_threads(self, first: int, last: int, batch: int) -> bool:
        """NumPy has threads of its own; a few small steps are done before another thread wakes up."""
        return self.synapses.compiled and 4 * self.population.size * (last - first) * batch >= THREAD_BYTES

    def _blocks(self, first: int, last: int, batch: int) -> list[list[tuple[slice, slice]]]:
        """Cut steps x samples into blocks that fit the cache: for each group of samples its steps in order."""
        rows = max(1, (CACHE_BYTES if self.synapses.compiled else BLOCK_BYTES) // self.synapses.bytes_per_row)
        n_steps = min(last - first, rows)
        n_samples = max(1, rows // n_steps)
        if self._worth_threads(first, last, batch):
            n_samples = min(n_samples, -(-batch // threads.count()))
        return [
            [
                (slice(step, min(step + n_steps, last)), slice(sample, min(sample + n_samples, batch)))
                for step in range(first, last, n_steps)
            ]
            for sample in range(0, batch, n_samples)
        ]

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
