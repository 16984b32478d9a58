"""A whole data set in parts: over processes or a cluster, kept on disk, gone on with after an interruption.

The parts are cut by the network and the data alone, never by the number of workers, and put together in order: the
result is that of :func:`lapilli.sim.simulate`, whatever ran where.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..errors import UnsupportedError
from ..network import Network
from ..scale.backends import Backend
from ..scale.kept import Kept, digest_of
from .executors import find
from .simulation import (
    Counts,
    Progress,
    Quantity,
    Run,
    batch_size,
    batches,
    count_samples,
    simulate,
    wanted_quantities,
)

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

PARTS = 64  # a data set is cut into about so many, small enough to be lost and large enough to be worth sending
SMALLEST_PART = 16  # samples

_PER_SAMPLE = {
    "payloads": 0,
    "synops": 0,
    "spikes": 1,
    "u": 1,
    "v": 1,
    "current": 1,
}  # axis of the samples
_SUMMED = ("events", "events_per_step", "synops_per_step")
_TOTALS = ("wraps", "saturations")


def simulate_in_parts(
    net: Network,
    x: npt.ArrayLike,
    engine: str = "fast",
    record: Mapping[str, Sequence[Quantity] | Quantity] | None = None,
    *,
    backend: Backend | str = "joblib",
    keep: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """:func:`lapilli.sim.simulate` over the workers of a backend; the same result, ``seconds`` added up over workers.

    Parameters
    ----------
    net, x, engine, record
        As for :func:`lapilli.sim.simulate`; the engine by its name.
    backend : Backend or str
        As :meth:`lapilli.scale.backends.Backend.parse` reads it; by default a process for every processor.
    keep : Path, optional
        Folder for the results of finished parts, at most ``lapilli.scale.kept.KEPT_BYTES``.
    resume : bool
        Take the parts that are there from an earlier call with the same network, data, engine and record.
    progress : callable, optional
        Called with (samples done, samples in all) after every part.

    Raises
    ------
    Error
        As :func:`lapilli.sim.simulate`; if workers keep dying; if ``keep`` holds results of something else.
    """
    if isinstance(backend, str):
        backend = Backend.parse(backend)
    if resume and keep is None:
        raise UnsupportedError("resume goes on with results in a folder; name it (--out)")
    find(engine)  # its complaint comes before any worker starts
    wanted = wanted_quantities(net, record or {})
    x = np.asarray(x)
    total = count_samples(net, x)
    size = max(SMALLEST_PART, math.ceil(total / PARTS))
    size = min(size, batch_size(net, [p for p, quantities in wanted.items() if set(quantities) - {"spikes"}]))
    parts = dict(enumerate(batches(net, x, size)))
    digest = net.digest()
    kept = None
    if keep is not None:
        what = {
            "network": digest,
            "data": digest_of(x),
            "engine": engine,
            "record": {name: list(quantities) for name, quantities in wanted.items()},
            "samples_per_part": size,
            "version": __version__,
        }
        kept = Kept(keep, what, resume=resume)
    found = {} if kept is None else {n: there for n in parts if (there := kept.load(n)) is not None}
    axis = x.ndim - len(net.input.shape) - 1
    done = sum(parts[n].shape[axis] for n in found)
    missing = {n: part for n, part in parts.items() if n not in found}
    if progress and found:
        progress(done, total)
    for number, arrays in backend.run(_part, (digest, net, engine, wanted), missing):
        found[number] = arrays
        if kept is not None:
            kept.save(number, arrays)
        done += parts[number].shape[axis]
        if progress:
            progress(done, total)
    return _together(net, engine, [found[n] for n in sorted(found)])


_networks: dict[str, Network] = {}  # of this worker: the engine's preparations belong to the object


def _part(shared: tuple[str, Network, str, Mapping[str, Sequence[Quantity]]], x: npt.NDArray[Any]) -> Arrays:
    """Simulate a part in a worker."""
    digest, net, engine, record = shared
    if digest not in _networks:
        _networks.clear()
        _networks[digest] = net
    return packed(simulate(_networks[digest], x, engine, record))


def packed(run: Run) -> Arrays:
    """A run as plain arrays, counts in the narrowest type that holds them: to be sent and kept."""
    head: dict[str, Any] = {"n_samples": run.n_samples, "seconds": run.seconds}
    arrays: Arrays = {}
    for field in fields(Run):
        value = getattr(run, field.name)
        if field.name in _TOTALS:
            head[field.name] = value
        elif isinstance(value, Mapping):
            head[field.name] = list(value)
            arrays |= {f"{field.name}/{i}": _narrow(array) for i, array in enumerate(value.values())}
        elif isinstance(value, np.ndarray):
            arrays[field.name] = _narrow(value)
    return arrays | {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)}


def _narrow(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    return array


def _together(net: Network, engine: str, parts: list[Arrays]) -> Run:
    """One run of parts in order."""
    heads = [json.loads(bytes(part["head"])) for part in parts]

    def by_name(field: str) -> dict[str, list[npt.NDArray[Any]]]:
        return {name: [part[f"{field}/{i}"] for part in parts] for i, name in enumerate(heads[0][field])}

    def joined(field: str) -> dict[str, Any]:
        def dtype(name: str) -> type[np.integer[Any]]:
            return net.population(name).spike_dtype if field == "spikes" else np.int64

        return {name: np.concatenate(a, _PER_SAMPLE[field]).astype(dtype(name)) for name, a in by_name(field).items()}

    def summed(field: str) -> dict[str, Any]:
        return {name: np.sum(arrays, axis=0, dtype=np.int64) for name, arrays in by_name(field).items()}

    def totals(field: str) -> dict[str, int]:
        return {name: sum(head[field][name] for head in heads) for name in heads[0][field]}

    def end_to_end(field: str) -> Any:
        return np.concatenate([part[field] for part in parts]).astype(np.int64)

    rest: dict[str, Any] = {field: joined(field) for field in _PER_SAMPLE}
    rest |= {field: summed(field) for field in _SUMMED}
    rest |= {field: totals(field) for field in _TOTALS}
    return Run(
        network=net,
        engine=engine,
        steps=net.steps,
        n_samples=sum(head["n_samples"] for head in heads),
        seconds=sum(head["seconds"] for head in heads),
        counts=Counts({name: np.concatenate(arrays) for name, arrays in by_name("counts").items()}),  # narrow as packed
        input_events=end_to_end("input_events"),
        scores=end_to_end("scores") if "scores" in parts[0] else None,
        **rest,
    )
