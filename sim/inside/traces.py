"""Spikes, currents and membranes of chosen neurons at every step, for chosen samples only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DataError, DescriptionError, UnsupportedError
from ...network import IntArray, Network
from ...recording import Executor
from ..executors import find, name_of
from ..simulation import QUANTITIES, Progress, Quantity, batch_size, batches, count_samples
from .selection import Select, select_neurons, select_samples

TRACE_BYTES = 2**30  # what may be kept, and what one sample may need while it runs, unless the caller says otherwise


@dataclass
class Traces:
    """What chosen neurons did, step by step; ``S`` samples, ``T`` steps, ``K`` neurons of a population.

    Attributes
    ----------
    network : Network
    engine : str
    samples : int64 [S]
        Indices in the data set, ascending.
    neurons : dict of int64 [K]
        By population: flat indices in C order, ascending.
    spikes : dict of uint8 or int32 [T, S, K]
        Where asked for, of populations that spike; payloads, as int32, where spikes are graded.
    u, v, current : dict of int64 [T, S, K]
        Where asked for: current, membrane after the reset, and ``I 2^f``, in state units.
    """

    network: Network
    engine: str
    samples: IntArray
    neurons: dict[str, IntArray]
    spikes: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    u: dict[str, IntArray] = field(default_factory=dict)
    v: dict[str, IntArray] = field(default_factory=dict)
    current: dict[str, IntArray] = field(default_factory=dict)

    def of(self, population: str) -> dict[Quantity, npt.NDArray[Any]]:
        """The traces of one population by quantity, those that there are."""
        return {q: getattr(self, q)[population] for q in QUANTITIES if population in getattr(self, q)}

    @property
    def nbytes(self) -> int:
        """Bytes that the traces take."""
        return sum(a.nbytes for name in self.neurons for a in self.of(name).values())

    def about(self) -> dict[str, Any]:
        """What a reader of a file needs beside the arrays; JSON values."""
        return {
            "network": self.network.name,
            "digest": self.network.digest(),
            "engine": self.engine,
            "steps": self.network.steps,
            "axes": ["step", "sample", "neuron"],
            "units": "u, v and current in state units; v after the reset; neurons are flat indices in C order",
            "populations": {
                p.name: {
                    "shape": list(p.shape),
                    "neurons": len(self.neurons[p.name]),
                    "threshold": p.threshold if p.spikes else None,
                    **({"payload_max": p.payload_max, "payload_shift": p.payload_shift} if p.graded else {}),
                    "reset": p.reset,
                    "quantities": list(self.of(p.name)),
                }
                for p in self.network.populations
                if p.name in self.neurons
            },
        }


def trace(
    net: Network,
    x: npt.ArrayLike,
    select: Select,
    samples: str | Sequence[int] = (0,),
    quantities: Sequence[Quantity] = ("spikes", "u", "v"),
    engine: str | Executor = "fast",
    max_bytes: int = TRACE_BYTES,
    progress: Progress | None = None,
) -> Traces:
    """Run some samples and keep what chosen neurons did at every step.

    Parameters
    ----------
    net : Network
    x : [B, *shape] (the same at every step) or [T, B, *shape]
        As for :func:`lapilli.sim.simulate`; only the chosen samples are run.
    select : str, sequence of str, or mapping
        Neurons, such as ``["hidden[0:10]", "conv2[3,:,:]"]``; see :func:`~lapilli.sim.inside.selection.select_neurons`.
    samples : str or sequence of int
        Indices, or text such as ``"0:4,17"``; the first sample by default.
    quantities : sequence of {"spikes", "u", "v", "current"}
        A population that does not spike has no "spikes".
    engine : str or Executor
        Any that can show what is asked for; the bits are the same.
    max_bytes : int
        Refuse to keep more than this, and to need more than this for one sample at a time.
    progress : callable, optional
        Called with (samples done, samples in all).

    Returns
    -------
    Traces

    Raises
    ------
    DescriptionError
        If a population, neuron or quantity does not exist.
    DataError
        If the input does not fit, a sample does not exist, or the traces would take more than ``max_bytes``.
    UnsupportedError
        If the engine cannot show a quantity.
    """
    executor, name = (find(engine), engine) if isinstance(engine, str) else (engine, name_of(engine))
    x = np.asarray(x)
    chosen = select_neurons(net, select)
    numbers = select_samples(samples, count_samples(net, x))
    wanted = {population: _quantities(net, population, quantities) for population in chosen}
    if not any(wanted.values()):
        raise DescriptionError(f"{', '.join(chosen)}: no spikes where the reset is 'none'; ask for v")
    traced = [population for population, what in wanted.items() if set(what) - {"spikes"}]
    _refuse_too_much(net, chosen, wanted, traced, len(numbers), max_bytes)
    kept = Traces(net, name, numbers, chosen)
    for population, what in wanted.items():
        for q in what:
            size = (net.steps, len(numbers), len(chosen[population]))
            dtype = net.population(population).spike_dtype if q == "spikes" else np.int64
            getattr(kept, q)[population] = np.empty(size, dtype)
    done = 0
    for part in batches(net, np.take(x, numbers, axis=x.ndim - len(net.input.shape) - 1), batch_size(net, traced)):
        recording = executor(net, net.input.encode(part), traced)
        here = slice(done, done + part.shape[part.ndim - len(net.input.shape) - 1])
        for population, what in wanted.items():
            for q in what:
                values = getattr(recording, q).get(population)
                if values is None:
                    raise UnsupportedError(f"{name} cannot show {q!r} of {population!r}; use the engine 'fast'")
                getattr(kept, q)[population][:, here] = values.reshape(*values.shape[:2], -1)[..., chosen[population]]
        done = here.stop
        if progress:
            progress(done, len(numbers))
    return kept


def _quantities(net: Network, population: str, quantities: Sequence[Quantity]) -> tuple[Quantity, ...]:
    unknown = [q for q in quantities if q not in QUANTITIES]
    if unknown or not quantities:
        raise DescriptionError(
            f"there is no quantity {unknown[0] if unknown else ''!r} to trace; choose from {', '.join(QUANTITIES)}"
        )
    spikes = net.population(population).spikes
    return tuple(q for q in QUANTITIES if q in quantities and (spikes or q != "spikes"))


def _refuse_too_much(
    net: Network,
    chosen: dict[str, IntArray],
    wanted: dict[str, tuple[Quantity, ...]],
    traced: list[str],
    samples: int,
    max_bytes: int,
) -> None:
    """An engine traces whole populations of the samples that it runs; what is kept are the chosen neurons."""
    spike_bytes = {p: np.dtype(net.population(p).spike_dtype).itemsize for p in wanted}
    kept = sum(
        net.steps * samples * len(chosen[p]) * (8 * len(set(what) - {"spikes"}) + spike_bytes[p] * ("spikes" in what))
        for p, what in wanted.items()
    )
    if kept > max_bytes:
        neurons = sum(map(len, chosen.values()))
        raise DataError(
            f"traces of {neurons:,} neurons over {net.steps} steps and {samples:,} samples take {bytes_text(kept)}; "
            f"the limit is {bytes_text(max_bytes)}: choose fewer neurons, samples or quantities"
        )
    working = 24 * net.steps * sum(math.prod(net.population(p).shape) for p in traced)
    if working > max_bytes:
        raise DataError(
            f"tracing {', '.join(traced)} needs {bytes_text(working)} for one sample while it runs; the limit is "
            f"{bytes_text(max_bytes)}: trace fewer populations at a time"
        )


def bytes_text(n: int) -> str:
    """Bytes in the unit in which memory is bought.

    >>> bytes_text(3 * 2**29), bytes_text(2000)
    ('1.5 GiB', '2.0 KiB')
    """
    power = 30 if n >= 2**30 else 20 if n >= 2**20 else 10
    return f"{n / 2**power:,.1f} {'KMG'[power // 10 - 1]}iB"
