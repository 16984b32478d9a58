"""The fast engine: every bit of the reference, by layers, batches and matrix products.

Where the reference walks step by step, this one takes as many steps of a population at once as the graph allows: all
``T`` if it lies on no cycle, else as many as the shortest delay back. A population is worked off in blocks of steps and
samples. A block is one call of the compiled kernel (``kernels.c``): synapse sums of a few pixels, then their neurons,
so that no sum ever leaves the cache. The populations of a cycle share a call, in which they take turns. Where that
kernel cannot run, a block is two calls in NumPy::

    drive = layer.drive(...)         synapses (sums.py): what arrives at every neuron at every step of the block
    run_neurons(..., drive, ...)     neurons (neurons.py): the steps of the block, one after another, in place
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from ...network import IntArray, Network
from ...recording import Recording, at_every_step
from . import kernels, threads
from .neurons import Events, State, Trace, run_neurons
from .packing import Layout
from .sums import LayerSums, Synapses

BLOCK_BYTES = 2**25  # NumPy: buffers of one block; larger gains nothing, smaller cuts the matrix products into slivers
CACHE_BYTES = 2**21  # compiled: what NumPy still sums is written and read once, best while it is in the cache
CALL_WORK = 2**30  # of a cycle in one call (see LayerSums.work): some 0.1 s, after which Python hears Ctrl-C
THREAD_WORK = 700_000_000  # with less (see LayerSums.work) a layer is done before another thread is awake; measured
Watch: TypeAlias = Callable[["Layer", int, int, float], object]  # layer, first step, one past the last, seconds

PIECES = 4  # blocks of samples per thread: a thread that is held up leaves its share to the others


def fast(network: Network, x: IntArray, trace: Collection[str] = (), watch: Watch | None = None) -> Recording:
    """Run a batch; see :class:`lapilli.recording.Executor`. ``watch`` hears of every layer that has advanced.

    Besides what it returns, a call holds the state of the populations (up to 16 bytes per neuron and sample) and one
    block of buffers per thread (about ``BLOCK_BYTES`` in NumPy, or one sample at one step where that is larger).
    Threads share the samples, or the neurons of a sample where there are too few; the bits do not depend on it.
    """
    traced = {network.population(name).name for name in trace}
    plan = plan_of(network)
    frames = at_every_step(network, x)
    constant = x.ndim == len(network.input.shape) + 1
    batch = frames.shape[1]
    layers = [Layer(s, LayerSums(s, frames, constant), frames.shape[:2], s.population.name in traced) for s in plan]
    spikes = {layer.population.name: layer.spikes for layer in layers}
    waiting = iter(layers)
    out = Recording()
    for populations, stride in zip(network.stages, network.strides, strict=True):
        stage = [*islice(waiting, len(populations))]
        if stride < network.steps and _take_turns_compiled(stage, stride, batch):
            _advance_together(stage, stride, network.steps, batch, spikes, watch)
        else:
            _advance_in_turn(stage, stride, network.steps, batch, spikes, watch)
        for layer in stage:
            layer.finish(out)
    return out


def _advance_in_turn(
    stage: list[Layer], stride: int, steps: int, batch: int, sent: dict[str, np.ndarray], watch: Watch | None
) -> None:
    """Take all steps of the populations of a stage, ``stride`` steps of each one at a time."""
    for first in range(0, steps, stride):
        last = min(first + stride, steps)
        for layer in stage:
            started = time.perf_counter()
            layer.advance(first, last, batch, sent)
            if watch:
                watch(layer, first, last, time.perf_counter() - started)


def _take_turns_compiled(stage: list[Layer], stride: int, batch: int) -> bool:
    """Whether a cycle can run in calls of the kernel: nothing in it is summed by NumPy, nor better cut into parts."""
    names = {layer.population.name for layer in stage}
    if any(not layer.synapses.compiled for layer in stage):
        return False
    if any(p.connection.source in names for layer in stage for p in layer.sums.by_numpy):
        return False
    return batch >= threads.count() or not any(layer.worth_threads(0, stride, batch) for layer in stage)


def _advance_together(
    stage: list[Layer], stride: int, steps: int, batch: int, sent: dict[str, np.ndarray], watch: Watch | None
) -> None:
    """As :func:`_advance_in_turn`, but the turns are taken in the kernel; threads share the samples."""
    started = time.perf_counter()
    row_bytes = sum(layer.synapses.bytes_per_row for layer in stage if layer.sums.buffered)
    rows = CALL_WORK // sum(layer.sums.work for layer in stage)
    rows = min(rows, CACHE_BYTES // row_bytes) if row_bytes else rows
    n_samples = max(1, min(batch, rows))
    n_steps = max(1, min(steps, rows // n_samples))
    n = threads.count() if any(layer.worth_threads(0, steps, batch) for layer in stage) else 1
    if n > 1:
        n_samples = min(n_samples, -(-batch // (n * PIECES)))
    for layer in stage:
        layer.start(batch)

    given_up = threading.Event()  # Ctrl-C reaches the main thread only

    def run(samples: slice) -> list[kernels.Done]:
        total = [kernels.Done(0, 0, 0, 0)] * len(stage)
        for first in range(0, steps, n_steps):
            if given_up.is_set():
                break
            block = _Block(slice(first, min(first + n_steps, steps)), samples, None)
            done = kernels.run([layer.prepared(sent, block) for layer in stage], stride)
            total = [kernels.Done(*map(sum, zip(*both, strict=True))) for both in zip(total, done, strict=True)]
        return total

    work = [slice(first, min(first + n_samples, batch)) for first in range(0, batch, n_samples)]
    pool = threads.pool() if len(work) > 1 and n > 1 else None
    spent = [0] * len(stage)
    try:
        for done in (pool.map if pool else map)(run, work):
            for i, (layer, counted) in enumerate(zip(stage, done, strict=True)):
                layer.count(counted)
                spent[i] += counted.nanoseconds
    finally:
        given_up.set()
    if watch:
        seconds = time.perf_counter() - started
        for layer, part in zip(stage, spent, strict=True):
            watch(layer, 0, steps, seconds * part / (sum(spent) or 1) if len(stage) > 1 else seconds)


_plans: dict[tuple[int, int], list[Synapses]] = {}


def plan_of(network: Network) -> list[Synapses]:
    """The populations in the order they run, their synapses made ready; kept as long as the network lives."""
    key = (id(network), kernels.level)
    if key not in _plans:
        _plans[key] = [Synapses(network, p) for p in network.flow]
        weakref.finalize(network, _plans.pop, key, None)
    return _plans[key]


class _Block(NamedTuple):
    steps: slice
    samples: slice
    part: kernels.Part | None  # of the neurons; None for all


def _parts(layout: Layout, n: int) -> Iterator[kernels.Part]:
    """Cut the neurons of a layout into at most ``n`` parts, by blocks or else by pixels."""
    by_block = layout.blocks >= n
    size = layout.blocks if by_block else layout.pixels
    for first, last in pairwise(sorted({size * i // n for i in range(n + 1)})):
        whole = ((0, layout.pixels), (0, layout.blocks))
        yield kernels.Part(whole[0], (first, last)) if by_block else kernels.Part((first, last), whole[1])


class Layer:
    """A population while it runs: its synapses, its state and what it has left behind."""

    def __init__(self, synapses: Synapses, sums: LayerSums, window: tuple[int, ...], traced: bool):
        steps, batch = window
        self.population = population = synapses.population
        self.batch = batch
        self.synapses = synapses
        self.sums = sums
        self.state: State | None = None
        make = np.empty if synapses.compiled else np.zeros  # the kernel writes every spike
        size = (steps if population.spikes else 0, batch, *population.shape)
        self.spikes: np.ndarray = make(size, population.spike_dtype)
        self.trace = Trace.empty(steps, batch, population.shape) if traced else None
        self.wraps = self.saturations = self.products = 0

    def start(self, batch: int) -> None:
        """Make the state, if that has not been done."""
        if self.state is None:
            layout = self.synapses.layout if self.synapses.compiled else None
            self.state = State.at_rest(self.population, batch, layout, keep_u=self.trace is not None)

    def advance(self, first: int, last: int, batch: int, sent: dict[str, np.ndarray]) -> None:
        """Take the steps ``first`` to ``last - 1`` of all samples."""
        self.start(batch)

        def run(blocks: list[_Block]) -> list[Events | kernels.Done]:
            return [self._block(sent, block) for block in blocks]

        n = threads.count() if self.worth_threads(first, last, batch) else 1
        work = self._blocks(first, last, batch, n)
        pool = threads.pool() if len(work) > 1 and n > 1 else None
        for events in chain.from_iterable((pool.map if pool else map)(run, work)):
            self.count(events)

    def count(self, events: Events | kernels.Done) -> None:
        """Add up what a block counted."""
        self.wraps += events.wraps
        self.saturations += events.saturations
        self.products += events.products

    def _block(self, sent: dict[str, np.ndarray], block: _Block) -> Events | kernels.Done:
        if self.synapses.compiled:
            return kernels.run([self.prepared(sent, block)])[0]
        assert self.state is not None
        steps, samples, _ = block
        drive = self.sums.drive(sent, steps, samples)
        assert drive is not None
        trace = self.trace.of(steps, samples) if self.trace else None
        return run_neurons(self.population, drive, self.state.of(samples), self.spikes[steps, samples], trace)

    def prepared(self, sent: dict[str, np.ndarray], block: _Block) -> kernels.Prepared:
        """A block, ready for the kernel."""
        assert self.state is not None
        steps, samples, part = block
        state = self.state.of(samples)
        trace = self.trace.of(steps, samples) if self.trace else None
        return kernels.prepare(
            self.population,
            self.synapses.layout,
            (steps.stop - steps.start, samples.stop - samples.start),
            self.sums.arriving(sent, steps, samples),
            self.sums.drive(sent, steps, samples),
            state.u,
            state.v,
            self.synapses.bias,
            self.spikes[steps, samples] if self.population.spikes else None,
            (trace.current, trace.u, trace.v) if trace else None,
            part,
            self.synapses.may_wrap,
        )

    def take_products(self) -> int:
        """Images summed as products since the last call."""
        taken, self.products = self.products, 0
        return taken

    def worth_threads(self, first: int, last: int, batch: int) -> bool:
        """NumPy has threads of its own; a few small steps are done before another thread wakes up."""
        return self.synapses.compiled and self.sums.work * (last - first) * batch >= THREAD_WORK

    def _blocks(self, first: int, last: int, batch: int, n_threads: int) -> list[list[_Block]]:
        """Cut steps x samples into blocks: for each group of samples (or part of one) its steps in order."""
        row_bytes = self.synapses.bytes_per_row if self.sums.buffered or not self.synapses.compiled else 0
        rows = (CACHE_BYTES if self.synapses.compiled else BLOCK_BYTES) // row_bytes if row_bytes else 2**62
        n_steps = min(last - first, max(1, rows))
        n_samples = min(batch, max(1, rows // n_steps))
        parts: list[kernels.Part | None] = [None]
        if n_threads > 1 and batch < n_threads and not self.sums.buffered:
            parts = [*_parts(self.synapses.layout, n_threads)]
        elif n_threads > 1:
            n_samples = min(n_samples, -(-batch // (n_threads * PIECES)))
        return [
            [
                _Block(slice(step, min(step + n_steps, last)), slice(sample, min(sample + n_samples, batch)), part)
                for step in range(first, last, n_steps)
            ]
            for sample in range(0, batch, n_samples)
            for part in parts
        ]

    def finish(self, out: Recording) -> None:
        """Hand over the recording and drop the state."""
        assert self.state is not None
        name = self.population.name
        if self.population.spikes:
            out.spikes[name] = self.spikes
        v, shape = self.state.v, self.population.shape
        out.v_final[name] = self.synapses.layout.restore(v, shape) if self.synapses.compiled else v.astype(np.int64)
        out.wraps[name], out.saturations[name] = self.wraps, self.saturations
        if self.trace:
            out.current[name], out.u[name], out.v[name] = self.trace.current, self.trace.u, self.trace.v
        self.state = None
