"""Run a data set through a network, count what happens, and keep what was asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arithmetic import fan_out
from ..errors import DataError, DescriptionError, UnsupportedError
from ..network import INPUT, IntArray, Network
from ..recording import Executor, Recording, decide, scores
from .executors import find, name_of

Quantity: TypeAlias = Literal["spikes", "u", "v", "current"]
QUANTITIES: tuple[Quantity, ...] = ("spikes", "u", "v", "current")
Progress: TypeAlias = Callable[[int, int], object]  # (samples done, samples in all)

WORKING_SET = 2**29  # bytes that the recordings of one batch may take (512 MiB)


@dataclass(frozen=True)
class Updates:
    """Neuron updates of one population over all samples.

    Attributes
    ----------
    total : int
        Neurons x steps x samples: every neuron is updated at every step.
    active : int
        Updates that end in a spike.
    """

    total: int
    active: int

    @property
    def inactive(self) -> int:
        """Updates without a spike."""
        return self.total - self.active


@dataclass
class Run:
    """What a network did on a data set; ``B`` samples of ``T`` steps. All counts are exact.

    Attributes
    ----------
    network : Network
    engine : str
        Name of the executor that ran it.
    steps, n_samples : int
    seconds : float
        Wall-clock time of the executor and the counting.
    counts : mapping of int64 [B, *shape]
        Spikes of each neuron over the window, by population (those that spike); a graded spike is one.
        :class:`Counts`: asking for one population makes its array.
    payloads : dict of int64 [B, *shape]
        What the graded spikes of each neuron carried together over the window, by population (those that send such).
    input_events : int64 [B]
        Non-zero inputs, over all steps.
    events : dict of int64 [*shape]
        Events that each neuron sent, over all steps and samples: by population, and "input" (non-zero inputs).
    events_per_step : dict of int64 [T]
        Events at each step, over all samples and neurons; same keys.
    synops : dict of int64 [B]
        Synaptic operations by connection: for every event, the synapses with a non-zero weight that it reaches
        (:func:`lapilli.arithmetic.fan_out`). An event counts even where its delay carries it past the window.
    synops_per_step : dict of int64 [T]
        The same over all samples, at the step at which the event is sent.
    spikes : dict of uint8 or int32 [T, B, *shape]
        Recorded populations only; payloads, as int32, where spikes are graded.
    u, v, current : dict of int64 [T, B, *shape]
        Recorded populations only; ``v`` is the membrane after the reset.
    wraps, saturations : dict of int
        Overflow events by population; empty if the engine does not count them.
    scores : int64 [B, N] or None
        Class scores; None if the network has no readout.
    """

    network: Network
    engine: str
    steps: int
    n_samples: int
    seconds: float
    counts: Mapping[str, IntArray]
    input_events: IntArray
    events: dict[str, IntArray]
    events_per_step: dict[str, IntArray]
    synops: dict[str, IntArray]
    synops_per_step: dict[str, IntArray]
    payloads: dict[str, IntArray] = field(default_factory=dict)
    spikes: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    u: dict[str, IntArray] = field(default_factory=dict)
    v: dict[str, IntArray] = field(default_factory=dict)
    current: dict[str, IntArray] = field(default_factory=dict)
    wraps: dict[str, int] = field(default_factory=dict)
    saturations: dict[str, int] = field(default_factory=dict)
    scores: IntArray | None = None

    @property
    def predictions(self) -> IntArray | None:
        """Predicted class of each sample, int64 [B]; None if the network has no readout."""
        return None if self.scores is None else decide(self.scores)

    def accuracy(self, y: npt.ArrayLike) -> float:
        """Share of samples whose prediction is ``y`` [B].

        Raises
        ------
        DataError
            If there is no readout, or not one label per sample.
        """
        return share_correct(self.network, self.predictions, y)

    @property
    def rates(self) -> dict[str, float]:
        """Mean spikes per neuron per step by population, over all samples."""
        return {
            name: spikes / (self.n_samples * self.events[name].size) / self.steps
            for name, spikes in self.spike_totals.items()
        }

    @property
    def spike_totals(self) -> dict[str, int]:
        """Spikes by population, over all samples."""
        return {name: int(self.events[name].sum()) for name in self.counts}

    @property
    def mean_payloads(self) -> dict[str, float]:
        """What a graded spike carries on average, by population that sends such; 0 where none was sent."""
        totals = self.spike_totals
        return {name: float(sums.sum() / max(1, totals[name])) for name, sums in self.payloads.items()}

    @property
    def synop_totals(self) -> dict[str, int]:
        """Synaptic operations by connection, over all samples."""
        return {name: int(per_sample.sum()) for name, per_sample in self.synops.items()}

    @property
    def neuron_updates(self) -> dict[str, Updates]:
        """Updates by population, over all samples.

        Davies 2018 prices an active and an inactive update and defines neither. Here an update is active if the neuron
        spikes in it; what else may count as active (input arrives, a bias acts) is the cost model's business.
        """
        totals = self.spike_totals
        return {
            p.name: Updates(p.size * self.steps * self.n_samples, totals.get(p.name, 0))
            for p in self.network.populations
        }

    @property
    def overflows(self) -> dict[str, dict[str, int]]:
        """Populations in which a current wrapped or a membrane saturated, with the number of events."""
        found = {
            p.name: {"wraps": self.wraps.get(p.name, 0), "saturations": self.saturations.get(p.name, 0)}
            for p in self.network.populations
        }
        return {name: events for name, events in found.items() if any(events.values())}

    @property
    def overflow_text(self) -> str:
        """:attr:`overflows` in words, one line per population."""
        if not self.wraps and not self.saturations:
            return f"{self.engine} does not count overflows"
        lines = [
            f"{name} ({self.network.population(name).state_bits} bits): "
            f"the current wrapped {events['wraps']} times, the membrane saturated {events['saturations']} times"
            for name, events in self.overflows.items()
        ]
        return "\n".join(lines) or "no overflow: every current and membrane stayed within its width"

    def to_json(self) -> dict[str, Any]:
        """Summary: totals and means, no arrays."""
        return {
            "network": self.network.name,
            "digest": self.network.digest(),
            "engine": self.engine,
            "steps": self.steps,
            "samples": self.n_samples,
            "seconds": self.seconds,
            "input_events": int(self.input_events.sum()),
            "rates": self.rates,
            "spikes": self.spike_totals,
            "mean_payloads": self.mean_payloads,
            "synops": self.synop_totals,
            "neuron_updates": {
                name: {"total": n.total, "active": n.active, "inactive": n.inactive}
                for name, n in self.neuron_updates.items()
            },
            "overflows": self.overflows,
        }


def simulate(
    net: Network,
    x: npt.ArrayLike,
    engine: str | Executor = "fast",
    record: Mapping[str, Sequence[Quantity] | Quantity] | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a data set through a network.

    Parameters
    ----------
    net : Network
    x : [B, *shape] (the same at every step) or [T, B, *shape]
        Real values are quantized by the network's input; integers are taken as they are.
    engine : str or Executor
        A name of :func:`lapilli.sim.executors.names`, or an executor itself.
    record : mapping of population to quantities, optional
        Of "spikes", "u", "v", "current": kept at every step for all samples, for example
        ``{"conv1": ("spikes", "v")}``.
    batch : int, optional
        Samples at a time; by default as many as keep a batch's recordings under ``WORKING_SET``.
    progress : callable, optional
        Called with (samples done, samples in all) after every batch.

    Returns
    -------
    Run

    Raises
    ------
    DataError
        If there is no sample, or the input does not fit.
    DescriptionError
        If a recorded population or quantity does not exist.
    UnsupportedError
        If the engine does not exist, or cannot show a recorded quantity.
    """
    wanted = wanted_quantities(net, record or {})
    executor, name = (find(engine), engine) if isinstance(engine, str) else (engine, name_of(engine))
    x = np.asarray(x)
    total = count_samples(net, x)
    tally = _Tally(net, wanted)
    traced = [p for p, quantities in wanted.items() if set(quantities) - {"spikes"}]
    started = time.perf_counter()
    size = batch_size(net, traced) if batch is None else batch
    for part in batches(net, x, size):
        encoded = net.input.encode(part)
        tally.add(encoded, executor(net, encoded, traced))
        if progress:
            progress(tally.n_samples, total)
    return tally.run(name, time.perf_counter() - started)


def count_samples(net: Network, x: npt.NDArray[Any]) -> int:
    """Number of samples ``B`` in an input.

    Raises
    ------
    DataError
        If the input does not fit the network, has another number of steps, or has no sample.
    """
    n = len(net.input.shape)
    nothing = x[:0] if x.ndim == n + 1 else x[:, :0] if x.ndim == n + 2 else x
    net.input.encode(nothing)  # its complaint about the shape
    if x.ndim == n + 2 and len(x) != net.steps:
        raise DataError(f"network {net.name!r} runs {net.steps} steps; the input has {len(x)} frames per sample")
    samples = x.shape[-n - 1]
    if samples == 0:
        raise DataError(f"the input {x.shape} holds no sample; give at least one")
    return samples


def batches(net: Network, x: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[Any]]:
    """Cut an input into batches of samples (views)."""
    if size < 1:
        raise DataError(f"batch {size} is below 1; give the number of samples to run at a time")
    axis = x.ndim - len(net.input.shape) - 1
    for first in range(0, x.shape[axis], size):
        yield x[first : first + size] if axis == 0 else x[:, first : first + size]


def batch_size(net: Network, traced: Sequence[str] = ()) -> int:
    """Samples whose recordings stay under ``WORKING_SET`` bytes."""
    spikes = net.steps * sum(p.size * np.dtype(p.spike_dtype).itemsize for p in net.populations)
    state = 24 * sum(p.size for p in net.populations)  # u, v and the final v that is handed over
    frames = 16 * net.steps * int(np.prod(net.input.shape))
    traces = 3 * 8 * net.steps * sum(net.population(name).size for name in traced)
    return max(1, min(4096, WORKING_SET // (spikes + state + frames + traces)))


def share_correct(net: Network, predictions: IntArray | None, y: npt.ArrayLike) -> float:
    """Share of predictions that are ``y``; see :meth:`Run.accuracy`."""
    if predictions is None:
        raise DataError(f"network {net.name!r} has no readout, so there are no predictions to compare with labels")
    labels = np.asarray(y)
    if labels.shape != predictions.shape:
        raise DataError(f"labels of shape {labels.shape} for {len(predictions)} samples; give one label per sample")
    return float((predictions == labels).mean())


def wanted_quantities(
    net: Network, record: Mapping[str, Sequence[Quantity] | Quantity]
) -> dict[str, tuple[Quantity, ...]]:
    """What :func:`simulate` is to record, checked."""
    wanted = {}
    for name, quantities in record.items():
        population = net.population(name)
        listed: tuple[Quantity, ...] = (quantities,) if isinstance(quantities, str) else tuple(quantities)
        unknown = [q for q in listed if q not in QUANTITIES]
        if unknown:
            raise DescriptionError(
                f"record of {name!r}: there is no {unknown[0]!r}; choose from {', '.join(QUANTITIES)}"
            )
        if "spikes" in listed and not population.spikes:
            raise DescriptionError(f"record of {name!r}: it has reset 'none' and does not spike; record its v")
        wanted[name] = listed
    return wanted


def _summed(events: npt.NDArray[np.uint8], axis: int) -> IntArray:
    """Sum of 0/1 over an axis, in the narrowest type that holds it: several times faster than in int64."""
    n = events.shape[axis]
    dtype = np.uint8 if n < 2**8 else np.uint16 if n < 2**16 else np.int64
    return events.sum(axis=axis, dtype=dtype).astype(np.int64)


def count_dtype(net: Network) -> np.dtype[Any]:
    """The narrowest type for spikes of one neuron over the window: they are kept for every neuron and sample."""
    return np.min_scalar_type(net.steps)


class Counts(Mapping[str, IntArray]):
    """Arrays by name, kept in the narrow type that they come in and int64 where they are asked for."""

    def __init__(self, kept: Mapping[str, npt.NDArray[Any]]):
        self._kept = dict(kept)

    def __getitem__(self, name: str) -> IntArray:
        """A new array."""
        return self._kept[name].astype(np.int64)

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._kept)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._kept)


class _Tally:
    """Counts of the batches so far."""

    def __init__(self, net: Network, wanted: Mapping[str, tuple[Quantity, ...]]):
        self.net = net
        self.wanted = wanted
        self.n_samples = 0
        self.fan_out = {
            c.name: fan_out(c.synapse, net.shape_of(c.source), net.shape_of(c.target)).ravel() for c in net.connections
        }
        self.recorded: dict[tuple[str, Quantity], list[npt.NDArray[Any]]] = {}
        self.counts: dict[str, list[npt.NDArray[Any]]] = {p.name: [] for p in net.populations if p.spikes}
        self.payloads: dict[str, list[IntArray]] = {p.name: [] for p in net.populations if p.graded}
        self.input_events: list[IntArray] = []
        self.scores: list[IntArray] = []
        self.synops: dict[str, list[IntArray]] = {c.name: [] for c in net.connections}
        sources = [INPUT, *self.counts]
        self.events = {name: np.zeros(net.shape_of(name), np.int64) for name in sources}
        self.events_per_step = {name: np.zeros(net.steps, np.int64) for name in sources}
        self.synops_per_step = {c.name: np.zeros(net.steps, np.int64) for c in net.connections}
        self.wraps: dict[str, int] = {}
        self.saturations: dict[str, int] = {}

    def add(self, x: IntArray, recording: Recording) -> None:
        """Count one batch: encoded input and what the executor recorded."""
        self._count_input(x)
        for name, counts in self.counts.items():
            spikes = recording.spikes[name]
            if name in self.payloads:
                self.payloads[name].append(spikes.sum(axis=0, dtype=np.int64))
                spikes = (spikes != 0).view(np.uint8)
            per_neuron = _summed(spikes, axis=0)
            counts.append(per_neuron.astype(count_dtype(self.net)))
            self._count_events(name, per_neuron, _summed(spikes, axis=1))
        for name, quantities in self.wanted.items():
            for q in quantities:
                values = getattr(recording, q)
                if name not in values:
                    raise UnsupportedError(f"this engine cannot show {q!r} of {name!r}; use the engine 'fast'")
                self.recorded.setdefault((name, q), []).append(values[name])
        for mine, new in ((self.wraps, recording.wraps), (self.saturations, recording.saturations)):
            for name, events in new.items():
                mine[name] = mine.get(name, 0) + events
        if self.net.readout is not None:
            self.scores.append(scores(self.net, recording))
        self.n_samples += len(self.input_events[-1])

    def _count_input(self, x: IntArray) -> None:
        n = len(self.net.input.shape)
        active = (x != 0).view(np.uint8)
        if x.ndim == n + 1:
            per_neuron, per_step = (
                self.net.steps * active.astype(np.int64),
                np.broadcast_to(_summed(active, 0), (self.net.steps, *x.shape[1:])),
            )
        else:
            per_neuron, per_step = _summed(active, 0), _summed(active, 1)
        self.input_events.append(per_neuron.reshape(len(per_neuron), -1).sum(axis=1))
        self._count_events(INPUT, per_neuron, per_step)

    def _count_events(self, source: str, per_neuron: IntArray, per_step: IntArray) -> None:
        """Count events summed over steps, ``[B, *shape]``, and the same events summed over samples, ``[T, *shape]``."""
        per_neuron, per_step = (a.reshape(len(a), -1) for a in (per_neuron, per_step))
        self.events[source] += per_neuron.sum(axis=0).reshape(self.events[source].shape)
        self.events_per_step[source] += per_step.sum(axis=1)
        for c in self.net.outgoing(source):
            self.synops[c.name].append(per_neuron @ self.fan_out[c.name])
            self.synops_per_step[c.name] += per_step @ self.fan_out[c.name]

    def run(self, engine: str, seconds: float) -> Run:
        """Put everything together."""

        def recorded(quantity: Quantity) -> dict[str, Any]:
            return {name: np.concatenate(parts, axis=1) for (name, q), parts in self.recorded.items() if q == quantity}

        return Run(
            network=self.net,
            engine=engine,
            steps=self.net.steps,
            n_samples=self.n_samples,
            seconds=seconds,
            counts=Counts({name: np.concatenate(parts) for name, parts in self.counts.items()}),
            payloads={name: np.concatenate(parts) for name, parts in self.payloads.items()},
            input_events=np.concatenate(self.input_events),
            events=self.events,
            events_per_step=self.events_per_step,
            synops={name: np.concatenate(parts) for name, parts in self.synops.items()},
            synops_per_step=self.synops_per_step,
            spikes=recorded("spikes"),
            u=recorded("u"),
            v=recorded("v"),
            current=recorded("current"),
            wraps=self.wraps,
            saturations=self.saturations,
            scores=np.concatenate(self.scores) if self.scores else None,
        )
