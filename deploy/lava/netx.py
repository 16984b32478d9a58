"""lava-dl's own loader as an executor: the network goes through a ``.net`` file and ``netx.hdf5.Network``.

What runs is lava-dl's reading of the file, in a process of its own as in :mod:`.executor`. Samples run back to back:
netx gives layer ``k`` a reset at the chip steps ``t = reset_offset + 1 + k`` modulo ``reset_interval``, and with
``reset_offset = 1`` that is the first step of its window in our schedule, so what biases did before is wiped.
Delays and recurrent connections carry spikes past a window's end, where netx has no way to drop them; such networks
are built and run once per sample.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import HOW_TO_GET_LAVA, MissingDependencyError, UnsupportedError
from ...network import Conv2d, IntArray, Network
from ...recording import Recording, at_every_step
from ..schedule import make_schedule
from .executor import TIMEOUT_VARIABLE, Job, run_worker, samples_of, time_limit
from .graph import CONV_SIZE_MAX
from .netx_compatibility import HOW_TO_GET_LAVA_DL

WORKER = ["-m", "lapilli.deploy.lava.netx_worker"]
BUILD_SECONDS = 20.0  # allowed for compiling and starting one network
CONV_SLOWNESS = 10.0  # allowed for Lava's Conv, which walks over pairs of channels in Python


def netx_executor(network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
    """Run a batch through lava-dl's loader; see :class:`lapilli.recording.Executor`.

    Traces have ``u`` and ``v``; netx does not show the current.

    Raises
    ------
    MissingDependencyError
        If Lava, lava-dl or h5py is not installed.
    UnsupportedError
        If a ``.net`` file cannot say the network exactly.
    ExecutionError
        If Lava failed or ran past the time limit (environment variable ``LAPILLI_LAVA_TIMEOUT``, in seconds).
    """
    return run_netx([Job(network, x, trace)])[0]


def run_netx(jobs: Sequence[Job], timeout: float | None = None) -> list[Recording]:
    """Run several networks one after the other in one worker, which imports Lava once."""
    _check_installed()
    with tempfile.TemporaryDirectory(prefix="lapilli-netx-") as name:
        folder = Path(name)
        (folder / "jobs.json").write_text(json.dumps([_write(job, folder / str(i)) for i, job in enumerate(jobs)]))
        run_worker(folder, timeout if timeout is not None else _time_limit(jobs), WORKER)
        return [_read(job, folder / str(i)) for i, job in enumerate(jobs)]


def _time_limit(jobs: Sequence[Job]) -> float:
    """Seconds; more than for our own graphs, because Lava's ``Conv`` is slow and some are built for every sample."""
    once = time_limit(jobs, [make_schedule(job.network) for job in jobs])
    if TIMEOUT_VARIABLE in os.environ:
        return once
    return CONV_SLOWNESS * once + BUILD_SECONDS * sum(samples_of(j) if carries_over(j.network) else 1 for j in jobs)


def carries_over(network: Network) -> bool:
    """Whether a spike of one sample could reach the next one's window."""
    return any(c.delay for c in network.connections)


def _check_installed() -> None:
    for package, what, remedy in (
        ("lava", "lava-nc 0.10.0", HOW_TO_GET_LAVA),
        ("lava.lib.dl.netx", "lava-dl 0.6.0", HOW_TO_GET_LAVA_DL),
        ("h5py", "the package 'h5py'", "pip install h5py"),
    ):
        try:
            found = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:  # a parent package is missing
            found = False
        if not found:
            raise MissingDependencyError(f"executor 'netx' needs {what}, which is not installed; {remedy}")


def _write(job: Job, here: Path) -> dict[str, Any]:
    """Leave the file and the input in a job's folder; returns what is said about it in ``jobs.json``."""
    from ...export.netx.writing import chain_of, message_bits, net_layers, save_net

    here.mkdir()
    network = job.network
    _check_sizes(network)
    save_net(network, here / "network.net")
    constant = job.x.ndim == len(network.input.shape) + 1
    frames = job.x if constant else at_every_step(network, job.x).swapaxes(0, 1).reshape(-1, *network.input.shape)
    # Lava's convolutions have the order (X, Y, C); dense layers take (N,).
    first = next(layer.kind for layer in net_layers(network)[1:])
    frames = frames.transpose(0, 3, 2, 1) if first == "conv" else frames.reshape(len(frames), -1)
    np.save(here / "frames.npy", np.ascontiguousarray(frames, np.int32), allow_pickle=False)
    return {
        "message_bits": message_bits(network),
        "steps": network.steps,
        "samples": samples_of(job),
        "hold": network.steps if constant else 1,
        "apart": carries_over(network),
        "layers": [{"name": p.name, "spikes": p.spikes, "traced": p.name in job.trace} for p in chain_of(network)],
    }


def _check_sizes(network: Network) -> None:
    """Lava's Conv keeps its sizes in int8, which NumPy 2 adds without widening; our own graphs have another way."""
    if np.__version__.startswith("1."):
        return
    for c in network.connections:
        if isinstance(c.synapse, Conv2d):
            sizes = network.shape_of(c.source)[1:]
            padded = max(size + 2 * p for size, p in zip(sizes, c.synapse.padding, strict=True))
            if padded > CONV_SIZE_MAX:
                raise UnsupportedError(
                    f"connection {c.name!r}: {padded} padded pixels; with NumPy {np.__version__} Lava's Conv "
                    f"fails beyond {CONV_SIZE_MAX}, so compare with the executor 'lava', or run netx beside NumPy 1.26"
                )


def _read(job: Job, here: Path) -> Recording:
    network, out = job.network, Recording()
    samples, steps = samples_of(job), network.steps

    def load(what: str, name: str) -> npt.NDArray[Any]:
        shape = network.population(name).shape
        data = np.load(here / f"{what}-{name}.npy", allow_pickle=False)
        if data.ndim == 4:  # (X, Y, C)
            data = data.transpose(0, 3, 2, 1)
        return data.reshape(len(data), *shape)

    def by_sample(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(data.reshape(samples, steps, *data.shape[1:]).swapaxes(0, 1))

    for p in network.populations:
        if p.spikes:
            out.spikes[p.name] = by_sample(load("spikes", p.name)).astype(np.uint8)
        else:
            out.v_final[p.name] = load("v_final", p.name)
        if p.name in job.trace:
            out.u[p.name] = by_sample(load("u", p.name)).astype(np.int64)
            out.v[p.name] = by_sample(load("v", p.name)).astype(np.int64)
    return out
