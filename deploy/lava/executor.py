"""Lava as an executor: a batch runs back to back in a process of its own, under a time limit.

An exception inside a Lava model can leave its other processes waiting for ever, so Lava never runs in the caller's
process. The worker has its own process group, which is ended as a whole: after an error, at the time limit, at Ctrl-C,
and by the worker itself if its parent vanishes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import errors
from ...arithmetic import fan_out
from ...errors import HOW_TO_GET_LAVA, ExecutionError, MissingDependencyError
from ...network import IntArray, Network
from ...recording import Recording, at_every_step
from ..schedule import Schedule, make_schedule
from .graph import ConvolutionAs

TIMEOUT_VARIABLE = "LAPILLI_LAVA_TIMEOUT"  # seconds; overrides the limit derived from the size
GRACE = 2.0  # seconds that the worker gets after a model's traceback before it counts as hanging
POLL = 0.02  # seconds
WORKER = ["-m", "lapilli.deploy.lava.worker"]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class LavaRun:
    """What came of one network.

    Attributes
    ----------
    recording : Recording
    chip_steps : int
        All steps that Lava ran, the filling and draining of the pipeline included.
    seconds : dict of float
        ``build``: compilation, start and the first sample; ``run``: the rest.
    steps_per_second : float or None
        Of the rest; None if there was one sample only.
    """

    recording: Recording
    chip_steps: int
    seconds: dict[str, float]
    steps_per_second: float | None


@dataclass(frozen=True)
class Job:
    """A network with its encoded input, the populations to trace, and how :func:`build` makes convolutions."""

    network: Network
    x: IntArray
    trace: Collection[str] = field(default_factory=tuple)
    convolution: ConvolutionAs = "sparse"


def lava_executor(network: Network, x: IntArray, trace: Collection[str] = ()) -> Recording:
    """Run a batch on Lava's fixed-point models; see :class:`lapilli.recording.Executor`.

    Raises
    ------
    MissingDependencyError
        If Lava is not installed.
    UnsupportedError
        If Lava cannot represent the network exactly.
    ExecutionError
        If Lava failed or ran past the time limit (environment variable ``LAPILLI_LAVA_TIMEOUT``, in seconds).
    """
    return run_jobs([Job(network, x, trace)])[0].recording


def run_jobs(jobs: Sequence[Job], timeout: float | None = None) -> list[LavaRun]:
    """Run several networks one after the other in one worker, which imports Lava once.

    Parameters
    ----------
    jobs : sequence of Job
    timeout : float, optional
        Seconds for all of them; otherwise ``LAPILLI_LAVA_TIMEOUT``, otherwise derived from their size.
    """
    if importlib.util.find_spec("lava") is None:
        raise MissingDependencyError(f"running on Lava needs lava-nc 0.10.0, which is not installed; {HOW_TO_GET_LAVA}")
    schedules = [make_schedule(job.network) for job in jobs]
    with tempfile.TemporaryDirectory(prefix="lapilli-lava-") as name:
        folder = Path(name)
        (folder / "jobs.json").write_text(json.dumps([_write(job, folder / str(i)) for i, job in enumerate(jobs)]))
        run_worker(folder, timeout if timeout is not None else time_limit(jobs, schedules), WORKER)
        return [_read(job, plan, folder / str(i)) for i, (job, plan) in enumerate(zip(jobs, schedules, strict=True))]


def _write(job: Job, here: Path) -> dict[str, Any]:
    """Leave a job's arrays in its folder; returns what is said about it in ``jobs.json``."""
    here.mkdir()
    network = job.network
    np.savez(here / "tensors.npz", **network.tensors())  # pyright: ignore[reportArgumentType]
    constant = job.x.ndim == len(network.input.shape) + 1
    frames = job.x if constant else at_every_step(network, job.x).swapaxes(0, 1).reshape(-1, *network.input.shape)
    np.save(here / "frames.npy", frames.astype(np.int32), allow_pickle=False)
    return {
        "structure": network.structure(),
        "samples": samples_of(job),
        "hold": network.steps if constant else 1,
        "trace": list(job.trace),
        "convolution": job.convolution,
    }


def samples_of(job: Job) -> int:
    """Number of samples in a job's batch."""
    return job.x.shape[job.x.ndim - len(job.network.input.shape) - 1]


def time_limit(jobs: Sequence[Job], schedules: Sequence[Schedule]) -> float:
    """Seconds, some ten times what a slow machine needs: it ends what hangs, not what is slow."""
    given = os.environ.get(TIMEOUT_VARIABLE)
    if given is not None:
        try:
            return float(given)
        except ValueError:
            raise ExecutionError(f"{TIMEOUT_VARIABLE} is {given!r}; give a number of seconds") from None
    seconds = 120.0
    for job, plan in zip(jobs, schedules, strict=True):
        network = job.network
        synapses = sum(
            int(fan_out(c.synapse, network.shape_of(c.source), network.shape_of(c.target)).sum())
            for c in network.connections
        )
        per_step = 0.02 * (1 + len(network.populations) + len(network.connections)) + 2e-7 * synapses
        seconds += 10 + plan.total_steps(samples_of(job)) * per_step
    return seconds


def run_worker(folder: Path, timeout: float, worker_command: Sequence[str]) -> None:
    """Run ``python *worker_command FOLDER`` to its end, or end it; raises what it left in ``error.json``."""
    log = folder / "log.txt"
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        worker = subprocess.Popen(  # noqa: S603
            [sys.executable, "-W", "ignore", *worker_command, str(folder)],
            stdin=subprocess.PIPE,  # the worker ends itself when this pipe closes
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        code = _wait(worker, log, timeout)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        if worker.stdin:
            worker.stdin.close()
    said = folder / "error.json"
    if said.exists():
        error = json.loads(said.read_text())
        kind = getattr(errors, error["kind"], ExecutionError)
        raise kind(error["message"])
    if code != 0:
        why = (
            f"Lava did not finish within {timeout:.0f} s (set {TIMEOUT_VARIABLE} for more)"
            if code is None
            else (f"Lava's process ended with code {code}")
        )
        raise ExecutionError(f"{why}; its last words: {_last_words(log)}")


def _wait(worker: subprocess.Popen[bytes], log: Path, timeout: float) -> int | None:
    """The worker's exit code, or None if it ran past its limit or hangs after an exception in a model."""
    deadline = time.monotonic() + timeout
    while worker.poll() is None:
        now = time.monotonic()
        if now > deadline:
            return None
        if b"Traceback (most recent call last)" in log.read_bytes():
            deadline = min(deadline, now + GRACE)
        time.sleep(POLL)
    return worker.returncode


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "Exception" in line]
    return (telling or lines or ["nothing"])[-1][:300]


def _read(job: Job, plan: Schedule, here: Path) -> LavaRun:
    network, out = job.network, Recording()

    def load(what: str, number: int) -> npt.NDArray[Any]:
        return np.load(here / f"{what}{number}.npy", allow_pickle=False)

    told = json.loads((here / "done.json").read_text())
    for number, p in enumerate(network.populations):
        if p.spikes:
            out.spikes[p.name] = np.ascontiguousarray(plan.by_sample(load("spikes", number)))
        else:
            out.v_final[p.name] = load("v_final", number)
        if p.name in job.trace:
            if (here / f"u{number}.npy").exists():
                out.u[p.name] = plan.by_sample(load("u", number)).astype(np.int64)
                out.v[p.name] = plan.by_sample(load("v", number)).astype(np.int64)
            if (here / f"current{number}.npy").exists():
                activation = plan.by_sample(load("current", number)).astype(np.int64)
                out.current[p.name] = activation << told["activation_shift"][p.name]
    seconds = {"build": told["build"], "run": told["run"]}
    rate = told["steps"] / told["run"] if told["steps"] else None
    return LavaRun(out, plan.total_steps(samples_of(job)), seconds, rate)
