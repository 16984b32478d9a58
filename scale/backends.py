"""Where independent tasks run: processes of this machine, or a Dask or Ray cluster.

A task is a call ``function(shared, item)``. Which worker takes it, and when, changes nothing about its result; results
come back numbered, in the order in which they are ready. A worker that dies takes its tasks with it: they run again, up
to ``RETRIES`` times, on another one.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from ..errors import ExecutionError, MissingDependencyError, UnsupportedError

Task: TypeAlias = Callable[[Any, Any], Any]  # (shared, item) -> result; both sides can be pickled
RETRIES = 3  # times that a task may lose its worker and run again
CONNECT_SECONDS = 10
_AHEAD = 2  # tasks per worker that are handed out: one runs, one waits


@dataclass(frozen=True)
class Backend:
    """Where tasks run.

    Attributes
    ----------
    name : {"joblib", "dask", "ray"}
    address : str
        Of a running cluster; "" starts workers on this machine.
    jobs : int
        Workers to start on this machine.
    """

    name: str = "joblib"
    address: str = ""
    jobs: int = 1

    @classmethod
    def parse(cls, text: str, jobs: int | None = None) -> Backend:
        """``joblib``, ``dask``, ``ray``, ``dask:tcp://host:8786`` or ``ray:host:6379``.

        Parameters
        ----------
        text : str
        jobs : int, optional
            Workers to start; by default the processors that this process may use.

        Raises
        ------
        UnsupportedError
            If there is no such backend, or an address or number of workers has no meaning there.
        MissingDependencyError
            If its package is not installed.
        """
        name, colon, address = text.partition(":")
        if name not in _RUNNERS:
            raise UnsupportedError(f"backend {text!r}: there is no {name!r}; lapilli has {', '.join(_RUNNERS)}")
        if colon and (name == "joblib" or not address):
            example = "dask:tcp://host:8786 or ray:host:6379"
            raise UnsupportedError(f"backend {text!r}: an address belongs to a cluster, for example {example}")
        if address and jobs is not None:
            raise UnsupportedError(f"backend {text!r}: the cluster has its own number of workers; leave --jobs out")
        if jobs is not None and jobs < 1:
            raise UnsupportedError(f"jobs {jobs} is below 1; give the number of workers")
        _package(name)
        return cls(name, address, processors() if jobs is None else jobs)

    def __str__(self) -> str:
        return f"{self.name}:{self.address}" if self.address else f"{self.name}, {self.jobs} workers"

    def run(self, function: Task, shared: Any, items: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
        """Run every task; yields (number, result) as they are ready.

        Parameters
        ----------
        function : callable
            ``(shared, item) -> result``, found by name in the workers: a function of a module.
        shared : Any
            The same for all tasks; sent to every worker of a cluster once.
        items : mapping
            By number.

        Raises
        ------
        ExecutionError
            If a task lost its worker more than ``RETRIES`` times, or the cluster cannot be reached.
        Exception
            What a task raises; the tasks that were not finished are given up.
        """
        return _RUNNERS[self.name](self, function, shared, items)


def processors() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _package(name: str) -> Any:
    package = {"dask": "distributed"}.get(name, name)
    try:
        return import_module(package)
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"backend {name!r} needs the package {package!r}, which is not installed; pip install 'lapilli[{name}]'"
        ) from None


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Workers that start here inherit that Ctrl-C is ignored: a terminal sends it to all, and we end them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _lost(backend: Backend, numbers: list[int]) -> ExecutionError:
    few = ", ".join(str(n) for n in sorted(numbers)[:4]) + (", ..." if len(numbers) > 4 else "")
    return ExecutionError(
        f"{backend.name}: workers died {RETRIES + 1} times on tasks {few} (killed, or out of memory?); what was "
        "finished is kept where there is a folder for it; go on with fewer --jobs"
    )


def _joblib(backend: Backend, function: Task, shared: Any, items: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    joblib = _package("joblib")
    # Who interrupts knows it, whenever the results that nobody waits for are collected.
    warnings.filterwarnings("ignore", message=".*(still being processed|successfully executed)", category=UserWarning)
    waiting = dict(items)
    deaths = dict.fromkeys(items, 0)
    while waiting:
        handed_out: list[int] = []

        def calls(todo: list[tuple[int, Any]], handed_out: list[int]) -> Iterator[Any]:
            for number, item in todo:
                handed_out.append(number)
                yield joblib.delayed(_numbered)(function, shared, number, item)

        parallel = joblib.Parallel(
            backend.jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=_AHEAD * backend.jobs
        )
        with _deaf_to_interrupts():  # the workers start here
            results = parallel(calls(list(waiting.items()), handed_out))
        try:
            for number, result in results:
                del waiting[number]
                yield number, result
        except BrokenProcessPool:  # joblib gives up the whole pool, and does not say which task it was
            lost = {number: waiting.pop(number) for number in handed_out if number in waiting}
            for number in lost:
                deaths[number] += 1
            if max(deaths.values()) > RETRIES:
                raise _lost(backend, list(lost)) from None
            waiting |= lost  # behind the others
        finally:
            results.close()


def _numbered(function: Task, shared: Any, number: int, item: Any) -> tuple[int, Any]:
    return number, function(shared, item)


def _dask(backend: Backend, function: Task, shared: Any, items: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    distributed = _package("dask")
    with ExitStack() as stack:
        if backend.address:
            try:
                client = stack.enter_context(distributed.Client(backend.address, timeout=CONNECT_SECONDS))
            except (OSError, ValueError, TimeoutError) as error:
                raise ExecutionError(f"no Dask scheduler answers at {backend.address!r} ({error})") from None
        else:
            quiet = {"dashboard_address": ":0", "silence_logs": "CRITICAL"}
            with _deaf_to_interrupts():
                cluster = distributed.LocalCluster(n_workers=backend.jobs, threads_per_worker=1, **quiet)
            client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        at_all = client.scatter(shared, broadcast=True, hash=False)
        coming = iter(items.items())
        numbers: dict[Any, int] = {}

        def hand_out() -> list[Any]:
            for number, item in coming:
                future = client.submit(function, at_all, item, pure=False)
                numbers[future] = number
                return [future]
            return []

        workers = max(1, len(client.scheduler_info()["workers"]))
        ready = distributed.as_completed([f for _ in range(_AHEAD * workers) for f in hand_out()])
        for future in ready:
            try:
                result = future.result()
            except distributed.KilledWorker:
                raise _lost(backend, [numbers[future]]) from None
            yield numbers.pop(future), result
            ready.update(hand_out())


def _ray(backend: Backend, function: Task, shared: Any, items: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    ray = _package("ray")
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        if backend.address:
            ray.init(address=backend.address, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(address="local", num_cpus=backend.jobs, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ExecutionError(f"no Ray cluster answers at {backend.address or 'this machine'!r} ({error})") from None
    try:
        task = ray.remote(max_retries=RETRIES)(function)
        at_all = ray.put(shared)
        coming = iter(items.items())
        running: dict[Any, int] = {}
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        while True:
            for number, item in coming:
                running[task.remote(at_all, item)] = number
                if len(running) >= _AHEAD * workers:
                    break
            if not running:
                return
            for reference in ray.wait(list(running))[0]:
                number = running.pop(reference)
                try:
                    yield number, ray.get(reference)
                except ray.exceptions.WorkerCrashedError:
                    raise _lost(backend, [number]) from None
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
    finally:
        ray.shutdown()


_RUNNERS: dict[str, Callable[[Backend, Task, Any, Mapping[int, Any]], Iterator[tuple[int, Any]]]] = {
    "joblib": _joblib,
    "dask": _dask,
    "ray": _ray,
}
