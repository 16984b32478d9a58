"""Lava as one executor among several; nothing outside this folder knows it.

``build`` makes an ordinary Lava graph of a description, ``lava_executor`` runs a batch on it in a process of its own.
Importing this package does not import Lava.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compatibility import available, import_lava
    from .executor import Job, LavaRun, lava_executor, run_jobs
    from .graph import LavaNetwork, build
    from .netx import netx_executor, run_netx

__all__ = [
    "Job",
    "LavaNetwork",
    "LavaRun",
    "available",
    "build",
    "import_lava",
    "lava_executor",
    "netx_executor",
    "run_jobs",
    "run_netx",
]

_PLACES = {
    "Job": "executor",
    "LavaNetwork": "graph",
    "LavaRun": "executor",
    "available": "compatibility",
    "build": "graph",
    "import_lava": "compatibility",
    "lava_executor": "executor",
    "netx_executor": "netx",
    "run_jobs": "executor",
    "run_netx": "netx",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
