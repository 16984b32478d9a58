"""Where the time of the fast engine goes: path, density, time and rate of every layer, beside what a core can do."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...network import INPUT, Dense, IntArray, Network, Population
from ...recording import Recording
from . import kernels, threads
from .batched import Layer, fast
from .neurons import State
from .packing import Rows, lay_out, pack

if TYPE_CHECKING:
    from ..simulation import Run

PEAK_ROWS, PEAK_TARGETS = 64, 256  # 16 KiB of weights: half of the smallest first-level cache in use
PEAK_IMAGES, PEAK_SECONDS = 200, 0.1


@dataclass
class LayerProfile:
    """One population with all that arrives at it.

    Attributes
    ----------
    density : float or None
        Events per source neuron and step, over all connections that carry spikes; None if none does.
    path : str
        How its sums were made: "events", "products" (with their share of the images), "once" (an input that never
        changes), "NumPy"; joined by "+".
    seconds : float
        Wall-clock time of sums and neurons over all batches.
    synops : int
        Synaptic operations that were summed in that time; those of an input that is summed once are left out.
    of_peak : float or None
        ``synops / seconds`` as a share of :func:`measured_peak` times the threads; None without compiled kernels.
    """

    population: str
    density: float | None
    path: str
    seconds: float
    synops: int
    of_peak: float | None

    @property
    def rate(self) -> float:
        """Synaptic operations per second."""
        return self.synops / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """As in the attributes, and the rate."""
        return {
            "population": self.population,
            "path": self.path,
            "density": self.density,
            "seconds": self.seconds,
            "synops": self.synops,
            "synops_per_second": self.rate,
            "of_peak": self.of_peak,
        }


class Profiler:
    """The fast engine with a clock at every layer; itself an executor.

    >>> profiler = Profiler()
    >>> run = simulate(net, x, engine=profiler)    # doctest: +SKIP
    >>> profiler.layers(run)                       # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.__name__ = "fast"
        self.peak: float | None = None
        self._seconds: dict[str, float] = {}
        self._summed: dict[str, tuple[int, int]] = {}  # images summed as products, and in all
        self._paths: dict[str, list[str]] = {}
        self._constant = False

    def __call__(self, network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
        """Run a batch; see :class:`lapilli.recording.Executor`."""
        if self.peak is None and kernels.available():
            self.peak = measured_peak()
        self._constant = x.ndim == len(network.input.shape) + 1
        return fast(network, x, trace, self._watch)

    def _watch(self, layer: Layer, first: int, last: int, seconds: float) -> None:
        name = layer.population.name
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        sums = layer.sums
        images = (last - first) * layer.batch * sum(isinstance(p.packed, Rows) and not p.graded for p in sums.by_kernel)
        products, before = self._summed.get(name, (0, 0))
        self._summed[name] = (products + layer.take_products(), before + images)
        paths = self._paths.setdefault(name, [])
        for path, taken in (
            ("events", any(not p.graded for p in sums.by_kernel)),
            ("products", any(p.graded for p in sums.by_kernel)),
            ("once", bool(sums.once)),
            ("NumPy", bool(sums.by_numpy) or not layer.synapses.compiled),
        ):
            if taken and path not in paths:
                paths.append(path)

    def layers(self, run: Run) -> list[LayerProfile]:
        """The profile of all populations, in the order they run; ``run`` is what :func:`simulate` returned."""
        return [self._layer(run, p) for p in run.network.flow]

    def _layer(self, run: Run, p: Population) -> LayerProfile:
        net = run.network
        stepped = [c for c in net.incoming(p.name) if not (self._constant and c.source == INPUT)]
        spikes = [c.source for c in stepped if c.source != INPUT or net.input.binary]
        places = sum(int(np.prod(net.shape_of(s))) for s in spikes) * run.steps * run.n_samples
        seconds, synops = self._seconds[p.name], sum(int(run.synops[c.name].sum()) for c in stepped)
        rate = synops / seconds if seconds else 0.0
        return LayerProfile(
            population=p.name,
            density=sum(int(run.events[s].sum()) for s in spikes) / places if places else None,
            path=self._path(p.name),
            seconds=seconds,
            synops=synops,
            of_peak=rate / (self.peak * threads.count()) if self.peak else None,
        )

    def _path(self, name: str) -> str:
        products, images = self._summed[name]
        share = products / images if images else 0.0
        how = {0.0: "events", 1.0: "products"}.get(share, f"events, {share:.0%} products")
        paths = dict.fromkeys(how if path == "events" else path for path in self._paths[name])
        return " + ".join(paths) or "neurons only"

    def to_json(self, run: Run) -> dict[str, Any]:
        """Layers, and what their rates are measured against."""
        return {
            "kernels": kernels.level_name(),
            "threads": threads.count(),
            "peak_synops_per_second_per_thread": self.peak,
            "layers": [layer.to_json() for layer in self.layers(run)],
        }


def measured_peak() -> float:
    """Weights per second that one core adds up at best, where all of them lie in its cache and every input spikes.

    The best of a few short runs of each path, :data:`PEAK_SECONDS` in all.
    """
    population = Population(name="peak", shape=(PEAK_TARGETS,), reset="none", state_bits=kernels.WIDEST_STATE)
    synapse = Dense(np.ones((PEAK_TARGETS, PEAK_ROWS), np.int8))
    layout = lay_out(population, [synapse])
    packed = pack(synapse, (PEAK_ROWS,), (PEAK_TARGETS,), layout)
    assert packed is not None
    x = np.ones((PEAK_IMAGES, 1, PEAK_ROWS), np.uint8)
    arriving = [kernels.Arriving(packed, x, 0, 0)]
    state, bias = State.at_rest(population, 1, layout), layout.arrange(np.zeros((PEAK_TARGETS, 1)))
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < PEAK_SECONDS:
        for path in ("events", "products"):
            before = time.perf_counter()
            kernels.run(
                [
                    kernels.prepare(
                        population, layout, x.shape[:2], arriving, None, None, state.v, bias, None, None, forced=path
                    )
                ]
            )
            best = min(best, time.perf_counter() - before)
    return PEAK_IMAGES * PEAK_ROWS * PEAK_TARGETS / best
