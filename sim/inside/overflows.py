"""Where states leave their width: every wrap of a current and saturation of a membrane, with its place.

An engine only counts these events. Here batches in which it counted any are run again with traces, and the traces go
once more through :func:`lapilli.arithmetic.neuron_step`, one step at a time, each from the state that the engine left
before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...arithmetic import Step, neuron_step, saturate
from ...bounds import population_bounds
from ...errors import UnsupportedError
from ...network import IntArray, Network, Population
from ...recording import Executor, Recording
from ..executors import find, name_of
from ..simulation import batch_size, batches, count_samples
from .selection import name_neuron

EVENTS = 1000  # events kept unless the caller says otherwise
KINDS = ("current wraps", "membrane saturates")


class Overflow(NamedTuple):
    """One number that left its width."""

    sample: int
    step: int
    population: str
    neuron: int  # flat index in C order
    kind: str  # one of KINDS
    before: int  # the exact value, in state units
    after: int  # what it became

    def describe(self, net: Network) -> str:
        """One line, the neuron named as ``--trace`` wants it."""
        p = net.population(self.population)
        return (
            f"sample {self.sample}, step {self.step}, {name_neuron(p.name, p.shape, self.neuron)}: {self.kind}, "
            f"{self.before:,} to {self.after:,} ({p.state_bits} bits)"
        )


def overflow_events(
    net: Network,
    x: npt.ArrayLike,
    populations: Collection[str] | None = None,
    engine: str | Executor = "fast",
    limit: int = EVENTS,
) -> list[Overflow]:
    """The first overflow events of a run, by sample, step, topological order of the populations, and neuron.

    Parameters
    ----------
    net : Network
    x : [B, *shape] or [T, B, *shape]
        As for :func:`lapilli.sim.simulate`.
    populations : names, optional
        Where to look; by default wherever the worst case (:mod:`lapilli.bounds`) leaves room for an event. A run's
        ``overflows`` names those that had any.
    engine : str or Executor
        One that shows the current, ``u`` and ``v``; the events are the same.
    limit : int
        Stop after that many events: samples after it are not run.

    Returns
    -------
    list of Overflow
        At most ``limit``.
    """
    executor, name = (find(engine), engine) if isinstance(engine, str) else (engine, name_of(engine))
    x = np.asarray(x)
    count_samples(net, x)
    watched = [p for p in net.order if _can_overflow(net, p)] if populations is None else _ordered(net, populations)
    found: list[Overflow] = []
    first = 0
    if not watched or limit < 1:
        return found
    names = [p.name for p in watched]
    for part in batches(net, x, batch_size(net)):
        for offset, recording, traced in traced_where(net, part, executor, [], names):
            rows = [_events(recording, p, rank, limit, name) for rank, p in enumerate(watched) if p.name in traced]
            if not rows:
                continue
            for sample, step, rank, neuron, kind, *values in first_rows(
                np.concatenate(rows), limit - len(found)
            ).tolist():
                found.append(Overflow(first + offset + sample, step, names[rank], neuron, KINDS[kind], *values))
            if len(found) == limit:
                return found
        first += part.shape[part.ndim - len(net.input.shape) - 1]
    return found


def traced_where(
    net: Network, part: npt.NDArray[Any], executor: Executor, always: list[str], on_overflow: list[str]
) -> Iterator[tuple[int, Recording, list[str]]]:
    """Run a batch; if populations of ``on_overflow`` overflow in it, run it again with traces of them.

    Yields
    ------
    offset, recording, traced
        Of the batch, or of each piece of it that fits memory with these traces: its first sample in the batch, and
        which populations are traced: ``always``, and those of ``on_overflow`` that overflowed (or were not counted).
    """
    recording = executor(net, net.input.encode(part), always)
    overflowed = [
        name
        for name in on_overflow
        if name not in always and (recording.wraps.get(name) != 0 or recording.saturations.get(name) != 0)
    ]
    if not overflowed:
        yield 0, recording, always
        return
    traced, offset = [*always, *overflowed], 0
    for piece in batches(net, part, batch_size(net, traced)):
        yield offset, executor(net, net.input.encode(piece), traced), traced
        offset += piece.shape[piece.ndim - len(net.input.shape) - 1]


class Trajectory(NamedTuple):
    """A traced population at one step: the state before it, and what arrives; int64 [B, *shape] each."""

    step: int
    u: IntArray
    v: IntArray
    drive: IntArray


def trajectory(recording: Recording, p: Population, engine: str) -> Iterator[Trajectory]:
    """The steps of a traced population.

    Raises
    ------
    UnsupportedError
        If the engine did not show current, ``u`` and ``v``.
    """
    missing = [q for q in ("current", "u", "v") if p.name not in getattr(recording, q)]
    if missing:
        raise UnsupportedError(f"{engine} cannot show {missing[0]!r} of {p.name!r}; use the engine 'fast'")
    u, v = np.zeros_like(recording.u[p.name][0]), np.full_like(recording.v[p.name][0], p.v_init)
    for n, drive in enumerate(recording.current[p.name]):
        yield Trajectory(n, u, v, drive)
        u, v = recording.u[p.name][n], recording.v[p.name][n]


def _can_overflow(net: Network, p: Population) -> bool:
    bounds = population_bounds(net, p)
    return bounds.can_wrap or bounds.can_saturate


def _ordered(net: Network, populations: Collection[str]) -> list[Population]:
    wanted = {net.population(name).name for name in populations}
    return [p for p in net.order if p.name in wanted]


def _events(recording: Recording, p: Population, rank: int, limit: int, engine: str) -> npt.NDArray[np.int64]:
    """The first events of one population: int64 [E, 7], columns as in :class:`Overflow`."""
    kept = np.empty((0, 7), np.int64)
    if recording.wraps.get(p.name) == 0 and recording.saturations.get(p.name) == 0:
        return kept
    for at in trajectory(recording, p, engine):
        step = neuron_step(p, at.u, at.v, at.drive)
        new = [_rows(at.step, rank, kind, *values) for kind, values in enumerate(_overflowing(p, step))]
        if any(map(len, new)):
            kept = first_rows(np.concatenate([kept, *new]), limit)
    return kept


def _overflowing(p: Population, step: Step) -> Iterator[tuple[Any, Any, Any]]:
    """Mask, value before and value after, for each of KINDS."""
    yield step.wrapped, step.exact_u, step.u
    yield step.saturated, step.exact_v, saturate(step.exact_v, p.state_bits)


def _rows(
    step: int, rank: int, kind: int, mask: npt.NDArray[np.bool_], before: IntArray, after: IntArray
) -> npt.NDArray[np.int64]:
    sample, neuron = np.nonzero(mask.reshape(len(mask), -1))
    constant = (np.full(len(sample), value) for value in (step, rank))
    return np.stack([sample, *constant, neuron, np.full(len(sample), kind), before[mask], after[mask]], axis=1)


def first_rows(rows: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """The first rows in the order of their columns."""
    return rows[np.lexsort(rows.T[::-1])][:limit]
