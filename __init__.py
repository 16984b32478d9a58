"""lapilli: what you train is what the chip runs, bit for bit, and you know what it costs before you own the chip.

The short way through the rooms::

    net = lapilli.load("network.onnx")
    run = lapilli.simulate(net, x)
    equal = lapilli.verify(net, x, against=("onnxruntime", "lava"))
    cost = lapilli.energy(net, run, chip="loihi1")

The rooms are :mod:`lapilli.train`, :mod:`lapilli.export`, :mod:`lapilli.deploy` and :mod:`lapilli.sim`. Nothing
heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import deploy, export, sim, train
    from .errors import Error
    from .export import from_torch, load, save
    from .network import Connection, Conv2d, Dense, Input, Network, Population, Readout, Scale
    from .sim import energy, simulate, verify

__version__ = "0.1.0"

_ROOMS = ("deploy", "export", "sim", "train")
_HOMES = {
    "Error": "errors",
    **dict.fromkeys(("Connection", "Conv2d", "Dense", "Input", "Network", "Population", "Readout", "Scale"), "network"),
    **dict.fromkeys(("from_torch", "load", "save"), "export"),
    **dict.fromkeys(("energy", "simulate", "verify"), "sim"),
}

__all__ = [
    "Connection",
    "Conv2d",
    "Dense",
    "Error",
    "Input",
    "Network",
    "Population",
    "Readout",
    "Scale",
    "deploy",
    "energy",
    "export",
    "from_torch",
    "load",
    "save",
    "sim",
    "simulate",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'lapilli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
