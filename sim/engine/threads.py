"""The engine's threads: one pool per process, made when it is first needed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

CHOICES = ("LAPILLI_THREADS", "OMP_NUM_THREADS")  # environment, the first one that is a number

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def count() -> int:
    """Threads to use: what the environment says, else the processors that this process may run on."""
    for name in CHOICES:
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) > 0:
            return int(value)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def pool() -> ThreadPoolExecutor | None:
    """The pool, or None for a single thread; a forked process gets its own."""
    n = count()
    if n == 1:
        return None
    key = (os.getpid(), n)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n, thread_name_prefix="lapilli")
    return _pools[key]
